"""Totals of a run, from its rounds.jsonl."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracking.jsonl import ROUNDS, read
from tracking.record import added

TOTALS = ("bytes_up", "bytes_down", "sim_s", "energy_j", "wall_s")


def summarise(folder: Path, target_accuracy: float | None = None) -> dict[str, Any]:
    """Return final and best accuracy, totals, and what it took to reach a target.

    What a method adds to its records is there as it was at the end: ``final_edge_accuracy`` …

    Args:
        folder: the run's folder.
        target_accuracy: None, or a share; adds ``rounds_to_target`` and, of what was counted until
            then, ``bytes_up_to_target`` and so on. None where the target was not reached.
    """
    rows = read(folder / ROUNDS)
    evaluated = [row["accuracy"] for row in rows if row["accuracy"] is not None]
    summary = {
        "final_accuracy": evaluated[-1] if evaluated else None,
        "best_accuracy": max(evaluated, default=None),
        "best_round": best_round([row["accuracy"] for row in rows]),
        "rounds": len(rows),
        **{f"total_{name}": _total(rows, name) for name in TOTALS},  # wall: rounds, not set-up
        "num_failed": sum(row["num_failed"] for row in rows),
        **_own(rows),
    }
    if target_accuracy is not None:
        summary |= _to_target(rows, target_accuracy)
    return summary


def best_round(accuracies: Sequence[float | None]) -> int | None:
    """Return the round, from 1, of the highest accuracy, the first of several; None without any."""
    known = [(value, -number) for number, value in enumerate(accuracies, 1) if _is_known(value)]
    return -max(known)[1] if known else None


def _is_known(value: float | None) -> bool:
    """Whether it is a number: a record read back has None for NaN."""
    return value is not None and value == value


def _to_target(rows: Sequence[Mapping[str, Any]], target: float) -> dict[str, Any]:
    reached = next((i for i, row in enumerate(rows) if (row["accuracy"] or 0) >= target), None)
    until = [] if reached is None else rows[: reached + 1]
    return {
        "target_accuracy": target,
        "rounds_to_target": len(until) or None,
        **{f"{name}_to_target": _total(until, name) if until else None for name in TOTALS},
    }


def _own(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the method added to the last round, which is always evaluated."""
    return {f"final_{name}": value for name, value in added(rows[-1] if rows else {}).items()}


def _total(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Sum over the rounds, None where a round has none."""
    values = [row[name] for row in rows]
    return None if None in values else sum(values)
