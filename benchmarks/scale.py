"""What many clients cost beside their training: no client trains, each sends back what it got.

    python -m benchmarks.scale [--clients 1000 5000 10000] [--rounds 5] [--model lenet5]

One process and one thread (engine=serial), all messages, checks, averages and records made. Set-up
is from the configuration to the first round: devices, plans, who answers to which number. Memory is
the largest that the process had.
"""

import argparse
import contextlib
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from app import experiment
from app.config.composition import compose
from app.engine import Simulator
from benchmarks import random_data
from benchmarks.table import table
from strategies.contract import ClientData, ServerHalf, Task, Update
from strategies.fedavg import FedAvg, FedAvgClient


class EchoClient(FedAvgClient):
    """Sends back what it got."""

    def train(
        self,
        model: nn.Module,
        arrays: Mapping[str, Tensor],
        data: ClientData,
        task: Task,
        server: ServerHalf | None,
    ) -> Update:
        return Update(arrays=dict(arrays), num_examples=len(data), loss=1.0)


# Its clients are kept apart no more than those of a method of ours, whose place it takes.
EchoClient.__module__ = FedAvgClient.__module__


class Echo(FedAvg):
    """FedAvg without training."""

    client = EchoClient()


def measure(clients: int, per_round: int, rounds: int, model: str) -> dict[str, float]:
    """Seconds of set-up, milliseconds of a round, MiB of memory."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    chosen = experiment.resolve(compose([
        "strategy=fedavg", "strategy._target_=benchmarks.scale.Echo", f"model={model}",
        f"clients.total={clients}", f"clients.per_round={per_round}", f"rounds={rounds}",
        "engine=serial", "tracker=none", f"evaluate.every={rounds}", "checkpoint.every=1000",
        *random_data.overrides(clients),
    ]))  # fmt: skip
    prepared = experiment.check(chosen)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        Simulator().run(chosen, Path(folder) / "run", prepared=prepared)
        lines = (Path(folder) / "run" / "rounds.jsonl").read_text("utf-8").splitlines()
    walls = [json.loads(line)["wall_s"] for line in lines]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    total = time.perf_counter() - started
    return {
        "setup_s": total - sum(walls),
        "round_ms": 1000 * statistics.median(walls[:-1]),  # the last one tests the network
        "peak_mib": peak,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1000, 5000, 10_000])
    parser.add_argument("--per-round", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=6, help="2 or more")
    parser.add_argument("--model", default="lenet5")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if chosen.one:  # in a process of its own, whose memory is its own
        found = measure(chosen.clients[0], chosen.per_round, chosen.rounds, chosen.model)
        print(json.dumps(found))
        return
    rows = []
    for clients in chosen.clients:
        per_round = min(chosen.per_round, clients)
        command = [
            sys.executable, "-m", "benchmarks.scale", "--one", f"--clients={clients}",
            f"--per-round={per_round}", f"--rounds={chosen.rounds}", f"--model={chosen.model}",
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append((
            f"{clients:,}", per_round, chosen.model, f"{found['setup_s']:.1f}",
            f"{found['round_ms']:.0f}", f"{found['round_ms'] / per_round:.2f}",
            f"{found['peak_mib']:,.0f}",
        ))  # fmt: skip
    heads = ("clients", "a round", "model", "set-up s", "round ms", "ms a client", "peak MiB")
    print(table(heads, rows))


if __name__ == "__main__":
    main()
