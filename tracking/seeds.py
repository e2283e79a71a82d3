"""Runs that differ in nothing but their seed, as mean and spread."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracking.collect import Run, swept, value

MEASURES = (
    "final_accuracy", "best_accuracy", "total_bytes_up", "total_bytes_down", "total_sim_s",
    "total_energy_j", "total_wall_s",
)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for one value) over ``n`` seeds."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Group:
    """Runs of one experiment with different seeds.

    Attributes:
        label: what tells the group from the others, such as ``strategy=oqfl quant.bits=4``.
        runs: all of them, also failed ones and copies.
        seeds: the finished ones by seed, each seed once.
        measures: of those; only what every one of them has.
    """

    label: str
    runs: Sequence[Run]
    seeds: Mapping[Any, Run]
    measures: Mapping[str, Spread]


def groups(runs: Sequence[Run]) -> list[Group]:
    """Divide the runs by everything but their seed, in the order of their first ones."""
    keys = [key for key in swept(runs) if key != "seed"]
    known = {key for run in runs for key in run.config}
    divided: dict[str, list[Run]] = {}
    for run in runs:
        divided.setdefault(_identity(run), []).append(run)
    labels = [_label(members[0], keys, known) for members in divided.values()]
    found = []
    for label, members in zip(labels, divided.values(), strict=True):
        seeds = _by_seed(members)
        name = f"{label} ({members[0].job})" if labels.count(label) > 1 else label
        found.append(Group(name, members, seeds, _measures(list(seeds.values()))))
    return found


def spread(values: Sequence[float]) -> Spread:
    """Return mean and spread of at least one value."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), sd, len(values))


def _identity(run: Run) -> str:
    if not run.config:
        return run.job
    config = {key: found for key, found in run.config.items() if key != "seed"}
    engine = [text for text in run.overrides if text.startswith("engine")]  # seconds depend on it
    return json.dumps([config, engine], sort_keys=True)


def _label(run: Run, keys: Sequence[str], known: set[str]) -> str:
    values = {key: value(run, key, known) for key in keys}
    said = [
        f"{k}={'null' if v is None else v}"
        for k, v in values.items()
        if v is not None or k in run.config
    ]  # null is a value, where the method reads the key
    return " ".join(said) or str(run.config.get("strategy.name", run.job))


def _by_seed(runs: Sequence[Run]) -> dict[Any, Run]:
    """The finished ones; a copy only where the run itself is not among them."""
    finished: dict[Any, Run] = {}
    for run in runs:
        if run.summary and run.status != "failed":
            seed = run.config.get("seed")
            if seed not in finished or finished[seed].is_copy:
                finished[seed] = run
    return finished


def _measures(runs: Sequence[Run]) -> dict[str, Spread]:
    found: dict[str, Spread] = {}
    for name in MEASURES:
        values = [run.summary.get(name) for run in runs]
        numbers = [float(number) for number in values if number is not None]
        if numbers and len(numbers) == len(values):
            found[name] = spread(numbers)
    return found
