"""Networks that are cut: where, into which parts, and what each part costs.

The global model is the whole network. In the simulation a message carries all of it, because the
server's part is beside the client; what crosses is the device's part (`wires.device_part`), and
activations, labels and gradients, which the link counts.
"""

import difflib
import functools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from fleet.clock import Rule
from fleet.cost import choose_cut
from fleet.plan import Fleet
from fleet.selection import num_selected
from fleet.work import ClientWork
from models.cost import Cost, cost
from models.inputs import Inputs, example_of
from models.objective import Classification, Objective
from models.split import at_fraction, before, kept_whole, last_layer
from quant.codec import LinkSettings
from quant.layers import QuantSpec
from quant.link import there_and_back
from quant.settings import QUANTIZERS, QuantSettings
from strategies import messages
from strategies.client.split_loop import CutAt, Halves, Side, halves, quantized
from strategies.client.training import LocalTraining, load_arrays
from strategies.contract import Settings
from strategies.server.method import (
    Clients,
    RoundSettings,
    ServerState,
    Sizes,
    Test,
    Variant,
    measured,
)
from strategies.server.workload import LabelBytes, Pieces, cost_at, split_round

CutName = str | float
# Keys that methods over a cut read.
READS = (*QUANTIZERS, "quant.side", "split.cut", "link", "fleet.objective", "train.server_lr")
AUTO, DEFAULT, HEAD = "auto", "default", "head"
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

    def cuts(self) -> dict[str, CutName]:
        """Cuts by partition id, device or `DEFAULT`."""
        given = self.cut if isinstance(self.cut, Mapping) else {DEFAULT: self.cut}
        return {str(key): value for key, value in given.items()}


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
    """

    split: CutAt
    parts: Halves
    names: frozenset[str]
    input_shape: Inputs
    costs_of: "Callable[[Halves, Inputs], PartCosts]"

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
        places: where it is cut, by what the user called the cut.
        cuts: which of these a client has, by partition id, device or `DEFAULT`.
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
    """

    model: nn.Module
    clients: Clients
    places: Mapping[CutName, Place]
    cuts: Mapping[str, CutName]
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

    def place(self, partition: int) -> Place:
        """Where a client's network is cut."""
        keys = (str(partition), self.clients.device(partition), DEFAULT)
        name = next((self.cuts[key] for key in keys if key in self.cuts), None)
        if name is None:
            raise ValueError(f"split.cut: says nothing of client {partition}, and has no {DEFAULT}")
        return self.places[name]

    def in_use(self) -> list[Place]:
        """Places of the clients that have data, in the user's order; all before any is known."""
        used = {self.place(partition).split for partition in self.clients.with_data()}
        distinct = {place.split: place for place in self.places.values()}
        return [place for split, place in distinct.items() if split in used or not used]

    def only(self) -> Place:
        """The one place, for methods that have one for all clients."""
        (place,) = {place.split: place for place in self.places.values()}.values()
        return place

    def with_parts(self, model: nn.Module, place: Place, **changes: Any) -> "CutNetwork":
        """Return the network with other parts at its only place, of another global model."""
        places = dict.fromkeys(self.places, place)
        return replace(self, model=model, places=places, counted=[], **changes)

    def variant(self, partition: int) -> Variant:
        """Where this client's network is cut."""
        return tuple(messages.pack_settings(split=self.place(partition).split).items())

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

        sizes_at: dict[CutAt, tuple[int, int]] = {}  # alike for all that are cut at one place
        works = {}
        for partition in self.clients.with_data():
            place = self.place(partition)
            if place.split not in sizes_at:
                sizes_at[place.split] = sent(partition)
            samples = self.clients.num_examples[partition]
            works[partition] = work(place, samples, sizes_at[place.split])
        return works

    def alone_works(self, train: LocalTraining) -> dict[int, ClientWork]:
        """What a round takes each client without a network."""
        if self.alone_work is None:
            return {}
        (device, _), alone = self.only().costs, self.alone_work
        work = functools.cache(lambda samples: alone(device, samples, train))
        return {p: work(self.clients.num_examples[p]) for p in self.clients.with_data()}

    def evaluate(self, arrays: Mapping[str, Tensor], test: Test) -> dict[str, float]:
        """Test the network with its link: what crosses the cut is compressed there, too."""
        return self.tested(self, self.in_use()[0], arrays, test)

    def device_costs(self) -> list[Cost]:
        """Of the device's parts; where clients differ, of those with the most operations."""
        found = [place.costs[0] for place in self.in_use()]
        return max(found, key=lambda parts: sum(part.flops_forward for part in parts))

    def cost(self) -> Cost:
        """Of the whole network."""
        return self.whole_cost(self)

    @property
    def uncut_cost(self) -> Cost:
        """Of the global model as one network, counted once, whoever the clients are."""
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
        return {**at_cut, **self.described}

    def for_clients(self, clients: Clients) -> "CutNetwork":
        """The same network, cut where these clients' devices say."""
        return replace(self, clients=clients)

    def in_round(self, server_round: int) -> "CutNetwork":
        """The same in all rounds."""
        return self

    def enter(self, state: ServerState, server_round: int) -> ServerState:
        """As the round before left it."""
        return state


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
        output: Tensor = server(self._up.transmit(first(x).detach(), None)[0])
        return last[0](self._down.transmit(output.detach(), None)[0]) if last else output


def tested_through_the_link(
    network: CutNetwork, place: Place, arrays: Mapping[str, Tensor], test: Test
) -> dict[str, float]:
    """Accuracy, loss and what the task adds, of the network with its link."""
    return measured(test, Joined(place.parts, arrays, network.link))


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
        **kind: Any,
    ) -> "Cut":
        """Return what the configuration's groups say; ``kind`` is the method's."""
        quant = quant or QuantSettings()
        return Cut(
            split=split or SplitSettings(),
            link=link or LinkSettings(),
            spec=quant.spec(),
            side=Side(quant.side),
            objective=objective,
            **kind,
        )

    def check(self, rounds: RoundSettings) -> None:
        """Refuse cuts that cannot be, as far as the settings tell.

        Raises:
            ValueError: names split.cut or split.tail.
        """
        cuts, is_mapping = self.split.cuts(), isinstance(self.split.cut, Mapping)
        fleet, total = rounds.fleet, rounds.num_clients
        if is_mapping and not self.takes_mapping:
            raise ValueError(
                "split.cut: a mapping needs clients that train in parallel from halves of their "
                "own: splitfed_v1 or splitfed_v3"
            )
        if self.is_u_shaped and not self.split.tail:
            raise ValueError("split.tail=: takes a module with which the device's last part begins")
        if not cuts:
            raise ValueError("split.cut={}: takes a cut point or a mapping to cut points")
        for key, cut in cuts.items():
            self._check_key(key, fleet, total)
            if cut == AUTO and is_mapping:
                raise ValueError(f"split.cut.{key}={AUTO}: {AUTO} is for all clients, not for some")
            is_share = isinstance(cut, float) and 0 < cut < 1
            if not is_share and not isinstance(cut, str):
                raise ValueError(f"split.cut={cut}: takes a cut point, or a share in (0, 1)")
        if DEFAULT not in cuts:
            device = Clients({}, fleet).device
            partitions = range(total or 0)
            absent = [p for p in partitions if str(p) not in cuts and device(p) not in cuts]
            if absent:
                raise ValueError(
                    f"split.cut: says nothing of client {absent[0]}, and has no {DEFAULT}"
                )
        varies = len(set(cuts.values())) > 1 or AUTO in cuts.values()
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
        whole, cuts = model, self.split.cuts()
        if AUTO in cuts.values():
            cuts = self.best_cuts(model, input_shape, clients, rounds, rule)
        places: dict[CutName, Place] = {}
        for name in dict.fromkeys(cuts.values()):
            split = self._resolve(model, name, input_shape)
            whole = quantized(model, self.spec, self.side, split)
            try:
                parts = halves(whole, split, example)
                names = parts.device_names()
            except ValueError as error:
                tail = f" split.tail={self.split.tail}" if self.is_u_shaped else ""
                raise ValueError(f"split.cut={name}{tail}: {error}") from error
            places[name] = Place(split, parts, names, input_shape, part_costs)
        return CutNetwork(
            model=whole,
            clients=clients,
            places=places,
            cuts=cuts,
            link=self.link,
            settings=messages.pack_settings(quant=self.spec, side=self.side, link=self.link),
            described={"weight_bits": self.spec.weight_bits, "act_bits": self.spec.act_bits},
            tested=tested_through_the_link,
            round_work=self.round_work,
            objective=objective,
        )

    def best_cuts(
        self,
        model: nn.Module,
        input_shape: Inputs,
        clients: Clients,
        rounds: RoundSettings,
        rule: Rule,
    ) -> dict[str, CutName]:
        """Return the best cut for each client, or for all where the server has one part."""
        fleet = clients.fleet
        if fleet is None or not clients.num_examples:
            raise ValueError(
                f"split.cut={AUTO}: needs a fleet, and the clients' numbers of samples"
            )
        costs = self._candidates(quantized(model, self.spec, self.side, None), input_shape)
        names, objective = list(costs), rounds.task.objective()

        @functools.cache
        def work(name: str, samples: int) -> ClientWork:
            device, server = costs[name]
            sent = sum(part.model_bytes for part in device) if self.relays_part else 0
            crosses = (sent, sent)
            labels_of = objective.label_bytes
            return self.round_work(
                device, server, samples, rounds.train, self.link, crosses, labels_of
            )

        sizes = {p: clients.num_examples[p] for p in clients.with_data() if p in fleet.clients}
        if not self.takes_mapping:
            works = [{p: work(name, samples) for p, samples in sizes.items()} for name in names]
            best = names[fleet.best(works, rule, self.objective)]
            log.info("split.cut=%s: %s", AUTO, best)
            return {DEFAULT: best}
        participants = num_selected(rounds.clients_per_round, len(sizes))
        cuts: dict[str, CutName] = {DEFAULT: names[0]}
        for p, samples in sizes.items():
            client, works_of = fleet.clients[p], [work(name, samples) for name in names]
            found = choose_cut(
                works_of, client.device, client.link, fleet.server, self.objective, rule,
                participants,
            )  # fmt: skip
            cuts[str(p)] = names[found or 0]  # where none fits: the client will be left out
        chosen = Counter((clients.device(p), cuts[str(p)]) for p in sizes)
        for (device, name), count in sorted(chosen.items()):
            log.info("split.cut=%s: %s for %d clients with %s", AUTO, name, count, device)
        return cuts

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

    def _check_key(self, key: str, fleet: Fleet | None, total: int | None) -> None:
        devices = fleet.device_names() if fleet else []
        if not key.isdecimal() and key not in (DEFAULT, *devices):
            known = ", ".join(["partition ids", *devices, DEFAULT])
            raise ValueError(f"split.cut.{key}: takes as keys {known}")
        if key.isdecimal() and total is not None and int(key) >= total:
            raise ValueError(f"split.cut.{key}: there is no client {key} of {total}")
