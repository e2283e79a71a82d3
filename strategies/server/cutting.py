"""How the user's network is cut: where, for each client, and into what.

A cut point is stated, or ``auto``: that which takes a client least. Bits and shares of the channels
that are ``auto``, too, are chosen together with it.
"""

import difflib
import functools
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fleet.clock import Rule
from fleet.cost import RoundCost
from fleet.cost import cost as cost_on
from fleet.per_client import AUTO, DEFAULT, PerClient
from fleet.plan import Fleet
from fleet.population import Client as FleetClient
from fleet.selection import num_selected
from fleet.work import ClientWork
from models.cost import Cost
from models.inputs import Inputs, example_of
from models.slices import Channels
from models.split import at_fraction, before, kept_whole, last_layer
from quant.codec import LinkSettings
from quant.layers import FULL_PRECISION, QuantSpec
from quant.settings import QUANTIZERS, QuantSettings
from strategies import messages
from strategies.client.split_loop import CutAt, Side, halves, layers_on_device, quantized
from strategies.messages import SHARE
from strategies.server.cuts import (
    Choice,
    CutName,
    CutNetwork,
    PartCosts,
    Place,
    RoundWork,
    part_costs,
    tested_through_the_link,
)
from strategies.server.kinds import (
    Making,
    SubmodelSettings,
    Widths,
    bits_name,
    check_per_client,
    share_name,
    sliceable,
)
from strategies.server.method import Clients, RoundSettings
from strategies.server.planning import Planning, say
from strategies.server.varied import Kind
from strategies.server.workload import Pieces, split_round

log = logging.getLogger(__name__)

# Keys that methods over a cut read.
READS = (*QUANTIZERS, "quant.side", "split.cut", "link", "fleet.objective", "train.server_lr")
HEAD = "head"
NOT_NARROW = "no layer on the device can have fewer channels"


@dataclass(frozen=True)
class SplitSettings:
    """The group split of the configuration."""

    cut: Any = field(
        default="stage1",
        metadata={
            "help": "cut point (see python -m app.cuts), share of the FLOPs, auto (best on the "
            "fleet), or one per client: '{0: …, phone_low: …, default: …}'"
        },
    )
    tail: str = field(
        default=HEAD, metadata={"help": "ushaped: first module of the client's last part"}
    )

    def cuts(self) -> PerClient[CutName]:
        """The cut of each client."""
        return PerClient.of("split.cut", self.cut)


@dataclass(frozen=True)
class Candidate:
    """A cut point that ``split.cut=auto`` looks at.

    Attributes:
        model: the network, quantized where it is to be.
        input_shape: of one sample.
        pieces: the network cut everywhere.
        name: the cut point.
        tail: the second one; empty for none.
    """

    model: nn.Module
    input_shape: Inputs
    pieces: Pieces
    name: str
    tail: str


def plain_costs(candidate: Candidate) -> PartCosts:
    """What the parts would cost as they are."""
    return candidate.pieces.at(candidate.name, candidate.tail)


@dataclass(frozen=True)
class Cut:
    """Cuts the user's network, and quantizes both parts or the device's.

    Attributes:
        split: the cut of each client, and the tail.
        link: codecs at the cut.
        spec: bit widths, where the network is quantized.
        side: which part is.
        objective: what ``auto`` makes least: ``seconds`` or ``joules`` of a round.
        widths: where clients have bits of their own, in place of ``spec``.
        submodel: which share of their channels a client's layers on the device have.
        plan: what decides where cuts or bits are ``auto``.
        takes_mapping: whether clients may have cuts of their own.
        is_u_shaped: whether the device has the last part, too.
        relays_part: whether the device's part crosses in a round; for ``auto``.
        costs_at: what the parts would cost at a cut, for ``auto``.
        round_work: what a round takes a client, of these costs.
    """

    split: SplitSettings = field(default_factory=SplitSettings)
    link: LinkSettings = field(default_factory=LinkSettings)
    spec: QuantSpec = field(default_factory=lambda: QuantSpec(weight_bits=32, act_bits=32))
    side: Side = field(default_factory=Side)
    objective: str = "seconds"
    widths: Widths | None = None
    submodel: SubmodelSettings = field(default_factory=SubmodelSettings)
    plan: Planning = field(default_factory=lambda: Planning.of(None, "seconds"))
    takes_mapping: bool = False
    is_u_shaped: bool = False
    relays_part: bool = True
    costs_at: Callable[[Candidate], PartCosts] = plain_costs
    round_work: RoundWork = split_round

    @staticmethod
    def of(
        split: SplitSettings | None,
        link: LinkSettings | None,
        quant: QuantSettings | None,
        objective: str,
        takes_widths: bool = False,
        **kind: Any,
    ) -> "Cut":
        """Return what the configuration's groups say; ``kind`` is the method's.

        Raises:
            ValueError: clients have bits of their own, which the method does not take.
        """
        quant = quant or QuantSettings()
        widths = Widths(quant, FULL_PRECISION) if takes_widths and quant.is_per_client else None
        return Cut(
            split=split or SplitSettings(),
            link=link or LinkSettings(),
            spec=quant.spec() if widths is None else widths.specs()[0],
            widths=widths,
            side=Side(quant.side),
            objective=objective,
            **kind,
        )

    def check(self, rounds: RoundSettings) -> None:
        """Refuse cuts that cannot be, as far as the settings tell.

        Raises:
            ValueError: names split.cut or split.tail.
        """
        cuts = self.split.cuts()
        if cuts.is_mapping and not self.takes_mapping:
            raise ValueError(
                "split.cut: a mapping needs clients that train in parallel from halves of their "
                "own: splitfed_v1 or splitfed_v3"
            )
        if self.is_u_shaped and not self.split.tail:
            raise ValueError("split.tail=: takes a module with which the device's last part begins")
        if not cuts.values:
            raise ValueError("split.cut={}: takes a cut point or a mapping to cut points")
        for cut in cuts.values.values():
            is_share = isinstance(cut, float) and 0 < cut < 1
            if not is_share and not isinstance(cut, str):
                raise ValueError(f"split.cut={cut}: takes a cut point, or a share in (0, 1)")
        cuts.check(rounds.fleet, rounds.num_clients)
        if self.widths is not None:
            self.widths.check(rounds)
        check_per_client(self.submodel.shares(), rounds)
        named = set(cuts.values.values())
        varies = len(named) > 1 or AUTO in named
        if varies and self.side.name == "client":
            raise ValueError("quant.side=client: takes one stated cut for all clients")

    def prepare(
        self,
        model: nn.Module,
        input_shape: Inputs,
        clients: Clients,
        rounds: RoundSettings,
        rule: Rule,
    ) -> CutNetwork:
        """Cut the network, and compare the parts with the whole.

        Raises:
            ValueError: it cannot be cut there; names split.cut or split.tail, and the nearest.
        """
        submodel, channels = sliceable(self.submodel, model, input_shape)
        if submodel is not self.submodel:
            return replace(self, submodel=submodel).prepare(
                model, input_shape, clients, rounds, rule
            )
        example, objective = example_of(input_shape), rounds.task.objective()
        specs, shares = self._specs, submodel.stated_shares()
        choice_of, choices = self._choices(model, input_shape, channels, clients, rounds, rule)
        splits = {
            name: self._resolve(model, name, input_shape)
            for name in dict.fromkeys(name for name, _, _ in choices)
        }
        making = None
        if len(specs) > 1 or shares != [1.0]:
            first = next(iter(splits.values()))
            quantize = functools.partial(quantized, side=self.side, split=first)
            making = Making(
                model,
                input_shape,
                specs,
                shares,
                channels,
                weighting=submodel.weighting,
                quantize=quantize,
            )
        places = {}
        for name, spec, share in choices:
            split = splits[name]
            try:
                kind = None if making is None else kind_at(making, model, split, spec, share)
                whole = (
                    quantized(model, spec, self.side, split) if kind is None else kind.view.model
                )
                parts = halves(whole, split, example)
                names = parts.device_names()
            except ValueError as error:
                tail = f" split.tail={self.split.tail}" if self.is_u_shaped else ""
                raise ValueError(f"split.cut={name}{tail}: {error}") from error
            place = Place(split, parts, names, input_shape, part_costs, kind)
            places[name, spec, share] = place
        widths = {"weight_bits": self.spec.weight_bits, "act_bits": self.spec.act_bits}
        told = messages.pack_settings(quant=self.spec) if making is None else {}
        return CutNetwork(
            model=whole if making is None else making.whole,
            clients=clients,
            places=places,
            choice_of=choice_of,
            link=self.link,
            settings={**told, **messages.pack_settings(side=self.side, link=self.link)},
            described=widths if making is None else {},
            tested=tested_through_the_link,
            round_work=self.round_work,
            objective=objective,
            fresh={} if making is None else making.fresh(),
        )

    @property
    def _specs(self) -> list[QuantSpec]:
        """The bit widths that there may be."""
        return [self.spec] if self.widths is None else self.widths.specs()

    def _choices(
        self,
        model: nn.Module,
        input_shape: Inputs,
        channels: Channels | None,
        clients: Clients,
        rounds: RoundSettings,
        rule: Rule,
    ) -> tuple[Callable[[int, str], Choice], Sequence[Choice]]:
        """What a client has, given its partition and device, and all that there may be."""
        cuts, shares = self.split.cuts(), self.submodel.shares()
        if open_keys := self._open_keys():
            known = Known.of(clients, open_keys)
            if self.takes_mapping:
                costs = self._costs_of_choices(model, input_shape, channels)
                best = self.best_choices(costs, known, rounds, rule)
                return best.of_client, list(dict.fromkeys(best.values.values()))
            whole = quantized(model, self.spec, self.side, None)
            cuts = self.best_cut(self._candidates(whole, input_shape), known, rounds, rule)

        def choice_of(partition: int, device: str) -> Choice:
            spec = self.spec if self.widths is None else self.widths.spec_of(partition, device)
            share = float(shares.of_client(partition, device))
            return cuts.of_client(partition, device), spec, share

        names = dict.fromkeys(cuts.values.values())
        stated = itertools.product(names, self._specs, self.submodel.stated_shares())
        return choice_of, list(stated)

    def _open_keys(self) -> list[str]:
        """The keys that the user leaves open."""
        given = {
            "split.cut": self.split.cuts().values.values(),
            SHARE: self.submodel.shares().values.values(),
        }
        is_open = self.widths is not None and self.widths.is_auto
        found = [key for key, values in given.items() if AUTO in values]
        return [f"{key}={AUTO}" for key in [*found, *(["quant.bits"] if is_open else [])]]

    def best_choices(
        self, costs: Mapping[Choice, PartCosts], known: "Known", rounds: RoundSettings, rule: Rule
    ) -> PerClient[Choice]:
        """Return the best cut, bits and share for each client, of those that the user leaves open.

        By the plan what takes it least; without one the most bit operations with which it ends in
        time, each bits and share at its best cut. The server's part is priced with all of its
        channels.
        """
        fleet, sizes, device = known.fleet, known.sizes, known.clients.device
        label = self.plan.label if self.plan.settings.is_auto else ", ".join(self._open_keys())
        log.info("%s: %d choices of cut, bits and share", label, len(costs))
        bops = {
            choice: sum(part.bops for part in [*device, server])
            for choice, (device, server) in costs.items()
        }
        in_order, most = sorted(costs, key=bops.__getitem__), max(bops.values(), default=0)
        participants = num_selected(rounds.clients_per_round, len(sizes))
        cuts, shares = self.split.cuts(), self.submodel.shares()

        @functools.cache
        def work(choice: Choice, samples: int) -> ClientWork:
            return self._work(costs[choice], samples, rounds)

        priced: dict[tuple[Choice, int, int, int], RoundCost] = {}  # alike for alike phones

        def price_of(choice: Choice, client: FleetClient, samples: int) -> RoundCost:
            key = choice, samples, id(client.device), id(client.link)
            if key not in priced:
                priced[key] = cost_on(
                    work(choice, samples), client.device, client.link, fleet.server, rule,
                    participants,
                )  # fmt: skip
            return priced[key]

        def may_have(choice: Choice, partition: int) -> bool:
            (cut, spec, share), name = choice, device(partition)
            return (
                cuts.of_client(partition, name) in (AUTO, cut)
                and shares.of_client(partition, name) in (AUTO, share)
                and (self.widths is None or self.widths.takes(spec, partition, name))
            )

        best: dict[str, Choice] = {DEFAULT: in_order[0]} if in_order else {}
        for p, samples in sizes.items():
            client, open_ = fleet.clients[p], [one for one in in_order if may_have(one, p)]
            if not open_:
                cut, share = (one.of_client(p, device(p)) for one in (cuts, shares))
                raise ValueError(f"split.cut={cut}: {SHARE}={share}: {NOT_NARROW}")
            price = {choice: price_of(choice, client, samples) for choice in open_}
            if not self.plan.settings.is_auto:
                open_ = best_of_each(open_, price, self.objective)
            index = self.plan.choose(
                [price[choice] for choice in open_],
                [bops[choice] / most for choice in open_],
                p, device(p), fleet.deadline_s,
            )  # fmt: skip
            best[str(p)] = open_[index]
        say(label, {p: self._named(best[str(p)]) for p in sizes}, device)
        return PerClient("plan", best)

    def _named(self, choice: Choice) -> str:
        """As the log says it."""
        cut, spec, share = choice
        bits = [bits_name(spec)] if self.widths is not None else []
        shares = [share_name(share)] if self.submodel.stated_shares() != [1.0] else []
        return " ".join([str(cut), *shares, *bits])

    def _costs_of_choices(
        self, model: nn.Module, input_shape: Inputs, channels: Channels | None
    ) -> dict[Choice, PartCosts]:
        """What the parts cost with each cut, bits and share that a client may have."""
        given, found = self.split.cuts().values.values(), dict[Choice, PartCosts]()
        named = {cut: self._resolve(model, cut, input_shape).cut for cut in given if cut != AUTO}
        for spec in self._specs:
            at_shares = costs_of_shares(
                model,
                self.submodel.stated_shares(),
                channels,
                lambda narrow, spec=spec: self._candidates(  # type: ignore[misc]
                    quantized(narrow, spec, self.side, None), input_shape
                ),
            )
            for share, costs in at_shares.items():
                names = named or {name: name for name in costs}
                found |= {(cut, spec, share): costs[at] for cut, at in names.items() if at in costs}
        return found

    def best_cut(
        self, costs: Mapping[str, PartCosts], known: "Known", rounds: RoundSettings, rule: Rule
    ) -> PerClient[CutName]:
        """Return the best cut for all clients, where the server has one part."""
        names = list(costs)

        @functools.cache
        def work(name: str, samples: int) -> ClientWork:
            return self._work(costs[name], samples, rounds)

        works = [{p: work(name, samples) for p, samples in known.sizes.items()} for name in names]
        best = names[known.fleet.best(works, rule, self.objective)]
        log.info("split.cut=%s: %s", AUTO, best)
        return PerClient("split.cut", {DEFAULT: best})

    def _work(self, costs: PartCosts, samples: int, rounds: RoundSettings) -> ClientWork:
        """What a round takes a client whose parts cost this."""
        device, server = costs
        sent = sum(part.model_bytes for part in device) if self.relays_part else 0
        labels_of = rounds.task.objective().label_bytes
        return self.round_work(
            device, server, samples, rounds.train, self.link, (sent, sent), labels_of
        )

    def _candidates(self, model: nn.Module, input_shape: Inputs) -> dict[str, PartCosts]:
        """What the parts would cost at each cut point that the method takes."""
        try:
            kept_whole(model, example_of(input_shape))  # says why there are no cut points
        except ValueError as error:
            raise ValueError(f"split.cut={AUTO}: {error}") from error
        pieces, tail = Pieces.of(model, input_shape), self._tail(model, input_shape)
        if tail and tail not in pieces.names:
            nearest = ", ".join(difflib.get_close_matches(tail, pieces.names, cutoff=0.0))
            raise ValueError(
                f"split.tail={self.split.tail}: no such cut point; the nearest are {nearest}"
            )
        costs, refusal = dict[str, PartCosts](), "it has no cut points"
        for at in pieces.names[: pieces.names.index(tail)] if tail else pieces.names:
            try:
                costs[at] = self.costs_at(Candidate(model, input_shape, pieces, at, tail))
            except ValueError as error:
                refusal = f"split.cut={at}: {error}"
        if not costs:
            raise ValueError(f"split.cut={AUTO}: the network cannot be cut anywhere; {refusal}")
        return costs

    def _tail(self, model: nn.Module, input_shape: Inputs) -> str:
        """Return the name of the second cut point, if there is one."""
        modules, given = dict(model.named_modules()), self.split.tail if self.is_u_shaped else ""
        tail = given
        try:
            if tail == HEAD and HEAD not in modules:
                tail = last_layer(model)
            return (
                before(model, tail, example_of(input_shape)).name
                if tail and tail in modules
                else tail
            )
        except ValueError as error:
            raise ValueError(f"split.tail={given}: {error}") from error

    def _resolve(self, model: nn.Module, cut: CutName, input_shape: Inputs) -> CutAt:
        try:
            at = (
                cut
                if isinstance(cut, str)
                else at_fraction(model, example_of(input_shape), cut).name
            )
        except ValueError as error:
            raise ValueError(f"split.cut={cut}: {error}") from error
        return CutAt(at, self._tail(model, input_shape))


@dataclass(frozen=True)
class Known:
    """Clients of whom enough is known to choose for them.

    Attributes:
        clients: all of them.
        fleet: theirs.
        sizes: samples of those with data and a device.
    """

    clients: Clients
    fleet: Fleet
    sizes: Mapping[int, int]

    @staticmethod
    def of(clients: Clients, open_keys: Sequence[str]) -> "Known":
        """Return them.

        Raises:
            ValueError: there is no fleet, or nothing is known of their samples; names the keys.
        """
        fleet = clients.fleet
        if fleet is None or not clients.num_examples:
            raise ValueError(
                f"{', '.join(open_keys)}: need{'s' * (len(open_keys) == 1)} a fleet, and the "
                "clients' numbers of samples"
            )
        found = {p: clients.num_examples[p] for p in clients.with_data() if p in fleet.clients}
        return Known(clients, fleet, found)


def kind_at(making: Making, model: nn.Module, split: CutAt, spec: QuantSpec, share: float) -> Kind:
    """What of the global model a client has whose layers on the device have a share of theirs."""
    if share == 1:
        return making.kind(share, spec)
    layers = layers_on_device(model, split)
    if not making.can_narrow(layers):
        raise ValueError(f"{SHARE}={share:g}: {NOT_NARROW}")
    return making.kind(share, spec, layers)


def costs_of_shares(
    model: nn.Module,
    shares: Sequence[float],
    channels: Channels | None,
    costs_of: Callable[[nn.Module], Mapping[str, PartCosts]],
) -> dict[float, dict[str, PartCosts]]:
    """Return what the parts cost at each cut, where the device's layers have a share of theirs.

    The server's part is that of the whole network. A cut is left out with a share with which the
    device's part is none the less.

    Args:
        model: the user's network.
        shares: of the channels.
        channels: of the network, where the shares are not all.
        costs_of: what parts cost at each cut of a network.
    """
    whole = costs_of(model)
    found = dict[float, dict[str, PartCosts]]()
    for share in shares:
        if share == 1 or channels is None:
            found[share] = dict(whole)
            continue
        narrow = costs_of(channels.sliced(share)[0])
        found[share] = {
            cut: (device, whole[cut][1])
            for cut, (device, _) in narrow.items()
            if cut in whole and size_of(device) < size_of(whole[cut][0])
        }
    return found


def size_of(parts: Sequence[Cost]) -> int:
    """Bytes of these parts' arrays."""
    return sum(part.model_bytes for part in parts)


def best_of_each(
    choices: Sequence[Choice], costs: Mapping[Choice, RoundCost], objective: str
) -> list[Choice]:
    """Return for each bits and share the choice that takes least and fits, else its first."""
    by_kind: dict[tuple[QuantSpec, float], list[Choice]] = {}
    for choice in choices:
        by_kind.setdefault(choice[1:], []).append(choice)

    def key(choice: Choice) -> tuple[bool, float]:
        one = costs[choice]
        return not one.fits, getattr(one, objective) if one.fits else 0.0

    return [min(own, key=key) for own in by_kind.values()]
