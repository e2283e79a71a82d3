"""ClientApp: answers who it is, and runs the method's client half on one client's data.

The same app runs in our engine's workers, in Flower's simulation and on a SuperNode. What depends
on the run alone (config, data, network) is made once per process; the round's arrays are unpacked
once per process and round.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from app import device, experiment, isolation, processors, shipped_data
from app.config.composition import from_run_config
from app.device import Where
from app.experiment import PARTS, Parts
from app.time_limit import TimeLimit
from models.precision import FP32
from strategies import messages
from strategies.client.simulated import train_simulated
from strategies.contract import ClientData, Invitation, Task, Update, check_report

LIMIT, DEVICE, PRECISION = "limit", "device", "precision"  # in the run config of our own engine

log = logging.getLogger(__name__)
app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Answer which partition this node holds and how many samples it has."""
    try:
        partition = _partition(context)
        parts = _parts(_key(context.run_config))
        data = shipped_data.client_data(context.run_config, parts, partition)
    except Exception as error:
        return messages.error_reply(message, error)
    return messages.introduction(message, partition, len(data))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one round; an error is the answer, with its traceback.

    Raises:
        TimeLimitError: our own engine set a limit, and it is over.
    """
    processors.use_one()
    try:
        run, partition = _key(context.run_config), _partition(context)
        parts, where = _parts(run), _where(run)
        record, settings, server_round = messages.read_request(message)
        data = shipped_data.client_data(context.run_config, parts, partition)
        data = _moved.to(where.device, data)
        update = _train(
            _prepared(parts, _latest.of_network(settings), where.device),
            _latest.tensors(record, where.device),
            data,
            messages.task_of(settings, server_round, partition, len(data)),
            where,
            _limit(context),
            messages.read_invitation(message),
        )
        update = device.on_host(update)
        check_report(update, len(data))
        return messages.reply(message, update)
    except (Exception, SystemExit) as error:
        return messages.error_reply(message, error)


def _train(
    prepared: "_Prepared",
    arrays: Mapping[str, Tensor],
    data: ClientData,
    task: Task,
    where: Where,
    limit: TimeLimit,
    invitation: Invitation | None,
) -> Update:
    """Train one client; what it leaves behind in this process does not reach the next one.

    Raises:
        ValueError: it wrote into the data, or the server's half computes in another precision.
    """
    if limit.is_short:
        _load_compiler()
    if invitation is not None and invitation.precision != where.precision:
        raise ValueError(
            f"engine.precision={where.precision}: takes {invitation.precision}, which the "
            "server's half computes in"
        )
    model = prepared.model()
    with _kept_apart(prepared, arrays, data, task), limit.watch(), where.computing():
        if invitation is None:
            return train_simulated(prepared.client, model, arrays, data, task)
        from strategies.client.remote import train_remote  # websockets: not of simulations

        return train_remote(prepared.client, model, arrays, data, task, invitation)


@contextlib.contextmanager
def _kept_apart(
    prepared: "_Prepared", arrays: Mapping[str, Tensor], data: ClientData, task: Task
) -> Iterator[None]:
    """Train with gradients on; what a user's code leaves behind does not reach the next client.

    Raises:
        ValueError: it wrote into the data.
    """
    if prepared.is_ours:
        try:
            with torch.inference_mode(False), torch.enable_grad():
                yield
        except BaseException as error:
            if not isinstance(error, Exception):  # it was stopped, amidst whatever it was doing
                prepared.forget()
            raise
        return
    seen, written = isolation.glance(data), isolation.versions(arrays)
    try:
        with isolation.isolated(task.streams.number("global")):
            yield
    finally:
        prepared.release()
        if isolation.versions(arrays) != written:
            _latest.forget()
        is_spoilt = isolation.glance(data) != seen
        if is_spoilt:
            experiment.forget_data()
            shipped_data.forget()
            _moved.forget()
    if is_spoilt:
        raise ValueError("the client wrote into its data, which all clients of a process share")


@functools.cache
def _load_compiler() -> None:
    """Load what torch loads with its first optimizer in a process: seconds of no client's limit."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


def _limit(context: Context) -> TimeLimit:
    """How long a client may take: what our own engine says, elsewhere as long as it likes."""
    given = dict(context.run_config).get(LIMIT)
    return given if isinstance(given, TimeLimit) else TimeLimit()


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


@functools.lru_cache(maxsize=4)
def _where(run: tuple[tuple[str, Any], ...]) -> Where:
    """Where this process trains, and in which precision."""
    given = dict(run)
    if PARTS not in given:
        engine = from_run_config(given).engine
        given = {DEVICE: engine.device, PRECISION: engine.precision, **given}
    found = device.find(str(given.get(DEVICE, device.CPU)))
    return Where(found, str(given.get(PRECISION, FP32)))


class _Moved:
    """The samples of this process on a device, copied once."""

    def __init__(self) -> None:
        self._of: Any = None  # inputs of the whole training set
        self._there: tuple[Any, Tensor]

    def to(self, where: torch.device, data: ClientData) -> ClientData:
        """Return a client's samples there; on the CPU they are."""
        if where.type == device.CPU:
            return data
        if data.x is not self._of:
            self._of, self._there = data.x, (device.moved(data.x, where), data.y.to(where))
        return replace(data, x=self._there[0], y=self._there[1])

    def forget(self) -> None:
        """Copy anew: what is there was spoilt."""
        self._of = None


_moved = _Moved()


class _Prepared:
    """The one model of this process, which every client loads its arrays into.

    It is what the client half's ``prepare`` returns and its ``train`` takes. If a client changed
    more of it than that puts back (hooks, what trains, shapes and types), it is prepared anew.

    Args:
        parts: how to build the network.
        settings: what came with the message, but for those of the training.
        where: it trains.
    """

    def __init__(self, parts: Parts, settings: Mapping[str, Any], where: torch.device) -> None:
        self.client = experiment.method_class(parts).client
        self._parts = parts
        self._settings = settings
        self._where = where
        self._model: Any = None
        self._structure: list[Any] = []
        self.is_ours = False  # all code that runs

    def model(self) -> Any:
        """Return it."""
        if self._model is None:
            network = experiment.network(self._parts)
            self.is_ours = isolation.is_ours(self.client, network)
            made = self.client.prepare(network, dict(self._settings))
            self._model = device.place(made, self._where)
            self._structure = [] if self.is_ours else isolation.structure(self._model)
        return self._model

    def release(self) -> None:
        """Forget it, if it is not what it was."""
        if isolation.structure(self._model) != self._structure:
            log.warning("a client changed the network beyond its arrays; it is prepared anew")
            self.forget()

    def forget(self) -> None:
        """Have it prepared anew for the next client."""
        self._model = None


@functools.lru_cache(maxsize=8)
def _prepared(
    parts: Parts, settings: tuple[tuple[str, Any], ...], where: torch.device
) -> _Prepared:
    return _Prepared(parts, dict(settings), where)


class _Latest:
    """What came with the latest round, unpacked: all clients of a round get the same."""

    def __init__(self) -> None:
        self._record: ArrayRecord | None = None
        self._tensors: dict[str, Tensor] = {}
        self._settings: ConfigRecord | None = None
        self._of_network: tuple[tuple[str, Any], ...] = ()

    def of_network(self, settings: ConfigRecord) -> tuple[tuple[str, Any], ...]:
        """Those of which the network is prepared, as something that can key a cache."""
        if settings is not self._settings:
            self._settings, self._of_network = settings, _key(messages.of_network(settings))
        return self._of_network

    def tensors(self, record: ArrayRecord, where: torch.device) -> Mapping[str, Tensor]:
        """Unpack ``record`` to a device, or return what it was unpacked to a moment ago."""
        if record is not self._record:
            unpacked = messages.to_tensors(record)
            self._record, self._tensors = record, {n: t.to(where) for n, t in unpacked.items()}
        return self._tensors

    def forget(self) -> None:
        """Unpack anew for the next client: one wrote into what came."""
        self._record, self._tensors = None, {}


_latest = _Latest()
