"""What settings reached on simulated time: the measure where their rounds are not comparable.

A round of schedule=buffered is a server step of a few updates, one of schedule=semi ends at the
deadline; on unequal devices even equal numbers of rounds take unequal time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracking.collect import Run, schedule
from tracking.seeds import Group, Spread, spread

CLOSE = 1e-9  # share of a time by which a sum of rounds may differ from it
_COSTS = {"sim_s": ("sim_s",), "energy_j": ("energy_j",), "bytes": ("bytes_up", "bytes_down")}

Rounds = Mapping[str, Sequence[Mapping[str, Any]]]  # lines of rounds.jsonl, by job


@dataclass(frozen=True)
class Reached:
    """One setting.

    Attributes:
        group: its number.
        num_seeds: finished runs, each seed once.
        accuracy: the last one evaluated by the common time, over the seeds that were by then; None
            where no seed was, or there is no common time.
        target: the accuracy to reach; None where none was set, or not the same for all seeds.
        num_reached: seeds that reached it.
        costs: what these spent until then: ``sim_s``, ``energy_j``, ``bytes`` (up and down).
    """

    group: int
    num_seeds: int
    accuracy: Spread | None
    target: float | None
    num_reached: int
    costs: Mapping[str, Spread]


@dataclass(frozen=True)
class Simulated:
    """Settings side by side.

    Attributes:
        schedules: of the finished runs, in their order.
        at_s: simulated seconds at which the shortest of them ends; None where one has no clock.
        settings: by falling accuracy at that time, then by rising time to the target.
    """

    schedules: Sequence[str]
    at_s: float | None
    settings: Sequence[Reached]

    @property
    def is_mixed(self) -> bool:
        """Whether rounds are not the same thing for all."""
        return len(self.schedules) > 1

    @property
    def has_target(self) -> bool:
        """Whether a setting had an accuracy to reach."""
        return any(setting.target is not None for setting in self.settings)


def is_timed(run: Run) -> bool:
    """Whether a run's rounds take unequal time: unequal devices, a trace, or a schedule."""
    unequal = run.config.get("fleet.population", "uniform") != "uniform"  # null: a trace
    traced = str(run.config.get("fleet.availability", "always")) not in ("always", "diurnal")
    is_share = isinstance(run.config.get("fleet.availability"), int | float)
    return unequal or (traced and not is_share) or schedule(run) != "sync"


def compare(groups: Sequence[Group], rounds: Rounds) -> Simulated:
    """Compare the groups at equal simulated time, and by what their target took."""
    runs = [run for group in groups for run in group.seeds.values()]
    totals = [run.summary.get("total_sim_s") for run in runs]
    known = [float(total) for total in totals if total is not None]
    at_s = min(known) if known and len(known) == len(totals) else None
    settings = [
        _reached(number, group, rounds, at_s) for number, group in enumerate(groups) if group.seeds
    ]
    return Simulated(schedules(groups), at_s, sorted(settings, key=_rank))


def schedules(groups: Sequence[Group]) -> list[str]:
    """Return the schedules of the finished runs, in their order."""
    runs = (run for group in groups for run in group.seeds.values())
    return list(dict.fromkeys(map(schedule, runs)))


def accuracy_by(rows: Sequence[Mapping[str, Any]], at_s: float) -> float | None:
    """Return the last accuracy evaluated by a simulated time; None where there is none.

    Args:
        rows: lines of rounds.jsonl.
        at_s: seconds since the experiment began.
    """
    now_s, found = 0.0, None
    for row in rows:
        if row["sim_s"] is None:
            return None
        now_s += row["sim_s"]
        if now_s > at_s * (1 + CLOSE):
            break
        found = found if row["accuracy"] is None else float(row["accuracy"])
    return found


def _reached(number: int, group: Group, rounds: Rounds, at_s: float | None) -> Reached:
    runs = list(group.seeds.values())
    by_then = [] if at_s is None else [accuracy_by(rounds.get(run.job, ()), at_s) for run in runs]
    accuracies = [value for value in by_then if value is not None]
    targets = {run.summary.get("target_accuracy") for run in runs}
    target = targets.pop() if len(targets) == 1 else None
    there = [run.summary for run in runs if run.summary.get("rounds_to_target") is not None]
    there = there if target is not None else []
    costs = {name: _cost(there, parts) for name, parts in _COSTS.items()}
    return Reached(
        number,
        len(runs),
        spread(accuracies) if accuracies else None,
        target,
        len(there),
        {name: found for name, found in costs.items() if found is not None},
    )


def _cost(summaries: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> Spread | None:
    """What each spent until its target; None unless all of them counted it."""
    spent: list[list[Any]] = [
        [summary.get(f"{part}_to_target") for part in parts] for summary in summaries
    ]
    if not spent or any(value is None for values in spent for value in values):
        return None
    return spread([float(sum(values)) for values in spent])


def _rank(setting: Reached) -> tuple[float, float, float]:
    accuracy, seconds = setting.accuracy, setting.costs.get("sim_s")
    return (
        0.0 if accuracy is None else -accuracy.mean,
        -setting.num_reached,
        0.0 if seconds is None else seconds.mean,
    )
