"""What the terminal shows of a sweep: the running job, the whole, and above them what has ended."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from rich.text import Text

from tracking.progress import Pace, ProgressSink, duration, record_figures
from tracking.record import ClientRecord, RoundRecord, Sink
from tracking.text import line


class SweepView:
    """Shows the jobs of a sweep, one after another.

    In a terminal two bars stay at the bottom, one of the running job and one of the sweep; a job
    that ends leaves a line above them. Elsewhere there are plain lines.

    Args:
        num_jobs: how many there are.
        console: where to write; standard error by default.
    """

    def __init__(self, num_jobs: int, console: Console | None = None) -> None:
        self._num_jobs = num_jobs
        self._console = console or Console(stderr=True)
        self._number, self._what, self._num_failed = 0, "", 0
        self._began = 0.0
        self._took_s: list[float] = []  # of the jobs that really ran
        self._last: RoundRecord | None = None  # of the job; set where rounds were run
        self._bars: Progress | None = None
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn(
                    "{task.description}",
                    markup=False,
                    table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
                ),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[says]}", markup=False, table_column=Column(no_wrap=True)),
                console=self._console,
                expand=True,
            )
            self._job = self._bars.add_task("", total=None, says="")
            self._sweep = self._bars.add_task("sweep", total=num_jobs, says="")
            self._bars.start()

    def begin(self, number: int, what: str) -> None:
        """Start a job.

        Args:
            number: from 1.
            what: what tells it from the others, such as ``strategy=oqfl``.
        """
        self._number, self._what = number, line(what)
        self._began, self._last = time.monotonic(), None
        if self._bars is not None:
            self._bars.reset(self._job, total=None, description=self._label, says="setting up")
            self._show_sweep(None)

    def progress(self, num_rounds: int, done: Sequence[RoundRecord]) -> Sink:
        """Return the sink of the job that was started."""
        if self._bars is None:
            label = f"job {self._label}"
            return ProgressSink(num_rounds, done, label, self._console, self._left_of_sweep)
        self._bars.update(self._job, total=num_rounds, completed=len(done), says="starting")
        return _JobSink(self, num_rounds, len(done))

    def round(self, record: RoundRecord, num_rounds: int, left_s: float) -> None:
        """Show a round of the running job in the bars."""
        assert self._bars is not None
        self._last = record
        says = f"{record.round}/{num_rounds}  {record_figures(record)}  {duration(left_s)} left"
        self._bars.update(self._job, completed=record.round, says=says)
        self._show_sweep(left_s)

    def end(self, outcome: str = "", failed: bool = False) -> None:
        """End the job.

        Args:
            outcome: why it was not run, or what went wrong; empty where it ran to its end.
            failed: whether something went wrong.
        """
        self._num_failed += failed
        outcome = line(outcome)
        took_s = time.monotonic() - self._began
        if not outcome:
            self._took_s.append(took_s)
        if self._bars is None:
            if outcome:
                self._print(f"job {self._label}: {outcome}")
            return
        mark = "✗" if failed else "=" if outcome else "✓"
        figures = record_figures(self._last) if self._last else ""
        said = outcome or f"{figures}  {duration(took_s)}"
        self._print(f"{mark} {self._label}  {said}")
        self._show_sweep(None, ended=True)

    def close(self) -> None:
        """Leave the screen as it is."""
        if self._bars is not None:
            self._bars.remove_task(self._job)
            self._bars.stop()
            self._bars = None

    @property
    def _label(self) -> str:
        return f"{self._number}/{self._num_jobs} {self._what}".rstrip()

    def _left_s(self, left_s: float) -> float:
        """Seconds left of the sweep, with ``left_s`` left of its running job."""
        whole = time.monotonic() - self._began + left_s
        mean_s = statistics.mean([*self._took_s, whole])
        return left_s + mean_s * (self._num_jobs - self._number)

    def _left_of_sweep(self, left_s: float) -> str:
        if self._number == self._num_jobs:
            return ""
        return f"  sweep {duration(self._left_s(left_s))} left"

    def _show_sweep(self, left_s: float | None, ended: bool = False) -> None:
        assert self._bars is not None
        done = self._number if ended else self._number - 1
        says = [f"{done}/{self._num_jobs} jobs"]
        if self._num_failed:
            says.append(f"{self._num_failed} failed")
        if left_s is not None:
            says.append(f"{duration(self._left_s(left_s))} left")
        self._bars.update(self._sweep, completed=done, says="  ".join(says))

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


class _JobSink:
    """Passes a job's rounds on to the view."""

    def __init__(self, view: SweepView, num_rounds: int, first: int) -> None:
        self._view, self._num_rounds = view, num_rounds
        self._pace = Pace(num_rounds, first)

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Show a round."""
        self._view.round(record, self._num_rounds, self._pace.left_s(record))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Leave it to the view, which is told how the job ended."""
