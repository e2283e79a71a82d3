"""A client's round with the server's half beside it, as a simulation runs it."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from strategies.contract import ClientData, ClientHalf, M, Task, Update
from strategies.messages import ALONE


def train_simulated(
    client: ClientHalf[M], model: M, arrays: Mapping[str, Tensor], data: ClientData, task: Task
) -> Update:
    """Train one client for one round; where the network is cut, both halves of it.

    Args:
        client: the method's.
        model: what its ``prepare`` returned.
        arrays: what came with the message, by name.
        data: the client's.
        task: what to do.

    Returns:
        The client's update, to which the server's half adds its arrays and the bytes that it sent.
        Without a network there is no server's half, and the update holds the device's part.
    """
    is_alone = task.settings.get(ALONE, False)
    server = None if is_alone else client.colocated(model, arrays, task)
    update = client.train(model, arrays, data, task, server)
    if server is None:
        return update
    trained = {**update.arrays, **server.arrays()}
    in_order = {name: trained[name] for name in arrays}
    return replace(update, arrays=in_order, bytes_down=server.bytes_sent)
