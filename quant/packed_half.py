"""A client half in its bits: one per weight and a threshold per channel; and its forward.

`quant.binary_export` makes it of a binarized half, and says why it has the same bits.

Sums are counted on 64-bit words: n − 2·popcount(input xor weight). Padding counts as bits of 0 and
is corrected by a table, one row per output position.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Bits = NDArray[np.bool_]
"""(B, …, C): channels last, so that the channels of a position are packed where they lie."""


@dataclass(frozen=True)
class Pool:
    """Max-pooling over bits.

    Attributes:
        kernel: sizes of the window.
        stride: steps.
        padding: on both sides.
        dilation: of the window.
        ceil_mode: whether a window may reach beyond the end.
        before_flip: whether it came before the batch norm.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool
    before_flip: bool


@dataclass(frozen=True)
class Geometry:
    """A layer without its numbers; a linear layer is a convolution over no dimensions.

    Attributes:
        name: path in the network.
        channels: of the output.
        in_channels: of the input.
        kernel: sizes of the filter; () for a linear layer.
        stride: steps.
        padding: (before, after) of each dimension.
        dilation: of the filter.
        groups: of channels.
        is_real: whether the input is real instead of ±1.
        input_eps: of the normalisation of each input sample; None for none.
        strides: of the weight, where the input is real: torch chooses its kernel, and with it the
            order of float sums, by them.
        flattens: whether the input is flattened first, (C, …) in this order.
        pools: what follows, in order.
    """

    name: str
    channels: int
    in_channels: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    is_real: bool = False
    input_eps: float | None = None
    strides: tuple[int, ...] = ()
    flattens: bool = False
    pools: tuple[Pool, ...] = ()

    @property
    def fan_in(self) -> int:
        """Terms in a sum without padding."""
        return self.in_channels // self.groups * math.prod(self.kernel)

    @property
    def num_weights(self) -> int:
        """Weights, one bit each."""
        return math.prod(self.weight_shape)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(C', C / groups, …)."""
        return (self.channels, self.in_channels // self.groups, *self.kernel)


@dataclass(frozen=True)
class PackedLayer:
    """A layer in bits.

    Attributes:
        geometry: its sizes.
        weight: (⌈numel/8⌉,) uint8, weight i is bit i mod 8 of byte i div 8, 1 for +1.
        threshold: (C',) int32, float32 where the input is real.
        flipped: (C',) whether the bit is 1 below the threshold.
    """

    geometry: Geometry
    weight: NDArray[np.uint8]
    threshold: NDArray[Any]
    flipped: NDArray[np.bool_]
    _tables: dict[tuple[int, ...], Any] = field(default_factory=dict, compare=False, repr=False)

    def signs(self) -> Tensor:
        """The weight as float32 ±1, laid out as in the network."""
        signs = torch.from_numpy(self._weight_bits().astype(np.float32)).mul_(2).sub_(1)
        strides = self.geometry.strides or signs.stride()
        return torch.empty_strided(signs.shape, strides).copy_(signs)

    def _weight_bits(self) -> NDArray[np.uint8]:
        count = math.prod(self.geometry.weight_shape)
        bits = np.unpackbits(self.weight, count=count, bitorder="little")
        return bits.reshape(self.geometry.weight_shape)

    def from_real(self, x: Tensor) -> Bits:
        """(B, C, …) float32 → (B, …, C') bits, by torch's own kernels."""
        shape, weight = self.geometry, self._cached((), self.signs)
        if shape.input_eps is not None:
            x = F.group_norm(x, 1, eps=shape.input_eps)
        if not shape.kernel:
            sums = F.linear(x, weight)
        else:
            convolve = F.conv1d if len(shape.kernel) == 1 else F.conv2d
            padding: Any = tuple(before for before, _ in shape.padding)
            if any(before != after for before, after in shape.padding):
                padding = "same"
            sums = convolve(x, weight, None, shape.stride, padding, shape.dilation, shape.groups)
        pools = list(shape.pools)
        while pools and pools[0].before_flip:  # the maximum of the sums, or the OR of their bits
            maximum = F.max_pool1d if len(shape.kernel) == 1 else F.max_pool2d
            pool = pools.pop(0)
            sums = maximum(
                sums, pool.kernel, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
            )
        reached = sums >= torch.from_numpy(self.threshold).view(-1, *[1] * len(shape.kernel))
        return self._after(reached.movedim(1, -1).contiguous().numpy(), pools)

    def from_bits(self, bits: Bits) -> Bits:
        """(B, …, C) bits → (B, …, C') bits."""
        shape = self.geometry
        words, limits = self._cached(bits.shape[1:-1], lambda: self._words(bits.shape[1:-1]))
        rows = _windows(_packed_channels(bits, shape.groups), shape)
        ones = np.zeros((len(bits), *limits.shape), limits.dtype)  # (B, P, G, C'/G)
        for word in range(rows.shape[-1]):
            ones += np.bitwise_count(rows[..., None, word] ^ words[..., word])
        sizes = _output_sizes(bits.shape[1:-1], shape)
        return self._after((ones < limits).reshape(len(bits), *sizes, shape.channels), shape.pools)

    def _words(self, sizes: tuple[int, ...]) -> tuple[NDArray[np.uint64], NDArray[Any]]:
        """The weight's words (G, C'/G, W), and how many differing bits are too many for a sum to
        reach its threshold, (P, G, C'/G), for inputs of these ``sizes``."""
        shape = self.geometry
        filters = np.moveaxis(self._weight_bits(), 1, -1)  # (C', …, C/G)
        packed = _packed_channels(filters, 1)
        words = _as_words(packed.reshape(shape.groups, shape.channels // shape.groups, -1))
        inside = np.ones((1, *sizes, shape.in_channels), np.bool_)
        mask = _windows(_packed_channels(inside, shape.groups), shape)[0]
        terms = np.bitwise_count(mask).sum(-1, dtype=np.int64)[..., None]  # (P, G, 1)
        outside = np.bitwise_count(words & ~mask[:, :, None]).sum(-1, dtype=np.int64)
        # sum = terms − 2·(ones − outside) ≥ threshold
        threshold = self.threshold.astype(np.int64).reshape(shape.groups, -1)
        limits = (terms + 2 * outside - threshold) // 2 + 1
        return words, np.clip(limits, 0, shape.fan_in + 1).astype(
            np.min_scalar_type(shape.fan_in + 1)
        )

    def _after(self, bits: Bits, pools: Sequence[Pool]) -> Bits:
        """Pooling and flipping."""
        for pool in pools:
            if pool.before_flip:
                bits = _pooled(bits, pool)
        bits = bits ^ self.flipped
        for pool in pools:
            if not pool.before_flip:
                bits = _pooled(bits, pool)
        return bits

    def _cached(self, key: tuple[int, ...], make: Callable[[], Any]) -> Any:
        if key not in self._tables:
            self._tables[key] = make()
        return self._tables[key]


@dataclass(frozen=True)
class PackedHalf:
    """A binarized client half in its bits.

    Attributes:
        layers: in order.
        flattens: whether the output is flattened.
    """

    layers: tuple[PackedLayer, ...]
    flattens: bool = False

    @torch.no_grad()
    def bits(self, x: Tensor) -> Bits:
        """The bits that cross the cut for inputs (B, C, …), channels last; 1 for +1."""
        first, *others = self.layers
        bits = first.from_real(x.flatten(1) if first.geometry.flattens else x)
        for layer in others:
            bits = layer.from_bits(_flat(bits) if layer.geometry.flattens else bits)
        return _flat(bits) if self.flattens else bits

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, …) float32 → ±1 float32 in the shape that the network's half gives."""
        bits = np.ascontiguousarray(np.moveaxis(self.bits(x), -1, 1))
        return torch.from_numpy(bits.astype(np.float32)).mul_(2).sub_(1)

    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(layer.weight.nbytes for layer in self.layers)


# Bits ----------------------------------------------------------------------------------------


def _flat(bits: Bits) -> Bits:
    """(B, …, C) → (B, C·…), the channels outermost as torch flattens them."""
    return np.moveaxis(bits, -1, 1).reshape(len(bits), math.prod(bits.shape[1:]))


def _packed_channels(bits: NDArray[Any], groups: int) -> NDArray[Any]:
    """(B, …, C) → (B, …, G, units), the channels of each group in unsigned integers.

    Of 8 to 64 bits, as few as hold them: windows are then gathered by whole numbers.
    """
    grouped = bits.reshape(*bits.shape[:-1], groups, bits.shape[-1] // groups)
    packed = np.packbits(grouped, axis=-1, bitorder="little")
    unit = next((unit for unit in (1, 2, 4) if unit >= packed.shape[-1]), 8)
    return _filled(packed, unit).view(f"u{unit}")


def _output_sizes(sizes: Sequence[int], shape: Geometry) -> tuple[int, ...]:
    return tuple(
        (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
        for size, (before, after), kernel, stride, dilation in zip(
            sizes, shape.padding, shape.kernel, shape.stride, shape.dilation, strict=True
        )
    )


def _windows(packed: NDArray[Any], shape: Geometry) -> NDArray[np.uint64]:
    """What each filter sees: (B, …, G, units) → (B, P, G, W) words, in the weight's order."""
    num, *sizes, groups, units = packed.shape
    padded = _padded(packed, [(0, 0), *shape.padding, (0, 0), (0, 0)])
    outputs = _output_sizes(sizes, shape)
    taps = math.prod(shape.kernel)
    rows = np.empty((num, *outputs, groups, taps, units), packed.dtype)
    for tap, at in enumerate(itertools.product(*map(range, shape.kernel))):
        rows[..., tap, :] = padded[_strided(at, outputs, shape.stride, shape.dilation)]
    return _as_words(rows.reshape(num, math.prod(outputs), groups, taps * units))


def _strided(
    at: Sequence[int], outputs: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[slice, ...]:
    """Where the tap ``at`` of all windows lies, behind the batch's axis."""
    places = (
        slice(tap * apart, tap * apart + (output - 1) * step + 1, step)
        for tap, output, step, apart in zip(at, outputs, stride, dilation, strict=True)
    )
    return (slice(None), *places)


def _as_words(packed: NDArray[Any]) -> NDArray[np.uint64]:
    """Unsigned integers → 64-bit words along the last axis, filled up with zeros."""
    return _filled(packed, 8 // packed.itemsize).view(np.uint64)


def _filled(values: NDArray[Any], multiple: int) -> NDArray[Any]:
    """``values`` with zeros at the end of the last axis up to a ``multiple``, contiguous."""
    missing = -values.shape[-1] % multiple
    return _padded(values, [*[(0, 0)] * (values.ndim - 1), (0, missing)])


def _padded(values: NDArray[Any], pads: Sequence[tuple[int, int]]) -> NDArray[Any]:
    """``values`` with zeros around, contiguous; numpy.pad takes longer than the sums."""
    if not any(map(any, pads)):
        return np.ascontiguousarray(values)
    sizes = [size + sum(pad) for size, pad in zip(values.shape, pads, strict=True)]
    padded = np.zeros(sizes, values.dtype)
    padded[
        tuple(
            slice(before, before + size)
            for size, (before, _) in zip(values.shape, pads, strict=True)
        )
    ] = values
    return padded


def _pooled(bits: Bits, pool: Pool) -> Bits:
    """OR over windows: (B, …, C) → (B, …, C)."""
    outputs, pads = [], []
    for size, kernel, stride, padding, dilation in zip(
        bits.shape[1:-1], pool.kernel, pool.stride, pool.padding, pool.dilation, strict=True
    ):
        span = size + 2 * padding - dilation * (kernel - 1) - 1
        output = (-(-span // stride) if pool.ceil_mode else span // stride) + 1
        if pool.ceil_mode and (output - 1) * stride >= size + padding:
            output -= 1  # torch's rule: a window starts inside
        reach = (output - 1) * stride + dilation * (kernel - 1) + 1
        outputs.append(output)
        pads.append((padding, max(0, reach - size - padding)))
    bits = _padded(bits, [(0, 0), *pads, (0, 0)])
    result = np.zeros((len(bits), *outputs, bits.shape[-1]), np.bool_)
    for at in itertools.product(*map(range, pool.kernel)):
        result |= bits[_strided(at, outputs, pool.stride, pool.dilation)]
    return result
