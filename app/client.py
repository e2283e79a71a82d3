"""ClientApp: answers who it is, and runs the method's client half on one client's data.

The same app runs in our engine's workers, in Flower's simulation and on a SuperNode. What depends
on the run alone (config, data, network) is made once per process; the round's arrays are unpacked
once per process and round.
"""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from app import experiment
from app.config.composition import from_run_config
from app.experiment import PARTS, Parts
from strategies import messages
from strategies.client.simulated import train_simulated

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer which partition this node holds and how many samples it has."""
    try:
        partition = _partition(context)
        data = experiment.client_data(_parts(_key(context.run_config)), partition)
    except Exception as error:
        return messages.error_reply(message, error)
    return messages.introduction(message, partition, len(data))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one round; an error is the answer, with its traceback."""
    torch.set_num_threads(1)
    try:
        run = _key(context.run_config)
        partition = _partition(context)
        record, settings, server_round = messages.read_request(message)
        data = experiment.client_data(_parts(run), partition)
        update = train_simulated(
            experiment.method_class(_parts(run)).client,
            _model(run, _key(messages.of_network(settings))),
            _latest.tensors(record),
            data,
            messages.task_of(settings, server_round, partition, len(data)),
        )
    except Exception as error:
        return messages.error_reply(message, error)
    return messages.reply(message, update)


def _partition(context: Context) -> int:
    """Return which part of the data this node holds."""
    given = str(context.node_config.get("partition-id", ""))
    if not given.isdecimal():
        raise ValueError(
            f"node-config: partition-id={given or 'missing'}: takes the number of the node's part "
            "of the data, from 0"
        )
    return int(given)


def _key(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Flat values as something that can key a cache."""
    return tuple(sorted(values.items()))


@functools.lru_cache(maxsize=4)
def _parts(run: tuple[tuple[str, Any], ...]) -> Parts:
    """Our own engine gives the parts themselves; elsewhere ``overrides`` is composed here."""
    given = dict(run)
    if isinstance(parts := given.get(PARTS), Parts):
        return parts
    return experiment.parts_of(from_run_config(given))


@functools.lru_cache(maxsize=8)
def _model(run: tuple[tuple[str, Any], ...], settings: tuple[tuple[str, Any], ...]) -> Any:
    """Return the one model of this process, which every client loads its arrays into.

    It is what the client half's ``prepare`` returns and its ``train`` takes.
    """
    parts = _parts(run)
    client = experiment.method_class(parts).client
    return client.prepare(experiment.network(parts), dict(settings))


class _Latest:
    """The arrays of the latest round, unpacked: all clients of a round get the same ones."""

    def __init__(self) -> None:
        self._record: ArrayRecord | None = None
        self._tensors: dict[str, Tensor] = {}

    def tensors(self, record: ArrayRecord) -> Mapping[str, Tensor]:
        """Unpack ``record``, or return what it was unpacked to a moment ago."""
        if record is not self._record:
            self._record, self._tensors = record, messages.to_tensors(record)
        return self._tensors


_latest = _Latest()
