"""How long a sweep of digits takes one job after another, and several jobs side by side.

    python -m benchmarks.sweep [--jobs 24] [--at-once 2] [--arms ray beside] [--repeats 1]

Each arm is one command line from its start to its end, tables and report included: `serial` and
`ray` run one job after another on that engine, `beside` runs them with `sweep.jobs=<at-once>`. All
that the jobs wrote is compared, but for what a clock measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import table

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("ray", "serial", "beside")
FILES = ("rounds.jsonl", "clients.jsonl", "config.json", "summary.json", "model.safetensors")


def command(chosen: argparse.Namespace, arm: str) -> list[str]:
    """The overrides of an arm."""
    seeds = f"seed=range({(chosen.jobs + 1) // 2})"
    jobs = ["strategy=fedavg,oqfl", seeds, f"rounds={chosen.rounds}", "train.epochs=1"]
    if chosen.samples:
        jobs.append(f"data.max_train={chosen.samples}")
    return [*jobs, f"sweep.jobs={chosen.at_once}" if arm == "beside" else f"engine={arm}"]


def seconds(overrides: Sequence[str], folder: Path) -> float:
    """Run a sweep and return how long its command took."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "main.py", "-m", *overrides, f"hydra.sweep.dir={folder}"],
        cwd=ROOT, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return time.perf_counter() - started


def timeless(path: Path) -> Any:
    """What a file holds, but for what a clock measured and who ran it."""
    if path.suffix == ".safetensors":
        return path.read_bytes()
    text = path.read_text("utf-8")
    rows = map(json.loads, text.splitlines() if path.suffix == ".jsonl" else [text])
    return [
        {key: value for key, value in row.items() if "wall_" not in key and key != "provenance"}
        for row in rows
    ]


def same(one: Path, other: Path) -> int:
    """How many jobs of two sweeps wrote the same."""
    names = sorted(path.parent.name for path in one.glob("*/summary.json"))
    return sum(
        all(timeless(one / name / file) == timeless(other / name / file) for file in FILES)
        for name in names
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=24, help="half fedavg, half oqfl")
    parser.add_argument("--at-once", type=int, default=2, help="sweep.jobs of the arm beside")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=0, help="of all clients; 0: all there are")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--repeats", type=int, default=1, help="the ratio is the median of these")
    chosen = parser.parse_args(argv)
    took: dict[str, list[float]] = {arm: [] for arm in chosen.arms}
    equal: dict[str, int] = {}
    for _ in range(chosen.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for arm in chosen.arms:
                took[arm].append(seconds(command(chosen, arm), Path(folder) / arm))
                equal[arm] = same(Path(folder) / chosen.arms[0], Path(folder) / arm)
    first = took[chosen.arms[0]]
    rows = []
    for arm, times in took.items():
        ratio = statistics.median(t / f for t, f in zip(times, first, strict=True))
        overrides = command(chosen, arm)
        rows.append((
            overrides[-1], chosen.jobs, f"{statistics.median(times):.1f}", f"{ratio:.2f}",
            f"{equal[arm]} of {chosen.jobs}",
        ))  # fmt: skip
    print(table(("arm", "jobs", "seconds", f"of {rows[0][0]}", "jobs with equal files"), rows))


if __name__ == "__main__":
    main()
