"""What clients of hierarchical training do: train their part and its exit, send what crosses.

    z = device(x)                          → z, labels →    loss = L(cloud(z), y)
    loss_edge = L(exit(z), y)                               cloud steps
    device, exit step

Nothing comes back but the cloud's mean loss at the end of the round. The client never sees where
the cloud's part runs: it talks to a `ServerHalf` by `learn`, whose dropout has a stream of its own,
so that nothing of the cloud can be felt on the device, not even by a random draw. In a process of
its own the cloud trains while the device goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from models.exits import ExitHead, ExitSpec, exit_head, exit_name
from models.state import state_of
from quant.codec import LinkSettings
from quant.link import End
from strategies.client.split_loop import Halves, cut_as_told, load_parts, server_half
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
from strategies.messages import objective_of, under, unpack_settings
from strategies.server.half import LocalHalf

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
        """Copy the global model's arrays into both parts and the exit."""
        load_parts([self.halves.server], arrays)
        self.load_device(arrays)

    def load_device(self, arrays: Mapping[str, Tensor]) -> None:
        """Copy the global model's arrays into the device's part and the exit."""
        load_parts(self.halves.device, arrays)
        state = state_of(self.exit)
        load_state(state, {name: arrays[f"{self.name}.{name}"] for name in state})

    def device_arrays(self) -> dict[str, Tensor]:
        """State of the device's part and the exit, under its name in the global model."""
        own = {f"{self.name}.{name}": tensor for name, tensor in state_of(self.exit).items()}
        return state_of(self.halves.device[0]) | own


class TiersClient:
    """A `ClientHalf` that trains a device's part and its exit, and feeds the cloud's part.

    Where there is no network, there is no server's half.
    """

    def prepare(self, model: nn.Module, settings: Settings) -> Tiers:
        """Cut the network, quantized where bits are fewer than 32, and make an exit."""
        parts = cut_as_told(model, settings)
        head = exit_head(ExitSpec(**under("exit.", settings)), 0)
        return Tiers(parts, head, exit_name(model))

    def train(
        self,
        model: Tiers,
        arrays: Mapping[str, Tensor],
        data: ClientData,
        task: Task,
        server: ServerHalf | None,
    ) -> Update:
        """Load the device's part and its exit, train them, return them."""
        settings = unpack_settings(task.settings, "train", LocalTraining)
        link = unpack_settings(task.settings, "link", LinkSettings)
        is_packed = server is not None and server.packed
        end = End.of_device(link, task.streams.generator("link.up"), is_packed)
        model.load_device(arrays)
        (device,) = model.halves.device
        edge_loss, loss = train_tiers(device, model.exit, server, end, data, settings, task)
        return Update(
            arrays=model.device_arrays(),
            num_examples=len(data),
            loss=edge_loss if loss is None else loss,
            bytes_up=end.bytes_sent,
            metrics={EDGE_LOSS: edge_loss},
        )

    def colocated(
        self, model: Tiers, arrays: Mapping[str, Tensor], task: Task, packed: bool = False
    ) -> LocalHalf:
        """Load the cloud's part, and give it its end of the link."""
        return server_half(model.halves.server, arrays, task, packed)


def train_tiers(
    device: nn.Module,
    head: nn.Module,
    cloud: ServerHalf | None,
    end: End,
    data: ClientData,
    settings: LocalTraining,
    task: Task,
) -> tuple[float, float | None]:
    """Train the device's part and its exit in place for one round.

    Args:
        device: the device's part.
        head: its exit.
        cloud: the other side; None where there is no network.
        end: the device's end of the link.
        data: the client's.
        settings: how it trains.
        task: what to do.

    Returns:
        Mean losses per sample of the exit and of the cloud, None where it was not there.

    Raises:
        FloatingPointError: a loss or a weight is no finite number any more.
    """
    task.streams.seed_dropout()
    edge = (device, head)
    begin_training(edge, len(data))
    optimizer = make_optimizer(edge, settings)
    objective = objective_of(task.settings)
    loss_of, label_dtype = objective.loss, objective.label_dtype(data.num_classes)
    if cloud is not None:
        cloud.begin(task)
    of_edge: list[MeanLoss] = []
    counts: list[int] = []
    for x, y in samples(data, settings, task.streams):
        z = device(x)
        loss = loss_of(head(z), y)
        if cloud is not None:
            labels = end.send_labels(y, label_dtype)
            cloud.learn(end.send(z), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        of_edge.append(loss.detach())
        counts.append(len(y))
    edge_loss = mean_of(of_edge, counts)
    end_training(edge, edge_loss, settings)
    if cloud is None:
        return edge_loss, None
    cloud_loss = cloud.learnt()
    end_training((), cloud_loss, settings)
    cloud.end()
    return edge_loss, cloud_loss
