"""Networks that are cut: their parts, what each part costs, and what crosses between them.

The global model is the whole network. In the simulation a message carries all of it, because the
server's part is beside the client; what crosses is the device's part (`wires.device_part`), and
activations, labels and gradients, which the link counts.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fleet.work import ClientWork
from models.cost import Cost, cost
from models.inputs import Inputs
from models.objective import Classification, Objective
from quant.codec import LinkSettings
from quant.layers import QuantSpec
from quant.link import carried, there_and_back
from strategies import messages
from strategies.client.split_loop import CutAt, Halves, load_parts
from strategies.client.training import LocalTraining
from strategies.contract import Settings
from strategies.server.method import (
    Clients,
    ServerState,
    Sizes,
    Test,
    TestOf,
    Variant,
    View,
    measured,
)
from strategies.server.varied import Kind, counted_by_device, of_each, with_fresh_steps
from strategies.server.views import Everything, Selected
from strategies.server.workload import LabelBytes, cost_at, split_round

CutName = str | float
# What a client has: its cut, its bits, and its share of the channels that the device's part makes.
Choice = tuple[CutName, QuantSpec, float]
# What the device's parts and the server's part cost.
PartCosts = tuple[list[Cost], Cost]


@dataclass(frozen=True, eq=False)
class Place:
    """A network cut at one place.

    Attributes:
        split: where.
        parts: what comes of it.
        names: of the device's arrays in the global model.
        input_shape: of one sample.
        costs_of: what the parts cost.
        kind: what of the global model it is, where clients have bits or shares of their own.
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
        places: where it is cut, by what clients may have.
        choice_of: which of these a client has, given its partition and device.
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
    places: Mapping[Choice, Place]
    choice_of: Callable[[int, str], Choice]
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
        return self.places[self.choice_of(partition, self.clients.device(partition))]

    @property
    def is_varied(self) -> bool:
        """Whether clients have bits or shares of their own."""
        return any(place.kind is not None for place in self.places.values())

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
        """Where this client's network is cut; its bits and share, where clients have their own."""
        place = self.place(partition)
        told = () if place.kind is None else place.kind.told
        return (*messages.pack_settings(split=place.split).items(), *told)

    def view(self, partition: int) -> View:
        """All of it, but for what others have: the server's part is beside the client."""
        kind = self.place(partition).kind
        return Everything(self.model) if kind is None else kind.view

    def on_device(self, partition: int) -> frozenset[str] | None:
        """Names of the arrays of a client's device part."""
        return self.place(partition).names

    def importance(self, partition: int) -> float:
        """Its kind's, where clients have bits or shares of their own."""
        kind = self.place(partition).kind
        return 1.0 if kind is None else kind.importance

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

        Where clients have bits or shares of their own, in each that somebody has trained, each at
        the first of its cuts; unnamed is the one of most bit operations.
        """
        used = self.in_use()
        if not self.is_varied:
            return self.tested(self, used[0], arrays, test)
        first = {kind.name: (kind, place) for place in reversed(used) if (kind := place.kind)}
        in_order = sorted((kind for kind, _ in first.values()), key=lambda kind: kind.cost.bops)

        def tested(kind: Kind) -> dict[str, float]:
            _, place = first[kind.name]
            return self.tested(self, place, place.own(arrays), test)

        return of_each(in_order, arrays, tested)

    def evaluate_each(
        self, arrays: Mapping[str, Tensor], partitions: Sequence[int], test_of: TestOf
    ) -> list[dict[str, float]]:
        """All together, as they have one network; else each with its own."""
        if not self.is_varied:
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
        if not self.is_varied:
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
        load_parts(parts.parts, arrays)
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


def part_costs(parts: Halves, input_shape: Inputs) -> PartCosts:
    """Return what the device's parts and the server's part cost."""
    first = cost_at(parts.device[0], input_shape)
    server = cost(parts.server, first.output_shape, input_grad=True)
    last = [cost(part, server.output_shape, input_grad=True) for part in parts.device[1:]]
    return [first, *last], server
