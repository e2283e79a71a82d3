"""Networks that differ between clients: of one global model each has a view of its own.

Clients of one `Kind` have one network: of some bits, of a share of the channels
(`strategies.server.kinds`). Which kind a client has is stated by partition or device, or chosen
from what its round takes.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fleet.clock import Rule
from fleet.cost import RoundCost, cost
from fleet.work import ClientWork
from models.cost import Cost
from models.inputs import Inputs
from quant.functional import initial_step
from quant.layers import QuantSpec, weight_quantizer_paths, weight_quantizers
from strategies.client.training import LocalTraining
from strategies.server.method import (
    Arrays,
    Clients,
    Network,
    RoundSettings,
    ServerState,
    Sizes,
    Test,
    TestOf,
    Variant,
    measured,
)
from strategies.server.networks import WholeNetwork
from strategies.server.views import Selected
from strategies.server.workload import cost_at, local_round

# Bytes of what crosses to a client of a network and back: `Wire.num_bytes`.
NumBytes = Callable[[Network, int], tuple[int, int]]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Kind:
    """One of the networks that clients have.

    Attributes:
        name: such as ``2bit``.
        spec: its bit widths.
        told: what a client needs to build it from the user's network.
        view: what of the global model it is.
        input_shape: of one sample.
        share: of the channels.
        importance: what a sample of its clients counts for in an average.
    """

    name: str
    spec: QuantSpec
    told: Variant
    view: Selected
    input_shape: Inputs
    share: float = 1.0
    importance: float = 1.0

    @functools.cached_property
    def cost(self) -> Cost:
        """What it costs."""
        return cost_at(self.view.model, self.input_shape)

    def bits(self) -> dict[str, float]:
        """How its network is quantized, as summary.json says it."""
        said = {
            "quantized_share": self.cost.quantized_share,
            "mean_weight_bits": self.cost.mean_weight_bits,
            "mean_act_bits": self.cost.mean_act_bits,
        }
        return {named(name, self.name): value for name, value in said.items()}

    def has_begun(self, arrays: Mapping[str, Any]) -> bool:
        """Whether what is its own in the global model is trained."""
        return all(bool(arrays[mark]) for mark in self.view.marks)


@dataclass(frozen=True, eq=False)
class VariedNetwork(WholeNetwork):
    """A global model of which clients have different views.

    Attributes:
        kinds: by name, from the smallest share to the largest, and within it by bit operations.
        choose: the kind of each client, given the network with its clients.
        chosen: what it said.
        fresh: networks of all channels, by the mark that says that their quantizers are trained.
    """

    kinds: Mapping[str, Kind] = field(default_factory=dict)
    choose: "Choose" = lambda network: {}
    chosen: Mapping[int, str] = field(default_factory=dict)
    fresh: Mapping[str, Selected] = field(default_factory=dict)

    def kind(self, partition: int) -> Kind:
        """A client's."""
        return self.kinds[self.chosen[partition]]

    def in_use(self) -> list[Kind]:
        """The kinds of the clients that have data, from least to most; all before any is known."""
        used = {self.chosen[partition] for partition in self.clients.with_data()}
        return [kind for name, kind in self.kinds.items() if name in used or not used]

    def variant(self, partition: int) -> Variant:
        """What tells its kind from the others."""
        return self.kind(partition).told

    def view(self, partition: int) -> Selected:
        """Its kind's."""
        return self.kind(partition).view

    def importance(self, partition: int) -> float:
        """Its kind's."""
        return self.kind(partition).importance

    def works(self, train: LocalTraining, sent: Sizes) -> dict[int, ClientWork]:
        """A round of each client's own network."""
        work = functools.cache(
            lambda samples, kind, sizes: local_round(kind.cost, samples, train, sizes)
        )
        samples = self.clients.num_examples
        return {p: work(samples[p], self.kind(p), sent(p)) for p in self.clients.with_data()}

    def evaluate(self, arrays: Mapping[str, Tensor], test: Test) -> dict[str, float]:
        """Accuracy, loss and what the task adds, of each kind; unnamed of that with the most."""
        return of_each(self.in_use(), arrays, lambda kind: measured(test, kind.view.loaded(arrays)))

    def evaluate_each(
        self, arrays: Mapping[str, Tensor], partitions: Sequence[int], test_of: TestOf
    ) -> list[dict[str, float]]:
        """Each client with its own network."""
        used = {self.chosen[partition] for partition in partitions}
        networks = {name: self.kinds[name].view.loaded(arrays) for name in used}
        return [measured(test_of([p]), networks[self.chosen[p]]) for p in partitions]

    def device_costs(self) -> list[Cost]:
        """Of the network with the most bit operations that a client has."""
        return [self.cost()]

    def cost(self) -> Cost:
        """The same."""
        return self.in_use()[-1].cost

    def describe(self, train: LocalTraining) -> dict[str, float]:
        """What each kind is, and how many clients of each device have it."""
        found: dict[str, float] = {}
        for kind in self.in_use():
            size = {
                "client_bops_per_sample": kind.cost.bops,
                "client_model_bytes": kind.cost.packed_bytes,
            }
            found |= {named(name, kind.name): value for name, value in size.items()}
            found |= kind.bits()
        return found | counted_by_device(self.clients, self.chosen)

    def for_clients(self, clients: Clients) -> "VariedNetwork":
        """The same networks, each client with the kind that it is to have."""
        network = replace(self, clients=clients)
        return replace(network, chosen=self.choose(network))

    def all_of(self, name: str) -> "VariedNetwork":
        """The same where all clients have one kind."""
        return replace(self, chosen=dict.fromkeys(self.clients.num_examples, name))

    def enter(self, state: ServerState, server_round: int) -> ServerState:
        """Steps of weights are the present weights' where nobody has trained them yet."""
        return with_fresh_steps(state, self.fresh)


# The kind of each client that a network knows.
Choose = Callable[[VariedNetwork], Mapping[int, str]]


def counted_by_device(clients: Clients, chosen: Mapping[int, str]) -> dict[str, float]:
    """How many clients with data of each device have what: ``clients/phone_low/2bit``."""
    counted = Counter((clients.device(p) or "all", chosen[p]) for p in clients.with_data())
    return {f"clients/{device}/{name}": count for (device, name), count in sorted(counted.items())}


def named(name: str, kind: str) -> str:
    """What a figure is called that is of one kind: ``accuracy_2bit``, ``2bit_per_class/…``."""
    return f"{kind}_{name}" if "/" in name else f"{name}_{kind}"


def of_each(
    kinds: Sequence[Kind],
    arrays: Mapping[str, Any],
    tested: Callable[[Kind], dict[str, float]],
) -> dict[str, float]:
    """Test each kind; a figure without a kind's name is of the last one.

    A kind that nobody has trained yet has no say, unless there is no other.

    Args:
        kinds: from least to most.
        arrays: of the global model.
        tested: figures of one kind.
    """
    found, last = dict[str, float](), dict[str, float]()
    for kind in [kind for kind in kinds if kind.has_begun(arrays)] or kinds[-1:]:
        last = tested(kind)
        found |= {named(name, kind.name): value for name, value in last.items()}
    return last | found


def with_fresh_steps(state: ServerState, fresh: Mapping[str, Selected]) -> ServerState:
    """Return a state in which steps of weights that nobody has trained are the present weights'.

    Args:
        state: of the rounds before.
        fresh: networks of all channels, by the mark that says that their quantizers are trained.
    """
    if not state.round or not fresh:
        return state
    arrays = dict(state.arrays)
    for mark, view in fresh.items():
        if not arrays[mark]:
            arrays |= _new_steps(view, arrays)
    return state.with_arrays(arrays)


def _new_steps(view: Selected, arrays: Arrays) -> Arrays:
    """The steps that weights begin with, where these are no zeros."""
    model = view.loaded({name: torch.from_numpy(array) for name, array in arrays.items()})
    state, paths = model.state_dict(), weight_quantizer_paths(model)
    found = {}
    for name, quantizer in weight_quantizers(model).items():
        if quantizer.initialise(initial_step(state[name], quantizer.qp, quantizer.channel_axis)):
            step = view.sources[f"{paths[name]}.step"].name
            found[step] = quantizer.step.detach().numpy().copy()
    return found


# What a client's round would take it with each kind --------------------------------------------


def costs_of_kinds(
    network: VariedNetwork, rounds: RoundSettings, rule: Rule, num_bytes: NumBytes
) -> dict[str, dict[int, RoundCost]]:
    """Return, for each kind and client with data, what a round takes it.

    Args:
        network: with its clients and their fleet.
        rounds: how rounds go.
        rule: how clients and server take turns.
        num_bytes: what crosses.
    """
    fleet = network.clients.fleet
    assert fleet is not None, "costs need a fleet"
    found: dict[str, dict[int, RoundCost]] = {}
    for name in network.kinds:
        one = network.all_of(name)
        works = one.works(rounds.train, functools.partial(num_bytes, one))
        found[name] = {
            p: cost(work, client.device, client.link, fleet.server, rule)
            for p, work in works.items()
            if (client := fleet.clients.get(p)) is not None
        }
    return found
