"""How fast clients are simulated: LeNet-5, 60,000 samples a round, batch 32, one epoch, SGD.

    python -m benchmarks.engine [--clients 100 500] [--rounds 4] [--skip flower]

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

from app import client, experiment
from app.config.composition import compose
from app.engine import LocalGrid, RayGrid, SerialGrid, Workers, make_context
from app.experiment import Experiment
from benchmarks.random_data import load
from models.lenet5 import LeNet5
from strategies import messages
from tracking.record import ClientRecord, RoundRecord

SAMPLES = 60_000
CORES = os.cpu_count() or 1
Times = list[float]  # when the run began, then when each round ended


class Clock:
    """A sink that notes when rounds end."""

    def __init__(self) -> None:
        self.times: Times = []

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        self.times.append(time.perf_counter())

    def finish(self, summary: Mapping[str, Any] | None) -> None: ...


def config(num_clients: int) -> Experiment:
    return experiment.resolve(compose(
        [
            "strategy=fedavg", "model=lenet5", "data=mnist", "data.source=benchmarks.random_data",
            "data.name=random", f"clients.total={num_clients}", "train.epochs=1", "train.lr=0.01",
            "train.momentum=0",
        ]
    ))  # fmt: skip


def plain(num_clients: int, rounds: int) -> Times:
    """A loop anyone would write: one process per core, each trains its share of the clients."""
    begun = time.perf_counter()
    state = {name: tensor.clone() for name, tensor in LeNet5().state_dict().items()}
    rows = torch.randperm(SAMPLES).split(SAMPLES // num_clients)
    times = [begun]
    context = multiprocessing.get_context("fork")
    pipes = []
    for core in range(CORES):
        ours, theirs = context.Pipe()
        work = (theirs, rows[core::CORES])
        context.Process(target=_plain_worker, args=work, daemon=True).start()
        pipes.append(ours)
    for _ in range(rounds):
        for pipe in pipes:
            pipe.send(state)
        sums = [pipe.recv() for pipe in pipes]
        state = {name: sum(part[name] for part in sums) / num_clients for name in state}
        times.append(time.perf_counter())
    for pipe in pipes:
        pipe.send(None)
    return times


def _plain_worker(pipe: Any, rows: Sequence[Tensor]) -> None:
    torch.set_num_threads(1)
    data = load(Path())
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


def _start(setup: Experiment, grid: Grid, rounds: int) -> Times:
    clock = Clock()
    strategy = experiment.strategy(setup)
    arrays = messages.to_record(experiment.network(setup).state_dict())
    strategy.start(grid, arrays, num_rounds=rounds, sinks=[clock])
    return clock.times


def _ours(make: Callable[[Experiment, Mapping[str, Any]], LocalGrid], n: int, rounds: int) -> Times:
    begun = time.perf_counter()
    setup = config(n)
    experiment.division(setup)
    return [begun, *_start(setup, make(setup, experiment.run_config(setup)), rounds)]


def ray_grid(num_clients: int, rounds: int) -> Times:
    workers = Workers(CORES)
    try:
        return _ours(lambda c, run: RayGrid(c.data.num_clients, run, workers), num_clients, rounds)
    finally:
        workers.close()


def serial_grid(num_clients: int, rounds: int) -> Times:
    return _ours(lambda c, run: SerialGrid(c.data.num_clients, run), num_clients, rounds)


def flower(num_clients: int, rounds: int) -> Times:
    """Flower's simulation, with our strategy and our client half."""
    setup = config(num_clients)
    experiment.division(setup)
    run_config = experiment.run_config(setup)
    times = [time.perf_counter()]
    server_app, client_app = ServerApp(), ClientApp()

    def handle(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        ours = make_context(context.run_id, partition, num_clients, run_config)
        return client.app(message, ours)

    client_app.query()(handle)
    client_app.train()(handle)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        times.extend(_start(setup, grid, rounds))

    resources = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0},
        "init_args": {"address": "local", "num_cpus": CORES},
    }
    run_simulation(server_app, client_app, num_clients, backend_config=resources)
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
        while not self._stop.wait(0.5):
            self.peak_bytes = max(self.peak_bytes, sum(map(_pss, _family(os.getpid()))))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--skip", nargs="*", default=[], choices=list(ENGINES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| clients | engine | samples/s | of the plain loop | start-up s | peak MB |")
    print("|---|---|---|---|---|---|")
    for num_clients in arguments.clients:
        baseline = None
        for name, run in ENGINES.items():
            if name in arguments.skip:
                continue
            with Memory() as memory:
                times = run(num_clients, arguments.rounds)
            rounds = [b - a for a, b in itertools.pairwise(times[1:])]
            round_s = statistics.median(rounds)
            baseline = baseline or round_s
            startup_s = times[1] - times[0] - round_s
            print(
                f"| {num_clients} | {name} | {SAMPLES / round_s:,.0f} | {baseline / round_s:.2f} "
                f"| {startup_s:.1f} | {memory.peak_bytes / 1e6:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
