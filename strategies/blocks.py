"""Arrays by name that lie one behind another in one piece of memory.

A client's update is some tens of small arrays. To copy, check, store, send and average them one by
one takes longer than a small client trains; as a block each of these is one operation for each type
of values, and the bits of an average are the same.
"""

import functools
import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNED = 64  # bytes: where the values of another type begin
_CHUNK = 2**16  # values of an average that are at work at once: they stay in a processor's cache


class Form(NamedTuple):
    """What the like of an array must be."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


class Region(NamedTuple):
    """Where all values of one type lie, in bytes."""

    dtype: np.dtype[Any]
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Where in a block each array lies. Equal ones are the same object (`layout_of`).

    Attributes:
        forms: of the arrays, by name, in their order.
        starts: byte at which each begins.
        regions: of each type of values.
        num_bytes: of the block.
    """

    forms: Mapping[str, Form]
    starts: Mapping[str, int]
    regions: Sequence[Region]
    num_bytes: int

    def view(self, memory: NDArray[np.uint8], name: str) -> NDArray[Any]:
        """One array of a block's memory."""
        dtype, shape = self.forms[name]
        return np.ndarray(shape, dtype, memory, self.starts[name])

    @functools.cached_property
    def pickled(self) -> bytes:
        """What `layout_of` takes, as a pickle."""
        return pickle.dumps(tuple((name, *form) for name, form in self.forms.items()))

    @functools.cached_property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each array."""
        return {n: dtype.itemsize * math.prod(shape) for n, (dtype, shape) in self.forms.items()}

    def size_of(self, names: Collection[str] | None) -> int:
        """Bytes of the arrays of these names; None for all."""
        sizes = self.sizes
        return sum(sizes.values() if names is None else [n for m, n in sizes.items() if m in names])


@functools.lru_cache(maxsize=256)
def layout_of(forms: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]) -> Layout:
    """Return the layout of arrays of these names, types and shapes."""
    by_type: dict[np.dtype[Any], list[tuple[str, int]]] = {}
    for name, dtype, shape in forms:
        by_type.setdefault(dtype, []).append((name, dtype.itemsize * math.prod(shape)))
    starts, regions, at = dict[str, int](), list[Region](), 0
    for dtype, sizes in by_type.items():
        at = -(-at // ALIGNED) * ALIGNED
        first = at
        for name, size in sizes:
            starts[name] = at
            at += size
        regions.append(Region(dtype, first, at))
    named = {name: Form(dtype, shape) for name, dtype, shape in forms}
    return Layout(named, starts, tuple(regions), at)


class LaidOut(Mapping[str, NDArray[Any]], ABC):
    """Arrays of one layout, wherever their memory is.

    Args:
        layout: where each lies.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    @property
    @abstractmethod
    def memory(self) -> NDArray[np.uint8]:
        """All of it, (num_bytes,)."""

    def __iter__(self) -> Iterator[str]:
        """Names, in their order."""
        return iter(self.layout.forms)

    def __len__(self) -> int:
        """How many arrays there are."""
        return len(self.layout.forms)

    def __contains__(self, name: object) -> bool:
        """Whether there is one of that name."""
        return name in self.layout.forms


class Block(LaidOut):
    """Arrays in one piece of memory, each a view of it.

    Args:
        layout: where each lies.
        memory: (num_bytes,) uint8.
    """

    def __init__(self, layout: Layout, memory: NDArray[np.uint8]) -> None:
        super().__init__(layout)
        self._memory = memory

    @property
    def memory(self) -> NDArray[np.uint8]:
        """All of it."""
        return self._memory

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor | NDArray[Any]]) -> "Block":
        """Copy arrays into a new block; what is one already is returned.

        Raises:
            ValueError: an array holds Python objects.
            TypeError: a tensor holds values that numpy does not know.
        """
        if isinstance(arrays, Block):
            return arrays
        values = {name: as_numpy(array) for name, array in arrays.items()}
        layout = layout_of(tuple((n, a.dtype, a.shape) for n, a in values.items()))
        memory = np.empty(layout.num_bytes, np.uint8)
        block = cls(layout, memory)
        for dtype, start, stop in layout.regions:
            if dtype.hasobject:
                raise ValueError("Object arrays cannot be sent: they hold Python objects")
            parts = [array.reshape(-1) for array in values.values() if array.dtype == dtype]
            np.concatenate(parts, out=memory[start:stop].view(dtype))
        return block

    def copy(self) -> "Block":
        """Return the same in memory of its own."""
        return Block(self.layout, self.memory.copy())

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A view of one array."""
        return self.layout.view(self.memory, name)

    @property
    def is_tame(self) -> bool:
        """Whether all values are finite, and the sum of their squares as well."""
        return all(
            math.isfinite(float(torch.linalg.vector_norm(torch.from_numpy(values))))
            for values in (
                self.memory[start:stop].view(dtype)
                for dtype, start, stop in self.layout.regions
                if dtype.kind == "f" and start < stop
            )
        )


class Tensors(Mapping[str, Tensor]):
    """A block's arrays as tensors, which share its memory.

    Args:
        block: it.
    """

    def __init__(self, block: Block) -> None:
        self.block = block

    def __getitem__(self, name: str) -> Tensor:
        """One of them."""
        return torch.from_numpy(self.block[name])

    def __iter__(self) -> Iterator[str]:
        """Names, in their order."""
        return iter(self.block)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.block)


def arrays_of(tensors: Mapping[str, Tensor]) -> Mapping[str, NDArray[Any]]:
    """Return the same as arrays that share their memory: a block, where it was made of one."""
    if isinstance(tensors, Tensors):
        return tensors.block
    return {name: tensor.numpy() for name, tensor in tensors.items()}


class Later(LaidOut):
    """A block that is elsewhere, such as in a file, and is read anew whenever it is asked for.

    Args:
        layout: of it.
        read: returns its bytes from one to another, as memory of its own.
    """

    def __init__(self, layout: Layout, read: Callable[[int, int], NDArray[np.uint8]]) -> None:
        super().__init__(layout)
        self._read = read

    @property
    def memory(self) -> NDArray[np.uint8]:
        """All of it."""
        return self._read(0, self.layout.num_bytes)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Read one array."""
        dtype, shape = self.layout.forms[name]
        start = self.layout.starts[name]
        return np.ndarray(shape, dtype, self._read(start, start + self.layout.sizes[name]))


def means(
    states: Sequence[Mapping[str, NDArray[Any]]], weights: Sequence[float]
) -> dict[str, NDArray[Any]]:
    """Σ wᵢ/Σw·xᵢ of each floating array, in float64 in the order given, one client at a time.

    Args:
        states: of the clients.
        weights: of each.

    Returns:
        The means, in the arrays' own types; nothing where the states are not blocks of one layout.
    """
    blocks = [state for state in states if isinstance(state, LaidOut)]
    if len(blocks) < len(states) or len({id(block.layout) for block in blocks}) != 1:
        return {}
    layout = blocks[0].layout
    floating = [region for region in layout.regions if region.dtype.kind == "f"]
    sums = [np.empty((stop - start) // dtype.itemsize) for dtype, start, stop in floating]
    term = np.empty(_CHUNK)
    whole = sum(weights)
    for index, (one, weight) in enumerate(zip(blocks, weights, strict=True)):
        memory, share = one.memory, weight / whole
        for (dtype, start, stop), total in zip(floating, sums, strict=True):
            values = memory[start:stop].view(dtype)
            for at in range(0, len(values), _CHUNK):
                some, of_it = values[at : at + _CHUNK], total[at : at + _CHUNK]
                if index == 0:
                    np.multiply(some, share, out=of_it, dtype=np.float64)
                else:
                    np.multiply(some, share, out=term[: len(some)], dtype=np.float64)
                    of_it += term[: len(some)]
    block = Block(layout, np.empty(layout.num_bytes, np.uint8))
    for (dtype, start, stop), total in zip(floating, sums, strict=True):
        block.memory[start:stop].view(dtype)[:] = total
    return {name: block[name] for name, form in layout.forms.items() if form.dtype.kind == "f"}


def as_numpy(value: Tensor | NDArray[Any]) -> NDArray[Any]:
    """Return a tensor on any device as an array, which shares its memory if it can."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    try:
        return value.numpy()
    except (RuntimeError, TypeError):  # it takes gradients, or is on a device
        return value.detach().cpu().numpy()
