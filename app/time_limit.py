"""How long one client may train.

An alarm raises `TimeLimitError` where the client is. Code that never comes back to Python cannot be
interrupted so: some seconds later its process is ended, where that is a worker's; in the process of
the whole run its stack goes to stderr, and there the run waits.
"""

import _signal  # type: ignore[import-not-found]
import contextlib
import faulthandler
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

GRACE_S = 5.0  # at most, from the alarm until the process is ended
REPEAT_S = 1.0  # between alarms: code that catches everything may miss one
SLACK_S = 1.0  # for which a long limit's end of the process may serve the clients that follow
_ALARM = int(signal.SIGALRM)  # signal's own functions take most of their time to name what comes
SHORT_S = 10.0  # a limit below which each client has its own


class TimeLimitError(BaseException):
    """A client did not end in time. No ``except Exception`` of its own code keeps it."""


class _LastResort:
    """The one timer of faulthandler's, which ends the process or shows its stack.

    It is a thread: to set it anew waits until the thread has seen that it is to end, which on busy
    processors costs more than a small client's training. So in a series it stays as it is for
    ``SLACK_S``, by which it is set the later.
    """

    def __init__(self) -> None:
        self.series = 0
        self._is_set_for: tuple[float, bool] | None = None
        self._at = 0.0

    def set(self, seconds: float, ends_process: bool) -> None:
        """For a client that begins now."""
        if sys.__stderr__ is None:
            return
        now, what = time.monotonic(), (seconds, ends_process)
        is_kept = self.series > 0 and seconds >= SHORT_S
        if is_kept and self._is_set_for == what and now < self._at + SLACK_S:
            return
        faulthandler.dump_traceback_later(
            seconds + min(seconds, GRACE_S) + is_kept * SLACK_S,
            exit=ends_process,
            file=sys.__stderr__,
        )
        self._is_set_for, self._at = what, now

    def end(self) -> None:
        """After a client; within a series the timer of a long limit stays."""
        if self._is_set_for is None or (self.series and self._is_set_for[0] >= SHORT_S):
            return
        faulthandler.cancel_dump_traceback_later()
        self._is_set_for = None


_last_resort = _LastResort()


@contextlib.contextmanager
def series() -> Iterator[None]:
    """Within, clients run one after another and nothing else takes long."""
    _last_resort.series += 1
    try:
        yield
    finally:
        _last_resort.series -= 1
        _last_resort.end()


@dataclass(frozen=True)
class TimeLimit:
    """A limit on each client.

    Attributes:
        seconds: of training; None for no limit.
        ends_process: whether a process that cannot be interrupted is ended.
    """

    seconds: float | None = None
    ends_process: bool = False

    @property
    def is_short(self) -> bool:
        """Whether it is a matter of seconds."""
        return self.seconds is not None and self.seconds < SHORT_S

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Limit what runs within; only in the main thread, which alone gets signals.

        Raises:
            TimeLimitError: the time is over.
        """
        if self.seconds is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        is_over = False

        def alarm(*_: object) -> None:
            if not is_over:
                raise TimeLimitError(f"no answer in {self.seconds:g} s (engine.client_timeout_s)")

        started = time.monotonic()
        before = _signal.signal(_ALARM, alarm)
        left, interval = signal.setitimer(signal.ITIMER_REAL, self.seconds, REPEAT_S)
        _last_resort.set(self.seconds, self.ends_process)
        try:
            try:
                yield
            finally:
                is_over = True
        finally:  # also if the alarm came in the line before
            signal.setitimer(signal.ITIMER_REAL, 0)
            _last_resort.end()
            _signal.signal(_ALARM, _signal.SIG_DFL if before is None else before)
            if left:
                rest = max(0.001, left - (time.monotonic() - started))
                signal.setitimer(signal.ITIMER_REAL, rest, interval)
