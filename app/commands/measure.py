"""What a device of yours is, as rows for fleet/tables: measured, so that it can be simulated.

    python -m app.measure name=my_board model=resnet18 data=cifar10      # on the device
    python -m app.measure serve=0.0.0.0:9500                             # on the server, and then
    python -m app.measure name=my_board link=192.168.1.10:9500 model=…   # on the device

Times the forward and the backward pass of the device's part at each cut point, one thread, as
clients train; of these the speed and the bandwidth are fitted with which the clock comes closest.
`link` also times messages to a server on which `serve` waits for one device, unencrypted and for
this alone. All else are overrides of main.py; only model, data and train.batch_size matter. Put
what is printed into devices.yaml and links.yaml, and name it in populations.yaml (docs/FLEET.md).
"""

import os
import platform
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn

from app import experiment
from app.config.composition import compose
from app.config.errors import explain
from app.experiment import Experiment
from fleet.devices import FORMATS
from fleet.work import Compute
from models.inputs import spec_of
from models.split import cut_many
from strategies.server.half_service import host_and_port
from strategies.server.workload import Pieces, backward, forward
from tracking.text import line

REPEATS = 7
LEAST_S = 0.02  # of one timing: short passes are repeated
OWN = ("name", "link", "serve")
MESSAGES = (1, 2_000_000)  # bytes: of a round trip, and of a rate
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Timed:
    """One cut: what its device part takes, in seconds, and what it does."""

    cut: str
    forward_s: float
    backward_s: float
    forward: Compute
    backward: Compute


# The device ---------------------------------------------------------------------------------------


def time_cuts(chosen: Experiment) -> list[Timed]:
    """Time the device's part at each cut point.

    Raises:
        ValueError: the network does not take the data, or cannot be cut.
    """
    experiment.check_network(chosen)
    torch.set_num_threads(1)
    model, batch = experiment.network(chosen), chosen.train.batch_size
    pieces = Pieces.of(model, chosen.network.inputs)
    if not pieces.names:
        raise ValueError(f"model={chosen.network.name}: has no cut points")
    x = spec_of(chosen.network.inputs).example(batch)
    found = []
    for cut in pieces.names:
        part = cut_many(model, [cut])[0].train()
        (cost,), _ = pieces.at(cut)
        seconds = time_part(part, x)
        found.append(Timed(cut, *seconds, forward(cost, batch), backward(cost, batch)))
    return found


def time_part(part: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """Seconds of a forward pass, and of the backward pass after it."""
    z = part(x)
    gradient = torch.ones_like(z)

    def both() -> None:
        torch.autograd.backward([part(x)], [gradient])

    ahead = least_s(lambda: part(x))
    if not z.requires_grad:
        return ahead, 0.0
    return ahead, max(0.0, least_s(both) - ahead)


def least_s(work: Callable[[], object]) -> float:
    """Seconds of ``work``, the least of several timings that are not too short: others disturb."""
    began = time.perf_counter()
    work()
    times = max(1, int(LEAST_S / max(1e-9, time.perf_counter() - began)))

    def one() -> float:
        began = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - began) / times

    return min(one() for _ in range(REPEATS))


def fitted(found: Sequence[Timed]) -> tuple[float, float]:
    """FLOP/s and bytes/s with which flops/speed + traffic/bandwidth is nearest, in relative error.

    A figure on which nothing depends comes out as very large.
    """
    rows = [(one.forward, one.forward_s) for one in found]
    rows += [(one.backward, one.backward_s) for one in found if one.backward_s]
    matrix = np.array([[sum(c.flops.values()) / s, c.traffic_bytes / s] for c, s in rows])
    (per_flop, per_byte), _ = nnls(matrix, np.ones(len(rows)))
    return 1 / max(per_flop, 1e-18), 1 / max(per_byte, 1e-18)


def device_row(name: str, found: Sequence[Timed], source: str) -> str:
    """A row of devices.yaml."""
    speed, bandwidth = fitted(found)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    share, own = "fp32 and bandwidth are what was sustained", "assumption: not measured"
    fields = {
        "efficiency": (1.0, "share of peak", "measured", share),
        "bandwidth": (bandwidth / 1e9, "GB/s", "measured", source),
        "bandwidth_efficiency": (1.0, "share of peak", "measured", share),
        "memory": (memory, "MiB", "measured", "the system's"),
        "memory_share": (0.5, "share of memory", "assumed", f"{own}; the system keeps half"),
        "power": (1.0, "W", "assumed", own),
        "idle_power": (0.1, "W", "assumed", own),
    }
    compute = figure(speed / 1e9, "GFLOP/s", "measured", source)
    lines = [f"{name}:", f"  about: {platform.node()}, {platform.machine()}", "  compute:"]
    lines += [f"    fp32: {compute}"]
    as_fp32 = figure(speed / 1e9, "GFLOP/s", "assumed", "assumption: as fp32, not measured")
    lines += [f"    {other}: {as_fp32}" for other in FORMATS if other != "fp32"]
    return "\n".join([*lines, *(f"  {key}: {figure(*value)}" for key, value in fields.items())])


# The link -----------------------------------------------------------------------------------------


def serve(address: str) -> None:
    """Wait for one device, and answer its messages until it hangs up.

    Raises:
        ValueError: the address is none.
        OSError: it cannot listen there.
    """
    with socket.create_server(host_and_port("serve", address)) as listener:
        print(f"waits for a device at {address}", flush=True)  # noqa: T201
        connection, _ = listener.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(TIMEOUT_S)
        while sizes := received(connection, 16):
            up, down = (int.from_bytes(sizes[i : i + 8], "little") for i in (0, 8))
            if max(up, down) > max(MESSAGES):
                return
            received(connection, up)
            connection.sendall(bytes(down))


def received(connection: socket.socket, count: int) -> bytes:
    """Return so many bytes; none where the other end has hung up."""
    found = bytearray()
    while len(found) < count:
        if not (piece := connection.recv(min(2**16, count - len(found)))):
            return b""
        found += piece
    return bytes(found)


def time_link(address: str) -> tuple[float, float, float]:
    """Mbit/s down and up, and milliseconds of a round trip, to where `serve` waits.

    Raises:
        ValueError: the address is none.
        OSError: nobody is there.
    """
    with socket.create_connection(host_and_port("link", address), TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def exchange(up: int, down: int) -> float:
            began = time.perf_counter()
            head = up.to_bytes(8, "little") + down.to_bytes(8, "little")
            connection.sendall(head + bytes(up))
            if len(received(connection, down)) != down:
                raise OSError(f"{address} has hung up")
            return time.perf_counter() - began

        least, most = MESSAGES
        trip = statistics.median(exchange(least, least) for _ in range(REPEATS))
        up_s = statistics.median(exchange(most, least) for _ in range(3)) - trip
        down_s = statistics.median(exchange(least, most) for _ in range(3)) - trip
        up, down = (8e-6 * most / max(1e-9, seconds) for seconds in (up_s, down_s))
        return down, up, 1e3 * trip


def link_row(name: str, measured: tuple[float, float, float], source: str) -> str:
    """A row of links.yaml."""
    down, up, trip = measured
    rows = {
        "down": figure(down, "Mbit/s", "measured", source),
        "up": figure(up, "Mbit/s", "measured", source),
        "round_trip": figure(trip, "ms", "measured", source),
    }
    for key, unit in (
        ("power_down", "mW per Mbit/s"), ("power_up", "mW per Mbit/s"), ("power_base", "mW"),
    ):  # fmt: skip
        rows[key] = figure(0.0, unit, "assumed", "assumption: not measured")
    lines = [f"{name}:", f"  about: to {platform.node()}"]
    return "\n".join([*lines, *(f"  {key}: {value}" for key, value in rows.items())])


def figure(value: float, unit: str, precision: str, source: str) -> str:
    """A figure, as the tables have it."""
    shown = float(f"{value:.4g}")
    return f'{{value: {shown}, unit: {unit}, precision: {precision}, source: "{source}"}}'


def main(arguments: Sequence[str]) -> int:
    """Print what was timed, and the rows."""
    if any(text in ("-h", "--help") for text in arguments):
        print(__doc__)  # noqa: T201
        return 0
    own = dict(text.split("=", 1) for text in arguments if text.partition("=")[0] in OWN)
    overrides = [text for text in arguments if text.partition("=")[0] not in OWN]
    try:
        if address := own.get("serve"):
            serve(address)
            return 0
        name = own.get("name", "my_device")
        print("\n".join(report(name, own.get("link", ""), overrides)))  # noqa: T201
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {explain(error)}\n")
        return 1
    return 0


def report(name: str, address: str, overrides: Sequence[str]) -> list[str]:
    """The lines that are printed."""
    if address:
        host_and_port("link", address)  # before what takes long
    chosen = experiment.resolve(compose(overrides))
    found = time_cuts(chosen)
    speed, bandwidth = fitted(found)
    lines = ["| cut | forward ms | backward ms | the clock's ms |", "|---|---|---|---|"]
    for one in found:
        whole = one.forward + one.backward
        clock = sum(whole.flops.values()) / speed + whole.traffic_bytes / bandwidth
        shown = (1e3 * one.forward_s, 1e3 * one.backward_s, 1e3 * clock)
        lines.append(f"| {line(one.cut)} | " + " | ".join(f"{ms:.3f}" for ms in shown) + " |")
    command = f"python -m app.measure {' '.join(overrides)}, {datetime.now(UTC):%Y-%m-%d}"
    source = command.replace('"', "'").replace("\\", "/")
    lines += ["", "# fleet/tables/devices.yaml", device_row(name, found, source)]
    if address:
        lines += ["", "# fleet/tables/links.yaml"]
        lines += [link_row(f"{name}_link", time_link(address), source)]
    return lines
