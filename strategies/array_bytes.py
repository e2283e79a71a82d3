"""Flower's records of arrays, in a fraction of their time.

Flower writes each array by `numpy.save` and reads it by `numpy.load`, which make and parse the same
header of 128 bytes anew each time: with hundreds of clients and tens of small arrays that is most
of what a message costs. Here a header is made, or parsed, once for each dtype and shape. And a
record that never leaves for another machine is kept as the block that it was made of.

Other records look at each item that they are given, one by one. What is known to fit is put into
them at once.
"""

import functools
import math
import pickle
from collections.abc import Iterator, Mapping, MutableMapping
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib import format as npy
from numpy.typing import NDArray

from strategies.blocks import Block, Layout, layout_of

Filled = TypeVar("Filled", ArrayRecord, MetricRecord, RecordDict)

NUMPY = "numpy.ndarray"  # Flower's name of the serialization
_LONGEST = 1024  # bytes of a header that is remembered: numpy's are shorter unless structured


def packed(array: NDArray[Any]) -> Array:
    """Return ``array`` as Flower's `Array` holds it, with the bytes that `numpy.save` writes.

    Args:
        array: in C order; its dtype holds no Python objects.
    """
    if array.dtype.hasobject or not array.flags.c_contiguous:
        return Array(array)
    name, header = _header(array.dtype, array.shape)
    data = b"".join((header, array.data if array.size else b""))
    return Array(name, array.shape, NUMPY, data)


def unpacked(array: Array) -> NDArray[Any]:
    """Inverse of `packed`: a new array, which may be written to.

    Raises:
        ValueError: the bytes are no array, or too few.
    """
    data = array.data
    start = npy.MAGIC_LEN + 2 + int.from_bytes(data[npy.MAGIC_LEN : npy.MAGIC_LEN + 2], "little")
    is_first_version = data[: npy.MAGIC_LEN] == npy.magic(1, 0)
    if array.stype != NUMPY or not is_first_version or not start <= min(len(data), _LONGEST):
        return array.numpy()
    dtype, shape = _parsed(data[:start])
    if dtype is None:
        return array.numpy()
    values = np.frombuffer(data, dtype, math.prod(shape), start) if math.prod(shape) else ()
    return np.array(values, dtype).reshape(shape)


@functools.lru_cache(maxsize=1024)
def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[str, bytes]:
    """The dtype's name, and what stands before the values."""
    file = BytesIO()
    descr = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, descr)
    return str(dtype), file.getvalue()


@functools.lru_cache(maxsize=1024)
def _parsed(header: bytes) -> tuple[np.dtype[Any] | None, tuple[int, ...]]:
    """Dtype and shape, or None for what numpy is to read: Python objects, and Fortran's order."""
    file = BytesIO(header)
    npy.read_magic(file)
    shape, is_fortran, dtype = npy.read_array_header_1_0(file)
    if is_fortran or dtype.hasobject:
        return None, ()
    return dtype, shape


# Records of what fits -----------------------------------------------------------------------------


def metric_record(values: Mapping[str, int | float]) -> MetricRecord:
    """Return a record of numbers.

    Raises:
        TypeError: a value is none.
    """
    if not all(type(value) in (int, float) for value in values.values()):
        return MetricRecord(dict(values))  # which takes more, and says what it does not take
    return _filled(MetricRecord(), dict(values))


def record_dict(records: Mapping[str, ArrayRecord | ConfigRecord | MetricRecord]) -> RecordDict:
    """Return the content of a message."""
    return _filled(RecordDict(), dict(records))


def _filled(record: Filled, items: Mapping[str, Any]) -> Filled:
    record.__dict__[_ITEMS] = items
    return record


_ITEMS = "_data"  # where Flower's records have them


# A record as a block ------------------------------------------------------------------------------


class BlockRecord(ArrayRecord):
    """An `ArrayRecord` of a block's arrays, which Flower's `Array`s are made of when asked for.

    Within this process, and to a worker's, it travels as the block. Once somebody has asked for an
    `Array`, into which they may write, the record is like any other.

    Args:
        block: whose memory the record shares.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        _filled(self, _Arrays(block))

    @property
    def block(self) -> Block | None:
        """What the record was made of; None once somebody has asked for an `Array`."""
        data = self.__dict__[_ITEMS]
        return data.block if isinstance(data, _Arrays) and not data.are_made else None

    def copy(self) -> ArrayRecord:  # type: ignore[override]
        """Return a record of its own with the same arrays."""
        return ArrayRecord(dict(self.items()))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Have the block's memory travel beside the pickle where that can be."""
        block = self.block
        if block is None:
            return ArrayRecord, (dict(self.items()),)
        data = block.memory.data
        memory = pickle.PickleBuffer(data) if protocol >= 5 else data.tobytes()
        return _restored, (block.layout.pickled, memory)


# By this name Flower's messages say what is in them.
BlockRecord.__qualname__ = ArrayRecord.__qualname__


def _restored(layout: bytes, memory: Any) -> BlockRecord:
    """Inverse of pickling, with memory that may be written to."""
    held = np.frombuffer(memory, np.uint8)
    return BlockRecord(Block(_layout(layout), held if held.flags.writeable else held.copy()))


@functools.lru_cache(maxsize=256)
def _layout(pickled: bytes) -> Layout:
    return layout_of(pickle.loads(pickled))


class _Arrays(MutableMapping[str, Array]):
    """A block's arrays as Flower's, all made when the first is asked for."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self._made: dict[str, Array] | None = None

    @property
    def are_made(self) -> bool:
        """Whether somebody has asked for one."""
        return self._made is not None

    @property
    def _all(self) -> dict[str, Array]:
        if self._made is None:
            self._made = {name: packed(array) for name, array in self.block.items()}
        return self._made

    def __getitem__(self, name: str) -> Array:
        return self._all[name]

    def __setitem__(self, name: str, array: Array) -> None:
        self._all[name] = array

    def __delitem__(self, name: str) -> None:
        del self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.block if self._made is None else self._made)

    def __len__(self) -> int:
        return len(self.block if self._made is None else self._made)

    def __repr__(self) -> str:
        return repr(self._all)
