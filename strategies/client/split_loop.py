"""What the clients of every split-learning method do: train their part of a cut network.

    z = device(x)                 → z, labels →    loss = L(server(z), y)
    device.step()                 ← ∂loss/∂z ←     server.step()

U-shaped, where labels stay on the device, the network is cut twice:

    z = first(x)                  → z →            h = middle(z)
    loss = L(last(h), y)          ← h ←
    last.step()                   → ∂loss/∂h →     middle.step()
    first.step()                  ← ∂loss/∂z ←

The client never sees where the server's half runs: it has its own end of the link, and talks to a
`ServerHalf`. With exact links the parts train as the whole network does, bit for bit
(models/split.py). L is the task's loss, cross-entropy for classes (models/objective.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.crossing import answer, receive
from models.objective import Loss
from models.slices import Channels
from models.split import cut_many
from models.state import state_of
from quant.at_once import at_once
from quant.codec import LinkSettings
from quant.layers import QuantSpec, quantize, without_quantizers
from quant.link import End
from quant.packet import Packet
from quant.settings import SIDES
from strategies.client.training import (
    LocalTraining,
    begin_training,
    end_training,
    load_state,
    make_optimizer,
    mean_of,
    samples,
)
from strategies.contract import ClientData, MeanLoss, ServerHalf, Settings, Task, Update
from strategies.messages import SHARE, objective_of, unpack_settings
from strategies.server.half import AfterStep, LocalHalf, nothing


@dataclass(frozen=True)
class CutAt:
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
        return frozenset(name for part in self.device for name in state_of(part))


def halves(
    model: nn.Module, split: CutAt, example: Tensor | tuple[int, ...] | None = None
) -> Halves:
    """Cut ``model``.

    Args:
        model: the whole network; left as it is.
        split: where.
        example: shape of one sample, or a batch; with it the parts are compared with the whole.

    Raises:
        ValueError: it cannot be cut there; names split.cut or split.tail.
    """
    cuts = [split.cut, split.tail] if split.tail else [split.cut]
    first, middle, *last = cut_many(model, cuts, example)
    return Halves((first, *last), middle)


def quantized(model: nn.Module, spec: QuantSpec, side: Side, split: CutAt | None) -> nn.Module:
    """Quantize ``model``, or only those of its layers that are on the device."""
    model = quantize(model, spec)
    if spec.is_identity or side.name == "both" or split is None:
        return model
    return without_quantizers(model, layers_on_device(model, split))


def layers_on_device(model: nn.Module, split: CutAt) -> frozenset[str]:
    """Names of the modules of ``model`` that are on the device."""
    parts = halves(model, split).device
    return frozenset(name for part in parts for name, _ in part.named_modules())


def cut_as_told(model: nn.Module, settings: Settings) -> Halves:
    """Cut the network where the settings say: quantized, and with fewer channels on the device."""
    split = unpack_settings(settings, "split", CutAt)
    spec = unpack_settings(settings, "quant", QuantSpec)
    side = unpack_settings(settings, "side", Side)
    share = float(settings.get(SHARE, 1.0))
    if share < 1:
        model, _ = Channels.of(model).sliced(share, layers_on_device(model, split))
    return halves(quantized(model, spec, side, split), split)


# The client half of every method that cuts the network -------------------------------------------


class Hooks:
    """What a method does on the device, and to what leaves it; here nothing."""

    def on_activations(self, z: Tensor) -> Tensor:
        """Return what is sent instead of the activations ``z`` (B, …), differentiably."""
        return z

    def extra_loss(self, x: Tensor, z: Tensor) -> Tensor | None:
        """Return a loss of the device's own, of inputs ``x`` and activations ``z``."""
        return None

    def after_step(self, part: nn.Module) -> None:
        """Called with each of the device's parts after a step of the optimizer."""


def no_hooks(task: Task) -> Hooks:
    """Nothing is done."""
    return Hooks()


@dataclass(frozen=True)
class SplitClient:
    """A `ClientHalf` over a cut; the settings say where the network is cut, once or twice.

    Attributes:
        make_halves: cuts the network, given the settings, and changes what the method changes.
        make_hooks: what the method does on the device in a task.
        after_server_step: what it does to the server's part after each step.
    """

    make_halves: Callable[[nn.Module, Settings], Halves] = cut_as_told
    make_hooks: Callable[[Task], Hooks] = no_hooks
    after_server_step: AfterStep = nothing

    def prepare(self, model: nn.Module, settings: Settings) -> Halves:
        """Cut the network."""
        return self.make_halves(model, settings)

    def train(
        self,
        model: Halves,
        arrays: Mapping[str, Tensor],
        data: ClientData,
        task: Task,
        server: ServerHalf | None,
    ) -> Update:
        """Load the device's parts, train them across the link, return them."""
        assert server is not None, "a cut network trains with its server's half"
        settings = unpack_settings(task.settings, "train", LocalTraining)
        link = unpack_settings(task.settings, "link", LinkSettings)
        end = End.of_device(link, task.streams.generator("link.up"), server.packed)
        load_parts(model.device, arrays)
        loss = train_device(model.device, server, end, data, settings, task, self.make_hooks(task))
        return Update(
            arrays={n: tensor for part in model.device for n, tensor in state_of(part).items()},
            num_examples=len(data),
            loss=loss,
            bytes_up=end.bytes_sent,
        )

    def colocated(
        self, model: Halves, arrays: Mapping[str, Tensor], task: Task, packed: bool = False
    ) -> LocalHalf:
        """Load the server's part, and give it the server's end of the link."""
        return server_half(model.server, arrays, task, packed, self.after_server_step)


def load_parts(parts: Sequence[nn.Module], arrays: Mapping[str, Tensor]) -> None:
    """Copy into each part of a network its own of the whole's ``arrays``."""
    for part in parts:
        state = state_of(part)
        load_state(state, {name: arrays[name] for name in state})


def server_half(
    part: nn.Module,
    arrays: Mapping[str, Tensor],
    task: Task,
    packed: bool = False,
    after_step: AfterStep = nothing,
) -> LocalHalf:
    """Return the server's half of a task: ``part`` with its own of the whole's ``arrays``."""
    load_parts([part], arrays)
    settings = unpack_settings(task.settings, "train", LocalTraining)
    link = unpack_settings(task.settings, "link", LinkSettings)
    end = End.of_server(link, task.streams.generator("link.down"), packed)
    return LocalHalf(part, settings, end, after_step, packed, objective_of(task.settings).loss)


def train_device(
    device: Sequence[nn.Module],
    server: ServerHalf,
    end: End,
    data: ClientData,
    settings: LocalTraining,
    task: Task,
    hooks: Hooks | None = None,
) -> float:
    """Train the device's parts in place for one round.

    Args:
        device: the first part, and the last one where the network is cut twice.
        server: the other side of the cut.
        end: the device's end of the link.
        data: the client's.
        settings: how it trains.
        task: what to do.
        hooks: what the method does on the device.

    Returns:
        Mean loss per sample.

    Raises:
        FloatingPointError: the loss or a weight is no finite number any more.
    """
    task.streams.seed_dropout()
    begin_training(device, len(data))
    hooks = hooks or Hooks()
    optimizer = make_optimizer(device, settings)
    objective = objective_of(task.settings)
    loss_of, label_dtype = objective.loss, objective.label_dtype(data.num_classes)
    first, *last = (at_once(part) for part in device)
    losses: list[MeanLoss] = []
    counts: list[int] = []
    server.begin(task)
    for x, y in samples(data, settings, task.streams):
        activations = first(x)
        z = hooks.on_activations(activations)
        sent = end.send(z)
        optimizer.zero_grad()
        if last:
            packet, loss = _around(last[0], server, end, sent, y, loss_of)
        else:
            packet, loss = server.step(sent, end.send_labels(y, label_dtype))
        if z.requires_grad:  # not where the user froze the device's part
            gradients, extra = [end.receive_gradient(packet)], hooks.extra_loss(x, activations)
            del packet  # the gradient is held by the list alone
            own = [] if extra is None else [extra]
            torch.autograd.backward([answer(z, gradients), *own])
        optimizer.step()
        for part in device:
            hooks.after_step(part)
        losses.append(loss)
        counts.append(len(y))
    mean = mean_of(losses, counts)
    end_training(device, mean, settings)
    server.end()
    return mean


def _around(
    last: Callable[..., Any], server: ServerHalf, end: End, z: Packet, y: Tensor, loss_of: Loss
) -> tuple[Packet, MeanLoss]:
    """The loss on the device: forward through the server, backward through it again."""
    received, gradients = receive(end.receive(server.forward(z)))
    loss = loss_of(last(received), y)
    loss.backward()
    return server.backward(end.send_gradient(gradients.pop())), loss.detach()
