"""Link codecs that send a few values of each sample, and where they were."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from quant.packet import Packet, checked, ends, is_channels_last
from quant.packing import pack, packed_bytes, unpack


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
        rows = self._rows(checked(tensor))
        support = self._choose(rows, generator)
        bits = _index_bits(rows.shape[1])
        indices = pack(support, bits) if bits else support.new_zeros(0, dtype=torch.uint8)
        return Packet.of(tensor, rows.gather(1, support), indices)

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
        rows = self._rows(checked(tensor))
        support = self._choose(rows, generator)
        values = rows.gather(1, support)
        return _scattered(values, support, tensor.shape, is_channels_last(tensor)), support

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
        return _scattered(received, support, sent.shape, is_channels_last(sent))

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
        ends(rows, "topk")
        kept = _largest(rows.abs(), k)
        support = kept.nonzero()[:, 1].view(batch, k)
        if generator is None or self.alpha == 0 or batch == 0:
            return support
        others = rows.shape[1] - k
        chance = torch.rand(batch, k, generator=generator).to(rows.device)
        dropped = chance < self.alpha
        if k > others:  # more may be drawn than there are: the first to be drawn, in random order
            dropped &= chance.argsort(1).argsort(1) < others
        num_dropped = dropped.sum(1, keepdim=True)
        most = int(num_dropped.max())
        order = torch.rand(rows.shape, generator=generator).to(rows.device)
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
    like = torch.empty(
        shape, dtype=values.dtype, device=values.device, memory_format=torch.channels_last
    )
    return like.copy_(rows.view(shape))


def _index_bits(num_positions: int) -> int:
    """⌈log2⌉: none for a single position."""
    return (num_positions - 1).bit_length()
