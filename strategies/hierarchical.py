"""Hierarchical training with early exits (arXiv 2303.02384, TNNLS 2024).

    z = device(x)
    loss_edge = CE(exit(z), y)  → device, exit step          z, y →  loss = CE(cloud(z), y)
                                                                     cloud steps

The activations go up without their graph, and nothing comes back: both backward passes run at the
same time, and the device trains on where there is no network. Its exit answers there, too.

The exit is in the global model as ``exit.…``, a child that is added to the network (with
underscores after the name while the network has one called so), and trains, is averaged and is
counted with the device's part. The client half is in hierarchical_learning.py.
"""

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor, nn

from fleet.clock import Rule, overlapped, pipelined
from fleet.outages import Outage, is_number
from fleet.seeds import derive_seed
from fleet.selection import select
from fleet.work import ClientWork
from models.cost import Cost, cost, joined
from models.exits import ExitSpec, exit_head, exit_name
from strategies import messages
from strategies.client.split_loop import Split
from strategies.client.tiers import EDGE_LOSS, Tiers, prepare, train
from strategies.server.checkpoint import Arrays
from strategies.server.cuts import Chain, SplitStrategy, shuffled
from strategies.server.loop import FederatedStrategy, Test, Variant
from strategies.server.private_halves import by_owner, flattened, replaced
from strategies.server.results import Outcome, all_failed, report_failures
from strategies.server.tiers_workload import alone_round, hierarchical_round
from strategies.server.workload import Pieces

__all__ = ["Hierarchical", "prepare", "train"]

SHARED, REPLICATED = "shared", "replicated"


@dataclass(frozen=True)
class HierarchicalSettings:
    """The method's own keys of the group strategy."""

    server_half: str = field(
        default=SHARED,
        metadata={
            "help": "the cloud's part: shared (one, trained client after client), replicated (one "
            "each, averaged)"
        },
    )
    exit_width: int = field(
        default=0,
        metadata={
            "help": "channels of a convolution in the device's exit; 0: pooling and one linear "
            "layer"
        },
    )
    pipelined: bool = field(
        default=False,
        metadata={"help": "simulated clock: the next batch begins while the cloud has the last"},
    )
    outage: Any = field(
        default=0.0,
        metadata={"help": "probability of a round without network, or a list of such rounds"},
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


class Hierarchical(Chain):
    """Server half.

    A device without network trains alone, from what it has: the global model as the round begins,
    or its own half if it has been alone since the network had it last. It keeps its half, and goes
    on from it when its network is back; then it is averaged with the others. For it no byte
    crosses, and the cloud learns nothing of it. The fleet says who is there, here who has a
    network; an outage takes it from all.

    Args:
        server_half: ``shared``, one for all, trained by one client's activations after another's,
            in a random order of the round's own; ``replicated``, one for each client, averaged.
        exit_width: channels of a convolution in the exit; 0 for none.
        outage: probability of a round without network for all, or a list of such rounds.
        pipelined: whether, on the simulated clock, device, uplink and cloud each begin the next
            batch as soon as they are free.
        evaluate_clients: how many halves of devices without network are tested.
        common: arguments of `SplitStrategy`.
    """

    reads: ClassVar[tuple[str, ...]] = (*SplitStrategy.reads, "evaluate.clients")

    def __init__(
        self,
        *,
        server_half: str = SHARED,
        exit_width: int = 0,
        outage: float | Sequence[int] = 0.0,
        pipelined: bool = False,
        evaluate_clients: int = 10,
        **common: object,
    ) -> None:
        super().__init__(**common)  # type: ignore[arg-type]
        HierarchicalSettings(server_half, exit_width, pipelined, outage)  # checks itself
        self.server_half = server_half
        self.pipelined = pipelined
        self.outage = Outage.of(outage)
        if self.fleet is not None:
            self.outage = replace(self.outage, otherwise=self.fleet.availability)
            self.fleet = replace(self.fleet, availability=self.outage)
        self.evaluate_clients = evaluate_clients
        self._exit_width = exit_width
        self._name = ""
        self._exit: ExitSpec | None = None
        self._own: dict[int, Arrays] = {}  # partition id → its half, where it has been alone
        self._alone: list[int] = []  # who has no network in this round
        self._extra: dict[str, float] = {}

    def prepare(self, model: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
        """Cut the network, and return it with an exit for its cut.

        Raises:
            ValueError: it cannot be cut there, or no exit fits what crosses; names the key.
        """
        whole = super().prepare(model, input_shape)
        split = self.split_of(0)
        device, server = self._halves[split].parts
        shape = cost(device, input_shape).output_shape
        try:
            self._exit = ExitSpec.of(shape, cost(server, shape).output_shape[-1], self._exit_width)
        except ValueError as error:
            key = "" if str(error).startswith("strategy.") else f"split.cut={split.cut}: "
            raise ValueError(f"{key}{error}") from error
        self._name = exit_name(whole)
        head = exit_head(self._exit, derive_seed(self.seed, "exit"))
        joined = copy.deepcopy(whole)
        joined.add_module(self._name, head)
        names = (f"{self._name}.{name}" for name in head.state_dict())
        self._names[split] |= frozenset(names)
        return FederatedStrategy.prepare(self, joined, input_shape)

    def state(self) -> Arrays:
        """The halves of devices that have been alone."""
        return flattened(self._own)

    def load_state(self, state: Arrays) -> None:
        """Take the halves back."""
        self._own = {int(partition): half for partition, half in by_owner(state).items()}

    def begin(self) -> None:
        """Nobody has been alone."""
        self._own = {}

    # What is sent, and what it takes ------------------------------------------------------------

    def rule(self) -> Rule:
        """All at once; the device goes on while the cloud works, within a batch or beyond it."""
        return pipelined if self.pipelined else overlapped

    def client_works(self) -> dict[int, ClientWork]:
        """What a round takes each client."""
        ((device, server),) = self.costs().values()
        work = functools.cache(lambda samples: self._work(device, server, samples))
        return {partition: work(self.num_examples[partition]) for partition in self.with_data()}

    def alone_works(self) -> dict[int, ClientWork]:
        """What a round takes each client without network: its own part and exit."""
        if not self.outage.happens:
            return {}
        ((device, head), _), *_ = self.costs().values()
        work = functools.cache(lambda samples: alone_round(device, head, samples, self.train))
        return {partition: work(self.num_examples[partition]) for partition in self.with_data()}

    def client_config(self) -> dict[str, bool | int | float | str]:
        """Also the exit."""
        return super().client_config() | messages.pack_settings(exit=self.spec_of_exit())

    def variant(self, partition: int) -> Variant:
        """Also whether the client has no network."""
        alone = ((messages.ALONE, True),) if partition in self._alone else ()
        return super().variant(partition) + alone

    def costs_at(
        self,
        model: nn.Module,
        input_shape: tuple[int, ...],
        pieces: Pieces,
        name: str,
        tail: str,
    ) -> tuple[list[Cost], Cost]:
        """Also what the exit would cost; the cloud's backward pass ends there."""
        (device,), server = pieces.at(name, is_detached=True)
        spec = ExitSpec.of(device.output_shape, server.output_shape[-1], self._exit_width)
        head = cost(exit_head(spec, 0), device.output_shape, input_grad=True)
        return [device, head], server

    def _work(self, device: Sequence[Cost], server: Cost, samples: int) -> ClientWork:
        part, head = device
        sent = part.model_bytes + head.model_bytes
        return hierarchical_round(part, head, server, samples, self.train, self.link, (sent, sent))

    def crosses(self, partition: int) -> frozenset[str] | None:
        """The device's part and its exit; nothing where there is no network."""
        return frozenset() if partition in self._alone else self.device_names(partition)

    def requests(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, chosen: Sequence[int]
    ) -> list[Message]:
        """Whoever has been alone goes on from its own half; the others share a message."""
        own = [partition for partition in chosen if partition in self._own]
        rest = [partition for partition in chosen if partition not in self._own]
        sent = super().requests(server_round, arrays, config, rest)
        sent += self.requests_each(server_round, arrays, config, own, self._own.__getitem__)
        message_of = dict(zip(rest + own, sent, strict=True))
        return [message_of[partition] for partition in chosen]

    # A round ------------------------------------------------------------------------------------

    def order(self, chosen: Sequence[int], server_round: int) -> list[int]:
        """A random order, drawn by seed and round, where they share the cloud's part."""
        is_chain = self.server_half == SHARED
        return shuffled(chosen, self.seed, server_round) if is_chain else list(chosen)

    def handed_on(self, name: str) -> bool:
        """The server's part is."""
        return name not in self.device_names()

    def train_round(
        self,
        grid: Grid,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        timeout: float,
    ) -> tuple[ArrayRecord, list[Outcome]]:
        """One device after another where they share the server's part, else all at once.

        Beside them those without network, from what they had when the round began.
        """
        method = Chain if self.server_half == SHARED else SplitStrategy
        averaged, linked = method.train_round(self, grid, server_round, arrays, config, timeout)
        sent = self.requests(server_round, arrays, config, self._alone)
        alone = self.exchange(grid, sent, timeout)
        report_failures(server_round, alone)
        outcomes = sorted(linked + alone, key=lambda outcome: outcome.partition)
        useful = [outcome for outcome in outcomes if outcome.update is not None]
        if outcomes and not useful:
            raise all_failed(server_round, outcomes)
        for outcome in useful:
            self._own.pop(outcome.partition, None)
            if outcome.partition in self._alone:
                names = self.device_names(outcome.partition)
                own = {name: array for name, array in outcome.state.items() if name in names}
                self._own[outcome.partition] = own
        self._extra = {"edge_train_loss": edge_train_loss(useful)} if useful else {}
        if self.outage.happens:
            self._extra["link_cut"] = len(alone) / len(outcomes) if outcomes else 0.0
        return averaged, outcomes

    def all_lost(
        self, server_round: int, arrays: ArrayRecord, outcomes: Sequence[Outcome]
    ) -> ArrayRecord:
        """The old model, while there are devices without network, which do not feel the cloud."""
        return arrays if self._alone else super().all_lost(server_round, arrays, outcomes)

    def choose(self, server_round: int) -> list[int]:
        """Draw the clients of a round that have a network; note those that have none."""
        chosen = super().choose(server_round)
        if self._plan is not None:
            self._alone = sorted(self._plan.alone)
        else:
            self._alone = chosen if self.outage.is_now(self.seed, server_round) else []
        return [partition for partition in chosen if partition not in self._alone]

    def round_extra(self) -> dict[str, float]:
        """The exits' training loss, and the share of devices without network."""
        return self._extra

    # What comes of it ---------------------------------------------------------------------------

    def evaluate(self, arrays: Mapping[str, Tensor], test: Test) -> dict[str, float]:
        """Test both exits of the global model; also devices without network, as they are alone."""
        found = super().evaluate(arrays, test)
        alone = [partition for partition in self._alone if partition in self._own]
        if not alone:
            return found
        accuracies = []
        for partition in select(alone, self.evaluate_clients, self.seed, 0):
            accuracy, _ = test(self.edge(replaced(arrays, self._own[partition])))
            accuracies.append(accuracy)
        return found | {"alone_accuracy": sum(accuracies) / len(accuracies)}

    def tested(self, split: Split, arrays: Mapping[str, Tensor], test: Test) -> dict[str, float]:
        """Accuracy and loss of the cloud's exit, through the link, and of the edge's."""
        accuracy, loss = test(self.edge(arrays))
        edge = {"edge_accuracy": accuracy, EDGE_LOSS: loss}
        return super().tested(split, arrays, test) | edge

    def edge(self, arrays: Mapping[str, Tensor]) -> nn.Module:
        """The network that the device has: its part and its exit, (B, …) → (B, classes)."""
        tiers = self.tiers(arrays)
        return nn.Sequential(tiers.halves.device[0], tiers.exit)

    def tiers(self, arrays: Mapping[str, Tensor]) -> Tiers:
        """Both parts and the exit, with these arrays of the global model."""
        tiers = Tiers(self._halves[self.split_of(0)], exit_head(self.spec_of_exit(), 0), self._name)
        tiers.load(arrays)
        return tiers

    def spec_of_exit(self) -> ExitSpec:
        """What the exit is made of."""
        self.whole_model()  # says if prepare() is missing
        assert self._exit is not None
        return self._exit

    def costs(self) -> dict[Split, tuple[list[Cost], Cost]]:
        """What the device's part and its exit cost, and what the cloud's part does.

        The backward pass goes through the exit into the device's part, and ends in the cloud's.
        """
        for split, parts in self._halves.items():
            if split not in self._costs:
                device = cost(parts.device[0], self.input_shape)
                head = cost(exit_head(self.spec_of_exit(), 0), device.output_shape, input_grad=True)
                self._costs[split] = [device, head], cost(parts.server, device.output_shape)
        return self._costs

    def network_cost(self) -> Cost:
        """Of both parts and the exit."""
        ((device, server),) = self.costs().values()
        return joined([device[0], server, *device[1:]])

    def describe(self) -> dict[str, float]:
        """Bit widths, bytes per sample at the cut, and the exit's parameters."""
        own = {"cut_bytes_down_per_sample": 0.0, "exit_params": self.device_costs()[-1].params}
        return super().describe() | own


def edge_train_loss(outcomes: Sequence[Outcome]) -> float:
    """Mean training loss of the exits, weighted by samples."""
    updates = [outcome.update for outcome in outcomes if outcome.update is not None]
    total = sum(update.num_examples for update in updates)
    return sum(update.metrics[EDGE_LOSS] * update.num_examples for update in updates) / total
