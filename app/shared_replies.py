"""Replies of a forked process, whose arrays lie in memory that it shares with the driver.

Through a pipe a model goes in pieces of some tens of kilobytes, and for each both processes are
woken. Here the pipe says that there is a reply, and its arrays are copied twice in memory.
"""

import mmap
import multiprocessing
import os
import pickle
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from flwr.app import Message

ALIGNED = 64  # bytes


class SharedReplies:
    """Memory for the arrays of one reply at a time; to be made before the fork."""

    def __init__(self) -> None:
        self.file = os.memfd_create("cutbit-replies")
        self._is_free = multiprocessing.get_context("fork").Semaphore(1)
        self._memory: mmap.mmap | None = None

    def send(self, pipe: Connection, reply: Message) -> None:
        """Hand a reply to the driver, once that has taken the one before.

        Raises:
            OSError: the driver is gone, or there is no memory.
        """
        buffers = list[pickle.PickleBuffer]()
        rest = pickle.dumps(reply, protocol=5, buffer_callback=buffers.append)
        parts = [buffer.raw() for buffer in buffers]
        if not parts:
            pipe.send((rest, ()))
            return
        self._is_free.acquire()
        sizes = tuple(part.nbytes for part in parts)
        memory = self._of(sum(map(_room, sizes)), grow=True)
        at = 0
        for part in parts:
            memory[at : at + part.nbytes] = part
            at += _room(part.nbytes)
        pipe.send((rest, sizes))

    def take(self, pipe: Connection) -> Any:
        """Return what was sent: a reply in memory of its own, or None for what was none.

        Raises:
            OSError, EOFError: the process has ended.
        """
        sent = pipe.recv()
        if sent is None:
            return None
        rest, sizes = sent
        copies = list[Any]()
        if sizes:
            memory, at = memoryview(self._of(sum(map(_room, sizes)))), 0
            for size in sizes:
                copies.append(np.array(memory[at : at + size], copy=True))
                at += _room(size)
            memory.release()
            self._is_free.release()
        return pickle.loads(rest, buffers=copies)

    def close(self) -> None:
        """Give the memory back."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        os.close(self.file)

    def _of(self, num_bytes: int, grow: bool = False) -> mmap.mmap:
        """The memory, at least as large."""
        if self._memory is None or len(self._memory) < num_bytes:
            if grow:
                os.posix_fallocate(self.file, 0, num_bytes)
            if self._memory is not None:
                self._memory.close()
            self._memory = mmap.mmap(self.file, num_bytes)
        return self._memory


def _room(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNED) * ALIGNED
