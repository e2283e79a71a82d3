"""Networks that are cut: where, into which parts, and what each part costs.

The global model is the whole network. In the simulation a message carries all of it, because the
server's part is beside the client; what crosses is the device's part (`wires.device_part`), and
activations, labels and gradients, which the link counts.
"""

import difflib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fleet.clock import Rule
from fleet.cost import RoundCost, choose_cut
from fleet.cost import cost as cost_on
from fleet.per_client import AUTO, DEFAULT, PerClient
from fleet.selection import num_selected
from fleet.work import ClientWork
from models.cost import Cost, cost
from models.inputs import Inputs, example_of
from models.objective import Classification, Objective
from models.split import at_fraction, before, kept_whole, last_layer
from quant.codec import LinkSettings
from quant.layers import FULL_PRECISION, QuantSpec
from quant.link import carried, there_and_back
from quant.settings import QUANTIZERS, QuantSettings
from strategies import messages
from strategies.client.split_loop import CutAt, Halves, Side, halves, quantized
from strategies.client.training import LocalTraining, load_arrays
from strategies.contract import Settings
from strategies.server.kinds import Making, Widths, bits_name
from strategies.server.method import (
    Clients,
    RoundSettings,
    ServerState,
    Sizes,
    Test,
    TestOf,
    Variant,
    View,
    measured,
)
from strategies.server.planning import Planning, say
from strategies.server.varied import Kind, counted_by_device, of_each, with_fresh_steps
from strategies.server.views import Everything, Selected
from strategies.server.workload import LabelBytes, Pieces, cost_at, split_round

CutName = str | float
# Keys that methods over a cut read.
READS = (*QUANTIZERS, "quant.side", "split.cut", "link", "fleet.objective", "train.server_lr")
HEAD = "head"
# The bit widths of a client, given its partition and device.
SpecOf = Callable[[int, str], QuantSpec]
# What the device's parts and the server's part cost.
PartCosts = tuple[list[Cost], Cost]

log = logging.getLogger(__name__)


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


# A network that is cut ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Place:
    """A network cut at one place.

    Attributes:
        split: where.
        parts: what comes of it.
        names: of the device's arrays in the global model.
        input_shape: of one sample.
        costs_of: what the parts cost.
        kind: whose quantizers the network has, where clients have bits of their own.
    """

    split: CutAt
    parts: Halves
    names: frozenset[str]
    input_shape: Inputs
    costs_of: "Callable[[Halves, Inputs], PartCosts]"
    kind: Kind | None = None

    def own(self, arrays: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Of the global model's arrays those of the network that is cut here."""
        if self.kind is None:
            return arrays
        found = self.kind.view.of({name: tensor.numpy() for name, tensor in arrays.items()})
        return {name: torch.from_numpy(array) for name, array in found.items()}

    @property
    def key(self) -> tuple[CutAt, str]:
        """What tells it from other places."""
        return self.split, "" if self.kind is None else self.kind.name

    @functools.cached_property
    def costs(self) -> PartCosts:
        """Of the device's parts and the server's part."""
        return self.costs_of(self.parts, self.input_shape)


# What a round takes a client: costs of the device's parts and the server's part, samples, …,
# and bytes of labels.
RoundWork = Callable[
    [Sequence[Cost], Cost, int, LocalTraining, LinkSettings, tuple[int, int], LabelBytes],
    ClientWork,
]
Tested = Callable[["CutNetwork", "Place", Mapping[str, Tensor], Test], dict[str, float]]
AloneWork = Callable[[Sequence[Cost], int, LocalTraining], ClientWork]


@dataclass(frozen=True, eq=False)
class CutNetwork:
    """A network in parts.

    Attributes:
        model: the global model: the whole of it.
        clients: who there is.
        places: where it is cut, by what the user called the cut, and bit widths.
        cuts: which of these a client has.
        spec_of: the bit widths of a client, given its partition and device.
        link: codecs at the cut.
        settings: what a client needs to build the same parts from the user's network.
        described: what summary.json says of it beside the bytes at the cut.
        tested: accuracy, loss and more of the global model's arrays, cut at a place.
        round_work: what a round takes a client.
        alone_work: the same without a network; None where a client then takes no part.
        tested_alone: what a device has without a network, tested; None where it has nothing.
        whole_cost: what the whole of it costs.
        objective: what its outputs are for.
        counted: what it costs as one network, once that was asked for.
        fresh: as a `varied.VariedNetwork` has it, where clients have bits of their own.
    """

    model: nn.Module
    clients: Clients
    places: Mapping[tuple[CutName, QuantSpec], Place]
    cuts: PerClient[CutName]
    spec_of: SpecOf
    link: LinkSettings
    settings: Settings
    described: Mapping[str, float]
    tested: "Tested"
    round_work: RoundWork = split_round
    alone_work: AloneWork | None = None
    tested_alone: "Tested | None" = None
    whole_cost: "Callable[[CutNetwork], Cost]" = lambda network: network.uncut_cost
    objective: Objective = field(default_factory=Classification)
    counted: list[Cost] = field(default_factory=list, repr=False)
    fresh: Mapping[str, Selected] = field(default_factory=dict)

    def place(self, partition: int) -> Place:
        """Where a client's network is cut."""
        device = self.clients.device(partition)
        return self.places[self.cuts.of_client(partition, device), self.spec_of(partition, device)]

    def in_use(self) -> list[Place]:
        """Places of the clients that have data, in the user's order; all before any is known."""
        used = {self.place(partition).key for partition in self.clients.with_data()}
        distinct = {place.key: place for place in self.places.values()}
        return [place for key, place in distinct.items() if key in used or not used]

    def only(self) -> Place:
        """The one place, for methods that have one for all clients."""
        (place,) = {place.key: place for place in self.places.values()}.values()
        return place

    def with_parts(self, model: nn.Module, place: Place, **changes: Any) -> "CutNetwork":
        """Return the network with other parts at its only place, of another global model."""
        places = dict.fromkeys(self.places, place)
        return replace(self, model=model, places=places, counted=[], **changes)

    def variant(self, partition: int) -> Variant:
        """Where this client's network is cut, and its bits, where clients have their own."""
        place = self.place(partition)
        told = () if place.kind is None else place.kind.told
        return (*messages.pack_settings(split=place.split).items(), *told)

    def view(self, partition: int) -> View:
        """All of it, but for others' quantizers: the server's part is beside the client."""
        kind = self.place(partition).kind
        return Everything(self.model) if kind is None else kind.view

    def on_device(self, partition: int) -> frozenset[str] | None:
        """Names of the arrays of a client's device part."""
        return self.place(partition).names

    def crossing(self, partition: int, samples: int) -> tuple[tuple[int, ...], int]:
        """Shape of one sample's activations at a client's first cut, and most bytes of a message.

        Args:
            partition: the client.
            samples: of its largest batch.
        """
        place = self.place(partition)
        (first, *_), server = place.costs
        to_server, to_device = self.link.codecs()
        most = to_server.num_bytes((samples, *first.output_shape))
        if place.split.tail:
            gradient = to_device.gradient_shape((samples, *server.output_shape))
            return first.output_shape, max(most, to_server.num_bytes(gradient))
        labels = self.objective.label_bytes(server.output_shape)
        return first.output_shape, most + samples * labels

    def works(self, train: LocalTraining, sent: Sizes) -> dict[int, ClientWork]:
        """What a round takes each client at its cut."""

        @functools.cache
        def work(place: Place, samples: int, sizes: tuple[int, int]) -> ClientWork:
            labels_of = self.objective.label_bytes
            return self.round_work(*place.costs, samples, train, self.link, sizes, labels_of)

        sizes_at: dict[Place, tuple[int, int]] = {}  # alike for all that are cut at one place
        works = {}
        for partition in self.clients.with_data():
            place = self.place(partition)
            if place not in sizes_at:
                sizes_at[place] = sent(partition)
            samples = self.clients.num_examples[partition]
            works[partition] = work(place, samples, sizes_at[place])
        return works

    def alone_works(self, train: LocalTraining) -> dict[int, ClientWork]:
        """What a round takes each client without a network."""
        if self.alone_work is None:
            return {}
        (device, _), alone = self.only().costs, self.alone_work
        work = functools.cache(lambda samples: alone(device, samples, train))
        return {p: work(self.clients.num_examples[p]) for p in self.clients.with_data()}

    def evaluate(self, arrays: Mapping[str, Tensor], test: Test) -> dict[str, float]:
        """Test the network with its link: what crosses the cut is compressed there, too.

        Where clients have bits of their own, at each width that somebody has trained, each at the
        first of its cuts; unnamed is the widest.
        """
        used = self.in_use()
        if used[0].kind is None:
            return self.tested(self, used[0], arrays, test)
        first = {place.kind: place for place in reversed(used) if place.kind is not None}
        in_order = sorted(first, key=lambda kind: kind.cost.bops)
        return of_each(
            in_order,
            arrays,
            lambda kind: self.tested(self, first[kind], first[kind].own(arrays), test),
        )

    def evaluate_each(
        self, arrays: Mapping[str, Tensor], partitions: Sequence[int], test_of: TestOf
    ) -> list[dict[str, float]]:
        """All together, as they have one network; else each at its own width and cut."""
        if not self.fresh:
            return [self.evaluate(arrays, test_of(partitions))]
        found = []
        for partition in partitions:
            place = self.place(partition)
            found.append(self.tested(self, place, place.own(arrays), test_of([partition])))
        return found

    def device_costs(self) -> list[Cost]:
        """Of the device's parts; where clients differ, of those with the most operations."""
        found = [place.costs[0] for place in self.in_use()]
        return max(found, key=lambda p: (sum(c.flops_forward for c in p), sum(c.bops for c in p)))

    def cost(self) -> Cost:
        """Of the whole network."""
        return self.whole_cost(self)

    @property
    def uncut_cost(self) -> Cost:
        """Of the global model as one network, counted once, whoever the clients are."""
        kinds = [place.kind for place in self.in_use() if place.kind is not None]
        if kinds:
            return max((kind.cost for kind in kinds), key=lambda cost: cost.bops)
        if not self.counted:
            place = next(iter(self.places.values()))
            self.counted.append(cost_at(self.model, place.input_shape))
        return self.counted[0]

    def describe(self, train: LocalTraining) -> dict[str, float]:
        """Bytes that cross the cut per sample and step, and what the method says.

        In batches of the size that clients train with, and of the first cut, where clients differ.
        """
        place, size = self.in_use()[0], train.batch_size
        device, server = place.costs
        first, second = device[0], server.output_shape
        to_server, to_device = self.link.codecs()
        up, down = there_and_back(to_server, to_device, (size, *first.output_shape))
        if place.split.tail:
            activations, gradients = there_and_back(to_device, to_server, (size, *second))
            up, down = up + gradients, down + activations
        else:
            up += size * self.objective.label_bytes(second)
        at_cut = {"cut_bytes_up_per_sample": up / size, "cut_bytes_down_per_sample": down / size}
        found = {**at_cut, **self.described}
        if not self.fresh:
            return found
        keys = {p: self.place(p).key for p in self.clients.with_data()}
        chosen = {p: f"{split.cut}_{name}" for p, (split, name) in keys.items()}
        for one in self.in_use():
            found |= {} if one.kind is None else one.kind.bits()
        return found | counted_by_device(self.clients, chosen)

    def for_clients(self, clients: Clients) -> "CutNetwork":
        """The same network, cut where these clients' devices say."""
        return replace(self, clients=clients)

    def in_round(self, server_round: int) -> "CutNetwork":
        """The same in all rounds."""
        return self

    def enter(self, state: ServerState, server_round: int) -> ServerState:
        """As the round before left it, but for steps that nobody has trained."""
        return with_fresh_steps(state, self.fresh)


class Joined(nn.Module):
    """The parts of a network with the link between them, for testing.

    Args:
        parts: the network; they get ``arrays``.
        arrays: state of the whole.
        link: codecs at the cut, which draw nothing at random here.
    """

    def __init__(self, parts: Halves, arrays: Mapping[str, Tensor], link: LinkSettings) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts.parts)
        for part in self.parts:
            load_arrays(part, {name: arrays[name] for name in part.state_dict()})
        self._up, self._down = link.codecs()

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (B, …)."""
        first, server, *last = self.parts
        output: Tensor = server(carried(self._up, first(x)))
        return last[0](carried(self._down, output)) if last else output


def tested_through_the_link(
    network: CutNetwork, place: Place, arrays: Mapping[str, Tensor], test: Test
) -> dict[str, float]:
    """Accuracy, loss and what the task adds, of the network with its link."""
    return measured(test, Joined(place.parts, arrays, network.link))


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


def part_costs(parts: Halves, input_shape: Inputs) -> PartCosts:
    """Return what the device's parts and the server's part cost."""
    first = cost_at(parts.device[0], input_shape)
    server = cost(parts.server, first.output_shape, input_grad=True)
    last = [cost(part, server.output_shape, input_grad=True) for part in parts.device[1:]]
    return [first, *last], server


# How the user's network is cut --------------------------------------------------------------------


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
