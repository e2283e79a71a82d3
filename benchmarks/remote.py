"""A server's half behind the service beside one in the client's process: wall time and processor.

    python -m benchmarks.remote [--strategy splitfed_v1] [--model lenet5] [--cut stage2]
                                [--batches 60] [--repeat 5]

The service has a process of its own; the clients are threads of this one, all at once, over TLS on
the loopback interface. Beside the client, as in a simulation, they train one after another. Both
take turns, so that a busy machine slows both; figures are medians over the repetitions, and ratios
medians of the pairs'. Each process keeps to a processor of its own, as if it were on a machine of
its own: where the system moves them, each finds its caches cold (``--free`` lets it).
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from app import experiment
from app.config.composition import compose
from benchmarks import random_data
from benchmarks.table import table
from quant.codec import LinkSettings
from strategies.client.remote import train_remote
from strategies.client.simulated import train_simulated
from strategies.contract import Invitation, Streams, Task
from strategies.messages import pack_settings
from strategies.server.cuts import CutNetwork
from strategies.server.elsewhere import Elsewhere
from strategies.server.half_service import HalfService, HalfSettings

CLIENTS = (1, 8, 32)
LINKS = {"fp32": LinkSettings(), "int8": LinkSettings("int8", "int8")}
BATCH = 32


class Setup:
    """A method, its network and the tasks of its clients, in either process."""

    def __init__(self, overrides: Sequence[str]) -> None:
        torch.set_num_threads(1)
        self.chosen = experiment.resolve(compose(overrides))
        self.strategy = experiment.strategy(self.chosen)
        model = experiment.prepare(self.chosen, self.strategy)
        self.arrays = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        network = self.strategy.prepared().in_round(1)
        assert isinstance(network, CutNetwork)
        self.network = network

    def task(self, partition: int, link: LinkSettings) -> Task:
        settings = {
            **self.strategy.client_settings(),
            **dict(self.network.variant(partition)),
            **pack_settings(link=link),
        }
        samples = len(experiment.client_data(self.chosen, partition))
        return Task(settings, Streams(0, 1, partition), samples)


def overrides_of(strategy: str, model: str, cut: str, clients: int, batches: int) -> list[str]:
    """An experiment of so many clients with so many batches each."""
    return [
        f"strategy={strategy}", f"model={model}", f"split.cut={cut}", f"clients.total={clients}",
        "train.lr=0.01", "train.epochs=1", f"train.batch_size={BATCH}", "engine=serial",
        *random_data.overrides(clients * batches * BATCH),
    ]  # fmt: skip


def keep_to(processor: int) -> None:
    """Run on this one of the processors that the process has, counted from 0, where one can say."""
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {mine[processor % len(mine)]})


def serve(pipe: Connection, overrides: Sequence[str], is_free: bool) -> None:
    """Open a round for each (clients, link) that comes; its invitations, then processor seconds."""
    if not is_free:
        keep_to(1)
    setup = Setup(overrides)
    arrays = {name: tensor.numpy() for name, tensor in setup.arrays.items()}
    with HalfService(HalfSettings("127.0.0.1:0")) as service:
        client, network = setup.strategy.client, experiment.network(setup.chosen)
        elsewhere = Elsewhere(service, client, network)
        pipe.send("ready")
        while (asked := pipe.recv()) is not None:
            clients, link = asked
            cut = replace(setup.network, link=link)
            turns = [elsewhere.turn(cut, arrays, setup.task(p, link)) for p in range(clients)]
            with service.open_round(turns) as (_, invitations):
                began = time.process_time()
                pipe.send(invitations)
                pipe.recv()
                pipe.send(time.process_time() - began)


@dataclass(frozen=True)
class Took:
    """Wall and processor seconds of a batch."""

    wall_s: float
    cpu_s: float


def timed(batches: int, work: Callable[[], float]) -> Took:
    """Time ``work``, which returns processor seconds of other processes."""
    wall, cpu = time.perf_counter(), time.process_time()
    others = work()
    return Took(
        (time.perf_counter() - wall) / batches, (time.process_time() - cpu + others) / batches
    )


class Clients:
    """The clients of this process.

    Args:
        setup: what they train.
        pipe: to the service's process.
    """

    def __init__(self, setup: Setup, pipe: Connection) -> None:
        self._setup = setup
        self._pipe = pipe
        self._client: Any = setup.strategy.client
        first = setup.task(0, LinkSettings())
        network = experiment.network(setup.chosen)
        self._models = [self._client.prepare(network, first.settings) for _ in range(max(CLIENTS))]
        names = setup.network.on_device(0) or frozenset()
        self._device = {n: t for n, t in setup.arrays.items() if n in names}

    def beside(self, clients: int, link: LinkSettings) -> float:
        """One after another, both halves here."""
        for partition in range(clients):
            data = experiment.client_data(self._setup.chosen, partition)
            task = self._setup.task(partition, link)
            train_simulated(self._client, self._models[0], self._setup.arrays, data, task)
        return 0.0

    def elsewhere(self, clients: int, link: LinkSettings) -> float:
        """All at once, the server's halves there."""
        self._pipe.send((clients, link))
        invitations: dict[int, Invitation] = self._pipe.recv()

        def one(partition: int) -> None:
            torch.set_num_threads(1)
            data = experiment.client_data(self._setup.chosen, partition)
            task = self._setup.task(partition, link)
            model = self._models[partition]
            train_remote(self._client, model, self._device, data, task, invitations[partition])

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(one, range(clients)))
        self._pipe.send("done")
        found: float = self._pipe.recv()
        return found


def measure(
    overrides: Sequence[str], batches: int, repeat: int, most: int, is_free: bool
) -> list[tuple[str, int, list[tuple[Took, Took]]]]:
    """Return, of each link and number of clients, pairs beside and elsewhere."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=serve, args=(its, overrides, is_free), daemon=True)
    process.start()
    its.close()  # a process that dies is an EOFError here
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    if not is_free:
        keep_to(0)
    try:
        clients, found = Clients(Setup(overrides), mine), []
        mine.recv()
        for name, link in LINKS.items():
            for count in (number for number in CLIENTS if number <= most):
                clients.elsewhere(count, link)  # halves are made in the first
                clients.beside(count, link)
                total = count * batches
                pairs = [
                    (
                        timed(total, lambda: clients.beside(count, link)),  # noqa: B023
                        timed(total, lambda: clients.elsewhere(count, link)),  # noqa: B023
                    )
                    for _ in range(repeat)
                ]
                found.append((name, count, pairs))
        mine.send(None)
        process.join()
    finally:
        if allowed:
            os.sched_setaffinity(0, allowed)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--strategy", default="splitfed_v1", choices=("splitfed_v1", "hierarchical")
    )
    parser.add_argument("--model", default="lenet5")
    parser.add_argument("--cut", default="stage2")
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--clients", type=int, default=max(CLIENTS), help="at most so many")
    parser.add_argument("--free", action="store_true", help="on any processor at any time")
    given = parser.parse_args(argv)
    overrides = overrides_of(given.strategy, given.model, given.cut, given.clients, given.batches)
    if given.strategy == "hierarchical":
        overrides.append("strategy.server_half=replicated")  # all clients at once
    found = measure(overrides, given.batches, given.repeat, given.clients, given.free)
    head = (
        "link", "clients", "exchanges/s", "ms beside", "ms elsewhere", "ratio",
        "CPU ms beside", "CPU ms elsewhere", "CPU ratio",
    )  # fmt: skip
    what = f"{given.strategy}, {given.model} cut at {given.cut}"
    print(f"{what}; of a batch of {BATCH}, both halves together:\n")
    print(table(head, [row(*one) for one in found]))


def row(name: str, count: int, pairs: Sequence[tuple[Took, Took]]) -> tuple[str, ...]:
    walls = [(beside.wall_s, there.wall_s) for beside, there in pairs]
    cpus = [(beside.cpu_s, there.cpu_s) for beside, there in pairs]
    fields = [name, str(count), f"{1 / statistics.median(there for _, there in walls):.0f}"]
    for times in (walls, cpus):
        fields += [
            f"{1e3 * statistics.median(beside for beside, _ in times):.2f}",
            f"{1e3 * statistics.median(there for _, there in times):.2f}",
            f"{statistics.median(there / beside for beside, there in times):.2f}",
        ]
    return tuple(fields)


if __name__ == "__main__":
    main()
