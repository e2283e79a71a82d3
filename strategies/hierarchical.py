"""Hierarchical training with early exits (arXiv 2303.02384, TNNLS 2024).

    z = device(x)
    loss_edge = L(exit(z), y)   → device, exit step          z, y →  loss = L(cloud(z), y)
                                                                     cloud steps

The activations go up without their graph, and nothing comes back: both backward passes run at the
same time, and the device trains on where there is no network. Its exit answers there, too.

The exit is in the global model as ``exit.…``, a child that is added to the network (with
underscores after the name while the network has one called so), and trains, is averaged and is
counted with the device's part.
"""

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from fleet import clock
from fleet.clock import Rule
from fleet.outages import Outage, is_number
from fleet.seeds import derive_seed
from fleet.selection import select
from models.cost import Cost, cost, joined
from models.exits import ExitSpec, exit_head, exit_name
from models.inputs import Inputs, spec_of
from quant.codec import LinkSettings
from quant.settings import QuantSettings
from strategies import messages
from strategies.client.split_loop import Halves
from strategies.client.tiers import EDGE_LOSS, Tiers, TiersClient
from strategies.server.aggregation import AverageSettings, Averaging
from strategies.server.cuts import (
    CutNetwork,
    PartCosts,
    Place,
    tested_through_the_link,
)
from strategies.server.cutting import (
    READS,
    Candidate,
    Cut,
    SplitSettings,
)
from strategies.server.loop import FederatedStrategy
from strategies.server.method import (
    Arrays,
    Clients,
    Method,
    Network,
    Result,
    RoundArguments,
    RoundSettings,
    Schedule,
    ServerState,
    Test,
    TestOf,
    measured,
)
from strategies.server.private_halves import device_names, half_of, keep_halves, replaced
from strategies.server.schedules import Chain, Parallel
from strategies.server.wires import Latent, device_part
from strategies.server.workload import alone_round, cost_at, hierarchical_round

SHARED, REPLICATED = "shared", "replicated"


@dataclass(frozen=True)
class HierarchicalSettings:
    """The method's own keys of the group strategy."""

    server_half: str = field(
        default=SHARED,
        metadata={
            "help": "cloud model: shared (one, trained on clients in turn), replicated (one per "
            "client, averaged)"
        },
    )
    exit_width: int = field(
        default=0,
        metadata={
            "help": "channels of the convolution in the early exit; 0: pooling and a linear layer"
        },
    )
    pipelined: bool = field(
        default=False,
        metadata={"help": "simulated clock: device, uplink and cloud work on different batches"},
    )
    outage: Any = field(
        default=0.0,
        metadata={"help": "probability that a round is offline, or a list of offline rounds"},
    )

    def __post_init__(self) -> None:
        if self.server_half not in (SHARED, REPLICATED):
            raise ValueError(
                f"strategy.server_half={self.server_half}: takes {SHARED}, {REPLICATED}"
            )
        if not is_number(self.exit_width, int):
            raise ValueError(
                f"strategy.exit_width={self.exit_width}: takes 0, or 2 or more channels"
            )
        if not isinstance(self.pipelined, bool):
            raise ValueError(f"strategy.pipelined={self.pipelined}: takes true or false")
        Outage.of(self.outage)  # checks itself


class Hierarchical(FederatedStrategy):
    """A cut network with an exit on the device; activations go up, nothing comes back.

    A device without network trains alone, from what it has: the global model as the round begins,
    or its own part if it has been alone since the network had it last. It keeps its part, and goes
    on from it when its network is back; then it is averaged with the others. For it no byte
    crosses, and the cloud learns nothing of it. The fleet says who is there, here who has a
    network; an outage takes it from all.

    Args:
        settings: whether the cloud's part is shared, the exit, outages.
        split: where the network is cut.
        link: codec of the activations.
        quant: bit widths, and of which part.
        averaging: how clients are averaged.
        objective: what ``split.cut=auto`` makes least.
        evaluate_clients: how many parts of devices without network are tested.
        rounds: as `RoundSettings`.
    """

    client = TiersClient()
    reads = (*READS, "evaluate.clients")
    has_server_half = True

    def __init__(
        self,
        *,
        settings: HierarchicalSettings | None = None,
        split: SplitSettings | None = None,
        link: LinkSettings | None = None,
        quant: QuantSettings | None = None,
        averaging: AverageSettings | None = None,
        objective: str = "seconds",
        evaluate_clients: int = 10,
        **rounds: Unpack[RoundArguments],
    ) -> None:
        settings = settings or HierarchicalSettings()
        outage = Outage.of(settings.outage)
        if (fleet := rounds.get("fleet")) is not None:
            outage = replace(outage, otherwise=fleet.availability)
            rounds["fleet"] = replace(fleet, availability=outage)
        cut = Cut.of(split, link, quant, objective, round_work=hierarchical_round)
        method = Method(
            network=CutWithExit(cut, settings.exit_width, outage.happens),
            schedule=schedule_of(settings),
            wire=Latent(device_part),
            aggregate=Averaging.over_a_cut(averaging),
            private=PartsOfAlone(evaluate_clients),
            outage=outage,
            report=functools.partial(edge_report, outage),
            needs_prepare="a network that is cut",
        )
        super().__init__(method, **rounds)


def schedule_of(settings: HierarchicalSettings) -> Schedule:
    """All devices at once; a shared cloud takes their activations one client after another.

    On the clock the device goes on while the cloud works, within a batch or beyond it.
    """
    rule = clock.pipelined if settings.pipelined else clock.overlapped
    if settings.server_half == REPLICATED:
        return Parallel(rule)
    return Chain(rule, relays_device=False, is_shuffled=True)


# The network --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CutWithExit:
    """Cuts the user's network and adds an exit for the cut.

    Attributes:
        cut: how it is cut.
        width: channels of a convolution in the exit; 0 for none.
        may_be_alone: whether devices can be without network.
    """

    cut: Cut
    width: int
    may_be_alone: bool

    def check(self, rounds: RoundSettings) -> None:
        """As `Cut`."""
        self.cut.check(rounds)

    def prepare(
        self,
        model: nn.Module,
        input_shape: Inputs,
        clients: Clients,
        rounds: RoundSettings,
        rule: Rule,
    ) -> CutNetwork:
        """Cut the network, and return it with an exit for its cut.

        Raises:
            ValueError: it cannot be cut there, or no exit fits what crosses; names the key.
        """
        priced = replace(self.cut, costs_at=functools.partial(candidate_costs, self.width))
        network = priced.prepare(model, input_shape, clients, rounds, rule)
        place = network.only()
        device, server = place.parts.parts
        shape = cost_at(device, input_shape).output_shape
        try:
            spec = exit_spec(shape, cost(server, shape).output_shape, self.width, input_shape)
        except ValueError as error:
            key = "" if str(error).startswith("strategy.") else f"split.cut={place.split.cut}: "
            raise ValueError(f"{key}{error}") from error
        name = exit_name(network.model)
        head = exit_head(spec, derive_seed(rounds.seed, "exit"))
        whole = copy.deepcopy(network.model)
        whole.add_module(name, head)
        place = replace(
            place,
            names=place.names | {f"{name}.{own}" for own in head.state_dict()},
            costs_of=functools.partial(tier_costs, spec),
        )
        exit_params = place.costs[0][-1].params
        down = {"cut_bytes_down_per_sample": 0.0, "exit_params": exit_params}
        return network.with_parts(
            whole,
            place,
            settings={**network.settings, **messages.pack_settings(exit=spec)},
            described={**network.described, **down},
            tested=tested_at_both_exits,
            alone_work=alone_round if self.may_be_alone else None,
            tested_alone=tested_at_the_edge,
            whole_cost=cost_of_tiers,
        )


def exit_spec(
    shape: tuple[int, ...], output_shape: tuple[int, ...], width: int, inputs: Inputs
) -> ExitSpec:
    """The exit for activations of ``shape`` in a network of that output; tokens at each place.

    Raises:
        ValueError: no exit fits.
    """
    *places, classes = output_shape
    is_tokens = spec_of(inputs).high is not None
    return ExitSpec.of(shape, classes, width, is_tokens, places[0] if places else 0)


def tier_costs(spec: ExitSpec, parts: Halves, input_shape: Inputs) -> PartCosts:
    """What the device's part and its exit cost, and what the cloud's part does.

    The backward pass goes through the exit into the device's part, and ends in the cloud's.
    """
    device = cost_at(parts.device[0], input_shape)
    head = cost(exit_head(spec, 0), device.output_shape, input_grad=True)
    return [device, head], cost(parts.server, device.output_shape)


def candidate_costs(width: int, candidate: Candidate) -> PartCosts:
    """The same at a cut that ``split.cut=auto`` looks at."""
    (device,), server = candidate.pieces.at(candidate.name, is_detached=True)
    spec = exit_spec(device.output_shape, server.output_shape, width, candidate.input_shape)
    head = cost(exit_head(spec, 0), device.output_shape, input_grad=True)
    return [device, head], server


def cost_of_tiers(network: CutNetwork) -> Cost:
    """Of both parts and the exit."""
    device, server = network.only().costs
    return joined([device[0], server, *device[1:]])


def tiers_in(network: CutNetwork, arrays: Mapping[str, Tensor]) -> Tiers:
    """Return both parts and the exit, with these arrays of the global model."""
    place = network.only()
    spec = ExitSpec(**messages.under("exit.", network.settings))
    own = place.names - place.parts.device_names()
    tiers = Tiers(place.parts, exit_head(spec, 0), next(iter(own)).partition(".")[0])
    tiers.load(arrays)
    return tiers


def tested_at_both_exits(
    network: CutNetwork, place: Place, arrays: Mapping[str, Tensor], test: Test
) -> dict[str, float]:
    """Accuracy and loss of the cloud's exit, through the link, and of the edge's."""
    edge = tested_at_the_edge(network, place, arrays, test)
    return tested_through_the_link(network, place, arrays, test) | edge


def tested_at_the_edge(
    network: CutNetwork, place: Place, arrays: Mapping[str, Tensor], test: Test
) -> dict[str, float]:
    """Accuracy, loss, … of what the device has without network: its part and its exit."""
    tiers = tiers_in(network, arrays)
    found = measured(test, nn.Sequential(tiers.halves.device[0], tiers.exit))
    return {f"edge_{name}": value for name, value in found.items()}


# Devices without network --------------------------------------------------------------------------


@dataclass(frozen=True)
class PartsOfAlone:
    """A device that was alone goes on from what it trained, until the network has it again.

    Attributes:
        evaluate_clients: how many of their parts are tested.
    """

    evaluate_clients: int

    def begin(self, state: ServerState) -> ServerState:
        """As the round before left it."""
        return state

    def own(self, state: ServerState, network: Network, partition: int) -> Arrays:
        """What it trained alone; nothing if it was not."""
        return half_of(state, partition, device_names(network, partition))

    def keep(
        self, state: ServerState, network: Network, results: Sequence[Result], alone: Sequence[int]
    ) -> ServerState:
        """What came back from those who were alone; the others keep nothing any more."""
        return keep_halves(state, network, results, set(alone))

    def shared(
        self, network: Network, clients: Clients, results: Sequence[Result]
    ) -> Sequence[Result]:
        """All of them."""
        return results

    def evaluate(
        self,
        state: ServerState,
        network: Network,
        clients: Clients,
        alone: Sequence[int],
        seed: int,
        test: Test,
    ) -> dict[str, float]:
        """Both exits of the global model; also devices without network, as they are alone."""
        assert isinstance(network, CutNetwork)
        assert network.tested_alone is not None
        arrays = {name: torch.from_numpy(array) for name, array in state.arrays.items()}
        found = network.evaluate(arrays, test)
        kept = {partition: self.own(state, network, partition) for partition in alone}
        kept = {partition: half for partition, half in kept.items() if half}
        if not kept:
            return found
        accuracies = []
        for partition in select(list(kept), self.evaluate_clients, seed, 0):
            own = replaced(arrays, kept[partition])
            edge = network.tested_alone(network, network.only(), own, test)
            accuracies.append(edge["edge_accuracy"])
        return found | {"alone_accuracy": sum(accuracies) / len(accuracies)}

    def evaluate_each(
        self, state: ServerState, network: Network, partitions: Sequence[int], test_of: TestOf
    ) -> list[dict[str, float]]:
        """All with the global model, which all have while there is a network."""
        arrays = {name: torch.from_numpy(array) for name, array in state.arrays.items()}
        return [network.evaluate(arrays, test_of(partitions))]


def edge_report(
    outage: Outage, network: Network | None, results: Sequence[Result], alone: Sequence[int]
) -> dict[str, float]:
    """What every round's record says: the exits' training loss, the share without network."""
    updates = [result.update for result in results if result.update is not None]
    report = {}
    if updates:
        total = sum(update.num_examples for update in updates)
        weighted = sum(update.metrics[EDGE_LOSS] * update.num_examples for update in updates)
        report["edge_train_loss"] = weighted / total
    if outage.happens:
        report["link_cut"] = len(alone) / len(results) if results else 0.0
    return report
