"""What the clients of every split-learning method do: train their part of a cut network.

    z = device(x)                 → z, labels →    loss = CE(server(z), y)
    device.step()                 ← ∂loss/∂z ←     server.step()

U-shaped, where labels stay on the device, the network is cut twice:

    z = first(x)                  → z →            h = middle(z)
    loss = CE(last(h), y)         ← h ←
    last.step()                   → ∂loss/∂h →     middle.step()
    first.step()                  ← ∂loss/∂z ←

The client never sees where the server's half runs: it talks to a `ServerHalf`. `Colocated` is the
one that lives in the client's own process, for simulation. With exact links the parts train as the
whole network does, bit for bit (models/split.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.split import cut_many
from quant.codec import LinkSettings
from quant.layers import QuantSpec, quantize
from quant.link import Link, Packet
from strategies.client.training import (
    ClientData,
    LocalTraining,
    Streams,
    Update,
    begin_training,
    end_training,
    load_arrays,
    make_optimizer,
    samples,
)
from strategies.messages import unpack_settings

SIDES = ("both", "client")


@dataclass(frozen=True)
class Split:
    """Where one client's network is cut.

    Attributes:
        cut: name of the cut point; what comes before it is on the device.
        tail: name of the second cut point, after which the network is on the device again; empty
            where the server has all that follows the first.
    """

    cut: str
    tail: str = ""


@dataclass(frozen=True)
class Side:
    """Which half the quantizers are in: ``both`` or ``client``."""

    name: str = "both"

    def __post_init__(self) -> None:
        if self.name not in SIDES:
            raise ValueError(f"quant.side={self.name}: takes {', '.join(SIDES)}")


@dataclass(frozen=True)
class Halves:
    """A network in parts, which keep the names that their state has in the whole.

    Attributes:
        device: the first part, and the last one where the network is cut twice.
        server: the part between or after them.
    """

    device: tuple[nn.Module, ...]
    server: nn.Module

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """In the order of execution."""
        return (self.device[0], self.server, *self.device[1:])

    def device_names(self) -> frozenset[str]:
        """Names of the device's arrays."""
        return frozenset(name for part in self.device for name in part.state_dict())


def halves(model: nn.Module, split: Split, example: tuple[int, ...] | None = None) -> Halves:
    """Cut ``model``.

    Args:
        model: the whole network; left as it is.
        split: where.
        example: shape of one sample; with it the parts are compared with the whole.

    Raises:
        ValueError: it cannot be cut there; names split.cut or split.tail.
    """
    cuts = [split.cut, split.tail] if split.tail else [split.cut]
    first, middle, *last = cut_many(model, cuts, example)
    return Halves((first, *last), middle)


def quantized(model: nn.Module, spec: QuantSpec, side: Side, split: Split | None) -> nn.Module:
    """Quantize ``model``, or only those of its layers that are on the device."""
    if spec.is_identity or side.name == "both" or split is None:
        return quantize(model, spec)
    device = halves(model, split).device
    return quantize(model, spec, {name for part in device for name, _ in part.named_modules()})


# The client half of every method here ------------------------------------------------------------


def prepare(model: nn.Module, config: Mapping[str, Any]) -> Halves:
    """Clients train the parts of the network, quantized where bits are fewer than 32."""
    split = unpack_settings(config, "split", Split)
    spec, side = unpack_settings(config, "quant", QuantSpec), unpack_settings(config, "side", Side)
    return halves(quantized(model, spec, side, split), split)


def train(
    model: Halves,
    arrays: Mapping[str, Tensor],
    data: ClientData,
    config: Mapping[str, Any],
    streams: Streams,
    guard: "Guard | None" = None,
) -> Update:
    """Client half: load both parts, train them across the link, return both.

    Only the device's part crosses the network; the server's is in the message because it is here
    that it is simulated.
    """
    settings = unpack_settings(config, "train", LocalTraining)
    link = Link(
        unpack_settings(config, "link", LinkSettings),
        streams.generator("link.up"),
        streams.generator("link.down"),
    )
    for part in model.parts:
        load_arrays(part, {name: arrays[name] for name in part.state_dict()})
    guard = guard or Guard()
    server = Colocated(model.server, settings, link, guard)
    loss = train_device(model.device, server, link, data, settings, streams, guard)
    state = {name: tensor for part in model.parts for name, tensor in part.state_dict().items()}
    return Update(
        arrays={name: state[name] for name in arrays},
        num_examples=len(data),
        loss=loss,
        bytes_up=link.bytes_up,
        bytes_down=link.bytes_down,
    )


class Guard:
    """What a method does to its part between forward and step; here nothing."""

    def disguise(self, z: Tensor) -> Tensor:
        """Return what is sent instead of the activations ``z`` (B, …), differentiably."""
        return z

    def leak(self, x: Tensor, z: Tensor) -> Tensor | None:
        """Return a loss of the device's own, of inputs ``x`` and activations ``z``."""
        return None

    def stepped(self, part: nn.Module) -> None:
        """Called after each step of the optimizer of ``part``."""


class ServerHalf(Protocol):
    """The other side of the cut, as the device sees it: for one client, in one round."""

    def begin(self, streams: Streams, num_examples: int) -> None:
        """Start the round of the client that ``streams`` names."""

    def step(self, z: Packet, y: Tensor) -> tuple[Packet, float]:
        """Train on one batch.

        Args:
            z: activations at the cut.
            y: (B,) classes.

        Returns:
            Gradient of the loss at ``z``, and the mean loss.
        """

    def forward(self, z: Packet) -> Packet:
        """U-shaped: activations at the second cut, given those at the first."""

    def backward(self, gradient: Packet) -> Packet:
        """U-shaped: train; gradient at the first cut, given that at the second."""

    def end(self) -> None:
        """End the client's round."""


class Colocated:
    """A `ServerHalf` in the client's process.

    Args:
        part: the server's part of the network, trained in place.
        settings: how the client trains, and it by the server's rate.
        link: the client's link.
        guard: called after each step.
    """

    def __init__(
        self,
        part: nn.Module,
        settings: LocalTraining,
        link: Link,
        guard: Guard | None = None,
    ) -> None:
        self._guard = guard or Guard()
        self._part = part
        self._settings = settings
        self._optimizer = make_optimizer([part], settings.of_server())
        self._link = link
        self._pending: tuple[Packet, list[Tensor], Tensor] | None = None

    def begin(self, streams: Streams, num_examples: int) -> None:
        """Put the part into training; dropout goes on in the stream of the client's half."""
        begin_training([self._part], num_examples)

    def step(self, z: Packet, y: Tensor) -> tuple[Packet, float]:
        """Forward, loss, backward, step."""
        received, gradients = _receive(z)
        logits = self._part(received)  # (B, classes)
        loss = F.cross_entropy(logits, y)
        self._link.labels_up(y, logits.shape[1])
        self._train(loss, None)
        return self._link.gradient_down(gradients[0], z), float(loss.detach())

    def forward(self, z: Packet) -> Packet:
        """Forward alone."""
        received, gradients = _receive(z)
        h = self._part(received)
        self._pending = (z, gradients, h)
        return self._link.send_down(h)

    def backward(self, gradient: Packet) -> Packet:
        """Backward of the last `forward`, and step."""
        assert self._pending is not None, "backward() comes after forward()"
        z, gradients, h = self._pending
        self._pending = None
        self._train(h, self._link.before_down(h.detach(), gradient))
        return self._link.gradient_down(gradients[0], z)

    def end(self) -> None:
        """Keep the steps of quantizers positive, and refuse weights that are no numbers."""
        end_training([self._part], None, self._settings)

    def _train(self, output: Tensor, gradient: Tensor | None) -> None:
        self._optimizer.zero_grad()
        output.backward(gradient)
        self._optimizer.step()
        self._guard.stepped(self._part)


def train_device(
    device: Sequence[nn.Module],
    server: ServerHalf,
    link: Link,
    data: ClientData,
    settings: LocalTraining,
    streams: Streams,
    guard: Guard | None = None,
) -> float:
    """Train the device's parts in place for one round; return the mean loss per sample.

    Raises:
        FloatingPointError: the loss or a weight is no finite number any more.
    """
    streams.seed_dropout()
    begin_training(device, len(data))
    guard = guard or Guard()
    optimizer = make_optimizer(device, settings)
    first, *last = device
    total, count = 0.0, 0
    server.begin(streams, len(data))
    for x, y in samples(data, settings, streams):
        activations = first(x)
        z = guard.disguise(activations)
        sent = link.send_up(z)
        optimizer.zero_grad()
        if last:
            answer, loss = _around(last[0], server, link, sent, y)
        else:
            answer, loss = server.step(sent, y)
        if z.requires_grad:  # not where the user froze the device's part
            gradient, leak = link.before_up(z.detach(), answer), guard.leak(x, activations)
            if leak is None:
                z.backward(gradient)
            else:
                torch.autograd.backward([z, leak], [gradient, None])
        optimizer.step()
        for part in device:
            guard.stepped(part)
        total += loss * len(y)
        count += len(y)
    server.end()
    end_training(device, total / count, settings)
    return total / count


def _around(
    last: nn.Module, server: ServerHalf, link: Link, z: Packet, y: Tensor
) -> tuple[Packet, float]:
    """The loss on the device: forward through the server, backward through it again."""
    h = server.forward(z)
    received, gradients = _receive(h)
    loss = F.cross_entropy(last(received), y)
    loss.backward()
    return server.backward(link.gradient_up(gradients[0], h)), float(loss.detach())


def _receive(packet: Packet) -> tuple[Tensor, list[Tensor]]:
    """Return a leaf with the packet's values, and where its gradient will be.

    By a hook, because ``.grad`` may have been given other strides than the gradient has.
    """
    received = packet.values.detach().requires_grad_()
    gradients: list[Tensor] = []
    received.register_hook(gradients.append)
    return received, gradients
