"""The simulated clock beside a real one: a device's round of split learning over a slow link.

    python -m benchmarks.clock [--model lenet5] [--cut stage2] [--batches 20]

The device is a process of its own, measured by app.measure before; the slow class of it is stopped
half of the time. Between it and the server's half is a relay that delays what goes through it and
lets no more of it through than the link's rate, as ``tc netem`` would where the kernel has it. Both
get the same rows: this device, this link; the server's half is this machine's.
"""

import argparse
import contextlib
import multiprocessing
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection

from app import experiment
from app.commands.measure import fitted, time_cuts
from benchmarks.remote import BATCH, Setup, overrides_of
from benchmarks.table import table
from fleet.cost import cost
from fleet.devices import Device, Link, tables
from quant.codec import LinkSettings
from strategies.client.remote import train_remote
from strategies.contract import Invitation
from strategies.server.elsewhere import Elsewhere
from strategies.server.half_service import HalfService, HalfSettings

LINKS = ("4g", "wifi", "fixed")
DUTY_S = 0.02  # the slow device runs, and is stopped, for so long in turn
CHUNK = 2048


def device(pipe: Connection, chosen: Sequence[str]) -> None:
    """Train a round for each invitation that comes, and say how long it took."""
    setup = Setup(chosen)
    found = time_cuts(setup.chosen)
    pipe.send(fitted(found))
    client, task = setup.strategy.client, setup.task(0, LinkSettings())
    model = client.prepare(experiment.network(setup.chosen), task.settings)
    names = setup.network.on_device(0) or frozenset()
    arrays = {name: tensor for name, tensor in setup.arrays.items() if name in names}
    data = experiment.client_data(setup.chosen, 0)
    while (invitation := pipe.recv()) is not None:
        began = time.perf_counter()
        train_remote(client, model, arrays, data, task, invitation)
        pipe.send(time.perf_counter() - began)


@contextlib.contextmanager
def slowed(pid: int) -> Iterator[None]:
    """Stop a process half of the time."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(DUTY_S):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(DUTY_S)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextlib.contextmanager
def relay(address: str, link: Link) -> Iterator[str]:
    """Listen for one connection, and pass it on as over this link; yields where to dial."""
    host, _, port = address.rpartition(":")
    with socket.create_server((host, 0)) as listener:
        threads: list[threading.Thread] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                near, _ = listener.accept()
                far = socket.create_connection((host, int(port)))
                for one in (near, far):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threads.extend(pipe_through(near, far, link.up_mbps, link.latency_s))
                threads.extend(pipe_through(far, near, link.down_mbps, link.latency_s))

        first = threading.Thread(target=accept)
        first.start()
        yield f"{host}:{listener.getsockname()[1]}"
        first.join()
        for thread in threads:
            thread.join()


def pipe_through(
    source: socket.socket, to: socket.socket, mbps: float, latency_s: float
) -> list[threading.Thread]:
    """One direction: a thread that takes what comes at the rate, one that hands it on later."""
    waiting: queue.Queue[tuple[float, bytes]] = queue.Queue()

    def take() -> None:
        free = 0.0  # when the link has sent what it was given
        data = b"begins"
        while data:
            try:
                data = source.recv(CHUNK)
            except OSError:
                data = b""
            free = max(free, time.perf_counter()) + 8e-6 * len(data) / mbps
            waiting.put((free + latency_s, data))

    def give() -> None:
        while True:
            due, data = waiting.get()
            time.sleep(max(0.0, due - time.perf_counter()))
            with contextlib.suppress(OSError):
                if not data:
                    to.shutdown(socket.SHUT_WR)
                    return
                to.sendall(data)

    threads = [threading.Thread(target=work) for work in (take, give)]
    for thread in threads:
        thread.start()
    return threads


def measure(model: str, cut: str, batches: int) -> list[tuple[str, str, float, float]]:
    """Device class, link, measured and simulated seconds of a round."""
    chosen = overrides_of(model, cut, 1, batches)
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=device, args=(its, chosen), daemon=True)
    process.start()
    assert process.pid is not None
    speed, bandwidth = mine.recv()
    setup = Setup(chosen)
    arrays = {name: tensor.numpy() for name, tensor in setup.arrays.items()}
    work = setup.network.works(setup.strategy.rounds.train, lambda _: (0, 0))[0]
    whole = Device("whole", {"fp32": speed}, bandwidth, 2**40, 1.0)
    half = replace(whole, name="half", flops_per_s={"fp32": speed / 2}, bytes_per_s=bandwidth / 2)
    found = []
    with HalfService(HalfSettings("127.0.0.1:0")) as service:
        elsewhere = Elsewhere(service, setup.strategy.client, experiment.network(setup.chosen))
        turn = elsewhere.turn(setup.network, arrays, setup.task(0, LinkSettings()))

        def run(link: Link) -> float:
            with (
                service.open_round([turn]) as (_, invitations),
                relay(service.address, link) as address,
            ):
                told: Invitation = replace(invitations[0], address=address)
                mine.send(told)
                seconds: float = mine.recv()
            return seconds

        run(Link("none", 1e4, 1e4))  # halves are made in the first
        for one in (whole, half):
            for name in LINKS:
                link = tables().link(name)
                with slowed(process.pid) if one is half else contextlib.nullcontext():
                    seconds = run(link)
                found.append((one.name, name, seconds, cost(work, one, link, whole).seconds))
    mine.send(None)
    process.join()
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="lenet5")
    parser.add_argument("--cut", default="stage2")
    parser.add_argument("--batches", type=int, default=20)
    given = parser.parse_args(argv)
    found = measure(given.model, given.cut, given.batches)
    print(f"{given.model} cut at {given.cut}, {given.batches} batches of {BATCH}\n")
    head = ("device", "link", "measured s", "simulated s", "simulated/measured")
    rows = [(d, link, f"{m:.2f}", f"{s:.2f}", f"{s / m:.2f}") for d, link, m, s in found]
    print(table(head, rows))


if __name__ == "__main__":
    main()
