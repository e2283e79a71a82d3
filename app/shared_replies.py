"""Replies of a forked process, whose arrays lie in memory that it shares with the driver.

Through a pipe a model goes in pieces of some tens of kilobytes, and for each both processes are
woken. Here the pipe says where in the memory a reply's arrays are, and there the driver reads them.
Their place is given back when nobody has them any more, and goes to a later reply.
"""

import ctypes
import mmap
import os
import pickle
import weakref
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

ALIGNED = 64  # bytes
CHUNK = 8 << 20  # bytes that the memory grows by, unless a reply takes more


class Place(NamedTuple):
    """Where the arrays of a reply are, in bytes of the memory.

    Attributes:
        chunk: where the chunk begins that holds them.
        chunk_size: of it.
        start: in the chunk.
        size: of the arrays, with what is between them.
    """

    chunk: int
    chunk_size: int
    start: int
    size: int


class SharedReplies:
    """Memory for the arrays of replies; to be made before the fork, and then used on both sides."""

    def __init__(self) -> None:
        self.file = os.memfd_create("cutbit-replies")
        self._chunks: dict[int, mmap.mmap] = {}  # as this process sees them
        self._given_back: list[Place] = []  # by the driver, which has not told it yet
        # On the other side.
        self._free: dict[int, list[Place]] = {}  # by size
        self._end = 0  # of the last chunk
        self._used = 0  # of that chunk
        self._last = Place(0, 0, 0, 0)  # that chunk as a whole

    # The process that was forked ------------------------------------------------------------------

    def send(self, pipe: Connection, reply: Message) -> None:
        """Hand a reply to the driver.

        Raises:
            OSError: the driver is gone, or there is no memory.
        """
        buffers = list[pickle.PickleBuffer]()
        rest = pickle.dumps(reply, protocol=5, buffer_callback=buffers.append)
        parts = [buffer.raw() for buffer in buffers]
        if not parts:
            pipe.send((rest, (), None))
            return
        sizes = tuple(part.nbytes for part in parts)
        place = self._room(sum(map(_padded, sizes)))
        memory, at = self._chunk(place), place.start
        for part in parts:
            memory[at : at + part.nbytes] = part
            at += _padded(part.nbytes)
        pipe.send((rest, sizes, place))

    def free(self, places: list[Place]) -> None:
        """Take places for later replies which the driver `freed`."""
        for place in places:
            self._free.setdefault(place.size, []).append(place)

    def _room(self, size: int) -> Place:
        """A place of this size: one that was given back, or behind all others."""
        if places := self._free.get(size):
            return places.pop()
        if self._last.chunk_size - self._used < size:
            chunk_size = max(CHUNK, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
            os.posix_fallocate(self.file, self._end, chunk_size)
            self._last, self._used = Place(self._end, chunk_size, 0, 0), 0
            self._end += chunk_size
        start, self._used = self._used, self._used + size
        return self._last._replace(start=start, size=size)

    # The driver -----------------------------------------------------------------------------------

    def take(self, pipe: Connection) -> Any:
        """Return what was sent: a reply, or None for what was none.

        Raises:
            OSError, EOFError: the process has ended.
        """
        sent = pipe.recv()
        if sent is None:
            return None
        rest, sizes, place = sent
        return pickle.loads(rest, buffers=self._arrays(sizes, place) if sizes else ())

    def freed(self) -> list[Place]:
        """The places of replies whose arrays nobody has any more, each told once."""
        told = list(self._given_back)
        del self._given_back[: len(told)]
        return told

    def close(self) -> None:
        """Give the memory back, once nobody has arrays in it."""
        self._chunks.clear()
        os.close(self.file)

    def _arrays(self, sizes: tuple[int, ...], place: Place) -> list[NDArray[np.uint8]]:
        """A reply's arrays, which keep its place as long as there is one of them, or a view."""
        # numpy's arrays lead to what they were made of, whatever is made of them in turn.
        held = (ctypes.c_uint8 * place.size).from_buffer(self._chunk(place), place.start)
        weakref.finalize(held, self._given_back.append, place).atexit = False
        whole = np.frombuffer(held, np.uint8)  # type: ignore[call-overload]
        at, found = 0, list[NDArray[np.uint8]]()
        for size in sizes:
            found.append(whole[at : at + size])
            at += _padded(size)
        return found

    def _chunk(self, place: Place) -> mmap.mmap:
        """The memory in which a place is."""
        if place.chunk not in self._chunks:
            self._chunks[place.chunk] = mmap.mmap(self.file, place.chunk_size, offset=place.chunk)
        return self._chunks[place.chunk]


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNED) * ALIGNED
