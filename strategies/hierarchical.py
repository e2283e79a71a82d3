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
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor, nn

from app import messages
from fleet.clock import Rule, overlapped
from fleet.seeds import derive_seed
from fleet.selection import select
from fleet.work import ClientWork
from models.cost import Cost, cost
from models.exits import ExitSpec, exit_head, exit_name
from strategies.base import FederatedStrategy, Outcome, Test, all_failed, report_failures
from strategies.checkpoint import Arrays
from strategies.hierarchical_learning import EDGE_LOSS, Outage, Tiers, is_number, prepare, train
from strategies.hierarchical_work import alone_round, hierarchical_round
from strategies.split_base import Chain, SplitStrategy, shuffled
from strategies.split_learning import Split

__all__ = ["Hierarchical", "prepare", "train"]

SHARED, REPLICATED = "shared", "replicated"


class Hierarchical(Chain):
    """Server half.

    In a round without network every device trains alone, from what it has: the global model as of
    the last round with a network, or its own half if it has been alone since. It keeps its half,
    and goes on from it when the network is back; then it is averaged with the others. Nothing else
    is trained meanwhile, and no byte crosses.

    Args:
        server_half: ``shared``, one for all, trained by one client's activations after another's,
            in a random order of the round's own; ``replicated``, one for each client, averaged.
        exit_width: channels of a convolution in the exit; 0 for none.
        outage: probability of a round without network, or a list of such rounds.
        evaluate_clients: how many devices' own halves are tested in a round without network.
        common: arguments of `SplitStrategy`.
    """

    reads: ClassVar[tuple[str, ...]] = (*SplitStrategy.reads, "evaluate.clients")

    def __init__(
        self,
        *,
        server_half: str = SHARED,
        exit_width: int = 0,
        outage: float | Sequence[int] = 0.0,
        evaluate_clients: int = 10,
        **common: object,
    ) -> None:
        super().__init__(**common)  # type: ignore[arg-type]
        if server_half not in (SHARED, REPLICATED):
            raise ValueError(f"strategy.server_half={server_half}: takes {SHARED}, {REPLICATED}")
        if not is_number(exit_width, int):
            raise ValueError(f"strategy.exit_width={exit_width}: takes 0, or 2 or more channels")
        self.server_half = server_half
        self.outage = Outage.of(outage)
        self.evaluate_clients = evaluate_clients
        self._exit_width = exit_width
        self._name = ""
        self._exit: ExitSpec | None = None
        self._own: dict[int, Arrays] = {}  # partition id → its half, where it has been alone
        self._alone: list[int] = []  # who trained in the latest round, if that had no network
        self._is_cut = False  # whether the latest round had none
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
        return {
            f"{partition}/{name}": array
            for partition, half in self._own.items()
            for name, array in half.items()
        }

    def load_state(self, state: Arrays) -> None:
        """Take the halves back."""
        self._own = {}
        for key, array in state.items():
            partition, _, name = key.partition("/")
            self._own.setdefault(int(partition), {})[name] = array

    # What is sent, and what it takes ------------------------------------------------------------

    def rule(self) -> Rule:
        """All at once; within a batch the device goes on while the cloud works."""
        return overlapped

    def client_works(self) -> dict[int, ClientWork]:
        """What a round takes each client; the device's own work where there is no network."""
        ((device, head), server), *_ = self.costs().values()
        works: dict[int, ClientWork] = {}
        by_samples: dict[int, ClientWork] = {}
        for partition in self.with_data():
            samples = self.num_examples[partition]
            if samples not in by_samples:
                by_samples[samples] = (
                    alone_round(device, head, samples, self.train)
                    if self._is_cut
                    else hierarchical_round(
                        device, head, server, samples, self.train, self.link,
                        self.model_bytes(partition),
                    )
                )  # fmt: skip
            works[partition] = by_samples[samples]
        return works

    def client_config(self) -> dict[str, bool | int | float | str]:
        """Also the exit, and when there is no network."""
        own = messages.pack_settings(exit=self.spec_of_exit(), outage=self.outage)
        return super().client_config() | own

    def _work(self, device: Sequence[Cost], server: Cost, samples: int) -> ClientWork:
        """What a round takes at a cut that is not chosen yet."""
        (part,) = device
        spec = ExitSpec.of(part.output_shape, server.output_shape[-1], self._exit_width)
        head = cost(exit_head(spec, 0), part.output_shape, input_grad=True)
        sent = part.model_bytes + head.model_bytes
        return hierarchical_round(part, head, server, samples, self.train, self.link, (sent, sent))

    def crosses(self, partition: int) -> frozenset[str] | None:
        """The device's part and its exit; nothing where there is no network."""
        return frozenset() if self._is_cut else self.device_names(partition)

    def requests(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, chosen: Sequence[int]
    ) -> list[Message]:
        """Whoever has been alone goes on from its own half."""
        if not any(partition in self._own for partition in chosen):
            return super().requests(server_round, arrays, config, chosen)
        whole, sent = messages.to_arrays(arrays), list[Message]()
        for partition in chosen:
            own = messages.to_record(whole | self._own.get(partition, {}))
            sent += super().requests(server_round, own, config, [partition])
        return sent

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
        """One device after another where they share the server's part, else all at once."""
        is_cut = self.outage.is_now(self.seed, server_round)
        if is_cut != self._is_cut:
            self._is_cut, self._phases = is_cut, {}  # a round takes less without network
        if is_cut:
            sent = list(self.configure_train(server_round, arrays, config, grid))
            outcomes = sorted(self.exchange(grid, sent, timeout), key=lambda o: o.partition)
            report_failures(server_round, outcomes)
        elif self.server_half == SHARED:
            arrays, outcomes = super().train_round(grid, server_round, arrays, config, timeout)
        else:
            arrays, outcomes = SplitStrategy.train_round(
                self, grid, server_round, arrays, config, timeout
            )
        useful = [outcome for outcome in outcomes if outcome.update is not None]
        if outcomes and not useful:
            raise all_failed(server_round, outcomes)
        for outcome in useful:
            self._own.pop(outcome.partition, None)
            if self._is_cut:
                names = self.device_names(outcome.partition)
                own = {name: array for name, array in outcome.state.items() if name in names}
                self._own[outcome.partition] = own
        self._alone = [outcome.partition for outcome in useful] if self._is_cut else []
        self._extra = {"edge_train_loss": edge_train_loss(useful)} if useful else {}
        if self.outage.happens:
            self._extra["link_cut"] = float(self._is_cut)
        return arrays, outcomes

    def round_extra(self) -> dict[str, float]:
        """The exit's training loss, and whether there was no network."""
        return self._extra

    # What comes of it ---------------------------------------------------------------------------

    def evaluate(self, arrays: Mapping[str, Tensor], test: Test) -> dict[str, float]:
        """Test both exits; without network the mean over devices, each with its own half."""
        if not self._alone:
            return super().evaluate(arrays, test)
        found = []
        for partition in select(self._alone, self.evaluate_clients, self.seed, 0):
            half = self._own[partition]
            own = {name: torch.from_numpy(array) for name, array in half.items()}
            found.append(self.tested(self.split_of(partition), {**arrays, **own}, test))
        return {name: sum(one[name] for one in found) / len(found) for name in found[0]}

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

    def describe(self) -> dict[str, float]:
        """Bit widths, bytes per sample at the cut, and the exit's parameters."""
        own = {"cut_bytes_down_per_sample": 0.0, "exit_params": self.device_costs()[-1].params}
        return super().describe() | own


def edge_train_loss(outcomes: Sequence[Outcome]) -> float:
    """Mean training loss of the exits, weighted by samples."""
    updates = [outcome.update for outcome in outcomes if outcome.update is not None]
    total = sum(update.num_examples for update in updates)
    return sum(update.metrics[EDGE_LOSS] * update.num_examples for update in updates) / total
