"""Something slow that starts processes, in a thread, while clients are trained.

The thread has a current folder of its own (Linux's CLONE_FS), so that what it starts can be started
elsewhere, and blocks the signals that end a run, which its processes inherit: they are the main
thread's, as in `signals.shielded`.
"""

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from app import signals

CLONE_FS = 0x200
Found = TypeVar("Found")


def in_background(act: Callable[[], Found]) -> "Future[Found]":
    """Begin ``act`` and return what will have its result, or what it raised."""
    future: Future[Found] = Future()

    def run() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_FS):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "unshare")
            signal.pthread_sigmask(signal.SIG_BLOCK, signals.numbers())
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)
        else:
            threading.Event().wait()  # Linux ends some processes with the thread that began them

    threading.Thread(target=run, name="cutbit-background", daemon=True).start()
    return future
