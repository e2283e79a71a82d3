"""What a client is: what it gets, what it does, what it returns.

A method's clients are a `ClientHalf`: `prepare` makes what they train, `train` trains it for one
round. Where the network is cut, what lies beyond the cut is a `ServerHalf`, which is handed to
`train`: beside the client in a simulation, else on the server.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fleet.seeds import derive_seed
from models.precision import FP32
from quant.packet import Packet
from strategies.blocks import Block

# What came with a train message, under flat keys such as ``train.lr``.
Settings = Mapping[str, bool | int | float | str]

# The mean loss of a batch: a number, or one that is on a device still.
MeanLoss = float | Tensor

M = TypeVar("M")


@dataclass(frozen=True)
class ClientData:
    """One client's samples: rows of tensors that all clients of a worker share.

    They are to be read. A client that writes into them fails, and they are loaded anew.

    Attributes:
        x: (N, …) inputs of the whole training set, float32 or int64 tokens; a tuple where the
            network takes several.
        y: (N, …) labels: (N,) int64 classes, or what `models.objective` says of other tasks.
        rows: (n,) int64 rows that are this client's.
        num_classes: of the task; 0 stands for as many as ``y`` has.
    """

    x: Tensor | tuple[Tensor, ...]
    y: Tensor
    rows: Tensor
    num_classes: int = 0

    def __post_init__(self) -> None:
        if not self.num_classes and len(self.y) and not self.y.is_floating_point():
            object.__setattr__(self, "num_classes", int(self.y.max()) + 1)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Streams:
    """The random streams of one client in one round.

    Attributes:
        seed: of the experiment.
        server_round: from 1.
        partition: the client.
        dropout: purpose of the stream that dropout draws from.
    """

    seed: int
    server_round: int
    partition: int
    dropout: str = "dropout"

    def generator(self, purpose: str) -> torch.Generator:
        """Return a new generator at the start of the stream called ``purpose``."""
        return torch.Generator().manual_seed(self.number(purpose))

    def seed_dropout(self) -> None:
        """Put torch's default generator, which dropout uses, at the start of this stream."""
        # torch.manual_seed would also take a stack trace for each accelerator that is not there.
        number = self.number(self.dropout)
        torch.default_generator.manual_seed(number)
        if torch.cuda.is_initialized():  # dropout draws where it runs
            torch.cuda.manual_seed(number)

    def number(self, purpose: str) -> int:
        """Return the seed of the stream called ``purpose``."""
        return derive_seed(self.seed, purpose, self.server_round, self.partition)


@dataclass(frozen=True)
class Task:
    """What one client is to do in one round.

    Attributes:
        settings: what came with the message.
        streams: the client's randomness in this round.
        num_examples: samples that the client has.
    """

    settings: Settings
    streams: Streams
    num_examples: int


@dataclass(frozen=True)
class Invitation:
    """Where a client finds the server's half, if that is not beside it.

    Attributes:
        address: ``host:port``.
        ticket: for this client in this round, once.
        certificate: PEM of what is shown there, and of nobody else.
        precision: that it computes in (models/precision.py).
    """

    address: str
    ticket: str
    certificate: str
    precision: str = FP32


@dataclass(frozen=True)
class Update:
    """What a client half returns.

    Attributes:
        arrays: what goes up, by name: model state, or packed codes as (n,) uint8.
        num_examples: samples that the client has, its weight in the average.
        loss: mean training loss per sample over the round.
        bytes_up: what the device sent over the cut; the loop adds the arrays themselves.
        bytes_down: what the server sent over the cut; the same.
        metrics: what a method adds.
    """

    arrays: Mapping[str, Tensor]
    num_examples: int
    loss: float
    bytes_up: int = 0
    bytes_down: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


def check_report(update: Update, num_examples: int) -> None:
    """Refuse an update whose numbers cannot be.

    Args:
        update: what a client half returned.
        num_examples: samples that the client has.

    Raises:
        ValueError: names the first number that cannot be, and says what can.
    """
    if not 1 <= update.num_examples <= num_examples:
        raise ValueError(
            f"num_examples={update.num_examples}: takes 1 to {num_examples}, which it has"
        )
    for name in ("bytes_up", "bytes_down"):
        if (count := getattr(update, name)) < 0:
            raise ValueError(f"{name}={count}: takes 0 or more")
    for name, value in {"loss": update.loss, **update.metrics}.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}={value}: takes a finite number")


def check_arrays(arrays: Mapping[str, Tensor | NDArray[Any]]) -> None:
    """Refuse arrays that would spoil an average; costs one pass over them.

    Raises:
        ValueError: names the first with NaN, infinity, or a value whose square overflows.
    """
    if isinstance(arrays, Block) and arrays.is_tame:
        return
    for name, array in arrays.items():
        if (fault := _fault_of(torch.as_tensor(array))) is not None:
            raise ValueError(f"array {name} {fault}")


def _fault_of(tensor: Tensor) -> str | None:
    """Say what in ``tensor`` an average or its square could not hold; None where nothing is."""
    if not tensor.is_floating_point() or not tensor.numel():
        return None
    values = tensor.detach()
    if math.isfinite(float(torch.linalg.vector_norm(values))):
        return None
    if bool(values.isnan().any()):
        return "holds NaN"
    largest = float(values.abs().max())
    if math.isinf(largest):
        return "holds infinity"
    limit = math.sqrt(max(torch.finfo(kind).max for kind in (values.dtype, torch.float32)))
    # The norm may overflow where no value is too large.
    return f"holds {largest:.1e}: takes values up to {limit:.1e}" if largest > limit else None


class ServerHalf(Protocol):
    """The other side of the cut, as the device sees it: for one client, in one round."""

    @property
    def packed(self) -> bool:
        """Whether packets must hold their bytes, because the half is in another process."""

    def begin(self, task: Task) -> None:
        """Start the client's round."""

    def step(self, z: Packet, y: Tensor) -> tuple[Packet, MeanLoss]:
        """Train on one batch.

        Args:
            z: activations at the cut.
            y: (B, …) labels, as the device's end of the link sends them.

        Returns:
            Gradient of the loss at ``z``, and the mean loss: a number, or a tensor () of one that
            is on a device still.
        """

    def learn(self, z: Packet, y: Tensor) -> None:
        """Hierarchical: train on one batch as `step` does; nothing comes back, nobody waits."""

    def learnt(self) -> float:
        """Hierarchical: mean loss per sample of all that was learnt, once it is."""

    def forward(self, z: Packet) -> Packet:
        """U-shaped: activations at the second cut, given those at the first."""

    def backward(self, gradient: Packet) -> Packet:
        """U-shaped: train; gradient at the first cut, given that at the second."""

    def end(self) -> None:
        """End the client's round: what was trained counts from here on.

        Raises:
            FloatingPointError: a weight is no finite number any more.
        """


class ColocatedHalf(ServerHalf, Protocol):
    """A `ServerHalf` beside its client, for simulation: its state travels in the client's reply."""

    @property
    def bytes_sent(self) -> int:
        """Bytes that this end of the link has sent."""

    def settle(self) -> None:
        """Do what a packed half puts off until its answer is on the way: the optimizer's step."""

    def arrays(self) -> dict[str, Tensor]:
        """State of the server's part, by name."""


class ClientHalf(Protocol[M]):
    """What the clients of a method do.

    ``M`` is what `prepare` makes of the network, and what the other functions take.
    """

    def prepare(self, model: nn.Module, settings: Settings) -> M:
        """Make what a client trains; it is kept over rounds.

        Args:
            model: the user's network.
            settings: what came with the message, but for those of the training
                (`messages.of_network`).
        """

    def train(
        self,
        model: M,
        arrays: Mapping[str, Tensor],
        data: ClientData,
        task: Task,
        server: ServerHalf | None,
    ) -> Update:
        """Train for one round.

        Args:
            model: what `prepare` returned; gets the client's part of ``arrays``.
            arrays: what came with the message, by name.
            data: the client's.
            task: what to do.
            server: the other side of the cut; None where nothing is cut.
        """

    def colocated(
        self, model: M, arrays: Mapping[str, Tensor], task: Task, packed: bool = False
    ) -> ColocatedHalf | None:
        """Return the server's half for one client and round; None where nothing is cut.

        Args:
            model: what `prepare` returned; the server's part of it gets its part of ``arrays``.
            arrays: what came with the message, by name.
            task: what the client is to do.
            packed: have packets hold their bytes, so that they can leave the process.
        """
