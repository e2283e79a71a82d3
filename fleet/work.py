"""What a client does in a round, in units that a device and a link turn into seconds and joules.

`Work` sums up a round. `ClientWork` is what shapes alone say before it, in
the order in which things happen, so that a clock can tell who is late before anybody trains:

    model down → local work → batches, each one: device, up, server, down, …, device → model up
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Work:
    """One client's work in one round.

    Attributes:
        bytes_up: payload bytes sent by the client, as packed.
        bytes_down: payload bytes received by the client, as packed.
        flops: floating or integer operations on the device by precision, such as
            ``{"fp32": 1e9, "int4": 5e8}``.
        peak_bytes: most memory the device holds at once.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    flops: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int = 0


@dataclass(frozen=True)
class Compute:
    """A stretch of computing on one machine.

    Attributes:
        flops: operations by precision (fp32, fp16, int8, int4, int1, or another ``int<bits>``); a
            multiply-add is two.
        traffic_bytes: bytes that move between memory and processor, see `traffic_bytes`; 0 leaves
            memory out of the time.
    """

    flops: Mapping[str, float] = field(default_factory=dict)
    traffic_bytes: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (*self.flops.items(), ("traffic_bytes", self.traffic_bytes)):
            if not value >= 0:
                raise ValueError(f"{name}={value}: work takes numbers of 0 or more")

    def __add__(self, other: "Compute") -> "Compute":
        flops = dict(self.flops)
        for precision, count in other.flops.items():
            flops[precision] = flops.get(precision, 0.0) + count
        return Compute(flops, self.traffic_bytes + other.traffic_bytes)

    def __mul__(self, times: float) -> "Compute":
        flops = {precision: count * times for precision, count in self.flops.items()}
        return Compute(flops, self.traffic_bytes * times)


@dataclass(frozen=True)
class Exchange:
    """The device computes and sends, the server computes and answers.

    Attributes:
        device: what the device computes before it sends.
        bytes_up: activations and labels, or gradients, as packed.
        server: what the server computes then.
        bytes_down: what comes back, as packed; 0 if nothing does.
    """

    device: Compute = field(default_factory=Compute)
    bytes_up: int = 0
    server: Compute = field(default_factory=Compute)
    bytes_down: int = 0

    def __post_init__(self) -> None:
        _check_bytes(bytes_up=self.bytes_up, bytes_down=self.bytes_down)


@dataclass(frozen=True)
class BatchWork:
    """One batch, or several alike, of training over a cut.

    Attributes:
        exchanges: one for split learning; two for U-shaped (activations, then gradients).
        last: what the device computes after the last exchange: its backward pass. In hierarchical
            training the exit and the backward pass, which need no answer.
        count: how many such batches follow each other.
    """

    exchanges: tuple[Exchange, ...]
    last: Compute = field(default_factory=Compute)
    count: int = 1

    def __post_init__(self) -> None:
        if not self.exchanges:
            raise ValueError("exchanges=(): a batch over a cut takes one or more")
        if self.count < 1:
            raise ValueError(f"count={self.count}: takes 1 or more batches")


@dataclass(frozen=True)
class ClientWork:
    """One client's round, known from shapes alone.

    Attributes:
        bytes_down: model, or client half, as it is sent to the client.
        local: what the device computes without the server; in federated learning all it does.
        batches: what it trains over a cut; empty in federated learning.
        bytes_up: model, or client half, as the client sends it back.
        peak_bytes: most memory the device holds at once while it trains.
    """

    bytes_down: int = 0
    local: Compute = field(default_factory=Compute)
    batches: tuple[BatchWork, ...] = ()
    bytes_up: int = 0
    peak_bytes: int = 0

    def __post_init__(self) -> None:
        _check_bytes(bytes_down=self.bytes_down, bytes_up=self.bytes_up, peak_bytes=self.peak_bytes)

    def total(self) -> Work:
        """Sums over the round, on the device's side."""
        device, up, down = self.local, self.bytes_up, self.bytes_down
        for batch in self.batches:
            device += batch.last * batch.count
            for exchange in batch.exchanges:
                device += exchange.device * batch.count
                up += exchange.bytes_up * batch.count
                down += exchange.bytes_down * batch.count
        return Work(up, down, device.flops, self.peak_bytes)


def traffic_bytes(activation_bytes: float, weight_bytes: float) -> float:
    """Bytes that a forward pass moves between memory and processor.

    Each tensor that a training step keeps for its backward pass (`activation_bytes` of
    `models.cost`, times the batch size) is taken to be written and read once, each weight to be
    read once per batch.
    A backward pass moves about twice as much as the forward pass, as it computes twice as much. The
    devices' memory bandwidths are calibrated for this rule (docs/FLEET.md).
    """
    return 2 * activation_bytes + weight_bytes


def _check_bytes(**counts: int) -> None:
    for name, value in counts.items():
        if not value >= 0:
            raise ValueError(f"{name}={value}: takes 0 or more bytes")
