"""What a comparison says: the best setting, what cannot be told apart from it, the fronts.

A setting is a group of runs that differ in nothing but their seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tracking.collect import Run
from tracking.paired import LEVEL, Difference, difference, holm
from tracking.seeds import Group

ACCURACY, VALIDATION = "final_accuracy", "final_validation_accuracy"
PRICES = ("total_bytes", "total_sim_s", "total_energy_j")


@dataclass(frozen=True)
class Rival:
    """A setting beside the best one.

    Attributes:
        group: its number.
        found: its accuracy less that of the best, seed by seed.
        p: of ``found``, corrected for the number of rivals; None where there are too few seeds.
    """

    group: int
    found: Difference
    p: float | None

    @property
    def verdict(self) -> str:
        """``worse``, ``open`` (cannot be told apart), ``same`` (every seed equal) or ``few``."""
        if self.p is None:
            return "few"
        if self.p < LEVEL:
            return "worse"
        return "same" if (self.found.low, self.found.high) == (0.0, 0.0) else "open"


@dataclass(frozen=True)
class Answer:
    """What is said first of a comparison.

    Attributes:
        measure: decides on the best: accuracy on the validation samples where all runs have it,
            so that the test set does not choose; else the final accuracy.
        best: number of the group with the highest mean, of those with most seeds; None where no
            run has a result.
        rivals: the others with results, by falling mean.
        short: numbers of groups with a higher mean than the best, but fewer seeds.
        fronts: by price, numbers of the groups that none is both cheaper and better than, by
            rising price; accuracy is then the final one.
    """

    measure: str
    best: int | None
    rivals: Sequence[Rival]
    short: Sequence[int]
    fronts: Mapping[str, Sequence[int]]


def answer(groups: Sequence[Group]) -> Answer:
    """Compare the groups."""
    runs = [run for group in groups for run in group.seeds.values()]
    has_validation = bool(runs) and all(run.summary.get(VALIDATION) is not None for run in runs)
    measure = VALIDATION if has_validation else ACCURACY
    values = {number: _values(group, measure) for number, group in enumerate(groups)}
    means = {number: _mean(found) for number, found in values.items() if found}
    fronts = {price: front(_points(groups, price)) for price in PRICES}
    fronts = {price: numbers for price, numbers in fronts.items() if numbers}
    if not means:
        return Answer(measure, None, (), (), fronts)
    most = max(len(values[number]) for number in means)
    ranked = sorted(means, key=lambda number: -means[number])
    best = next(number for number in ranked if len(values[number]) == most)
    others = [number for number in ranked if number != best]
    found = [difference(values[number], values[best]) for number in others]
    corrected = iter(holm([one.p for one in found if one.p is not None]))
    rivals = [
        Rival(number, one, None if one.p is None else next(corrected))
        for number, one in zip(others, found, strict=True)
    ]
    short = [number for number in others if means[number] > means[best]]
    return Answer(measure, best, rivals, short, fronts)


def front(points: Mapping[int, tuple[float, float]]) -> list[int]:
    """Return the keys of the points that none is both cheaper and better than, by rising price.

    Args:
        points: price and accuracy.
    """
    kept: list[int] = []
    for number in sorted(points, key=lambda n: (points[n][0], -points[n][1])):
        if not kept or points[number][1] > points[kept[-1]][1]:
            kept.append(number)
    return kept


def price(run: Run, name: str) -> float | None:
    """Return a figure of a run's summary; ``total_bytes`` is up and down."""
    if name != "total_bytes":
        return _number(run.summary.get(name))
    up, down = (_number(run.summary.get(f"total_bytes_{way}")) for way in ("up", "down"))
    return None if up is None or down is None else up + down


def _points(groups: Sequence[Group], name: str) -> dict[int, tuple[float, float]]:
    """Mean price and accuracy of the groups that have both in every seed."""
    points: dict[int, tuple[float, float]] = {}
    for number, group in enumerate(groups):
        prices = [price(run, name) for run in group.seeds.values()]
        known = [found for found in prices if found is not None]
        accuracies = _values(group, ACCURACY)
        if known and len(known) == len(prices) == len(accuracies):
            points[number] = (sum(known) / len(known), _mean(accuracies))
    return points


def _values(group: Group, measure: str) -> dict[Any, float]:
    found = {seed: _number(run.summary.get(measure)) for seed, run in group.seeds.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def _mean(values: Mapping[Any, float]) -> float:
    return sum(values.values()) / len(values)


def _number(found: Any) -> float | None:
    return None if found is None else float(found)
