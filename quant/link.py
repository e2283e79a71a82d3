"""The link at the cut, which has two ends: what each of them sends, and how many bytes that takes.

    device   send(z), send_labels(y)  →  receive           server
             receive_gradient         ←  send_gradient
    U-shaped:
             receive                  ←  send(h)
             send_gradient            →  receive_gradient

An end encodes with a codec and a generator of its own, decodes with the codec of the other end, and
counts the bytes that it sends. Neither touches the other: all that passes between them is a
`Packet`, and labels (B, …). Where both are in one process packets hold the values that packing and
unpacking would give, and the bytes that they would take (tests compare the two).

Codecs are given float32. What is bfloat16 (engine.precision) is put into it, and taken out again at
the other end: with exact links the parts compute what the whole network does, bit for bit.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models.precision import in_fp32
from quant.codec import Codec, LinkSettings
from quant.packet import Packet


class End:
    """One end of one client's link in one round.

    Attributes:
        bytes_sent: payload bytes, labels among them, that this end has sent.

    Args:
        sends: codec of what this end sends.
        receives: codec of what the other end sends.
        generator: of what this end sends; None draws nothing, as at test.
        packed: whether packets hold their bytes, to leave the process.
    """

    def __init__(
        self,
        sends: Codec,
        receives: Codec,
        generator: torch.Generator | None = None,
        packed: bool = False,
    ) -> None:
        self._sends, self._receives = sends, receives
        self._generator = generator
        self._packed = packed
        self._sent: tuple[Tensor, Tensor | None] | None = None  # activations and their support
        self._received: Tensor | None = None  # support of the activations that came
        self.bytes_sent = 0

    @classmethod
    def of_device(
        cls,
        settings: LinkSettings,
        generator: torch.Generator | None = None,
        packed: bool = False,
    ) -> "End":
        """The end that sends up."""
        up, down = settings.codecs()
        return cls(up, down, generator, packed)

    @classmethod
    def of_server(
        cls,
        settings: LinkSettings,
        generator: torch.Generator | None = None,
        packed: bool = False,
    ) -> "End":
        """The end that sends down."""
        up, down = settings.codecs()
        return cls(down, up, generator, packed)

    def send(self, activations: Tensor) -> Packet:
        """Send activations (B, …), without their graph; `receive_gradient` gets what comes back."""
        tensor = activations.detach()
        packet, support = self._encode(tensor)
        self._sent = tensor, support
        return packet

    def receive(self, packet: Packet) -> Tensor:
        """Return the activations that came; `send_gradient` sends their gradient back.

        Raises:
            ValueError: the packet is none of this link's.
        """
        values, self._received = self._decode(packet)
        return values.to(packet.dtype)

    def send_gradient(self, gradient: Tensor) -> Packet:
        """Send the gradient of what came last; where only some positions came, only theirs."""
        return self._encode(self._receives.select(gradient, self._received))[0]

    def receive_gradient(self, packet: Packet) -> Tensor:
        """Return the gradient of what was last given to `send`, like it.

        Raises:
            ValueError: the packet is none of this link's, or no gradient of what was sent.
        """
        assert self._sent is not None, "receive_gradient() comes after send()"
        sent, support = self._sent
        expected = self._sends.gradient_shape(sent.shape)
        if tuple(packet.shape) != expected:
            raise ValueError(f"a gradient of shape {tuple(packet.shape)}: {expected} expected")
        gradient = self._sends.gradient(in_fp32(sent), self._decode(packet)[0], support)
        return gradient.to(sent.dtype)

    def send_labels(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Send labels (B, …) as ``dtype``, which holds each of their values."""
        self.bytes_sent += y.numel() * dtype.itemsize
        return y.to(dtype) if self._packed else y

    def _encode(self, tensor: Tensor) -> tuple[Packet, Tensor | None]:
        codec, whole = self._sends, in_fp32(tensor)
        if self._packed:
            packet = codec.encode(whole, self._generator)
            support = codec.support(packet)
        else:
            values, support = codec.transmit(whole, self._generator)
            packet = Packet.unpacked(values, support, codec.num_bytes(tensor.shape))
        if whole is not tensor:
            packet = replace(packet, dtype=tensor.dtype)
        self.bytes_sent += packet.num_bytes
        return packet, support

    def _decode(self, packet: Packet) -> tuple[Tensor, Tensor | None]:
        if packet.values is not None:
            return packet.values, packet.support
        codec = self._receives
        try:
            values, support = codec.decode(packet), codec.support(packet)
            fits = packet.num_bytes == codec.num_bytes(packet.shape)
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"a packet of shape {tuple(packet.shape)}: {reason}") from error
        dtype = torch.float32 if packet.dtype is torch.bfloat16 else packet.dtype
        if not fits or values.shape != packet.shape or values.dtype != dtype:
            raise ValueError(
                f"a packet of shape {tuple(packet.shape)} and {packet.num_bytes} bytes: "
                "is of another codec"
            )
        return values, support


def carried(codec: Codec, x: Tensor) -> Tensor:
    """Return what arrives of ``x`` (B, …), like it, where nothing is drawn, as at test."""
    return codec.transmit(in_fp32(x.detach()), None)[0].to(x.dtype)


def receive_labels(y: Tensor) -> Tensor:
    """Labels (B, …), int64 or real, given what `End.send_labels` returned."""
    return y if y.is_floating_point() else y.long()


def there_and_back(there: Codec, back: Codec, shape: Sequence[int]) -> tuple[int, int]:
    """Bytes of a batch's activations (B, …) one way, and of their gradient the other."""
    return there.num_bytes(shape), back.num_bytes(there.gradient_shape(shape))
