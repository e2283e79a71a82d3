"""A round's updates on disk: the server holds the arrays of one client at a time.

A mean needs the samples of all clients before it begins, and who failed is known at the end only.
So updates that are large together wait in a file, from which averaging reads one array of one
client at a time, in the order of partition ids. The file has no name, and is gone with its round,
however that ends.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from strategies.server.method import Arrays

IN_MEMORY = 256 * 2**20  # bytes of a round's updates that are not worth a file


class Place(NamedTuple):
    """Where in the file an array lies, and what it is."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Spool:
    """A temporary file of arrays, in ``$TMPDIR`` or where the system keeps such files.

    Args:
        num_bytes: of all that will be put; up to `IN_MEMORY` they stay in memory.
    """

    def __init__(self, num_bytes: int) -> None:
        self._file: IO[bytes] | None = None
        if num_bytes > IN_MEMORY:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115

    def put(self, arrays: Arrays) -> Arrays:
        """Return the same arrays, read from the file when they are asked for.

        Raises:
            OSError: the file cannot grow; names its folder.
        """
        if self._file is None:
            return arrays
        places: dict[str, Place] = {}
        try:
            for name, array in arrays.items():
                places[name] = Place(self._file.seek(0, os.SEEK_END), array.dtype, array.shape)
                left = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                while left:
                    left = left[self._file.write(left) :]
        except OSError as error:
            what = f"writing a round's updates, which wait in a file there: {error.strerror}"
            hint = "TMPDIR takes another folder"
            raise OSError(error.errno, f"{what}; {hint}", tempfile.gettempdir()) from error
        return Spooled(self._file, places)


class Spooled(Mapping[str, NDArray[Any]]):
    """One client's arrays in a `Spool`; each is read anew when it is asked for."""

    def __init__(self, file: IO[bytes], places: Mapping[str, Place]) -> None:
        self._file, self._places = file, places

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read an array."""
        place = self._places[name]
        array: NDArray[Any] = np.empty(place.shape, place.dtype)
        left = array.reshape(-1).view(np.uint8).data
        self._file.seek(place.offset)
        while left:
            count = self._file.readinto(left)  # type: ignore[attr-defined]
            assert count, "the file ends too soon"
            left = left[count:]
        return array

    def __iter__(self) -> Iterator[str]:
        """Names, in their order."""
        return iter(self._places)

    def __len__(self) -> int:
        """How many arrays there are."""
        return len(self._places)
