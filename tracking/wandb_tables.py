"""Tables of a run's end, as columns and rows: its clients, its classes, what was taken for what."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracking.metrics_file import MOST_CLASSES, per_class
from tracking.text import line

MOST_CLIENTS = 1000  # in the table of clients
_SUMS = ("sim_s", "energy_j", "bytes_up", "bytes_down")
_LAST = ("loss", "accuracy")


@dataclass(frozen=True)
class Table:
    """Columns, rows, and how many rows more there would have been."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    left_out: int = 0


def of_rows(rows: Sequence[Mapping[str, Any]], most: int | None = None) -> Table:
    """Return a table of the first ``most`` rows, without columns in which none of all has a value.

    >>> of_rows([{"a": 1, "b": None}, {"a": 2, "b": None}], most=1)
    Table(columns=['a'], rows=[[1]], left_out=1)
    """
    columns = list(dict.fromkeys(name for row in rows for name in row if row[name] is not None))
    kept = rows if most is None else rows[:most]
    return Table(columns, [[row.get(c) for c in columns] for row in kept], len(rows) - len(kept))


@dataclass
class _Client:
    """One client's rounds, added up."""

    device: str | None
    samples: int
    statuses: Counter[str] = field(default_factory=Counter)
    sums: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)


class ClientTally:
    """What each client did, added up over the rounds: no row is read or kept twice."""

    def __init__(self) -> None:
        self._clients: dict[int, _Client] = {}

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a round's lines of clients.jsonl."""
        for row in rows:
            device, samples = row["device"], row["num_examples"]
            one = self._clients.setdefault(row["partition"], _Client(device, samples))
            one.statuses[row["status"]] += 1
            for name in _SUMS:
                if row[name] is not None:
                    one.sums[name] = one.sums.get(name, 0) + row[name]
            one.last |= {name: row[name] for name in _LAST if row.get(name) is not None}

    def table(self, tested: Mapping[str, Any], most: int = MOST_CLIENTS) -> Table:
        """Return a row for each client by partition: how often it did what, and what that took.

        Args:
            tested: what metrics.json says of clients at the end: their accuracy takes the place of
                the last one of a round.
            most: rows.
        """
        statuses = sorted({name for one in self._clients.values() for name in one.statuses})
        at_end = {int(p): row for p, row in tested.items() if p.isdigit()}
        rows = []
        for partition in sorted({*self._clients, *at_end}):
            end = at_end.get(partition, {})
            one = self._clients.get(partition, _Client(end.get("device"), 0))
            accuracy = end.get("accuracy", one.last.get("accuracy"))
            rows.append(
                {
                    "partition": partition,
                    "device": one.device,
                    "samples": one.samples if partition in self._clients else None,
                    **{f"rounds {name}": one.statuses[name] for name in statuses},
                    "last loss": one.last.get("loss"),
                    "accuracy": accuracy,
                    **{name: one.sums.get(name) for name in _SUMS},
                }
            )
        return of_rows(rows, most)


def of_classes(found: Mapping[str, Any]) -> Table | None:
    """Return what metrics.json says of each class, or None: recall, precision …"""
    measures = per_class(found)
    if not measures:
        return None
    names = _labels(found, max(map(len, measures.values())))
    rows = [
        {"class": name, **{m: v[i] if i < len(v) else None for m, v in measures.items()}}
        for i, name in enumerate(names)
    ]
    return of_rows(rows)


def of_confusion(found: Mapping[str, Any]) -> Table | None:
    """Return the confusion matrix as wandb's chart takes it, a row for each cell, or None.

    Also None with more classes than `MOST_CLASSES`.
    """
    matrix = found.get("final", {}).get("confusion_matrix")
    if not isinstance(matrix, list) or not 0 < len(matrix) <= MOST_CLASSES:
        return None
    names = _labels(found, len(matrix))
    cells = [
        [names[actual], names[predicted], count]
        for actual, counts in enumerate(matrix)
        for predicted, count in enumerate(counts[: len(names)])
    ]
    return Table(list(CONFUSION), cells)


CONFUSION = ("Actual", "Predicted", "nPredictions")
"""Columns of wandb's own chart of a confusion matrix."""


def _labels(found: Mapping[str, Any], number: int) -> list[str]:
    given = found.get("labels")
    names = [line(name, 80) for name in given] if isinstance(given, list) else []
    return [*names, *map(str, range(len(names), number))][:number]
