"""How fast clients are simulated: LeNet-5, 60,000 samples a round, batch 32, one epoch, SGD.

    python -m benchmarks.engine [--clients 100 500] [--rounds 4] [--samples 60000] [--fork]
        [--skip flower]

Compares, in one run, a plain PyTorch loop in as many processes as cores (no messages, no records:
the least anyone could do), our RayGrid, our SerialGrid and Flower's own simulation. Samples per
second are the median over the rounds after the first; start-up is everything before the first
round's end, less one round; memory is the largest sum over the processes of what each has alone and
its part of what it shares (PSS).
"""

import argparse
import itertools
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import torch
import torch.nn.functional as F
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from torch import Tensor

from app import client, experiment, processors
from app.config.composition import compose
from app.engine import RayGrid, SerialGrid, Workers
from app.experiment import Experiment
from app.local_grid import LocalGrid
from app.worker import make_context
from benchmarks import random_data
from benchmarks.table import table
from models.lenet5 import LeNet5
from strategies import messages
from tracking.record import ClientRecord, RoundRecord

Times = list[float]  # when the run began, then when each round ended


class Clock:
    """A sink that notes when rounds end."""

    def __init__(self) -> None:
        self.times: Times = []

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        self.times.append(time.perf_counter())

    def finish(self, summary: Mapping[str, Any] | None) -> None: ...


@dataclass(frozen=True)
class Case:
    """What every engine runs."""

    clients: int
    samples: int
    rounds: int
    cores: int
    fork: bool = False  # of ray: in forked workers, as a run begins

    def experiment(self) -> Experiment:
        """The same as a configuration."""
        return experiment.resolve(compose([
            "strategy=fedavg", "model=lenet5", f"clients.total={self.clients}", "train.epochs=1",
            "train.lr=0.01", "train.momentum=0", f"rounds={self.rounds}",
            *random_data.overrides(self.samples),
        ]))  # fmt: skip


def plain(case: Case) -> Times:
    """A loop anyone would write: one process per core, each trains its share of the clients."""
    begun = time.perf_counter()
    state = {name: tensor.clone() for name, tensor in LeNet5().state_dict().items()}
    rows = torch.randperm(case.samples).split(case.samples // case.clients)
    times = [begun]
    context = multiprocessing.get_context("fork")
    pipes = []
    for core in range(case.cores):
        ours, theirs = context.Pipe()
        work = (theirs, rows[core :: case.cores], case.samples)
        context.Process(target=_plain_worker, args=work, daemon=True).start()
        pipes.append(ours)
    for _ in range(case.rounds):
        for pipe in pipes:
            pipe.send(state)
        sums = [pipe.recv() for pipe in pipes]
        state = {name: sum(part[name] for part in sums) / case.clients for name in state}
        times.append(time.perf_counter())
    for pipe in pipes:
        pipe.send(None)
    return times


def _plain_worker(pipe: Any, rows: Sequence[Tensor], samples: int) -> None:
    torch.set_num_threads(1)
    data = random_data.load(str(samples), (1, 28, 28), 10)
    model = LeNet5()
    while (state := pipe.recv()) is not None:
        total = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        for mine in rows:
            model.load_state_dict(state)
            optimizer = torch.optim.SGD(model.parameters(), 0.01)
            for batch in mine[torch.randperm(len(mine))].split(32):
                loss = F.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            for name, tensor in model.state_dict().items():
                total[name] += tensor
        pipe.send(total)


def _start(setup: Experiment, grid: Grid) -> Times:
    clock = Clock()
    strategy = experiment.strategy(setup)
    arrays = messages.to_record(experiment.prepare(setup, strategy).state_dict())
    strategy.start(grid, arrays, num_rounds=setup.rounds, sinks=[clock])
    return clock.times


def _ours(make: Callable[[int, Mapping[str, Any]], LocalGrid], case: Case) -> Times:
    begun = time.perf_counter()
    processors.use_one()  # as a run does
    setup = case.experiment()
    experiment.division(setup)
    return [begun, *_start(setup, make(case.clients, experiment.run_config(setup)))]


def ray_grid(case: Case) -> Times:
    workers = Workers(case.cores, fork=case.fork)
    try:
        return _ours(lambda clients, run: RayGrid(clients, run, workers), case)
    finally:
        workers.close()


def serial_grid(case: Case) -> Times:
    return _ours(SerialGrid, case)


def flower(case: Case) -> Times:
    """Flower's simulation, with our strategy and our client half."""
    setup = case.experiment()
    experiment.division(setup)
    run_config = experiment.run_config(setup)
    times = [time.perf_counter()]
    server_app, client_app = ServerApp(), ClientApp()

    def handle(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        ours = make_context(context.run_id, partition, case.clients, run_config)
        return client.app(message, ours)

    client_app.query()(handle)
    client_app.train()(handle)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        times.extend(_start(setup, grid))

    resources = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0},
        "init_args": {"address": "local", "num_cpus": case.cores},
    }
    run_simulation(server_app, client_app, case.clients, backend_config=resources)
    import ray

    ray.shutdown()
    return times


class Memory:
    """Samples the memory of this process and everything it started."""

    def __enter__(self) -> "Memory":
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:  # at least twice: when it begins, and when it ends
            is_over = self._stop.is_set()
            self.peak_bytes = max(self.peak_bytes, sum(map(_pss, _family(os.getpid()))))
            if is_over:
                return
            self._stop.wait(0.5)


def _family(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(entry.name))
    family = [root]
    for process in family:
        family.extend(parents.get(process, []))
    return family


def _pss(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


ENGINES = {"plain": plain, "ray": ray_grid, "serial": serial_grid, "flower": flower}


@dataclass(frozen=True)
class Speed:
    """What an engine reached, and its memory."""

    round_s: float
    startup_s: float
    peak_bytes: int


def measure(run: Callable[[Case], Times], case: Case) -> Speed:
    """Run a case on an engine."""
    with Memory() as memory:
        times = run(case)
    if len(times) != case.rounds + 1:
        raise RuntimeError(f"{run.__name__}: {len(times) - 1} of {case.rounds} rounds")
    round_s = statistics.median(b - a for a, b in itertools.pairwise(times[1:]))
    return Speed(round_s, times[1] - times[0] - round_s, memory.peak_bytes)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--rounds", type=int, default=4, help="2 or more")
    parser.add_argument("--samples", type=int, default=60_000, help="of all clients")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="processes that train")
    parser.add_argument("--fork", action="store_true", help="ray: forked, as a run begins")
    parser.add_argument("--skip", nargs="*", default=[], choices=list(ENGINES))
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for num_clients in chosen.clients:
        case = Case(num_clients, chosen.samples, chosen.rounds, chosen.cores, chosen.fork)
        baseline = None
        for name, run in ENGINES.items():
            if name in chosen.skip:
                continue
            speed = measure(run, case)
            baseline = baseline or speed.round_s
            rows.append((
                num_clients, name, f"{case.samples / speed.round_s:,.0f}",
                f"{baseline / speed.round_s:.2f}", f"{speed.startup_s:.1f}",
                f"{speed.peak_bytes / 1e6:,.0f}",
            ))  # fmt: skip
    heads = ("clients", "engine", "samples/s", "of the plain loop", "start-up s", "peak MB")
    print(table(heads, rows))


if __name__ == "__main__":
    main()
