"""The server's half of a cut network, for one client in one round: it trains in this process.

That is the client's process in a simulation, and it may as well be another one: nothing here knows
the client but by its packets. Dropout draws from torch's default generator. In the client's process
both halves share it, one after the other, as in the whole network. In another process the server's
half has a stream of its own, which begins alike: the draws are the same if the device's part draws
nothing.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.crossing import answer, receive
from models.objective import Loss
from models.state import state_of
from quant.at_once import at_once
from quant.link import End, receive_labels
from quant.packet import Packet
from strategies.client.training import (
    LocalTraining,
    begin_training,
    end_training,
    make_optimizer,
    mean_of,
)
from strategies.contract import Task

AfterStep = Callable[[nn.Module], None]


# Held by who draws from torch's default generator, which a process has one of, in a stream of its
# own.
_drawing = threading.Lock()


def nothing(part: nn.Module) -> None:
    """The hook of a half to which nothing is done after a step."""


class OwnStream:
    """Has what is drawn from a default generator of torch drawn from a stream of its own.

    Several streams of a process wait for each other. One in which nothing was drawn the first time
    waits for nobody any more: what draws at all, such as dropout, does so in every forward pass.

    Args:
        generator: torch's.
        seed: where the stream begins.
    """

    def __init__(self, generator: torch.Generator, seed: int) -> None:
        self._generator = generator
        self._state = torch.Generator(generator.device).manual_seed(seed).get_state()
        self._draws = True

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within it draws are of this stream, which goes on from where it was."""
        if not self._draws:
            yield
            return
        with _drawing:
            before, began = self._generator.get_state(), self._state
            self._generator.set_state(began)
            try:
                yield
            finally:
                self._state = self._generator.get_state()
                self._generator.set_state(before)
        self._draws = not torch.equal(began, self._state)


class LocalHalf:
    """A `ServerHalf` over a part of a network.

    Args:
        part: the server's part, trained in place.
        settings: how the client trains, and the server at its own rate.
        end: the server's end of the link.
        after_step: called with the part after each step of its optimizer.
        packed: whether ``end`` packs, because the client is in another process; dropout then has a
            stream of its own, and who sends the answers calls `settle` after each, so that the
            client does not wait for the optimizer.
        loss_of: the mean loss of outputs and labels (B, …).
    """

    def __init__(
        self,
        part: nn.Module,
        settings: LocalTraining,
        end: End,
        after_step: AfterStep = nothing,
        packed: bool = False,
        loss_of: Loss = F.cross_entropy,
    ) -> None:
        self._part = part
        self._settings = settings
        self._end = end
        self._after_step = after_step
        self._packed = packed
        self._loss_of = loss_of
        self._optimizer: torch.optim.Optimizer
        self._run: Callable[..., Any]  # the part, from begin() on
        self._pending: tuple[list[Tensor], Tensor] | None = None
        self._owes_step = False
        self._learnt: list[tuple[Tensor, int]] = []  # losses and samples
        self._dropout: Callable[[], AbstractContextManager[None]]  # within it the part runs
        self._cloud: OwnStream  # the same in `learn`
        # torch 2.13 crashes in group norm's backward pass in channels_last where the gradient of
        # its input is not asked for.
        self._asks = any(isinstance(module, nn.GroupNorm) for module in part.modules())

    @property
    def packed(self) -> bool:
        """Whether packets hold their bytes."""
        return self._packed

    @property
    def bytes_sent(self) -> int:
        """Bytes that the server's end has sent."""
        return self._end.bytes_sent

    def arrays(self) -> dict[str, Tensor]:
        """State of the part, by name; shares memory with it."""
        return state_of(self._part)

    def begin(self, task: Task) -> None:
        """Put the part into training, with a new optimizer, and dropout at the round's start."""
        begin_training([self._part], task.num_examples)
        self._run = at_once(self._part)
        self._optimizer = make_optimizer([self._part], self._settings.of_server())
        self._learnt = []
        generator = _dropout_of(self._part)
        self._cloud = OwnStream(generator, task.streams.number("dropout.cloud"))
        if self._packed:
            self._dropout = OwnStream(generator, task.streams.number(task.streams.dropout))
        else:
            self._dropout = nullcontext
            task.streams.seed_dropout()

    def settle(self) -> None:
        """Take the optimizer's step, where the last batch's is still to be taken."""
        if self._owes_step:
            self._owes_step = False
            self._optimizer.step()
            self._after_step(self._part)

    def step(self, z: Packet, y: Tensor) -> tuple[Packet, Tensor]:
        """Forward, loss, backward; the optimizer's step, or `settle` takes it."""
        self.settle()
        received, gradients = receive(self._end.receive(z))
        with self._dropout():
            outputs = self._run(received)
        loss = self._loss_of(outputs, receive_labels(y))
        self._train(loss)
        return self._end.send_gradient(gradients.pop()), loss.detach()

    def learn(self, z: Packet, y: Tensor) -> None:
        """As `step`, with dropout in a stream of its own: nothing of it is felt on the device."""
        self.settle()
        received = self._end.receive(z).detach().requires_grad_(self._asks)
        with self._cloud():
            outputs = self._run(received)
        labels = receive_labels(y)
        loss = self._loss_of(outputs, labels)
        self._train(loss)
        self._learnt.append((loss.detach(), len(labels)))

    def learnt(self) -> float:
        """Mean loss per sample of what `learn` has trained on in this round."""
        losses, counts = zip(*self._learnt, strict=True)
        return mean_of(losses, counts)

    def forward(self, z: Packet) -> Packet:
        """Forward alone."""
        self.settle()
        received, gradients = receive(self._end.receive(z))
        with self._dropout():
            h = self._run(received)
        self._pending = gradients, h
        return self._end.send(h)

    def backward(self, gradient: Packet) -> Packet:
        """Backward of the last `forward`, and step."""
        assert self._pending is not None, "backward() comes after forward()"
        gradients, h = self._pending
        self._pending = None
        received = [self._end.receive_gradient(gradient)]
        del gradient
        self._train(answer(h, received))
        return self._end.send_gradient(gradients.pop())

    def end(self) -> None:
        """Keep the steps of quantizers positive, and refuse weights that are no numbers."""
        self.settle()
        end_training([self._part], None, self._settings)

    def _train(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        loss.backward()
        self._owes_step = True
        if not self._packed:
            self.settle()


def _dropout_of(part: nn.Module) -> torch.Generator:
    """The generator that dropout in ``part`` draws from."""
    device = next((p.device for p in part.parameters()), torch.device("cpu"))
    if device.type != "cuda":
        return torch.default_generator
    torch.cuda.init()
    return torch.cuda.default_generators[device.index or 0]
