"""What clients of hierarchical training do: train their part and its exit, send what crosses.

    z = device(x)                          → z, labels →    loss = CE(cloud(z), y)
    loss_edge = CE(exit(z), y)                              cloud steps
    device, exit step

Nothing comes back. The client never sees where the cloud's part runs: it talks to a `CloudHalf`.
`Cloud` is the one that lives in the client's own process, for simulation. Its dropout has a stream
of its own, so that nothing of the cloud can be felt on the device, not even by a random draw.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.exits import ExitHead, ExitSpec, exit_head, exit_name
from quant.codec import LinkSettings
from quant.layers import QuantSpec
from quant.link import Link, Packet
from strategies.client.split_loop import Halves, Side, Split, halves, quantized
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
from strategies.messages import ALONE, unpack_settings

EDGE_LOSS = "edge_loss"


@dataclass(frozen=True)
class Tiers:
    """What a client trains: the network in two parts, and the exit between them.

    Attributes:
        halves: the device's part and the server's.
        exit: the device's classifier.
        name: what the exit is called in the global model.
    """

    halves: Halves
    exit: ExitHead
    name: str

    def load(self, arrays: Mapping[str, Tensor]) -> None:
        """Copy the global model's arrays into the parts and the exit."""
        for part in self.halves.parts:
            load_arrays(part, {name: arrays[name] for name in part.state_dict()})
        own = {name: arrays[f"{self.name}.{name}"] for name in self.exit.state_dict()}
        load_arrays(self.exit, own)


def prepare(model: nn.Module, config: Mapping[str, Any]) -> Tiers:
    """Clients train the network's parts, quantized where bits are fewer than 32, and an exit."""
    split = unpack_settings(config, "split", Split)
    spec, side = unpack_settings(config, "quant", QuantSpec), unpack_settings(config, "side", Side)
    whole = quantized(model, spec, side, split)
    head = exit_head(ExitSpec(**_exit_settings(config)), 0)
    return Tiers(halves(whole, split), head, exit_name(whole))


def train(
    model: Tiers,
    arrays: Mapping[str, Tensor],
    data: ClientData,
    config: Mapping[str, Any],
    streams: Streams,
) -> Update:
    """Client half: load all three, train them, return them; the server's part does not cross."""
    settings = unpack_settings(config, "train", LocalTraining)
    is_alone = bool(config.get(ALONE, False))
    link = Link(unpack_settings(config, "link", LinkSettings), streams.generator("link.up"))
    device, server = model.halves.parts
    model.load(arrays)
    cloud = None if is_alone else Cloud(server, settings, link)
    edge_loss, loss = train_tiers(device, model.exit, cloud, link, data, settings, streams)
    state = {**device.state_dict(), **server.state_dict()}
    mine = {f"{model.name}.{name}": tensor for name, tensor in model.exit.state_dict().items()}
    state |= mine
    return Update(
        arrays={name: state[name] for name in arrays},
        num_examples=len(data),
        loss=edge_loss if loss is None else loss,
        bytes_up=link.bytes_up,
        bytes_down=link.bytes_down,
        metrics={EDGE_LOSS: edge_loss},
    )


class CloudHalf(Protocol):
    """The other side of the cut, which answers nothing."""

    def begin(self, streams: Streams, num_examples: int) -> None:
        """Start the round of the client that ``streams`` names."""

    def step(self, z: Packet, y: Tensor) -> float:
        """Train on a batch's activations and (B,) classes; return the mean loss."""

    def end(self) -> None:
        """End the client's round."""


class Cloud:
    """A `CloudHalf` in the client's process, for simulation.

    Args:
        part: the server's part of the network, trained in place.
        settings: how the client trains, and it by the server's rate.
        link: the client's link.
    """

    def __init__(self, part: nn.Module, settings: LocalTraining, link: Link) -> None:
        self._part = part
        self._settings = settings
        self._optimizer = make_optimizer([part], settings.of_server())
        self._link = link
        self._random = torch.default_generator.get_state()  # where its dropout is
        # torch 2.13 crashes in group norm's backward pass in channels_last where nobody asks for
        # the gradient of its input.
        self._asks = any(isinstance(module, nn.GroupNorm) for module in part.modules())

    def begin(self, streams: Streams, num_examples: int) -> None:
        """Put the part into training, and its dropout at the start of its own stream."""
        begin_training([self._part], num_examples)
        self._random = streams.generator("dropout.cloud").get_state()

    def step(self, z: Packet, y: Tensor) -> float:
        """Forward, loss, backward, step."""
        device_random = torch.default_generator.get_state()
        torch.default_generator.set_state(self._random)
        received = z.values.detach().requires_grad_(self._asks)
        logits = self._part(received)  # (B, classes)
        self._random = torch.default_generator.get_state()
        torch.default_generator.set_state(device_random)
        loss = F.cross_entropy(logits, y)
        self._link.labels_up(y, logits.shape[1])
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())

    def end(self) -> None:
        """Keep the steps of quantizers positive, and refuse weights that are no numbers."""
        end_training([self._part], None, self._settings)


def train_tiers(
    device: nn.Module,
    head: nn.Module,
    cloud: CloudHalf | None,
    link: Link,
    data: ClientData,
    settings: LocalTraining,
    streams: Streams,
) -> tuple[float, float | None]:
    """Train the device's part and its exit in place for one round.

    Args:
        device: the device's part.
        head: its exit.
        cloud: the other side; None where there is no network.
        link: what is sent over it.
        data: the client's.
        settings: how it trains.
        streams: its randomness.

    Returns:
        Mean losses per sample of the exit and of the cloud, None where it was not there.

    Raises:
        FloatingPointError: a loss or a weight is no finite number any more.
    """
    streams.seed_dropout()
    edge = (device, head)
    begin_training(edge, len(data))
    optimizer = make_optimizer(edge, settings)
    if cloud is not None:
        cloud.begin(streams, len(data))
    edge_total, cloud_total, count = 0.0, 0.0, 0
    for x, y in samples(data, settings, streams):
        z = device(x)
        loss = F.cross_entropy(head(z), y)
        if cloud is not None:
            cloud_total += cloud.step(link.send_up(z), y) * len(y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        edge_total += float(loss.detach()) * len(y)
        count += len(y)
    end_training(edge, edge_total / count, settings)
    if cloud is None:
        return edge_total / count, None
    cloud.end()
    end_training((), cloud_total / count, settings)
    return edge_total / count, cloud_total / count


def _exit_settings(config: Mapping[str, Any]) -> dict[str, int]:
    """An `ExitSpec` as it came; it has no default to stand for what is missing."""
    return {
        key.removeprefix("exit."): int(value)
        for key, value in config.items()
        if key.startswith("exit.")
    }
