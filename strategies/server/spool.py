"""A round's updates on disk: the server holds the arrays of one client at a time.

A mean needs the samples of all clients before it begins, and who failed is known at the end only.
So updates that are large together wait in a file, from which averaging reads one client after
another, in the order of partition ids. The file has no name, and is gone with its round, however
that ends.
"""

import functools
import os
import tempfile
from typing import IO

import numpy as np
from numpy.typing import NDArray

from strategies.blocks import Block, Later
from strategies.server.method import Arrays

IN_MEMORY = 1280 * 2**20  # bytes of a round's updates that are not worth a file


class Spool:
    """A temporary file of arrays, in ``$TMPDIR`` or where the system keeps such files.

    Args:
        num_bytes: of all that will be put; up to `IN_MEMORY` they stay in memory.
    """

    def __init__(self, num_bytes: int) -> None:
        self._file: IO[bytes] | None = None
        self._end = 0
        if num_bytes > IN_MEMORY:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115

    def put(self, arrays: Arrays) -> Arrays:
        """Return the same arrays, read from the file when they are asked for.

        Raises:
            OSError: the file cannot grow; names its folder.
        """
        if self._file is None:
            return arrays
        block = Block.of(arrays)
        start, left = self._end, block.memory.data
        try:
            while left:
                count = os.pwrite(self._file.fileno(), left, self._end)
                self._end, left = self._end + count, left[count:]
        except OSError as error:
            what = f"writing a round's updates, which wait in a file there: {error.strerror}"
            hint = "TMPDIR takes another folder"
            raise OSError(error.errno, f"{what}; {hint}", tempfile.gettempdir()) from error
        return Later(block.layout, functools.partial(_read, self._file, start))


def _read(file: IO[bytes], offset: int, start: int, stop: int) -> NDArray[np.uint8]:
    """Read what lies ``start`` to ``stop`` bytes behind ``offset``."""
    memory = np.empty(stop - start, np.uint8)
    left, at = memory.data, offset + start
    while left:
        count = os.preadv(file.fileno(), [left], at)
        assert count, "the file ends too soon"
        left, at = left[count:], at + count
    return memory
