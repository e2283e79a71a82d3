"""What the terminal shows of a sweep: its running jobs, the whole, and above what has ended."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from tracking.progress import Pace, ProgressSink, duration, record_figures
from tracking.record import ClientRecord, RoundRecord, Sink
from tracking.text import line, lines


class SweepView:
    """Shows the jobs of a sweep, one after another or several at a time.

    In a terminal bars stay at the bottom, one of each running job and one of the sweep; a job that
    ends leaves a line above them. Elsewhere there are plain lines.

    Args:
        num_jobs: how many there are.
        console: where to write; standard error by default.
    """

    def __init__(self, num_jobs: int, console: Console | None = None) -> None:
        self.num_jobs = num_jobs
        self._console = console or Console(stderr=True)
        self._num_begun, self._num_ended, self._num_failed = 0, 0, 0
        self._running: list[JobView] = []
        self._took_s: list[float] = []  # of the jobs that really ran
        self._bars: Progress | None = None
        self._free: list[TaskID] = []  # bars of jobs that have ended, for those that begin
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
            self._free.append(self._bars.add_task("", total=None, says=""))
            self._sweep = self._bars.add_task("sweep", total=num_jobs, says="")
            self._bars.start()

    def begin(self, number: int, what: str) -> "JobView":
        """Start a job, and return what shows it.

        Args:
            number: from 1.
            what: what tells it from the others, such as ``strategy=oqfl``.
        """
        label = f"{number}/{self.num_jobs} {line(what)}".rstrip()
        job = JobView(self, label, self._bar(label))
        self._num_begun += 1
        self._running.append(job)
        self.show_sweep()
        return job

    def say(self, text: str) -> None:
        """Write a line, above the bars where there are any."""
        self._console.print(Text(lines(text)), soft_wrap=True)

    def close(self) -> None:
        """Leave the screen as it is."""
        if self._bars is not None:
            for bar in [*self._free, *(job.bar for job in self._running if job.bar is not None)]:
                self._bars.remove_task(bar)
            self._bars.stop()
            self._bars = None

    # For the jobs -----------------------------------------------------------------------------

    @property
    def bars(self) -> Progress | None:
        """The bars, in a terminal."""
        return self._bars

    @property
    def console(self) -> Console:
        """Where it is written to."""
        return self._console

    def ended(self, job: "JobView", ran: bool, failed: bool) -> None:
        """Take note of a job's end."""
        self._running.remove(job)
        self._num_ended += 1
        self._num_failed += failed
        if ran:
            self._took_s.append(job.took_s)
        if self._bars is not None and job.bar is not None:
            if self._running and self._num_begun == self.num_jobs:
                self._bars.remove_task(job.bar)  # nobody will take it
            else:
                self._free.append(job.bar)
        self.show_sweep()

    def left_of_sweep(self) -> str:
        """How long the sweep still takes; nothing where its last job alone is running."""
        left_s = self._left_s()
        is_last = len(self._running) == 1 and self._num_begun == self.num_jobs
        return "" if left_s is None or is_last else f"  sweep {duration(left_s)} left"

    def show_sweep(self) -> None:
        """Bring the bar of the sweep up to date."""
        if self._bars is None:
            return
        says = [f"{self._num_ended}/{self.num_jobs} jobs"]
        if self._num_failed:
            says.append(f"{self._num_failed} failed")
        if (left_s := self._left_s()) is not None:
            says.append(f"{duration(left_s)} left")
        self._bars.update(self._sweep, completed=self._num_ended, says="  ".join(says))

    def _bar(self, label: str) -> TaskID | None:
        """A bar for a job that begins, above that of the sweep."""
        if self._bars is None:
            return None
        if self._free:
            bar = self._free.pop(0)
            self._bars.reset(bar, total=None, description=label, says="setting up")
            return bar
        self._bars.remove_task(self._sweep)
        bar = self._bars.add_task(label, total=None, says="setting up")
        self._sweep = self._bars.add_task("sweep", total=self.num_jobs, says="")
        return bar

    def _left_s(self) -> float | None:
        """Seconds left of the sweep, once a running job knows how long it takes."""
        known = [job for job in self._running if job.left_s is not None]
        if not known:
            return None
        wholes = [job.took_s + (job.left_s or 0.0) for job in known]
        mean_s = statistics.mean([*self._took_s, *wholes])
        lefts = [
            max(0.0, mean_s - job.took_s) if job.left_s is None else job.left_s
            for job in self._running
        ]
        to_do_s = sum(lefts) + mean_s * (self.num_jobs - self._num_begun)
        return max(*lefts, to_do_s / len(lefts))


class JobView:
    """Shows one job of a sweep.

    Args:
        sweep: the whole.
        label: number and what tells it from the others.
        bar: its own, in a terminal.
    """

    def __init__(self, sweep: SweepView, label: str, bar: TaskID | None) -> None:
        self.bar = bar
        self.left_s: float | None = None
        self._sweep, self._label = sweep, label
        self._began = time.monotonic()
        self._last: RoundRecord | None = None  # set where rounds were run

    @property
    def took_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def progress(self, num_rounds: int, done: Sequence[RoundRecord]) -> Sink:
        """Return the sink of its rounds."""
        if self._sweep.bars is None or self.bar is None:
            return ProgressSink(
                num_rounds, done, f"job {self._label}", self._sweep.console, self._more
            )
        self._sweep.bars.update(self.bar, total=num_rounds, completed=len(done), says="starting")
        return _JobSink(self, num_rounds, len(done))

    def round(self, record: RoundRecord, num_rounds: int, left_s: float) -> None:
        """Show a round in its bar."""
        self._last, self.left_s = record, left_s
        if self._sweep.bars is not None and self.bar is not None:
            says = f"{record.round}/{num_rounds}  {record_figures(record)}  {duration(left_s)} left"
            self._sweep.bars.update(self.bar, completed=record.round, says=says)
            self._sweep.show_sweep()

    def say(self, text: str) -> None:
        """Write something of it that is not its end, such as a warning."""
        self._sweep.say(f"job {self._label}: {text}")

    def end(self, outcome: str = "", failed: bool = False) -> None:
        """End it.

        Args:
            outcome: why it was not run, or what went wrong; empty where it ran to its end.
            failed: whether something went wrong.
        """
        outcome = line(outcome)
        if self._sweep.bars is not None:
            mark = "✗" if failed else "=" if outcome else "✓"
            figures = record_figures(self._last) if self._last else ""
            self._sweep.say(f"{mark} {self._label}  " + (outcome or f"{figures}  {self._took()}"))
        elif outcome:
            self._sweep.say(f"job {self._label}: {outcome}")
        self._sweep.ended(self, ran=not outcome, failed=failed)

    def leave(self) -> None:
        """End it where it stands: it was stopped, and the sweep with it."""
        self._sweep.ended(self, ran=False, failed=False)

    def _took(self) -> str:
        return duration(self.took_s)

    def _more(self, left_s: float) -> str:
        """What a plain line says besides of the sweep."""
        self.left_s = left_s
        return self._sweep.left_of_sweep()


class _JobSink:
    """Passes a job's rounds on to its view."""

    def __init__(self, job: JobView, num_rounds: int, first: int) -> None:
        self._job, self._num_rounds = job, num_rounds
        self._pace = Pace(num_rounds, first)

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Show a round."""
        self._job.round(record, self._num_rounds, self._pace.left_s(record))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Leave it to the view, which is told how the job ended."""
