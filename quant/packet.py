"""A packet, and how a tensor lies in it.

Values cross in the order in which they lie in memory, so that neither end turns them round; the
memory format is part of what both ends know.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packet:
    """What crosses the network, and what both ends know without being told.

    Attributes:
        payload: tensors whose bytes cross; they may share memory with what was encoded.
        shape: of the tensor that was encoded.
        channels_last: whether it lay in memory that way.
    """

    payload: tuple[Tensor, ...]
    shape: torch.Size
    channels_last: bool

    @classmethod
    def of(cls, tensor: Tensor, *payload: Tensor) -> "Packet":
        """The packet of ``tensor``, which `checked` returned."""
        return cls(payload, tensor.shape, is_channels_last(tensor))

    @property
    def num_bytes(self) -> int:
        """Bytes of the payload."""
        return sum(part.numel() * part.element_size() for part in self.payload)


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
    lowest, highest = float(low.min()), float(high.max())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise FloatingPointError(
            f"{name} cannot carry values from {lowest} to {highest}: the training has diverged"
        )
    return low, high
