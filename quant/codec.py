"""What crosses a cut, and in how many bytes: link codecs for split learning.

A codec makes a `Packet` of a float32 tensor (activations, or the gradient that comes back) and a
tensor of a packet. The two directions have a codec each.

    name            a value becomes                                     bytes for n values
    fp32            itself                                              4n
    fp16            the nearest half, at most ±65504                    2n
    int8 int4 int2  round((x − low) / step), of min … max               ⌈n·b/8⌉ + 8 a range
    sign            +1 where x ≥ 0, else −1                             ⌈n/8⌉, + 4 if scaled
    topk randtopk   itself at k of a sample's d positions, elsewhere 0  4·B·k + ⌈B·k·⌈log2 d⌉/8⌉

Affine codes: Jacob et al. 2018, arXiv 1712.05877, with the smallest value itself in place of an
integer zero point, so that nothing is clipped; stochastic rounding: Gupta et al. 2015, arXiv
1502.02551. Sign: Courbariaux et al. 2016, arXiv 1602.02830; scaled by mean |x|, for gradients,
which mean nothing without their size: Karimireddy et al. 2019, arXiv 1901.09847. Top-k and its
random variant, and the bits of an index: Zheng et al. 2023, arXiv 2305.18469.

A codec is not differentiable: it gets a tensor without a graph and says by `gradient` what goes
back. Where it draws, it draws from the generator it is given (on the tensor's device), and given
None it does not draw: nearest rounding, plain top-k. That is what evaluation wants.

What is not finite is refused with a FloatingPointError by all but fp32, which costs nothing and
passes it on as an uncut network would.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from quant.packing import pack, packed_bytes, unpack

AFFINE_BITS = {"int8": 8, "int4": 4, "int2": 2}
CODECS = ("fp32", "fp16", *AFFINE_BITS, "sign", "topk", "randtopk")
ROUNDINGS = ("nearest", "stochastic")
FP16_MAX = torch.finfo(torch.float16).max
FP32_MAX = torch.finfo(torch.float32).max
WIDE = 1e38  # from here on differences of float32 may overflow: worked out in float64


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

    @property
    def num_bytes(self) -> int:
        """Bytes of the payload."""
        return sum(part.numel() * part.element_size() for part in self.payload)


class Codec(Protocol):
    """One direction of a link. Tensors are float32 of shape (B, …) and carry no graph."""

    def encode(self, tensor: Tensor, generator: Generator | None) -> Packet:
        """Pack ``tensor``.

        Raises:
            FloatingPointError: a value is not finite (fp32 does not look).
            ValueError: ``tensor`` is not float32, carries a graph, or has no sample to choose from.
        """

    def decode(self, packet: Packet) -> Tensor:
        """What arrives: float32, in the shape and the memory format of what was encoded."""

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of the packet of any tensor of this shape."""

    def transmit(self, tensor: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor | None]:
        """``decode(encode(tensor))`` bit for bit without packing, and its `support`.

        May return ``tensor`` itself. Raises what `encode` raises.
        """

    def support(self, packet: Packet) -> Tensor | None:
        """Positions that crossed, or None for all.

        (B, k) int64, ascending, in each sample as flattened in the order of its dimensions.
        """

    def gradient_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the gradient that has to come back for a tensor of ``shape``."""

    def select(self, gradient: Tensor, support: Tensor | None) -> Tensor:
        """The part of d loss / d decoded that has to come back: ``gradient``, or (B, k) of it."""

    def gradient(self, sent: Tensor, received: Tensor, support: Tensor | None) -> Tensor:
        """Gradient rule.

        Args:
            sent: what was encoded.
            received: d loss / d decoded, whole or what `select` keeps of it.
            support: of what was sent.

        Returns:
            d loss / d ``sent``, like ``sent``.
        """


@dataclass(frozen=True)
class LinkSettings:
    """The group link of the configuration.

    Attributes:
        up: codec of what the device sends.
        down: codec of what comes back.
        k: share of a sample's values that topk and randtopk keep.
        alpha: randtopk's chance that a place goes to a value outside the top k.
        per_channel: intN with a range per channel, where a channel has more than one value.
        rounding: of intN.
    """

    up: str = "fp32"
    down: str = "fp32"
    k: float = 0.1
    alpha: float = 0.1
    per_channel: bool = False
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        for key, accepted in (("up", CODECS), ("down", CODECS), ("rounding", ROUNDINGS)):
            if getattr(self, key) not in accepted:
                raise ValueError(f"link.{key}={getattr(self, key)}: takes {', '.join(accepted)}")
        if not 0 < self.k <= 1:
            raise ValueError(f"link.k={self.k}: takes a share in (0, 1]")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"link.alpha={self.alpha}: takes a probability in [0, 1]")

    def codecs(self) -> tuple[Codec, Codec]:
        """Codecs up and down. Activations' signs are ±1, gradients' are scaled."""
        return make_codec(self.up, self), make_codec(self.down, self, scaled_sign=True)


def make_codec(name: str, settings: LinkSettings | None = None, scaled_sign: bool = False) -> Codec:
    """The codec called ``name``; of ``settings`` only what it reads matters.

    Raises:
        ValueError: there is none of this name.
    """
    settings = settings or LinkSettings()
    if name in AFFINE_BITS:
        stochastic = settings.rounding == "stochastic"
        return Affine(AFFINE_BITS[name], settings.per_channel, stochastic)
    match name:
        case "fp32":
            return Fp32()
        case "fp16":
            return Fp16()
        case "sign":
            return Sign(scaled_sign)
        case "topk":
            return TopK(settings.k)
        case "randtopk":
            return TopK(settings.k, settings.alpha)
    raise ValueError(f"{name} is no codec: there are {', '.join(CODECS)}")


class Dense:
    """What codecs share that send every value: the whole gradient comes back, straight through."""

    def support(self, packet: Packet) -> None:
        """All."""

    def gradient_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """``shape``."""
        return tuple(shape)

    def select(self, gradient: Tensor, support: Tensor | None) -> Tensor:
        """All of it."""
        return gradient

    def gradient(self, sent: Tensor, received: Tensor, support: Tensor | None) -> Tensor:
        """``received`` itself."""
        return received


@dataclass(frozen=True)
class Fp32(Dense):
    """Nothing happens."""

    def encode(self, tensor: Tensor, generator: Generator | None) -> Packet:
        """Payload: (n,) float32."""
        tensor = _checked(tensor)
        return _packet(tensor, _flat(tensor))

    def decode(self, packet: Packet) -> Tensor:
        """The tensor."""
        return _shaped(packet.payload[0], packet)

    def num_bytes(self, shape: Sequence[int]) -> int:
        """4 a value."""
        return 4 * math.prod(shape)

    def transmit(self, tensor: Tensor, generator: Generator | None) -> tuple[Tensor, None]:
        """``tensor`` itself."""
        return _checked(tensor), None


@dataclass(frozen=True)
class Fp16(Dense):
    """Half precision. What is too large saturates: one outlier should not end a run.

    What is smaller than 3e-8 becomes 0: there is no loss scaling.
    """

    def encode(self, tensor: Tensor, generator: Generator | None) -> Packet:
        """Payload: (n,) float16."""
        tensor = _checked(tensor)
        return _packet(tensor, self._halves(_flat(tensor)))

    def decode(self, packet: Packet) -> Tensor:
        """The halves."""
        return _shaped(packet.payload[0].float(), packet)

    def num_bytes(self, shape: Sequence[int]) -> int:
        """2 a value."""
        return 2 * math.prod(shape)

    def transmit(self, tensor: Tensor, generator: Generator | None) -> tuple[Tensor, None]:
        """A cast there and back."""
        return self._halves(_checked(tensor)).float(), None

    def _halves(self, x: Tensor) -> Tensor:
        low, high = _ends(x, "fp16")
        if max(-float(low), float(high)) > FP16_MAX:
            x = x.clamp(-FP16_MAX, FP16_MAX)
        return x.half()


@dataclass(frozen=True)
class Affine(Dense):
    """Codes of ``bits`` bits on an even grid from the smallest value to the largest.

    low = min x, step = (max x − low) / (2^bits − 1), code = round((x − low) / step), x̂ = low +
    code·step. The step is rounded up, so that no code is too large even where it is subnormal.
    A tensor of one value only arrives as it was.

    Attributes:
        bits: 1 to 8.
        per_channel: a range for each index of axis 1, for tensors of three dimensions or more;
            in others, (B, features) say, a channel has one value a sample.
        stochastic: round up with the probability of the part that is cut off: unbiased.
    """

    bits: int
    per_channel: bool = False
    stochastic: bool = False

    def encode(self, tensor: Tensor, generator: Generator | None) -> Packet:
        """Payload: (2, ranges) float32, steps then smallest values; packed codes."""
        tensor = _checked(tensor)
        step, low = self._grid(tensor)
        codes = self._codes(tensor, step, low, generator)
        packed = pack(_flat(codes).to(torch.uint8), self.bits)
        return _packet(tensor, torch.stack([step, low]).view(2, -1), packed)

    def decode(self, packet: Packet) -> Tensor:
        """The grid's values."""
        ranges, packed = packet.payload
        step, low = ranges.view(2, *self._range_shape(packet.shape))
        codes = unpack(packed, self.bits, packet.shape.numel()).float()
        return self._values(_shaped(codes, packet), step, low)

    def num_bytes(self, shape: Sequence[int]) -> int:
        """``bits`` bits a value, and 8 bytes a range."""
        return packed_bytes(math.prod(shape), self.bits) + 8 * math.prod(self._range_shape(shape))

    def transmit(self, tensor: Tensor, generator: Generator | None) -> tuple[Tensor, None]:
        """The grid's values, without packing the codes."""
        tensor = _checked(tensor)
        step, low = self._grid(tensor)
        return self._values(self._codes(tensor, step, low, generator), step, low), None

    def _range_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of ``step`` and ``low``, which broadcasts against ``shape``."""
        if not self.per_channel or len(shape) < 3:
            return ()
        return 1, shape[1], *(1 for _ in shape[2:])

    def _grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Step and smallest value, float32 of `_range_shape`."""
        low, high = _ends(x, f"int{self.bits}", channels=bool(self._range_shape(x.shape)))
        exact = (high.double() - low.double()) / (2**self.bits - 1)
        step = exact.float()
        step = torch.where(step < exact, step.nextafter(torch.full_like(step, math.inf)), step)
        step = step.masked_fill_(step == 0, 1.0)  # of one value only; any step will do
        shape = self._range_shape(x.shape)
        return step.view(shape), low.view(shape)

    def _codes(self, x: Tensor, step: Tensor, low: Tensor, generator: Generator | None) -> Tensor:
        """Whole numbers from 0 to 2^bits − 1, as floats, like ``x``."""
        x = x.to(self._working_dtype(step, low))
        # Written into a tensor like x: broadcasting alone would lose its memory format.
        codes = torch.sub(x, low, out=torch.empty_like(x)).div_(step)
        if generator is None or not self.stochastic:
            return codes.round_()
        below = codes.floor()
        noise = torch.empty_like(codes).uniform_(generator=generator)
        # Rounding errors may have put the largest value just above the last code.
        return below.add_(noise < codes.sub_(below)).clamp_(max=2**self.bits - 1)

    def _values(self, codes: Tensor, step: Tensor, low: Tensor) -> Tensor:
        """Float32; overwrites ``codes``."""
        values = codes.to(self._working_dtype(step, low)).mul_(step).add_(low)
        if values.dtype == torch.float64:
            values = values.clamp_(-FP32_MAX, FP32_MAX).float()
        return values

    def _working_dtype(self, step: Tensor, low: Tensor) -> torch.dtype:
        reach = low.double().abs() + step.double() * (2**self.bits - 1)
        return torch.float64 if reach.numel() and float(reach.max()) > WIDE else torch.float32


@dataclass(frozen=True)
class Sign(Dense):
    """One bit a value: +1 for 0 and −0 too. The gradient passes where |x| ≤ 1.

    Attributes:
        scaled: send mean |x| of the tensor along, and multiply by it.
    """

    scaled: bool = False

    def encode(self, tensor: Tensor, generator: Generator | None) -> Packet:
        """Payload: packed bits, 1 where x ≥ 0; if scaled, then (1,) float32."""
        tensor = _checked(tensor)
        scale = self._scale(tensor)
        return _packet(tensor, pack((_flat(tensor) >= 0).view(torch.uint8), 1), *scale)

    def decode(self, packet: Packet) -> Tensor:
        """±1, or ± the scale."""
        bits, *scale = packet.payload
        positive = unpack(bits, 1, packet.shape.numel()).float()
        return self._values(_shaped(positive, packet), *scale)

    def num_bytes(self, shape: Sequence[int]) -> int:
        """A bit a value, and 4 bytes if scaled."""
        return packed_bytes(math.prod(shape), 1) + 4 * self.scaled

    def transmit(self, tensor: Tensor, generator: Generator | None) -> tuple[Tensor, None]:
        """±1, or ± the scale."""
        tensor = _checked(tensor)
        scale = self._scale(tensor)
        positive = torch.ge(tensor, 0, out=torch.empty_like(tensor))
        return self._values(positive, *scale), None

    def gradient(self, sent: Tensor, received: Tensor, support: Tensor | None) -> Tensor:
        """``received`` where |sent| ≤ 1, else 0."""
        return received.masked_fill(sent.abs() > 1, 0.0)

    def _scale(self, x: Tensor) -> tuple[Tensor, ...]:
        """(1,), or nothing."""
        _ends(x, "sign")
        if not self.scaled:
            return ()
        return (
            (_flat(x).abs().sum(0, keepdim=True, dtype=torch.float64) / max(1, x.numel())).float(),
        )

    def _values(self, positive: Tensor, *scale: Tensor) -> Tensor:
        """Of 1 and 0; overwrites them."""
        values = positive.mul_(2).sub_(1)
        return values.mul_(*scale) if scale else values


@dataclass(frozen=True)
class TopK:
    """The k = max(1, round(share·d)) values of largest magnitude of each sample; the rest is 0.

    Of equal magnitudes the first counts as larger. An index takes ⌈log2 d⌉ bits. The gradient
    passes where a value crossed, so only those k of it come back, without indices, which both ends
    know.

    RandTopk, alpha > 0, fills each of the k places with a value from outside the top k with
    probability alpha (while there are any), else with one of the top k; all of a kind are equally
    likely, none is taken twice. So Binomial(k, alpha) values of the top k are left out.

    Attributes:
        share: in (0, 1].
        alpha: in [0, 1].
    """

    share: float
    alpha: float = 0.0

    def encode(self, tensor: Tensor, generator: Generator | None) -> Packet:
        """Payload: (B, k) float32 values in order of position; packed positions."""
        rows = self._rows(_checked(tensor))
        support = self._choose(rows, generator)
        bits = _index_bits(rows.shape[1])
        indices = pack(support, bits) if bits else support.new_zeros(0, dtype=torch.uint8)
        return _packet(tensor, rows.gather(1, support), indices)

    def decode(self, packet: Packet) -> Tensor:
        """The values in their places."""
        return _scattered(
            packet.payload[0], self.support(packet), packet.shape, packet.channels_last
        )

    def num_bytes(self, shape: Sequence[int]) -> int:
        """4 bytes and an index a value that is kept."""
        batch, k = self.gradient_shape(shape)
        return 4 * batch * k + packed_bytes(batch * k, _index_bits(math.prod(shape[1:])))

    def transmit(self, tensor: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """The values in their places, and these."""
        rows = self._rows(_checked(tensor))
        support = self._choose(rows, generator)
        values = rows.gather(1, support)
        return _scattered(values, support, tensor.shape, _is_channels_last(tensor)), support

    def support(self, packet: Packet) -> Tensor:
        """Positions that crossed."""
        values, indices = packet.payload
        bits = _index_bits(packet.shape[1:].numel())
        if bits == 0:
            return torch.zeros_like(values, dtype=torch.int64)
        return unpack(indices, bits, values.numel()).view(values.shape)

    def gradient_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(B, k)."""
        if len(shape) == 0 or math.prod(shape[1:]) == 0:
            raise ValueError(f"top-k takes samples of one value or more, got shape {tuple(shape)}")
        return shape[0], max(1, round(self.share * math.prod(shape[1:])))

    def select(self, gradient: Tensor, support: Tensor | None) -> Tensor:
        """(B, k), in the order of ``support``."""
        assert support is not None
        return self._rows(gradient).gather(1, support)

    def gradient(self, sent: Tensor, received: Tensor, support: Tensor | None) -> Tensor:
        """``received`` where values crossed, else 0."""
        assert support is not None
        if received.shape != support.shape:
            received = self.select(received, support)
        return _scattered(received, support, sent.shape, _is_channels_last(sent))

    def _rows(self, x: Tensor) -> Tensor:
        """(B, d).

        Raises:
            ValueError: there is no d.
        """
        self.gradient_shape(x.shape)
        return x.reshape(len(x), math.prod(x.shape[1:]))

    def _choose(self, rows: Tensor, generator: Generator | None) -> Tensor:
        """Positions to keep, (B, k) int64, ascending."""
        batch, k = self.gradient_shape(rows.shape)
        _ends(rows, "topk")
        kept = _largest(rows.abs(), k)
        support = kept.nonzero()[:, 1].view(batch, k)
        if generator is None or self.alpha == 0 or batch == 0:
            return support
        others = rows.shape[1] - k
        chance = torch.rand(batch, k, generator=generator, device=rows.device)
        dropped = chance < self.alpha
        if k > others:  # more may be drawn than there are: the first to be drawn, in random order
            dropped &= chance.argsort(1).argsort(1) < others
        num_dropped = dropped.sum(1, keepdim=True)
        most = int(num_dropped.max())
        order = torch.rand(rows.shape, generator=generator, device=rows.device)
        newcomers = order.masked_fill_(kept, -1.0).topk(most, dim=1).indices  # (B, most)
        kept.scatter_(1, support, ~dropped)
        kept.scatter_(1, newcomers, torch.arange(most, device=rows.device) < num_dropped)
        return kept.nonzero()[:, 1].view(batch, k)


def _largest(magnitudes: Tensor, k: int) -> Tensor:
    """Where the k largest of each row are, (B, d) bool; of equal ones the first."""
    least = magnitudes.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    kept = magnitudes >= least
    surplus = kept.sum(1, keepdim=True) - k
    if bool(surplus.any()):
        ties = magnitudes == least
        kept &= ~ties | (ties.cumsum(1) <= ties.sum(1, keepdim=True) - surplus)
    return kept


def _scattered(values: Tensor, support: Tensor, shape: torch.Size, channels_last: bool) -> Tensor:
    """Zeros of ``shape`` but for (B, k) ``values`` at ``support``."""
    rows = values.new_zeros(shape[0], shape[1:].numel()).scatter_(1, support, values)
    if not channels_last:
        return rows.view(shape)
    like = torch.empty(shape, device=values.device, memory_format=torch.channels_last)
    return like.copy_(rows.view(shape))


def _index_bits(num_positions: int) -> int:
    """⌈log2⌉: none for a single position."""
    return (num_positions - 1).bit_length()


def _checked(tensor: Tensor) -> Tensor:
    """``tensor``, made dense if it is a slice or the like.

    Raises:
        ValueError: it is not float32, or carries a graph, which a codec would cut silently.
    """
    if tensor.dtype != torch.float32:
        raise ValueError(f"a link carries float32, got {tensor.dtype}")
    if tensor.requires_grad:
        raise ValueError("a link carries tensors without a graph: detach() before")
    return tensor if _is_channels_last(tensor) else tensor.contiguous()


def _is_channels_last(tensor: Tensor) -> bool:
    """By its strides, because with one pixel or one channel `is_contiguous` is true both ways."""
    if tensor.dim() != 4:
        return False
    _, channels, height, width = tensor.shape
    row = width * channels
    return tensor.stride() == (height * row, 1, row, channels)


def _flat(tensor: Tensor) -> Tensor:
    """(n,) in the order of memory, without a copy."""
    if _is_channels_last(tensor):
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.reshape(-1)


def _shaped(flat: Tensor, packet: Packet) -> Tensor:
    """Inverse of `_flat`."""
    if not packet.channels_last:
        return flat.view(packet.shape)
    batch, channels, height, width = packet.shape
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _packet(tensor: Tensor, *payload: Tensor) -> Packet:
    return Packet(payload, tensor.shape, _is_channels_last(tensor))


def _ends(x: Tensor, name: str, channels: bool = False) -> tuple[Tensor, Tensor]:
    """Smallest and largest value, or of each channel (C,); zeros where there is none.

    Raises:
        FloatingPointError: one is not finite.
    """
    if x.numel() == 0:
        low = high = x.new_zeros(x.shape[1] if channels else ())
    elif channels:
        # Reduced in the order of dimensions: twenty times faster than over channels_last.
        x = x.contiguous().flatten(2)
        low, high = x.amin((0, 2)), x.amax((0, 2))
    else:
        low, high = torch.aminmax(_flat(x))
    lowest, highest = (low, high) if not channels or not low.numel() else (low.min(), high.max())
    if low.numel() and not (math.isfinite(lowest) and math.isfinite(highest)):
        raise FloatingPointError(
            f"{name} cannot carry values from {float(lowest)} to {float(highest)}: "
            "the training has diverged"
        )
    return low, high
