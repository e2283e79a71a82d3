"""Hierarchical training with early exits (arXiv 2303.02384, TNNLS 2024).

    z = device(x)
    loss_edge = CE(exit(z), y)  → device, exit step          z, y →  loss = CE(cloud(z), y)
                                                                     cloud steps

The activations go up without their graph, and nothing comes back: both backward passes run at the
same time, and the device trains on where there is no network. Its exit answers there, too.

The exit is in the global model as ``exit.…``, a child that is added to the network (with
underscores after the name while the network has one called so), and trains, is averaged and is
counted with the device's part. Dropout of the cloud has a stream of its own, so that nothing of the
cloud can be felt on the device, not even by a random draw.
"""

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor, nn

from app import messages
from app.messages import unpack_settings
from fleet.clock import Rule, overlapped
from fleet.seeds import derive_seed
from fleet.selection import select
from fleet.work import ClientWork, Work
from models.cost import Cost, cost
from models.exits import ExitHead, ExitSpec, exit_head, exit_name
from quant.codec import LinkSettings
from quant.layers import QuantSpec
from strategies.base import FederatedStrategy, Outcome, Test, all_failed, report_failures
from strategies.checkpoint import Arrays
from strategies.hierarchical_work import alone_round, hierarchical_round
from strategies.link import Link, Packet
from strategies.local import (
    ClientData,
    LocalTraining,
    Streams,
    Update,
    check_finite,
    clamp_steps,
    freeze_batch_norm,
    load_arrays,
    make_optimizer,
    samples,
)
from strategies.split_base import Chain, SplitStrategy, shuffled
from strategies.split_learning import Halves, Side, Split, halves, quantized

SHARED, REPLICATED = "shared", "replicated"
EDGE_LOSS = "edge_loss"


@dataclass(frozen=True)
class Outage:
    """When there is no network.

    Attributes:
        probability: of a round without, drawn by the experiment's seed.
        rounds: those that have none whatever is drawn, as text: ``3,4,5``.
    """

    probability: float = 0.0
    rounds: str = ""

    @classmethod
    def of(cls, given: object) -> "Outage":
        """Take a probability or a list of rounds.

        Raises:
            ValueError: it is neither; names the key.
        """
        if isinstance(given, list | tuple):
            if all(_is_number(value, int) and value >= 1 for value in given):
                return cls(rounds=",".join(str(value) for value in given))
        elif _is_number(given, int | float) and 0 <= given <= 1:  # type: ignore[operator]
            return cls(probability=float(given))  # type: ignore[arg-type]
        raise ValueError(
            f"strategy.outage={given}: takes a probability in [0, 1], or a list of rounds from 1"
        )

    @property
    def happens(self) -> bool:
        """Whether there can be one at all."""
        return self.probability > 0 or bool(self.rounds)

    def is_now(self, seed: int, server_round: int) -> bool:
        """Whether a round has no network: the same to the server and to every client."""
        if str(server_round) in self.rounds.split(","):
            return True
        drawn = random.Random(derive_seed(seed, "outage", server_round)).random()
        return drawn < self.probability


def _is_number(value: object, kinds: Any) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


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
        if not _is_number(exit_width, int):
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

    def tiers(self, arrays: Mapping[str, Tensor]) -> "Tiers":
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


# The client half ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiers:
    """What a client trains: the network in two parts, and the exit between them.

    Attributes:
        halves: the device's part and the server's.
        exit: the device's classifier.
        name: what the exit is called in the global model.
    """

    halves: Halves
    exit: ExitHead
    name: str

    def load(self, arrays: Mapping[str, Tensor]) -> None:
        """Copy the global model's arrays into the parts and the exit."""
        for part in self.halves.parts:
            load_arrays(part, {name: arrays[name] for name in part.state_dict()})
        own = {name: arrays[f"{self.name}.{name}"] for name in self.exit.state_dict()}
        load_arrays(self.exit, own)


def prepare(model: nn.Module, config: Mapping[str, Any]) -> Tiers:
    """Clients train the network's parts, quantized where bits are fewer than 32, and an exit."""
    split = unpack_settings(config, "split", Split)
    spec, side = unpack_settings(config, "quant", QuantSpec), unpack_settings(config, "side", Side)
    whole = quantized(model, spec, side, split)
    head = exit_head(ExitSpec(**_exit_settings(config)), 0)
    return Tiers(halves(whole, split), head, exit_name(whole))


def train(
    model: Tiers,
    arrays: Mapping[str, Tensor],
    data: ClientData,
    config: Mapping[str, Any],
    streams: Streams,
) -> Update:
    """Client half: load all three, train them, return them; the server's part does not cross."""
    split = unpack_settings(config, "split", Split)
    settings = unpack_settings(config, "train", LocalTraining)
    is_cut = unpack_settings(config, "outage", Outage).is_now(streams.seed, streams.server_round)
    link = Link(unpack_settings(config, "link", LinkSettings), streams.generator("link.up"))
    device, server = model.halves.parts
    model.load(arrays)
    cloud = None if is_cut else Cloud(server, settings, split.server_lr or settings.lr, link)
    edge_loss, loss = train_tiers(device, model.exit, cloud, link, data, settings, streams)
    state = {**device.state_dict(), **server.state_dict()}
    mine = {f"{model.name}.{name}": tensor for name, tensor in model.exit.state_dict().items()}
    state |= mine
    return Update(
        arrays={name: state[name] for name in arrays},
        num_examples=len(data),
        loss=edge_loss if loss is None else loss,
        work=Work(bytes_up=link.bytes_up, bytes_down=link.bytes_down),
        metrics={EDGE_LOSS: edge_loss},
        crosses=frozenset() if is_cut else model.halves.device_names() | mine.keys(),
    )


class CloudHalf(Protocol):
    """The other side of the cut, which answers nothing."""

    def begin(self, streams: Streams, num_examples: int) -> None:
        """Start the round of the client that ``streams`` names."""

    def step(self, z: Packet, y: Tensor) -> float:
        """Train on a batch's activations and (B,) classes; return the mean loss."""

    def end(self) -> None:
        """End the client's round."""


class Cloud:
    """A `CloudHalf` in the client's process, for simulation.

    Args:
        part: the server's part of the network, trained in place.
        settings: how it trains.
        lr: its learning rate.
        link: the client's link.
    """

    def __init__(self, part: nn.Module, settings: LocalTraining, lr: float, link: Link) -> None:
        self._part = part
        self._settings = settings
        self._optimizer = make_optimizer([part], settings, lr)
        self._link = link
        self._random = torch.default_generator.get_state()  # where its dropout is

    def begin(self, streams: Streams, num_examples: int) -> None:
        """Put the part into training, and its dropout at the start of its own stream."""
        self._part.train()
        if num_examples == 1:
            freeze_batch_norm(self._part)
        self._random = streams.generator("dropout.cloud").get_state()

    def step(self, z: Packet, y: Tensor) -> float:
        """Forward, loss, backward, step."""
        device_random = torch.default_generator.get_state()
        torch.default_generator.set_state(self._random)
        logits = self._part(z.values)  # (B, classes)
        self._random = torch.default_generator.get_state()
        torch.default_generator.set_state(device_random)
        loss = F.cross_entropy(logits, y)
        self._link.labels_up(y, logits.shape[1])
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())

    def end(self) -> None:
        """Keep the steps of quantizers positive, and refuse weights that are no numbers."""
        clamp_steps(self._part)
        check_finite([self._part], 0.0, self._settings)


def train_tiers(
    device: nn.Module,
    head: nn.Module,
    cloud: CloudHalf | None,
    link: Link,
    data: ClientData,
    settings: LocalTraining,
    streams: Streams,
) -> tuple[float, float | None]:
    """Train the device's part and its exit in place for one round.

    Args:
        device: the device's part.
        head: its exit.
        cloud: the other side; None where there is no network.
        link: what is sent over it.
        data: the client's.
        settings: how it trains.
        streams: its randomness.

    Returns:
        Mean losses per sample of the exit and of the cloud, None where it was not there.

    Raises:
        FloatingPointError: a loss or a weight is no finite number any more.
    """
    streams.seed_dropout()
    edge = (device, head)
    for part in edge:
        part.train()
        if len(data) == 1:
            freeze_batch_norm(part)
    optimizer = make_optimizer(edge, settings)
    if cloud is not None:
        cloud.begin(streams, len(data))
    edge_total, cloud_total, count = 0.0, 0.0, 0
    for x, y in samples(data, settings, streams):
        z = device(x)
        loss = F.cross_entropy(head(z), y)
        if cloud is not None:
            cloud_total += cloud.step(link.send_up(z), y) * len(y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        edge_total += float(loss.detach()) * len(y)
        count += len(y)
    for part in edge:
        clamp_steps(part)
    check_finite(edge, edge_total / count, settings)
    if cloud is None:
        return edge_total / count, None
    cloud.end()
    check_finite((), cloud_total / count, settings)
    return edge_total / count, cloud_total / count


def _exit_settings(config: Mapping[str, Any]) -> dict[str, int]:
    """An `ExitSpec` as it came; it has no default to stand for what is missing."""
    return {
        key.removeprefix("exit."): int(value)
        for key, value in config.items()
        if key.startswith("exit.")
    }
