"""The simulated clock beside a real one: a device's round of split learning over a slow link.

    python -m benchmarks.clock [--model lenet5] [--cut stage2] [--batches 20] [--loss 0 0.01]

The device is a process in a network namespace of its own, measured by app.measure before; the slow
class of it is stopped half of the time. It dials the server's half, which is on this machine,
through a link with the rate, the delay and the losses of the row (benchmarks/slow_link.py). The
clock gets the same rows, but for losses, which it does not know.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from app import experiment
from app.commands.measure import fitted, time_cuts
from benchmarks.remote import BATCH, Setup, overrides_of
from benchmarks.slow_link import can_be_made, ends, enter
from benchmarks.table import table
from fleet.cost import cost
from fleet.devices import Device, Link, tables
from quant.codec import LinkSettings
from strategies.client.remote import train_remote
from strategies.server.elsewhere import Elsewhere
from strategies.server.half_service import HalfService, HalfSettings

LINKS = ("4g", "wifi", "fixed")
DUTY_S = 0.02  # the slow device runs, and is stopped, for so long in turn


def device(pipe: Connection, chosen: Sequence[str], namespace: str) -> None:
    """Train a round for each invitation that comes, and say how long it took."""
    enter(namespace)
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


@dataclass(frozen=True)
class Row:
    """One device, one link.

    Attributes:
        device: which class.
        link: of the tables.
        loss: share of packets that the link loses.
        measured_s: of a round.
        simulated_s: of the same round.
    """

    device: str
    link: str
    loss: float
    measured_s: float
    simulated_s: float


def measure(model: str, cut: str, batches: int, losses: Sequence[float]) -> Iterator[Row]:
    """Yield each device class with each link and loss."""
    chosen = overrides_of(model, cut, 1, batches)
    setup = Setup(chosen)
    work = setup.network.works(setup.strategy.rounds.train, lambda _: (0, 0))[0]
    with ends() as wire, HalfService(HalfSettings(f"{wire.address}:0")) as service:
        context = multiprocessing.get_context("spawn")
        mine, its = context.Pipe()
        process = context.Process(target=device, args=(its, chosen, wire.namespace), daemon=True)
        process.start()
        its.close()  # a process that dies is an EOFError here
        assert process.pid is not None
        speed, bandwidth = mine.recv()
        whole = Device("whole", {"fp32": speed}, bandwidth, 2**40, 1.0)
        half = Device("half", {"fp32": speed / 2}, bandwidth / 2, 2**40, 1.0)
        elsewhere = Elsewhere(service, setup.strategy.client, experiment.network(setup.chosen))
        arrays = {name: tensor.numpy() for name, tensor in setup.arrays.items()}
        turn = elsewhere.turn(setup.network, arrays, setup.task(0, LinkSettings()))

        def seconds(link: Link, loss: float) -> float:
            with service.open_round([turn]) as (_, invitations), wire.joined(link, loss):
                mine.send(invitations[0])
                found: float = mine.recv()
            return found

        seconds(Link("none", 1e4, 1e4), 0.0)  # halves are made in the first
        for one, name, loss in itertools.product((whole, half), LINKS, losses):
            link = tables().link(name)
            with slowed(process.pid) if one is half else contextlib.nullcontext():
                measured_s = seconds(link, loss)
            yield Row(one.name, name, loss, measured_s, cost(work, one, link, whole).seconds)
        mine.send(None)
        process.join()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="lenet5")
    parser.add_argument("--cut", default="stage2")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--loss", type=float, nargs="+", default=(0.0, 0.01))
    given = parser.parse_args(argv)
    if not all(0 <= loss < 1 for loss in given.loss):
        parser.error(f"--loss {given.loss}: takes shares in [0, 1)")
    if not can_be_made():
        print("left out: takes Linux, root, ip and /dev/net/tun, to make a link")
        return
    print(f"{given.model} cut at {given.cut}, {given.batches} batches of {BATCH}\n")
    head = ("device", "link", "lost", "measured s", "simulated s", "simulated/measured")
    rows = [
        (
            row.device, row.link, f"{row.loss:.0%}", f"{row.measured_s:.2f}",
            f"{row.simulated_s:.2f}", f"{row.simulated_s / row.measured_s:.2f}",
        )
        for row in measure(given.model, given.cut, given.batches, given.loss)
    ]  # fmt: skip
    print(table(head, rows))


if __name__ == "__main__":
    main()
