"""Wall time of a SplitFed V1 round beside a FedAvg round.

    python -m benchmarks.split [--clients 100] [--model lenet5] [--rounds 5]

Both run in this process, round by round in turn, so that a busy machine slows both; the ratio is
the median over pairs.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from rich.console import Console
from rich.table import Table

from app import experiment
from app.config.composition import compose
from app.engine import SerialGrid
from strategies import messages
from strategies.server.loop import FederatedStrategy

DATA = (
    "data=fashion_mnist", "data.source=benchmarks.random_data", "data.name=random", "engine=serial"
)  # fmt: skip
METHODS = {
    "fedavg": ["strategy=fedavg"],
    "splitfed_v1, fp32": ["strategy=splitfed_v1"],
    "splitfed_v1, int8": ["strategy=splitfed_v1", "link.up=int8", "link.down=int8"],
    "ushaped, fp32": ["strategy=ushaped"],
    "splitfed_v2, fp32": ["strategy=splitfed_v2"],
}


class Method:
    """A method at the start of its next round."""

    def __init__(self, overrides: Sequence[str]) -> None:
        config = experiment.resolve(compose([*DATA, *overrides]))
        self.strategy: FederatedStrategy = experiment.strategy(config)
        model = experiment.prepare(config, self.strategy)
        self.arrays: ArrayRecord = messages.to_record(model.state_dict())
        run_config: dict[str, Any] = experiment.run_config(config)
        self.grid = SerialGrid(config.data.num_clients, run_config)
        self.strategy.discover(self.grid)
        self.rounds = 0

    def round(self) -> float:
        """Run one and return its seconds."""
        self.rounds += 1
        started = time.perf_counter()
        self.arrays, _ = self.strategy.train_round(
            self.grid, self.rounds, self.arrays, ConfigRecord(), 3600
        )
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--samples", type=int, default=320)
    parser.add_argument("--model", default="lenet5")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    common = [
        f"model={chosen.model}", f"clients.total={chosen.clients}", "train.lr=0.01",
        f"data.max_train={chosen.clients * chosen.samples}", "train.epochs=1",
    ]  # fmt: skip
    methods = {name: Method([*own, *common]) for name, own in METHODS.items()}
    for method in methods.values():
        method.round()  # networks and data are made in the first
    times = [{name: m.round() for name, m in methods.items()} for _ in range(chosen.rounds)]
    table = Table("method", "s per round", "of FedAvg's")
    for name in methods:
        ratio = statistics.median(row[name] / row["fedavg"] for row in times)
        seconds = statistics.median(row[name] for row in times)
        table.add_row(name, f"{seconds:.2f}", f"{ratio:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
