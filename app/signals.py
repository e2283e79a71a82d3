"""What ends a run from outside: Ctrl-C, SIGTERM (Slurm, docker stop), SIGHUP (a terminal closed).

The first is raised as `Stopped` in the main thread, as Python does for Ctrl-C, so that what was
begun is ended in order; a second ends the process at once. One that the process was told to ignore
(nohup) stays ignored. A job in a process of its own, which hears none of them, is told by `INNER`.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
INNER = "SIGUSR1"  # by which a process raises Stopped in its own main thread
# `timeout`, shells and Slurm may send one twice: to the process, and to its group.
TOGETHER_S = 1.0


class Stopped(KeyboardInterrupt):
    """A signal says that the run is to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def code(self) -> int:
        """What shells give as the exit code of a process that a signal ended."""
        return 128 + self.number


class _Handler:
    """Handles all of them."""

    def __init__(self) -> None:
        self.came: Stopped | None = None
        self.holds = 0
        self._at = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.came is not None:
            if now - self._at > TOGETHER_S:
                os._exit(128 + number)
            return
        self.came, self._at = Stopped(number), now
        if not self.holds:
            raise self.came


def install(names: Sequence[str] = NAMES) -> None:
    """Handle the signals from now on, in the main thread."""
    handler = _Handler()
    for number in numbers(names):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Hold back a signal that comes until the end of the block.

    Handlers that the block installed, as Ray does, give way to those from before it. One that came
    earlier and was swallowed by somebody is raised again.

    Raises:
        Stopped: one came.
    """
    before = {number: signal.getsignal(number) for number in numbers((*NAMES, INNER))}
    ours = {number: one for number, one in before.items() if isinstance(one, _Handler)}
    handlers = set(ours.values())
    for handler in handlers:
        handler.holds += 1
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, one in ours.items():
                signal.signal(number, one)
        for handler in handlers:
            handler.holds -= 1
    check()


@contextmanager
def shielded() -> Iterator[None]:
    """Hold signals back, and keep them from processes that the block starts.

    Slurm and `timeout` send theirs to all processes of a job. Ray's, which already do so with
    Ctrl-C, would be gone before the run can be ended in order, and take this process along.

    Raises:
        Stopped: one came.
    """
    if threading.current_thread() is not threading.main_thread():  # see `app.background`
        yield
        return
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        with held():
            yield
        return
    with held():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers())
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check() -> None:
    """Raise `Stopped` if a signal came, also where somebody swallowed it."""
    for number in numbers((*NAMES, INNER)):
        handler = signal.getsignal(number)
        if isinstance(handler, _Handler) and handler.came is not None and not handler.holds:
            raise handler.came


def numbers(names: Sequence[str] = NAMES) -> list[signal.Signals]:
    """Those that this system knows."""
    return [signal.Signals[name] for name in names if name in signal.Signals.__members__]
