"""What travels in Flower messages: the only file that names record keys.

A ClientApp answers every strategy of this folder with three functions of this file:

    introduction(message, partition, num_examples)   a query: which client it is
    read_task(message, partition, num_examples)      a train message: the arrays, and what to do
    reply(message, update)                           the answer to it

Between the latter two it trains, by the method's own ``client`` or in a way of its own. README.md,
"Use the strategies in a Flower app of your own", has one that runs.
"""

import math
import re
import traceback
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar, cast

import numpy as np
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from numpy.typing import NDArray
from torch import Tensor

from models.objective import Objective, TaskSettings
from strategies.array_bytes import BlockRecord, metric_record, record_dict, unpacked
from strategies.blocks import Block, Tensors
from strategies.contract import Invitation, Settings, Streams, Task, Update

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
ROUND = "server-round"
SEED = "seed"
NUM_EXAMPLES = "num-examples"  # Flower's own weight key, so that its strategies can average replies
LOSS = "train-loss"
PROXIMAL_MU = "proximal-mu"  # as Flower's FedProx calls it
ALONE = "alone"  # where the client trains without network
SHARE, SHARES = "submodel.share", "submodel.shares"  # of the channels: the client's, and all's
PARTITION = "partition-id"
BYTES_UP, BYTES_DOWN = "cut.bytes-up", "cut.bytes-down"
EXTRA = "extra."
HALF = "half"  # in a train message: where the server's half is, if not beside the client
LONGEST_ERROR = 20_000  # characters of a client's traceback
CLIENT_RAISED = 2  # Flower's code of an error in the ClientApp, which it does not publish

Group = TypeVar("Group")
Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)


# Arrays ---------------------------------------------------------------------------------------


def to_record(arrays: Mapping[str, Tensor | NDArray[Any]]) -> ArrayRecord:
    """Turn named tensors or numpy arrays into a record, in the same order.

    A block is taken as it is, and shares its memory with the record.
    """
    return BlockRecord(Block.of(arrays))


def to_arrays(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Inverse of `to_record`, as numpy arrays of their own.

    Raises:
        ValueError: what came is no array.
    """
    if (block := _block(record)) is not None:
        return dict(block.copy())
    return {name: unpacked(array) for name, array in record.items()}


def to_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Inverse of `to_record`, as tensors."""
    return {name: torch.from_numpy(array) for name, array in to_arrays(record).items()}


def payload_bytes(record: ArrayRecord, names: Collection[str] | None = None) -> int:
    """Bytes of the values themselves, without Flower's framing and numpy's headers.

    Args:
        record: arrays by name.
        names: those that count; None for all.
    """
    if (block := _block(record)) is not None:
        return block.layout.size_of(names)
    return sum(
        math.prod(array.shape) * np.dtype(array.dtype).itemsize
        for name, array in record.items()
        if names is None or name in names
    )


def _block(record: ArrayRecord) -> Block | None:
    """What a record was made of here, as long as nobody can have written into it."""
    return record.block if isinstance(record, BlockRecord) else None


# Settings: dataclasses as flat keys -------------------------------------------------------------


def pack_settings(**groups: Any) -> dict[str, bool | int | float | str]:
    """Flatten dataclasses into config keys: ``train=LocalTraining()`` gives ``train.lr`` …

    Values must be of the types a ConfigRecord takes. None is not one of them: it is left out, and
    stands for the default of its key.
    """
    return {
        f"{group}.{name}": value
        for group, settings in groups.items()
        for name, value in asdict(settings).items()
        if value is not None
    }


def unpack_settings(config: Mapping[str, Any], group: str, kind: type[Group]) -> Group:
    """Inverse of `pack_settings` for one group; keys that are not there keep their defaults."""
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    given = under(f"{group}.", config)
    return kind(**{name: value for name, value in given.items() if name in names})


def under(prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings whose names begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}


def of_network(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings from which ``prepare`` makes what a client trains: all but those of the training.

    What they make may stay for as long as they are the same, over rounds and clients.
    """
    own = (ROUND, SEED, ALONE, PROXIMAL_MU)
    of_training = ("train.", "task.")
    return {k: v for k, v in config.items() if k not in own and not k.startswith(of_training)}


def limit_batches(count: int) -> tuple[tuple[str, int], ...]:
    """What a client is told beside a round's settings that trains ``count`` batches of it."""
    return (("train.max_batches", count),)


def objective_of(config: Mapping[str, Any]) -> Objective:
    """Return what the network's outputs are for, as it came with a round's settings.

    Classification where nothing came.
    """
    return unpack_settings(config, "task", TaskSettings).objective()


def proximal_mu(config: Mapping[str, Any]) -> float:
    """Return FedProx's μ as it came with a round's settings; 0 where it did not."""
    return float(config.get(PROXIMAL_MU, 0.0))


# Server to client -----------------------------------------------------------------------------


def request(arrays: ArrayRecord, config: ConfigRecord, server_round: int) -> RecordDict:
    """Content of a train message: the model and what to do with it."""
    config[ROUND] = server_round
    return RecordDict({ARRAYS: arrays, CONFIG: config})


def read_request(message: Message) -> tuple[ArrayRecord, ConfigRecord, int]:
    """Arrays, config and round of a train message."""
    config = _record(message, CONFIG, ConfigRecord)
    return _record(message, ARRAYS, ArrayRecord), config, int(cast(int, config[ROUND]))


def inviting(content: RecordDict, invitation: Invitation) -> RecordDict:
    """Content of a train message that says where the server's half is; shares its records."""
    return RecordDict({**content, HALF: ConfigRecord(dict(asdict(invitation)))})


def read_invitation(message: Message) -> Invitation | None:
    """Where the server's half is; None where the message does not say, as in a simulation."""
    if HALF not in message.content:
        return None
    told = _record(message, HALF, ConfigRecord)
    return Invitation(**{n: str(v) for n, v in told.items()})


def read_task(
    message: Message, partition: int, num_examples: int
) -> tuple[dict[str, Tensor], Task]:
    """Arrays of a train message by name, and what its client is to do with them.

    Args:
        message: what the ClientApp's train function got.
        partition: the client, as in its `introduction`.
        num_examples: samples that it has.
    """
    arrays, config, server_round = read_request(message)
    return to_tensors(arrays), task_of(config, server_round, partition, num_examples)


def task_of(config: ConfigRecord, server_round: int, partition: int, num_examples: int) -> Task:
    """What a client is to do, of what `read_request` read: for apps that keep the arrays."""
    streams = Streams(int(cast(int, config[SEED])), server_round, partition)
    # A copy: the clients of a process share what came with the round.
    return Task(cast(Settings, dict(config.items())), streams, num_examples)


# Client to server -----------------------------------------------------------------------------


def reply(message: Message, update: Update) -> Message:
    """Answer a train message.

    Args:
        message: what the ClientApp's train function got.
        update: what the client trained; for FedAvg ``Update(model.state_dict(), n, loss)``.
    """
    metrics: dict[str, Any] = {
        NUM_EXAMPLES: update.num_examples,
        LOSS: update.loss,
        BYTES_UP: update.bytes_up,
        BYTES_DOWN: update.bytes_down,
        **{EXTRA + name: value for name, value in update.metrics.items()},
    }
    content = record_dict({ARRAYS: to_record(update.arrays), METRICS: metric_record(metrics)})
    return Message(content, reply_to=message)


def read_reply(message: Message) -> Update:
    """Inverse of `reply`; the arrays are tensors that share the message's memory.

    Raises:
        ValueError: the message is none that `reply` made.
    """
    try:
        record = _record(message, ARRAYS, ArrayRecord)
        metrics = _record(message, METRICS, MetricRecord)
        return Update(
            arrays=Tensors(_block(record) or Block.of(to_arrays(record))),
            num_examples=_count(metrics, NUM_EXAMPLES),
            loss=_number(metrics, LOSS),
            bytes_up=_count(metrics, BYTES_UP),
            bytes_down=_count(metrics, BYTES_DOWN),
            metrics={
                name.removeprefix(EXTRA): _number(metrics, name)
                for name in metrics
                if name.startswith(EXTRA)
            },
        )
    except KeyError as error:
        raise ValueError(f"it has no {error}; {_WANTED['train']}") from error


def _record(message: Message, key: str, kind: type[Record]) -> Record:
    """One record of a message; Flower's own way to one of a kind makes a table of all of them.

    Raises:
        KeyError: there is none of that kind under this key.
    """
    record = message.content[key]
    if not isinstance(record, kind):
        raise KeyError(key)
    return record


def _number(metrics: Mapping[str, Any], key: str) -> float:
    value = metrics[key]
    if not isinstance(value, int | float):
        raise ValueError(f"{key}={value}: takes a number")
    return value


def _count(metrics: Mapping[str, Any], key: str) -> int:
    value = _number(metrics, key)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{key}={value}: takes a whole number")
    return int(value)


def update_bytes(update: Update, names: Collection[str] | None = None) -> int:
    """Bytes of the arrays in a reply that cross the network; None counts all."""
    if isinstance(update.arrays, Tensors):
        return update.arrays.block.layout.size_of(names)
    return sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in update.arrays.items()
        if names is None or name in names
    )


def error_reply(message: Message, error: BaseException) -> Message:
    """Answer with the traceback of what went wrong."""
    reason = "".join(traceback.format_exception(error))
    if len(reason) > LONGEST_ERROR:
        half = LONGEST_ERROR // 2
        reason = f"{reason[:half]}\n…\n{reason[-half:]}"
    return Message(Error(CLIENT_RAISED, reason), reply_to=message)


def introduction(message: Message, partition: int, num_examples: int) -> Message:
    """Answer a query: which partition this node holds, and how much data.

    Args:
        message: what the ClientApp's query function got.
        partition: the client, from 0; each node has one of its own. Clients are drawn by it.
        num_examples: samples that it has; a client with none takes no part.
    """
    metrics = metric_record({PARTITION: partition, NUM_EXAMPLES: num_examples})
    return Message(record_dict({METRICS: metrics}), reply_to=message)


def read_introduction(message: Message) -> tuple[int, int]:
    """Partition id and number of samples of the node that answered a query.

    Raises:
        ValueError: the message is none that `introduction` made.
    """
    try:
        metrics = _record(message, METRICS, MetricRecord)
        found = _count(metrics, PARTITION), _count(metrics, NUM_EXAMPLES)
    except KeyError as error:
        raise ValueError(f"it has no {error}; {_WANTED['query']}") from error
    for key, value in zip((PARTITION, NUM_EXAMPLES), found, strict=True):
        if value < 0:
            raise ValueError(f"{key}={value}: takes 0 or more")
    return found


# What a ClientApp must register, by what Flower calls it where it is missing.
_WANTED = {
    "query": "expected a function under @app.query() that returns "
    "strategies.messages.introduction(message, partition, num_examples)",
    "train": "expected a function under @app.train() that returns "
    "strategies.messages.reply(message, update)",
}


def why(message: Message) -> str:
    """Why a node answers with an error: its own text, or which function its ClientApp lacks."""
    text = message.error.reason or f"error code {message.error.code}"
    missing = re.search(r"No (\w+) function registered", text)
    if missing and (wanted := _WANTED.get(missing[1])):
        return f"its ClientApp has no {missing[1]} function; {wanted}"
    return text
