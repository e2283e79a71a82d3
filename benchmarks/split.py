"""Wall time of a SplitFed V1 round beside a FedAvg round.

    python -m benchmarks.split [--clients 100] [--samples 320] [--model lenet5] [--rounds 5]

Both run in this process, round by round in turn, so that a busy machine slows both; the ratio is
the median over pairs.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

from app import experiment
from app.config.composition import compose
from app.engine import SerialGrid
from benchmarks import random_data
from benchmarks.table import table
from strategies import messages
from strategies.server.method import ServerState

METHODS = {
    "fedavg": ["strategy=fedavg"],
    "splitfed_v1, fp32": ["strategy=splitfed_v1"],
    "splitfed_v1, int8": ["strategy=splitfed_v1", "link.up=int8", "link.down=int8"],
    "ushaped, fp32": ["strategy=ushaped"],
    "splitfed_v2, fp32": ["strategy=splitfed_v2"],
}


class Running:
    """A method at the start of its next round."""

    def __init__(self, overrides: Sequence[str]) -> None:
        setup = experiment.resolve(compose(overrides))
        method = experiment.strategy(setup)
        model = experiment.prepare(setup, method)
        grid = SerialGrid(setup.data.num_clients, experiment.run_config(setup))
        self.federation = method.federation(grid)
        self.state = ServerState(arrays=messages.to_arrays(messages.to_record(model.state_dict())))

    def round(self) -> float:
        """Run one and return its seconds.

        Raises:
            RuntimeError: a client failed, so that less was done than in other rounds.
        """
        started = time.perf_counter()
        state = self.federation.enter(self.state)
        chosen = self.federation.choose(state)
        state, results, _ = self.federation.train(state, chosen)
        state = self.federation.aggregate(state, results)
        self.state = replace(state, round=state.round + 1)
        for one in results:
            if one.error is not None:
                raise RuntimeError(f"client {one.partition}: {one.error}")
        return time.perf_counter() - started


def measure(model: str, clients: int, samples: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Return of each method its seconds a round, and its ratio to the FedAvg round."""
    common = [
        f"model={model}", f"clients.total={clients}", "train.lr=0.01", "train.epochs=1",
        "engine=serial", *random_data.overrides(clients * samples),
    ]  # fmt: skip
    methods = {name: Running([*own, *common]) for name, own in METHODS.items()}
    for method in methods.values():
        method.round()  # networks and data are made in the first
    times = [{name: m.round() for name, m in methods.items()} for _ in range(rounds)]
    return {
        name: (
            statistics.median(row[name] for row in times),
            statistics.median(row[name] / row["fedavg"] for row in times),
        )
        for name in methods
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--samples", type=int, default=320)
    parser.add_argument("--model", default="lenet5")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(argv)
    found = measure(chosen.model, chosen.clients, chosen.samples, chosen.rounds)
    rows = [(name, f"{seconds:.2f}", f"{ratio:.3f}") for name, (seconds, ratio) in found.items()]
    print(table(["method", "s per round", "of FedAvg's"], rows))


if __name__ == "__main__":
    main()
