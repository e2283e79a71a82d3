"""The wire at the cut: what each side sends over it, and how many bytes that takes.

In the simulation both ends live in one process: the values are those that packing and unpacking
would give, and the bytes those that they would take, without the packing (`quant.codec`; tests
compare the two).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quant.codec import Codec, LinkSettings


@dataclass(frozen=True)
class Packet:
    """A tensor on its way.

    Attributes:
        values: what the receiver decodes: in the shape of what was sent, or of gradients the part
            that has to come back.
        support: (B, k) int64 positions of each sample that were sent; None for all.
    """

    values: Tensor
    support: Tensor | None


class Link:
    """One client's link in one round.

    Attributes:
        bytes_up: what the device has sent.
        bytes_down: what it has received.

    Args:
        settings: the codec of each direction.
        up: generator of what the device sends; None draws nothing, as at test.
        down: generator of what the server sends.
    """

    def __init__(
        self,
        settings: LinkSettings,
        up: torch.Generator | None = None,
        down: torch.Generator | None = None,
    ) -> None:
        self._up, self._down = settings.codecs()
        self._up_generator, self._down_generator = up, down
        self.bytes_up = 0
        self.bytes_down = 0

    def send_up(self, z: Tensor) -> Packet:
        """Activations, device to server."""
        self.bytes_up += self._up.num_bytes(z.shape)
        return Packet(*self._up.transmit(z.detach(), self._up_generator))

    def send_down(self, h: Tensor) -> Packet:
        """Activations, server to device (U-shaped)."""
        self.bytes_down += self._down.num_bytes(h.shape)
        return Packet(*self._down.transmit(h.detach(), self._down_generator))

    def gradient_down(self, gradient: Tensor, of: Packet) -> Packet:
        """Gradient of what `send_up` sent; where only some positions were, only theirs."""
        wanted = self._up.select(gradient, of.support)
        self.bytes_down += self._down.num_bytes(wanted.shape)
        return Packet(self._down.transmit(wanted, self._down_generator)[0], of.support)

    def gradient_up(self, gradient: Tensor, of: Packet) -> Packet:
        """Gradient of what `send_down` sent."""
        wanted = self._down.select(gradient, of.support)
        self.bytes_up += self._up.num_bytes(wanted.shape)
        return Packet(self._up.transmit(wanted, self._up_generator)[0], of.support)

    def labels_up(self, y: Tensor, num_classes: int) -> None:
        """Count (B,) classes in the smallest unsigned type that holds them."""
        self.bytes_up += y.numel() * label_bytes(num_classes)

    def before_up(self, z: Tensor, gradient: Packet) -> Tensor:
        """Gradient of ``z``, given that of what `send_up` made of it."""
        return self._up.gradient(z, gradient.values, gradient.support)

    def before_down(self, h: Tensor, gradient: Packet) -> Tensor:
        """Gradient of ``h``, given that of what `send_down` made of it."""
        return self._down.gradient(h, gradient.values, gradient.support)


def label_bytes(num_classes: int) -> int:
    """Bytes of one class index in the smallest unsigned type."""
    return 1 if num_classes <= 2**8 else 2 if num_classes <= 2**16 else 4


def there_and_back(there: Codec, back: Codec, shape: Sequence[int]) -> tuple[int, int]:
    """Bytes of a batch's activations (B, …) one way, and of their gradient the other."""
    return there.num_bytes(shape), back.num_bytes(there.gradient_shape(shape))
