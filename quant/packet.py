"""A packet: what crosses a link, and how a tensor lies in it.

Values cross in the order in which they lie in memory, so that neither end turns them round; the
memory format crosses with them, because a gradient may come back in another than its activations
went up in.

As bytes a packet is the length of its header (4 bytes, little-endian), the header (JSON: shape,
dtype, memory format, and dtype and shape of each part of the payload) and the payload's parts one
after the other. Only the payload counts as traffic.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = {
    name: getattr(torch, name) for name in ("float32", "float16", "uint8", "uint16", "uint32")
}
SENT = {**DTYPES, "bfloat16": torch.bfloat16}  # what a tensor may be that is sent
MEMORY_FORMATS = ("contiguous", "channels_last")
LENGTH_BYTES = 4  # of the header's length
MAX_HEADER_BYTES = 4096
MAX_DIMS, MAX_PARTS = 8, 8
MAX_VALUES = 2**40
KEPT = 64  # headers, of 4 KiB at the most


@dataclass(frozen=True)
class Packet:
    """A tensor on its way: packed, or as its values where both ends are in one process.

    Attributes:
        shape: of the tensor that was sent.
        channels_last: whether it lay in memory that way.
        num_bytes: of the payload, packed or not.
        payload: tensors whose bytes cross; they may share memory with what was encoded. Empty where
            nothing was packed.
        values: what decoding would give, where nothing was packed; else None.
        support: with ``values``, the positions that were sent, (B, k) int64, or None for all.
        dtype: of the tensor that was sent. What is bfloat16 there crosses as float32.
    """

    shape: torch.Size
    channels_last: bool
    num_bytes: int
    payload: tuple[Tensor, ...] = ()
    values: Tensor | None = None
    support: Tensor | None = None
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, tensor: Tensor, *payload: Tensor) -> "Packet":
        """The packet of ``tensor``, which `checked` returned."""
        return cls(tensor.shape, is_channels_last(tensor), _num_bytes(payload), payload)

    @classmethod
    def unpacked(cls, values: Tensor, support: Tensor | None, num_bytes: int) -> "Packet":
        """A packet that stays in this process.

        Args:
            values: what decoding would give.
            support: the positions that were sent, (B, k) int64, or None for all.
            num_bytes: of the payload that packing would make.
        """
        is_last = is_channels_last(values)
        return cls(values.shape, is_last, num_bytes, values=values, support=support)

    def to_bytes(self) -> bytes:
        """Header and payload.

        Raises:
            ValueError: nothing was packed.
        """
        return b"".join(self.pieces())

    def pieces(self) -> list[bytes | memoryview]:
        """The same in pieces, which share memory with the payload.

        Raises:
            ValueError: nothing was packed.
        """
        if self.values is not None:
            raise ValueError("this packet holds values: only a packed one can leave the process")
        parts = tuple((part.dtype, part.shape) for part in self.payload)
        text = _text_of(_Header(self.shape, self.dtype, self.channels_last, parts))
        own = [_bytes_of(part) for part in self.payload if part.numel()]
        return [len(text).to_bytes(LENGTH_BYTES, "little"), text, *own]

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> "Packet":
        """Inverse of `to_bytes`; copies the payload.

        What a codec cannot decode is for the link to refuse, damage that leaves a packet well
        formed for the transport to notice.

        Raises:
            ValueError: the data are no packet; says why.
        """
        view = memoryview(data)
        begin = LENGTH_BYTES + int.from_bytes(view[:LENGTH_BYTES], "little")
        if not LENGTH_BYTES < begin <= min(len(view), LENGTH_BYTES + MAX_HEADER_BYTES):
            raise ValueError(f"a packet of {len(view)} bytes: its header is not in it")
        header = _header_in(bytes(view[LENGTH_BYTES:begin]))
        payload = []
        for dtype, size in header.parts:
            end = begin + math.prod(size) * dtype.itemsize
            if end > len(view):
                raise ValueError(f"a packet of {len(view)} bytes: {end} expected, or more")
            payload.append(_tensor(view[begin:end], dtype, size))
            begin = end
        if begin != len(view):
            raise ValueError(f"a packet of {len(view)} bytes: {begin} expected")
        num_bytes = _num_bytes(payload)
        return cls(
            header.shape, header.channels_last, num_bytes, tuple(payload), dtype=header.dtype
        )


class _Header(NamedTuple):
    """What a packet says of itself.

    Attributes:
        shape: of the tensor that was sent.
        dtype: of it.
        channels_last: whether it lay in memory that way.
        parts: dtype and shape of each part of the payload.
    """

    shape: torch.Size
    dtype: torch.dtype
    channels_last: bool
    parts: tuple[tuple[torch.dtype, torch.Size], ...]


# A client's batches have the same headers again and again.


@functools.lru_cache(maxsize=KEPT)
def _text_of(header: _Header) -> bytes:
    named = {
        "shape": list(header.shape),
        "dtype": _name(header.dtype),
        "memory_format": MEMORY_FORMATS[header.channels_last],
        "parts": [[_name(dtype), list(shape)] for dtype, shape in header.parts],
    }
    return json.dumps(named, separators=(",", ":")).encode()


@functools.lru_cache(maxsize=KEPT)
def _header_in(text: bytes) -> _Header:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a packet's header is not JSON: {error}") from error
    names = {"shape", "dtype", "memory_format", "parts"}
    if not isinstance(header, dict) or header.keys() != names:
        raise ValueError(f"a packet's header must hold {', '.join(sorted(names))}")
    shape, channels_last = _shape(header["shape"]), header["memory_format"] == "channels_last"
    if header["memory_format"] not in MEMORY_FORMATS or (channels_last and len(shape) != 4):
        raise ValueError(
            f"a packet's memory_format={header['memory_format']}: must be one of "
            f"{', '.join(MEMORY_FORMATS)}, channels_last of four dimensions"
        )
    parts = header["parts"]
    if not isinstance(parts, list) or len(parts) > MAX_PARTS:
        raise ValueError(f"a packet's parts={parts}: must be a list of at most {MAX_PARTS}")
    described = []
    for part in parts:
        if not isinstance(part, list) or len(part) != 2:
            raise ValueError(f"a packet's part={part}: must be a dtype and a shape")
        described.append((_dtype(part[0]), _shape(part[1])))
    return _Header(shape, _dtype(header["dtype"], SENT), channels_last, tuple(described))


def _bytes_of(part: Tensor) -> memoryview:
    return part.contiguous().cpu().numpy().reshape(-1).view("uint8").data


def _num_bytes(payload: Sequence[Tensor]) -> int:
    return sum(part.numel() * part.element_size() for part in payload)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: Any, known: Mapping[str, torch.dtype] = DTYPES) -> torch.dtype:
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"a packet's dtype={name}: must be one of {', '.join(known)}")
    found: torch.dtype = known[name]
    return found


def _shape(sizes: Any) -> torch.Size:
    is_shape = (
        isinstance(sizes, list)
        and len(sizes) <= MAX_DIMS
        and all(type(size) is int and 0 <= size <= MAX_VALUES for size in sizes)
        and math.prod(sizes) <= MAX_VALUES
    )
    if not is_shape:
        raise ValueError(f"a packet's shape={sizes}: must be a list of at most {MAX_DIMS} sizes")
    return torch.Size(sizes)


def _tensor(data: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor of its own memory."""
    if not data.nbytes:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape)


def checked(tensor: Tensor) -> Tensor:
    """``tensor``, made dense if it is a slice or the like.

    Raises:
        ValueError: it is not float32, or carries a graph, which a codec would cut silently.
    """
    if tensor.dtype != torch.float32:
        raise ValueError(f"a link carries float32, got {tensor.dtype}")
    if tensor.requires_grad:
        raise ValueError("a link carries tensors without a graph: detach() before")
    return tensor if is_channels_last(tensor) else tensor.contiguous()


def is_channels_last(tensor: Tensor) -> bool:
    """By its strides, because with one pixel or one channel `is_contiguous` is true both ways."""
    if tensor.dim() != 4:
        return False
    _, channels, height, width = tensor.shape
    row = width * channels
    return tensor.stride() == (height * row, 1, row, channels)


def flat(tensor: Tensor) -> Tensor:
    """(n,) in the order of memory, without a copy."""
    if is_channels_last(tensor):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(-1)


def shaped(values: Tensor, packet: Packet) -> Tensor:
    """Inverse of `flat`."""
    if not packet.channels_last:
        return values.view(packet.shape)
    batch, channels, height, width = packet.shape
    return values.view(batch, height, width, channels).permute(0, 3, 1, 2)


def ends(x: Tensor, name: str, channels: bool = False) -> tuple[Tensor, Tensor]:
    """Smallest and largest value, or of each channel (C,); zeros where there is none.

    On a GPU nothing is looked at, as that would wait for it: what is not finite comes out as NaN,
    which the end of the client's round refuses.

    Raises:
        FloatingPointError: one is not finite.
    """
    if x.numel() == 0:
        zeros = x.new_zeros(x.shape[1] if channels else ())
        return zeros, zeros
    if channels:
        # Reduced in the order of dimensions: twenty times faster than over channels_last.
        x = x.contiguous().flatten(2)
        low, high = x.amin((0, 2)), x.amax((0, 2))
    else:
        low, high = torch.aminmax(flat(x))
    if not x.is_cpu:
        return low, high
    lowest, highest = float(low.min()), float(high.max())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise FloatingPointError(
            f"{name} cannot carry values from {lowest} to {highest}: the training has diverged"
        )
    return low, high
