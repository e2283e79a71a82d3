"""Link codecs that send every value: whole, as a half, as an affine code, as its sign."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from quant.packet import Packet, checked, ends, flat, shaped
from quant.packing import pack, packed_bytes, unpack

FP16_MAX = torch.finfo(torch.float16).max
FP32_MAX = torch.finfo(torch.float32).max
WIDE = 1e38  # from here on differences of float32 may overflow: worked out in float64


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
        tensor = checked(tensor)
        return Packet.of(tensor, flat(tensor))

    def decode(self, packet: Packet) -> Tensor:
        """The tensor."""
        return shaped(packet.payload[0], packet)

    def num_bytes(self, shape: Sequence[int]) -> int:
        """4 a value."""
        return 4 * math.prod(shape)

    def transmit(self, tensor: Tensor, generator: Generator | None) -> tuple[Tensor, None]:
        """``tensor`` itself."""
        return checked(tensor), None


@dataclass(frozen=True)
class Fp16(Dense):
    """Half precision. What is too large saturates: one outlier should not end a run.

    What is smaller than 3e-8 becomes 0: there is no loss scaling.
    """

    def encode(self, tensor: Tensor, generator: Generator | None) -> Packet:
        """Payload: (n,) float16."""
        tensor = checked(tensor)
        return Packet.of(tensor, self._halves(flat(tensor)))

    def decode(self, packet: Packet) -> Tensor:
        """The halves."""
        return shaped(packet.payload[0].float(), packet)

    def num_bytes(self, shape: Sequence[int]) -> int:
        """2 a value."""
        return 2 * math.prod(shape)

    def transmit(self, tensor: Tensor, generator: Generator | None) -> tuple[Tensor, None]:
        """A cast there and back."""
        return self._halves(checked(tensor)).float(), None

    def _halves(self, x: Tensor) -> Tensor:
        low, high = ends(x, "fp16")
        if not x.is_cpu or max(-float(low), float(high)) > FP16_MAX:
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
        tensor = checked(tensor)
        step, low = self._grid(tensor)
        codes = self._codes(tensor, step, low, generator)
        packed = pack(flat(codes).to(torch.uint8), self.bits)
        return Packet.of(tensor, torch.stack([step, low]).view(2, -1), packed)

    def decode(self, packet: Packet) -> Tensor:
        """The grid's values."""
        ranges, packed = packet.payload
        step, low = ranges.view(2, *self._range_shape(packet.shape))
        codes = unpack(packed, self.bits, packet.shape.numel()).float()
        return self._values(shaped(codes, packet), step, low)

    def num_bytes(self, shape: Sequence[int]) -> int:
        """``bits`` bits a value, and 8 bytes a range."""
        return packed_bytes(math.prod(shape), self.bits) + 8 * math.prod(self._range_shape(shape))

    def transmit(self, tensor: Tensor, generator: Generator | None) -> tuple[Tensor, None]:
        """The grid's values, without packing the codes."""
        tensor = checked(tensor)
        step, low = self._grid(tensor)
        return self._values(self._codes(tensor, step, low, generator), step, low), None

    def _range_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of ``step`` and ``low``, which broadcasts against ``shape``."""
        if not self.per_channel or len(shape) < 3:
            return ()
        return 1, shape[1], *(1 for _ in shape[2:])

    def _grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Step and smallest value, float32 of `_range_shape`."""
        low, high = ends(x, f"int{self.bits}", channels=bool(self._range_shape(x.shape)))
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
        noise = torch.empty_like(codes, device="cpu").uniform_(generator=generator)
        noise = noise.to(codes.device)
        # Rounding errors may have put the largest value just above the last code.
        return below.add_(noise < codes.sub_(below)).clamp_(max=2**self.bits - 1)

    def _values(self, codes: Tensor, step: Tensor, low: Tensor) -> Tensor:
        """Float32; overwrites ``codes``."""
        values = codes.to(self._working_dtype(step, low)).mul_(step).add_(low)
        if values.dtype == torch.float64:
            values = values.clamp_(-FP32_MAX, FP32_MAX).float()
        return values

    def _working_dtype(self, step: Tensor, low: Tensor) -> torch.dtype:
        """Of what the receiver knows too, so that both ends take the same.

        On a GPU float32, as to look would wait for it: what overflows comes out as NaN.
        """
        if low.numel() == 0 or not low.is_cpu:
            return torch.float32
        reach = float(low.abs().max()) + float(step.max()) * (2**self.bits - 1)
        return torch.float64 if reach > WIDE else torch.float32


@dataclass(frozen=True)
class SignCodec(Dense):
    """One bit a value: +1 for 0 and −0 too. The gradient passes where |x| ≤ 1.

    Attributes:
        scaled: send mean |x| of the tensor along, and multiply by it.
    """

    scaled: bool = False

    def encode(self, tensor: Tensor, generator: Generator | None) -> Packet:
        """Payload: packed bits, 1 where x ≥ 0; if scaled, then (1,) float32."""
        tensor = checked(tensor)
        scale = self._scale(tensor)
        return Packet.of(tensor, pack((flat(tensor) >= 0).view(torch.uint8), 1), *scale)

    def decode(self, packet: Packet) -> Tensor:
        """±1, or ± the scale."""
        bits, *scale = packet.payload
        positive = unpack(bits, 1, packet.shape.numel()).float()
        return self._values(shaped(positive, packet), *scale)

    def num_bytes(self, shape: Sequence[int]) -> int:
        """A bit a value, and 4 bytes if scaled."""
        return packed_bytes(math.prod(shape), 1) + 4 * self.scaled

    def transmit(self, tensor: Tensor, generator: Generator | None) -> tuple[Tensor, None]:
        """±1, or ± the scale."""
        tensor = checked(tensor)
        scale = self._scale(tensor)
        positive = torch.ge(tensor, 0, out=torch.empty_like(tensor))
        return self._values(positive, *scale), None

    def gradient(self, sent: Tensor, received: Tensor, support: Tensor | None) -> Tensor:
        """``received`` where |sent| ≤ 1, else 0."""
        return received.masked_fill(sent.abs() > 1, 0.0)

    def _scale(self, x: Tensor) -> tuple[Tensor, ...]:
        """(1,), or nothing."""
        ends(x, "sign")
        if not self.scaled:
            return ()
        total = flat(x).abs().sum(0, keepdim=True, dtype=torch.float64)
        return ((total / max(1, x.numel())).float(),)

    def _values(self, positive: Tensor, *scale: Tensor) -> Tensor:
        """Of 1 and 0; overwrites them."""
        values = positive.mul_(2).sub_(1)
        return values.mul_(*scale) if scale else values
