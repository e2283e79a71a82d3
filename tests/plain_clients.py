"""A ClientApp of the user's own, as small as one can be, and a sink that keeps everything."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from strategies import messages
from strategies.contract import Update
from tracking.record import ClientRecord, RoundRecord

Train = Callable[[int, int, dict[str, Tensor]], dict[str, Tensor]]


def client_app(sizes: Sequence[int] | Mapping[int, int], train: Train) -> ClientApp:
    """Clients of as many samples, whose loss is 0.

    Args:
        sizes: samples by partition.
        train: from partition, round and what was sent to what is sent back.
    """
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        partition = int(str(context.node_config["partition-id"]))
        return messages.introduction(message, partition, sizes[partition])

    @app.train()
    def answer(message: Message, context: Context) -> Message:
        partition = int(str(context.node_config["partition-id"]))
        record, _, server_round = messages.read_request(message)
        arrays = train(partition, server_round, messages.to_tensors(record))
        return messages.reply(message, Update(arrays, sizes[partition], 0.0))

    return app


def add_to_each(partition: int, server_round: int, sent: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add partition + round/10 to every weight, and the round to every counter."""
    return {
        name: t + partition + server_round / 10 if t.is_floating_point() else t + server_round
        for name, t in sent.items()
    }


class Memory:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.rounds: list[RoundRecord] = []
        self.clients: list[list[ClientRecord]] = []
        self.ends: list[Mapping[str, Any] | None] = []

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        self.rounds.append(record)
        self.clients.append(list(clients))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        self.ends.append(summary)
