"""What every method shares: one `start()` for Flower's strategies, with what Flower's lacks.

Clients are drawn by partition id from a stream of their own (Flower's node ids are random per run
and its sampling uses the global `random`). A round leaves a RoundRecord and one ClientRecord per
client. A client that fails is shown with its traceback, counted, and takes no part in the average;
if all fail, the run ends with `AllClientsFailedError`. Checkpoints are written and continued from.

A method's file holds a subclass of `FederatedStrategy` and the client half as two functions that
`app.client` calls:

    def prepare(model, config) -> M                              what a client trains
    def train(model: M, arrays, data, config, streams) -> Update one round on one client
"""

import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from torch import Tensor, nn

from app import messages
from fleet.selection import select
from models.cost import Cost, cost
from quant.layers import QuantSpec
from strategies.aggregate import Average, combine, mean
from strategies.checkpoint import Arrays, Checkpoint, Checkpoints
from strategies.local import LocalTraining, Update, load_arrays
from tracking.record import ClientRecord, RoundRecord, Sink

log = logging.getLogger(__name__)

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
# What `QuantSpec` is made of, as keys of the configuration.
QUANTIZERS = ("quant.bits", *(f"quant.{field.name}" for field in fields(QuantSpec)))
# Settings of one client's own, as items of a mapping.
Variant = tuple[tuple[str, bool | int | float | str], ...]
# Accuracy and mean cross-entropy of a network on the held-out test set.
Test = Callable[[nn.Module], tuple[float, float]]


class AllClientsFailedError(RuntimeError):
    """No client of a round returned anything."""


@dataclass(frozen=True)
class Outcome:
    """What came of one client in one round: an update and its state, or the text of an error."""

    partition: int
    num_examples: int
    bytes_down: int
    update: Update | None = None
    state: Arrays = field(default_factory=dict)
    error: str | None = None


class FederatedStrategy(FedAvg):
    """Base of the methods: a Flower strategy in which clients train in parallel and are averaged.

    Args:
        train: how clients train.
        clients_per_round: an integer counts clients, a float in (0, 1] is a share.
        seed: of the experiment.
        average: combines the clients' floating arrays.
        evaluate_every: rounds between two evaluations by ``evaluate_fn``; the last round always is.
        num_clients: nodes to wait for before the first round; None takes those that are there.
    """

    # Keys and groups of the configuration that the method reads beyond the common ones.
    reads: ClassVar[tuple[str, ...]] = ()
    # Whether clients must run where the server is: its half of a cut network is beside theirs.
    needs_colocation: ClassVar[bool] = False
    # Bit width where quant.bits is null.
    default_bits: ClassVar[int] = 32

    def __init__(
        self,
        *,
        train: LocalTraining | None = None,
        clients_per_round: int | float = 1.0,
        seed: int = 0,
        average: Average = mean,
        evaluate_every: int = 1,
        num_clients: int | None = None,
    ) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.fraction_evaluate = 0.0  # not through the constructor, which warns about it
        self.train = train or LocalTraining()
        self.clients_per_round = clients_per_round
        self.seed = seed
        self.average = average
        self.evaluate_every = evaluate_every
        self.num_clients = num_clients
        self.nodes: dict[int, int] = {}  # partition id → node id
        self.num_examples: dict[int, int] = {}  # partition id → samples
        self.model: nn.Module | None = None  # set by prepare()
        self._shapes: dict[str, tuple[int, ...]] = {}  # of the global model's arrays

    # What a method says of itself -----------------------------------------------------------

    @abstractmethod
    def state(self) -> Arrays:
        """Arrays beyond the global model that a checkpoint must hold; empty if there are none."""

    @abstractmethod
    def load_state(self, state: Arrays) -> None:
        """Take back what ``state`` returned."""

    def prepare(self, model: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
        """Return the global model, whose state is what the rounds train.

        Args:
            model: the network that the user chose.
            input_shape: of one sample, such as (1, 28, 28).

        Raises:
            ValueError: the method cannot train this network; names the key.
        """
        self.model = model
        return model

    def evaluate(self, arrays: Mapping[str, Tensor], test: Test) -> dict[str, float]:
        """Return accuracy, loss and what a method adds, given the global model's state."""
        model = self.whole_model()
        load_arrays(model, arrays)
        accuracy, loss = test(model)
        return {"accuracy": accuracy, "loss": loss}

    def device_costs(self, input_shape: tuple[int, ...]) -> list[Cost]:
        """Return what the parts of the network that are on the device cost, in order."""
        return [cost(self.whole_model(), input_shape)]

    def describe(self, input_shape: tuple[int, ...]) -> dict[str, float]:
        """Return what summary.json should say of the method's settings."""
        return {}

    def round_extra(self) -> dict[str, float]:
        """Return what every round's record should say, evaluated or not, of the latest round."""
        return {}

    def client_config(self) -> dict[str, bool | int | float | str]:
        """Return the settings that travel to every client with each round."""
        return messages.pack_settings(train=self.train)

    def variant(self, partition: int) -> Variant:
        """Return settings of one client's own; clients with the same ones get one message."""
        return ()

    def crosses(self, partition: int) -> frozenset[str] | None:
        """Names of the arrays that are sent over the network, not only in a message; None: all."""
        return None

    def encode(self, server_round: int, arrays: ArrayRecord, partition: int) -> ArrayRecord:
        """Return what is sent to a client (and all of its variant), given the global model."""
        return arrays

    def decode(self, update: Update) -> Arrays:
        """Return a client's model state as numpy arrays, given what it sent."""
        return {name: tensor.numpy() for name, tensor in update.arrays.items()}

    # Flower's contract ----------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message per chosen client, in the order of partition ids."""
        if not self.nodes:
            self.discover(grid)
        return self.requests(server_round, arrays, config, self.choose(server_round))

    def choose(self, server_round: int) -> list[int]:
        """Draw the clients of a round, in the order of partition ids."""
        return select(self.with_data(), self.clients_per_round, self.seed, server_round)

    def with_data(self) -> list[int]:
        """Partitions that are not empty."""
        return [p for p, count in self.num_examples.items() if count > 0]

    def requests(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, chosen: Sequence[int]
    ) -> list[Message]:
        """One message per chosen client; clients of one variant share its content."""
        self._shapes = {name: array.shape for name, array in arrays.items()}
        common = {**self.client_config(), messages.SEED: self.seed, **config}
        contents: dict[Variant, RecordDict] = {}
        sent: list[Message] = []
        for partition in chosen:
            variant = self.variant(partition)
            if variant not in contents:
                encoded = self.encode(server_round, arrays, partition)
                own = ConfigRecord({**common, **dict(variant)})
                contents[variant] = messages.request(encoded, own, server_round)
            nodes = [self.nodes[partition]]
            sent += self._construct_messages(contents[variant], nodes, MessageType.TRAIN)
        return sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the replies in the order of partition ids, whatever order they came in."""
        partition_of = {node: partition for partition, node in self.nodes.items()}
        outcomes = [
            self._outcome(partition_of[r.metadata.src_node_id], r, bytes_down=0) for r in replies
        ]
        outcomes.sort(key=lambda outcome: outcome.partition)
        report_failures(server_round, outcomes)
        return self.combine(outcomes)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        sinks: Sequence[Sink] = (),
        checkpoints: Checkpoints | None = None,
        resume_from: Checkpoint | None = None,
    ) -> Result:
        """Run the experiment; see Flower's ``Strategy.start`` for the arguments up to evaluate_fn.

        Differences: clients do not evaluate, so ``evaluate_config`` is not used; ``evaluate_fn`` is
        called every ``evaluate_every`` rounds and after the last, and before the first round.

        Args:
            sinks: each gets every round's records.
            checkpoints: where to write checkpoints; None writes none.
            resume_from: continue after this checkpoint's round.

        Raises:
            AllClientsFailedError: no client of a round returned anything.
        """
        self.discover(grid, timeout)
        result, arrays, first, records = Result(), initial_arrays, 1, list[RoundRecord]()
        if resume_from is not None:
            self.load_state(resume_from.state)
            arrays, first = messages.to_record(resume_from.arrays), resume_from.round + 1
            records = list(resume_from.records)
        elif evaluate_fn and (metrics := evaluate_fn(0, arrays)):
            result.evaluate_metrics_serverapp[0] = metrics
        for server_round in range(first, num_rounds + 1):
            started = time.perf_counter()
            config = ConfigRecord(dict(train_config or {}))
            arrays, outcomes = self.train_round(grid, server_round, arrays, config, timeout)
            is_due = server_round % self.evaluate_every == 0 or server_round == num_rounds
            metrics = evaluate_fn(server_round, arrays) if evaluate_fn and is_due else None
            record = round_record(server_round, outcomes, metrics, time.perf_counter() - started)
            record = replace(record, extra={**record.extra, **self.round_extra()})
            records.append(record)
            for sink in sinks:
                sink.round(record, [client_record(server_round, o) for o in outcomes])
            if checkpoints is not None and checkpoints.is_due(server_round, num_rounds):
                state = Checkpoint(server_round, messages.to_arrays(arrays), self.state(), records)
                checkpoints.save(state)
            if metrics is not None:
                result.evaluate_metrics_serverapp[server_round] = metrics
            if record.train_loss is not None:
                train_metrics = MetricRecord({messages.LOSS: record.train_loss})
                result.train_metrics_clientapp[server_round] = train_metrics
        result.arrays = arrays
        return result

    # The parts of a round -------------------------------------------------------------------

    def train_round(
        self,
        grid: Grid,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        timeout: float,
    ) -> tuple[ArrayRecord, list[Outcome]]:
        """All chosen clients train at once; return the new global model and what came of each."""
        sent = list(self.configure_train(server_round, arrays, config, grid))
        outcomes = self.exchange(grid, sent, timeout)
        report_failures(server_round, outcomes)
        averaged, _ = self.combine(outcomes)
        if averaged is None:
            raise all_failed(server_round, outcomes)
        return averaged, outcomes

    def exchange(self, grid: Grid, sent: Sequence[Message], timeout: float) -> list[Outcome]:
        """Send messages and return what came of each, in their order."""
        replies = {
            reply.metadata.src_node_id: reply
            for reply in grid.send_and_receive(sent, timeout=timeout)
        }
        partition_of = {node: partition for partition, node in self.nodes.items()}
        outcomes = []
        for message in sent:
            node = message.metadata.dst_node_id
            partition = partition_of[node]
            record = messages.read_request(message)[0]
            bytes_down = messages.payload_bytes(record, self.crosses(partition))
            outcomes.append(self._outcome(partition, replies.get(node), bytes_down))
        return outcomes

    def combine(
        self, outcomes: Sequence[Outcome]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what came back; (None, None) if nothing did."""
        useful = [outcome for outcome in outcomes if outcome.update is not None]
        if not useful:
            return None, None
        updates = [outcome.update for outcome in useful if outcome.update is not None]
        weights = [update.num_examples for update in updates]
        averaged = combine([outcome.state for outcome in useful], weights, self.average)
        loss = train_loss(updates)
        return messages.to_record(averaged), MetricRecord({messages.LOSS: loss})

    def discover(self, grid: Grid, timeout: float = 3600) -> None:
        """Ask every node which partition it holds and how much data.

        Raises:
            ValueError: two nodes hold the same partition, or there are more nodes than clients.
            RuntimeError: a node answers with an error, too few nodes come, or nobody has data.
        """
        self.nodes, self.num_examples = {}, {}
        deadline = time.monotonic() + timeout
        while len(ids := sorted(grid.get_node_ids())) < (self.num_clients or 1):
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"clients.total={self.num_clients}: only {len(ids)} nodes came in {timeout} s"
                )
            time.sleep(1)
        if self.num_clients is not None and len(ids) > self.num_clients:
            raise ValueError(f"clients.total={self.num_clients}: there are {len(ids)} nodes")
        sent = self._construct_messages(RecordDict(), ids, MessageType.QUERY)
        for reply in grid.send_and_receive(sent, timeout=timeout):
            node = reply.metadata.src_node_id
            if reply.has_error():
                log.warning("node %d: %s", node, reply.error.reason)
                raise RuntimeError(
                    f"node {node} cannot take part: {_last_line(reply.error.reason)}"
                )
            partition, num_examples = messages.read_introduction(reply)
            if self.nodes.setdefault(partition, node) != node:
                raise ValueError(f"two nodes hold partition {partition}")
            self.num_examples[partition] = num_examples
        silent = sorted(set(ids) - set(self.nodes.values()))
        if silent:
            raise RuntimeError(f"no answer from {len(silent)} of {len(ids)} nodes in {timeout} s")
        empty = [p for p, count in self.num_examples.items() if count == 0]
        if len(empty) == len(self.nodes):
            raise RuntimeError("no client has any data")
        if empty:
            log.info("%d of %d clients have no data and take no part", len(empty), len(self.nodes))

    def whole_model(self) -> nn.Module:
        """Return what `prepare` returned.

        Raises:
            RuntimeError: it was not called.
        """
        if self.model is None:
            raise RuntimeError(f"{type(self).__name__} needs prepare() before start()")
        return self.model

    def _outcome(self, partition: int, reply: Message | None, bytes_down: int) -> Outcome:
        update, error = None, None
        if reply is None:
            error = "no answer in time"
        elif reply.has_error():
            error = reply.error.reason or f"error code {reply.error.code}"
        else:
            try:
                update = messages.read_reply(reply)
                state = self.decode(update)
                check_shapes(state, self._shapes)
            except (KeyError, ValueError, TypeError) as problem:
                update, error = None, f"its reply cannot be used: {problem!r}"
        num_examples = self.num_examples[partition]
        if update is None:
            return Outcome(partition, num_examples, bytes_down, error=error)
        return Outcome(partition, num_examples, update.work.bytes_down, update, state)


def check_shapes(state: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a client's state that is not one of the global model.

    Raises:
        ValueError: names or shapes differ; names the first.
    """
    for name in sorted(state.keys() | shapes.keys()):
        got = tuple(state[name].shape) if name in state else "absent"
        wanted = tuple(shapes[name]) if name in shapes else "absent"
        if got != wanted:
            raise ValueError(f"array {name} is {got}, in the global model {wanted}")


def all_failed(server_round: int, outcomes: Sequence[Outcome]) -> AllClientsFailedError:
    """Return the error that ends a run of whose clients none is left."""
    return AllClientsFailedError(
        f"round {server_round}: all {len(outcomes)} clients failed; {_last_line(outcomes[0].error)}"
    )


def report_failures(server_round: int, outcomes: Sequence[Outcome]) -> None:
    """Log each distinct failure once, with its traceback and everyone it happened to."""
    by_reason: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.error is not None:
            by_reason.setdefault(_last_line(outcome.error), []).append(outcome)
    for alike in by_reason.values():
        who = ", ".join(str(outcome.partition) for outcome in alike[:10])
        more = f" and {len(alike) - 10} more" if len(alike) > 10 else ""
        log.warning("round %d: client %s%s failed:\n%s", server_round, who, more, alike[0].error)


def round_record(
    server_round: int, outcomes: Sequence[Outcome], metrics: MetricRecord | None, wall_s: float
) -> RoundRecord:
    """Sum up a round."""
    updates = [outcome.update for outcome in outcomes if outcome.update is not None]
    evaluated = dict(metrics or {})
    extra = {name: float(value) for name, value in evaluated.items()}  # type: ignore[arg-type]
    return RoundRecord(
        round=server_round,
        accuracy=extra.pop("accuracy", None),
        loss=extra.pop("loss", None),
        train_loss=train_loss(updates) if updates else None,
        num_clients=len(updates),
        num_failed=len(outcomes) - len(updates),
        num_dropped=0,
        bytes_up=sum(update.work.bytes_up for update in updates),
        bytes_down=sum(outcome.bytes_down for outcome in outcomes),
        sim_s=None,
        energy_j=None,
        wall_s=wall_s,
        extra=extra,
    )


def client_record(server_round: int, outcome: Outcome) -> ClientRecord:
    """Sum up one client's round."""
    update = outcome.update
    return ClientRecord(
        round=server_round,
        partition=outcome.partition,
        device=None,
        status="failed" if update is None else "ok",
        num_examples=outcome.num_examples,
        loss=None if update is None else update.loss,
        bytes_up=0 if update is None else update.work.bytes_up,
        bytes_down=outcome.bytes_down,
        sim_s=None,
        energy_j=None,
    )


def train_loss(updates: Sequence[Update]) -> float:
    """Mean training loss, weighted by samples."""
    total = sum(update.num_examples for update in updates)
    return sum(update.loss * update.num_examples for update in updates) / total


def _last_line(error: str | None) -> str:
    lines = (error or "").strip().splitlines()
    return lines[-1] if lines else "no reason given"
