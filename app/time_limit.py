"""How long one client may train.

An alarm raises `TimeLimitError` where the client is. Code that never comes back to Python cannot be
interrupted so: some seconds later its process is ended, where that is a worker's; in the process of
the whole run its stack goes to stderr, and there the run waits.
"""

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


class TimeLimitError(BaseException):
    """A client did not end in time. No ``except Exception`` of its own code keeps it."""


@dataclass(frozen=True)
class TimeLimit:
    """A limit on each client.

    Attributes:
        seconds: of training; None for no limit.
        ends_process: whether a process that cannot be interrupted is ended.
    """

    seconds: float | None = None
    ends_process: bool = False

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
        before = signal.signal(signal.SIGALRM, alarm)
        left, interval = signal.setitimer(signal.ITIMER_REAL, self.seconds, REPEAT_S)
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(
                self.seconds + min(self.seconds, GRACE_S),
                exit=self.ends_process,
                file=sys.__stderr__,
            )
        try:
            try:
                yield
            finally:
                is_over = True
        finally:  # also if the alarm came in the line before
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
            if left:
                rest = max(0.001, left - (time.monotonic() - started))
                signal.setitimer(signal.ITIMER_REAL, rest, interval)
