"""What the terminal shows of a run: a live bar, or plain lines where there is no terminal."""

import logging
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from tracking.record import ClientRecord, RoundRecord, Sink
from tracking.text import line

SECONDS_BETWEEN_LINES = 5.0


class ConsoleHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever sys.stderr is now, so that a live bar can move out of the way."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        """The current standard error."""
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        """Fixed: see the getter."""


# Makes what shows a run: from how many rounds it has, and the records of those already done.
Show = Callable[[int, Sequence[RoundRecord]], Sink]


class Pace:
    """How long the rest of a run takes, by its last rounds.

    Args:
        num_rounds: rounds of the whole run.
        first: rounds done before this start.
    """

    def __init__(self, num_rounds: int, first: int) -> None:
        self._num_rounds = num_rounds
        self._first = first
        self._round_s: deque[float] = deque(maxlen=10)

    def left_s(self, record: RoundRecord) -> float:
        """Take a round, and return the seconds left after it."""
        self._round_s.append(record.wall_s)
        if record.round == self._first + 2:  # the first round of a run also loads data and code
            self._round_s.popleft()
        return statistics.mean(self._round_s) * (self._num_rounds - record.round)


class ProgressSink:
    """Shows round, accuracy and time left.

    Args:
        num_rounds: rounds of the whole run.
        done: records of the rounds before this start.
        label: what runs, such as ``job 1/2 strategy=oqfl``.
        console: where to write; standard error by default.
        more: from the seconds left of this run, what else to say.
    """

    def __init__(
        self,
        num_rounds: int,
        done: Sequence[RoundRecord] = (),
        label: str = "training",
        console: Console | None = None,
        more: Callable[[float], str] = lambda left_s: "",
    ) -> None:
        self._num_rounds = num_rounds
        self._label = line(label)
        self._more = more
        self._console = console or Console(stderr=True)
        self._last_line = time.monotonic()
        self._first = len(done)
        self._pace = Pace(num_rounds, self._first)
        self._last: RoundRecord | None = done[-1] if done else None
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[last]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(
                self._label, total=num_rounds, completed=self._first, last="starting"
            )
            self._bar.start()
        else:
            self._print(f"{self._label}: {num_rounds} rounds" + self._from_where())

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Show a round."""
        self._last = record
        left_s = self._pace.left_s(record)
        is_last = record.round == self._num_rounds
        figures = record_figures(record) + ("" if is_last else f"  {duration(left_s)} left")
        figures += self._more(left_s)
        if self._bar is not None:
            self._bar.update(self._task, completed=record.round, last=figures)
            return
        now = time.monotonic()
        if is_last or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self._print(f"{self._label}: round {record.round}/{self._num_rounds}  {figures}")

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Leave the last state on the screen, of a run that ended early too."""
        last, ended_by = self._last, (summary or {}).get("ended_by", "rounds")
        if last is not None and ended_by != "rounds":
            figures = f"{record_figures(last)}  ended by {ended_by}"
            if self._bar is not None:
                self._bar.update(self._task, total=last.round, last=figures)
            else:
                self._print(f"{self._label}: round {last.round}/{self._num_rounds}  {figures}")
        if self._bar is not None:
            self._bar.stop()

    def _from_where(self) -> str:
        return f", continued after round {self._first}" if self._first else ""

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Return minutes and seconds, and hours where there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def record_figures(record: RoundRecord) -> str:
    """Return what there is to say of a round in passing."""
    accuracy = "" if record.accuracy is None else f"accuracy {record.accuracy:.4f}"
    loss = "" if record.train_loss is None else f"train loss {record.train_loss:.4f}"
    failed = f"{record.num_failed} failed" if record.num_failed else ""
    return "  ".join(part for part in (accuracy, loss, failed) if part)
