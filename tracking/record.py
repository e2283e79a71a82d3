"""What is recorded of a round and of each client in it."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol


@dataclass(frozen=True)
class RoundRecord:
    """One line of rounds.jsonl. Counts and times are the round's own, not running totals.

    Attributes:
        round: from 1.
        accuracy: share of ``evaluated_on`` that is right, as the task has it (docs/TASKS.md); None
            if not evaluated.
        loss: the task's mean loss on the same; None if not evaluated.
        train_loss: clients' mean training loss, weighted by their samples.
        num_clients: clients whose work entered the round's result.
        num_failed: clients that raised an error or did not answer.
        num_dropped: chosen clients that were absent, late or unfit, and did not train.
        bytes_up: payload bytes from clients, as packed.
        bytes_down: payload bytes to clients, as packed.
        sim_s: simulated seconds on the fleet; None without a fleet.
        energy_j: simulated joules of all clients; None without a fleet.
        wall_s: seconds the round really took.
        evaluated_on: what accuracy and loss are of: ``test``, the held-out test set,
            ``validation`` (data.validation) or ``clients`` (evaluate.on); stored unless ``test``.
        extra: what the task and the method add, stored beside the others.
    """

    round: int
    accuracy: float | None
    loss: float | None
    train_loss: float | None
    num_clients: int
    num_failed: int
    num_dropped: int
    bytes_up: int
    bytes_down: int
    sim_s: float | None
    energy_j: float | None
    wall_s: float
    extra: Mapping[str, float] = field(default_factory=dict)
    evaluated_on: str = "test"

    def to_dict(self) -> dict[str, Any]:
        """All fields in one flat dict, the method's own after the common ones."""
        row = asdict(self)
        row.update(row.pop("extra"))
        return finite(row if self.evaluated_on != "test" else without(row, "evaluated_on"))

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "RoundRecord":
        """Inverse of ``to_dict``."""
        said = {name: row[name] for name in _SOMETIMES if name in row}
        return cls(**{name: row[name] for name in COMMON}, extra=added(row), **said)


_SOMETIMES = frozenset({"evaluated_on"})  # texts that only some rounds have
COMMON = frozenset(field.name for field in fields(RoundRecord)) - {"extra"} - _SOMETIMES
"""What every method records of a round."""


def added(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the method added to a line of rounds.jsonl."""
    return {name: value for name, value in row.items() if name not in COMMON | _SOMETIMES}


def without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return a row without some of its fields."""
    return {name: value for name, value in row.items() if name not in names}


def numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of rounds.jsonl without the texts that it may have."""
    return without(row, *_SOMETIMES)


def is_round(row: Any) -> bool:
    """Whether what a line of rounds.jsonl holds can be one."""
    return (
        _has(row, COMMON, whole=("round", "num_clients", "num_failed", "num_dropped", *BYTES))
        and all(isinstance(row[name], str) for name in _SOMETIMES & row.keys())
        and all(is_number_or_none(value) for value in numbers(row).values())
        and row["wall_s"] is not None
    )


def is_client(row: Any) -> bool:
    """Whether what a line of clients.jsonl holds can be one."""
    named = ("device", "status", "reason")
    return (
        _has(row, _CLIENT, whole=("round", "partition", "num_examples", *BYTES))
        and isinstance(row["status"], str)
        and all(row.get(name) is None or isinstance(row[name], str) for name in named)
        and all(is_number_or_none(row[name]) for name in row if name not in named)
    )


def _has(row: Any, names: Collection[str], whole: Sequence[str]) -> bool:
    """Whether a row has these fields, and integers in those that count."""
    return (
        isinstance(row, dict)
        and row.keys() >= set(names)
        and all(type(row[name]) is int for name in whole)
    )


def is_number_or_none(value: Any) -> bool:
    """Whether it is what a figure in a record may be; true and false are not."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``row`` with None for numbers that JSON has no word for (NaN and infinities)."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


@dataclass(frozen=True)
class ClientRecord:
    """One line of clients.jsonl.

    Attributes:
        round: from 1.
        partition: the client's partition id, from 0.
        device: its device class; None without a fleet.
        status: ``ok``, ``alone`` (trained without network) or ``failed``, or why it did not train:
            ``absent``, ``unfit`` (memory), ``late``, ``surplus`` (others ended before it), ``left``
            (before its end), ``stale`` (its update came too late to be of use).
        num_examples: samples it has.
        loss: its mean training loss; None unless it trained.
        bytes_up: payload bytes it sent.
        bytes_down: payload bytes it was sent.
        sim_s: simulated seconds; None without a fleet.
        energy_j: simulated joules; None without a fleet.
        reason: why it failed, did not train, or not with the server, in words; else None.
        begin_s: when it began, in simulated seconds since the experiment began; stored where it
            did, on a fleet.
        end_s: when it ended or left; the same.
        accuracy: of the model after the round on samples that the client holds out; stored where
            clients are tested (evaluate.on).
    """

    round: int
    partition: int
    device: str | None
    status: str
    num_examples: int
    loss: float | None
    bytes_up: int
    bytes_down: int
    sim_s: float | None
    energy_j: float | None
    reason: str | None = None
    begin_s: float | None = None
    end_s: float | None = None
    accuracy: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields, but for those that are not said of every client."""
        row = finite(vars(self))
        return without(row, *(name for name in _OF_SOME if row[name] is None))


BYTES = ("bytes_up", "bytes_down")
_OF_SOME = ("begin_s", "end_s", "accuracy")
# What every line of clients.jsonl has; "reason" is younger than the first.
_CLIENT = frozenset(field.name for field in fields(ClientRecord)) - {"reason", *_OF_SOME}


class Sink(Protocol):
    """Somewhere records go. ``finish`` is called once, however the run ends."""

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Take one round's records."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """End; ``summary`` is None if the run failed or was interrupted."""
