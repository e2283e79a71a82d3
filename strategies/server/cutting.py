"""How the user's network is cut: where, for each client, and into what.

A cut point is stated, or ``auto``: that which takes a client least. Where its bits are ``auto``,
too, the two are chosen together.
"""

import difflib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fleet.clock import Rule
from fleet.cost import RoundCost, choose_cut
from fleet.cost import cost as cost_on
from fleet.per_client import AUTO, DEFAULT, PerClient
from fleet.selection import num_selected
from fleet.work import ClientWork
from models.inputs import Inputs, example_of
from models.split import at_fraction, before, kept_whole, last_layer
from quant.codec import LinkSettings
from quant.layers import FULL_PRECISION, QuantSpec
from quant.settings import QUANTIZERS, QuantSettings
from strategies import messages
from strategies.client.split_loop import CutAt, Side, halves, quantized
from strategies.server.cuts import (
    CutName,
    CutNetwork,
    PartCosts,
    Place,
    RoundWork,
    SpecOf,
    part_costs,
    tested_through_the_link,
)
from strategies.server.kinds import Making, Widths, bits_name
from strategies.server.method import Clients, RoundSettings
from strategies.server.planning import Planning, say
from strategies.server.varied import Kind
from strategies.server.views import Selected
from strategies.server.workload import Pieces, split_round

log = logging.getLogger(__name__)

# Keys that methods over a cut read.
READS = (*QUANTIZERS, "quant.side", "split.cut", "link", "fleet.objective", "train.server_lr")
HEAD = "head"


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
        example, objective = example_of(input_shape), rounds.task.objective()
        cuts = self.split.cuts()
        spec_of: SpecOf = self._spec_of
        specs = [self.spec] if self.widths is None else self.widths.specs()
        if len(specs) > 1 and (AUTO in cuts.values.values() or self.widths_are_auto):
            cuts, spec_of = self.best_pairs(model, input_shape, clients, rounds, rule)
        elif AUTO in cuts.values.values():
            cuts = self.best_cuts(model, input_shape, clients, rounds, rule)
        splits = {
            name: self._resolve(model, name, input_shape)
            for name in dict.fromkeys(cuts.values.values())
        }
        if len(specs) == 1:
            wholes: dict[QuantSpec, nn.Module] = {}
            kinds: dict[QuantSpec, Kind] = {}
            fresh: dict[str, Selected] = {}
        else:
            first = next(iter(splits.values()))
            quantize = functools.partial(quantized, side=self.side, split=first)
            making = Making(model, input_shape, specs, quantize=quantize)
            kinds = {kind.spec: kind for kind in making.kinds()}
            wholes = {spec: kind.view.model for spec, kind in kinds.items()}
            fresh = making.fresh()
        places: dict[tuple[CutName, QuantSpec], Place] = {}
        for name, split in splits.items():
            for spec in specs:
                whole = wholes[spec] if wholes else quantized(model, spec, self.side, split)
                try:
                    parts = halves(whole, split, example)
                    names = parts.device_names()
                except ValueError as error:
                    tail = f" split.tail={self.split.tail}" if self.is_u_shaped else ""
                    raise ValueError(f"split.cut={name}{tail}: {error}") from error
                places[name, spec] = Place(
                    split, parts, names, input_shape, part_costs, kinds.get(spec)
                )
        widths = {"weight_bits": self.spec.weight_bits, "act_bits": self.spec.act_bits}
        told = {} if kinds else messages.pack_settings(quant=self.spec)
        return CutNetwork(
            model=making.whole if kinds else whole,
            clients=clients,
            places=places,
            cuts=cuts,
            spec_of=spec_of,
            link=self.link,
            settings={**told, **messages.pack_settings(side=self.side, link=self.link)},
            described={} if kinds else widths,
            tested=tested_through_the_link,
            round_work=self.round_work,
            objective=objective,
            fresh=fresh,
        )

    @property
    def widths_are_auto(self) -> bool:
        """Whether a client's bits follow from what its round takes."""
        return self.widths is not None and self.widths.is_auto

    def _spec_of(self, partition: int, device: str) -> QuantSpec:
        """The bit widths that are stated."""
        return self.spec if self.widths is None else self.widths.spec_of(partition, device)

    def best_pairs(
        self,
        model: nn.Module,
        input_shape: Inputs,
        clients: Clients,
        rounds: RoundSettings,
        rule: Rule,
    ) -> tuple[PerClient[CutName], SpecOf]:
        """Return the best cut and bits for each client, of those that the user leaves open.

        By the plan that takes it least; without one the widest bits with which it ends in time at
        its best cut.
        """
        fleet, widths = clients.fleet, self.widths
        if fleet is None or not clients.num_examples or widths is None:
            raise ValueError(
                f"split.cut={AUTO}, quant.bits={AUTO}: need a fleet, and the clients' numbers of "
                "samples"
            )
        given = self.split.cuts()
        pairs: list[tuple[CutName, QuantSpec, PartCosts]] = []
        for spec in widths.specs():
            costs = self._candidates(quantized(model, spec, self.side, None), input_shape)
            named = {
                cut: self._resolve(model, cut, input_shape).cut
                for cut in given.values.values()
                if cut != AUTO
            }
            names = named or {name: name for name in costs}
            pairs += [(cut, spec, costs[at]) for cut, at in names.items()]
        bops = [sum(part.bops for part in [*device, server]) for _, _, (device, server) in pairs]
        order = sorted(range(len(pairs)), key=bops.__getitem__)
        sizes = {p: clients.num_examples[p] for p in clients.with_data() if p in fleet.clients}
        participants = num_selected(rounds.clients_per_round, len(sizes))

        @functools.cache
        def work(index: int, samples: int) -> ClientWork:
            return self._work(pairs[index][2], samples, rounds)

        cuts: dict[str, CutName] = {DEFAULT: pairs[order[0]][0]}
        specs: dict[str, QuantSpec] = {DEFAULT: pairs[order[0]][1]}
        for p, samples in sizes.items():
            client, device = fleet.clients[p], clients.device(p)
            open_ = [
                index
                for index in order
                if given.of_client(p, device) in (AUTO, pairs[index][0])
                and widths.takes(pairs[index][1], p, device)
            ]
            costs_of = {
                index: cost_on(
                    work(index, samples), client.device, client.link, fleet.server, rule,
                    participants,
                )
                for index in open_
            }  # fmt: skip
            if not self.plan.settings.is_auto:  # of each width its best cut
                open_ = best_of_each(open_, costs_of, lambda i: pairs[i][1], self.objective)
            index = open_[
                self.plan.choose(
                    [costs_of[index] for index in open_],
                    [bops[index] / max(bops) for index in open_],
                    p, device, fleet.deadline_s,
                )
            ]  # fmt: skip
            cuts[str(p)], specs[str(p)] = pairs[index][:2]
        chosen = {p: f"{cuts[str(p)]} {bits_name(specs[str(p)])}" for p in sizes}
        say(self.plan.label, chosen, clients.device)
        return PerClient("split.cut", cuts), PerClient("quant.bits", specs).of_client

    def best_cuts(
        self,
        model: nn.Module,
        input_shape: Inputs,
        clients: Clients,
        rounds: RoundSettings,
        rule: Rule,
    ) -> PerClient[CutName]:
        """Return the best cut for each client, or for all where the server has one part."""
        fleet = clients.fleet
        if fleet is None or not clients.num_examples:
            raise ValueError(
                f"split.cut={AUTO}: needs a fleet, and the clients' numbers of samples"
            )
        costs = self._candidates(quantized(model, self.spec, self.side, None), input_shape)
        names = list(costs)

        @functools.cache
        def work(name: str, samples: int) -> ClientWork:
            return self._work(costs[name], samples, rounds)

        sizes = {p: clients.num_examples[p] for p in clients.with_data() if p in fleet.clients}
        if not self.takes_mapping:
            works = [{p: work(name, samples) for p, samples in sizes.items()} for name in names]
            best = names[fleet.best(works, rule, self.objective)]
            log.info("split.cut=%s: %s", AUTO, best)
            return PerClient("split.cut", {DEFAULT: best})
        participants = num_selected(rounds.clients_per_round, len(sizes))
        cuts: dict[str, CutName] = {DEFAULT: names[0]}
        for p, samples in sizes.items():
            client, works_of = fleet.clients[p], [work(name, samples) for name in names]
            found = choose_cut(
                works_of, client.device, client.link, fleet.server, self.objective, rule,
                participants,
            )  # fmt: skip
            cuts[str(p)] = names[found or 0]  # where none fits: the client will be left out
        say(f"split.cut={AUTO}", {p: str(cuts[str(p)]) for p in sizes}, clients.device)
        return PerClient("split.cut", cuts)

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


def best_of_each(
    indices: Sequence[int],
    costs: Mapping[int, RoundCost],
    spec_of: Callable[[int], QuantSpec],
    objective: str,
) -> list[int]:
    """Return for each of some bit widths the choice that takes least and fits, else its first."""
    by_spec: dict[QuantSpec, list[int]] = {}
    for index in indices:
        by_spec.setdefault(spec_of(index), []).append(index)

    def key(index: int) -> tuple[bool, float]:
        one = costs[index]
        return not one.fits, getattr(one, objective) if one.fits else 0.0

    return [min(own, key=key) for own in by_spec.values()]
