"""The parts of a client's round on its device and link: seconds, joules, and whether it fits.

    compute   Σ flops_p / speed_p + traffic / bandwidth                                     seconds
    transfer  latency + 8 · bytes / (10⁶ · Mbit/s); no bytes, no message                     seconds
    energy    idle_w · seconds + (power_w − idle_w) · compute + slope · megabits
              + radio_w · transfer + one tail                                                 joules

Compute and memory times add up instead of overlapping: layers bound by one follow layers bound by
the other. All is monotone: more operations, more bytes, a slower device or link, never takes less
time or energy. The symbols are those of docs/FLEET.md.
"""

from dataclasses import dataclass
from functools import cached_property

from fleet.devices import Device, Link
from fleet.work import BatchWork, ClientWork, Compute


@dataclass(frozen=True)
class BatchRun:
    """Seconds of each part of a batch, and how many such batches follow each other.

    Attributes:
        count: batches.
        first_s: the device, before it first sends.
        first_up_s: that message's way up.
        server_s: the server, all exchanges together, at full capacity.
        between_compute_s: the device between the first and the last exchange.
        between_transfer_s: all other messages but the last one down.
        down_s: the last message down.
        last_s: the device after it.
    """

    count: int
    first_s: float
    first_up_s: float
    server_s: float
    between_compute_s: float = 0.0
    between_transfer_s: float = 0.0
    down_s: float = 0.0
    last_s: float = 0.0

    @property
    def compute_s(self) -> float:
        """The device in one batch."""
        return self.first_s + self.between_compute_s + self.last_s

    @property
    def transfer_s(self) -> float:
        """All messages of one batch."""
        return self.first_up_s + self.between_transfer_s + self.down_s


@dataclass(frozen=True)
class Phases:
    """Seconds of each part of a client's round, and what they cost.

    Attributes:
        down_s: the model's way down.
        local_s: the device without the server.
        runs: batches over a cut, in order.
        up_s: the model's way up.
        power_w: of the device while it computes.
        idle_w: of the device otherwise.
        radio_w: of the radio during transfers, whatever the rate.
        radio_j: what the radio spends on top, per bit.
        tail_j: what the radio spends after the last transfer.
        peak_bytes: most memory that training needs.
        memory_bytes: what the device has for it.
    """

    down_s: float
    local_s: float
    runs: tuple[BatchRun, ...]
    up_s: float
    power_w: float
    idle_w: float
    radio_w: float
    radio_j: float
    tail_j: float
    peak_bytes: int
    memory_bytes: float

    @property
    def compute_s(self) -> float:
        """The device over the whole round."""
        return self.local_s + sum(run.count * run.compute_s for run in self.runs)

    @property
    def transfer_s(self) -> float:
        """All messages of the round."""
        batches = sum(run.count * run.transfer_s for run in self.runs)
        return self.down_s + batches + self.up_s

    @property
    def server_s(self) -> float:
        """The server over the whole round, at full capacity."""
        return sum(run.count * run.server_s for run in self.runs)

    @cached_property
    def lead_s(self) -> float:
        """From the client's start until the server can first begin."""
        lead = self.down_s + self.local_s
        return lead + self.runs[0].first_s + self.runs[0].first_up_s if self.runs else lead

    @cached_property
    def held_s(self) -> float:
        """From the server's first begin to its last end, if it waits for this client alone."""
        whole = self.compute_s + self.transfer_s + self.server_s
        return max(0.0, whole - self.lead_s - self.tail_s)  # without it −1e−17 in place of 0

    @cached_property
    def tail_s(self) -> float:
        """From the server's last end until the client's."""
        return self.up_s + (self.runs[-1].down_s + self.runs[-1].last_s if self.runs else 0.0)

    @property
    def fits(self) -> bool:
        """Whether training fits into the device's memory."""
        return self.peak_bytes <= self.memory_bytes

    def joules(self, seconds: float) -> float:
        """Energy of the device and its radio, given how long its round takes it."""
        busy_w = self.power_w - self.idle_w
        radio = self.radio_j + self.radio_w * self.transfer_s + self.tail_j
        return self.idle_w * seconds + busy_w * self.compute_s + radio

    def slowed(self, device: float = 1.0, link: float = 1.0, server: float = 1.0) -> "Phases":
        """The same with seconds of device, link and server multiplied by these factors."""
        runs = tuple(
            BatchRun(
                run.count,
                run.first_s * device,
                run.first_up_s * link,
                run.server_s * server,
                run.between_compute_s * device,
                run.between_transfer_s * link,
                run.down_s * link,
                run.last_s * device,
            )
            for run in self.runs
        )
        return Phases(  # dataclasses.replace takes three times as long
            self.down_s * link,
            self.local_s * device,
            runs,
            self.up_s * link,
            self.power_w,
            self.idle_w,
            self.radio_w,
            self.radio_j,
            self.tail_j,
            self.peak_bytes,
            self.memory_bytes,
        )


def compute_seconds(work: Compute, device: Device) -> float:
    """Seconds of a stretch of computing.

    Raises:
        ValueError: there is no such number format.
    """
    arithmetic = sum(count / device.speed(name) for name, count in work.flops.items())
    return arithmetic + work.traffic_bytes / device.bytes_per_s


def transfer_seconds(num_bytes: float, mbps: float, latency_s: float) -> float:
    """Seconds until a message of ``num_bytes`` has arrived; 0 where there is none."""
    return latency_s + 8e-6 * num_bytes / mbps if num_bytes else 0.0


def phases(
    work: ClientWork, device: Device, link: Link, server: Device, *, tails: bool = False
) -> Phases:
    """Return the parts of a client's round. They depend on shapes alone: once per run is enough.

    Args:
        work: the client's round.
        device: the client's device.
        link: its link.
        server: what runs the server halves.
        tails: whether to count the energy of the radio's tail, once a round.
    """
    total = work.total()
    bits_up, bits_down = 8e-6 * total.bytes_up, 8e-6 * total.bytes_down
    has_messages = total.bytes_up or total.bytes_down
    return Phases(
        down_s=_down(work.bytes_down, link),
        local_s=compute_seconds(work.local, device),
        runs=tuple(_run(batch, device, link, server) for batch in work.batches),
        up_s=_up(work.bytes_up, link),
        power_w=device.power_w,
        idle_w=device.idle_w,
        radio_w=link.radio_w,
        radio_j=link.up_w_per_mbps * bits_up + link.down_w_per_mbps * bits_down,
        tail_j=link.tail_s * link.tail_w if tails and has_messages else 0.0,
        peak_bytes=work.peak_bytes,
        memory_bytes=device.memory_bytes,
    )


def _run(batch: BatchWork, device: Device, link: Link, server: Device) -> BatchRun:
    first, *others = batch.exchanges
    ups = [_up(exchange.bytes_up, link) for exchange in batch.exchanges]
    downs = [_down(exchange.bytes_down, link) for exchange in batch.exchanges]
    return BatchRun(
        count=batch.count,
        first_s=compute_seconds(first.device, device),
        first_up_s=ups[0],
        server_s=sum(compute_seconds(exchange.server, server) for exchange in batch.exchanges),
        between_compute_s=sum(compute_seconds(other.device, device) for other in others),
        between_transfer_s=sum(ups[1:]) + sum(downs[:-1]),
        down_s=downs[-1],
        last_s=compute_seconds(batch.last, device),
    )


def _up(num_bytes: int, link: Link) -> float:
    return transfer_seconds(num_bytes, link.up_mbps, link.latency_s)


def _down(num_bytes: int, link: Link) -> float:
    return transfer_seconds(num_bytes, link.down_mbps, link.latency_s)
