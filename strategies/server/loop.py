"""What every method shares: one `start()` for Flower's strategies, with what Flower's lacks.

Clients are drawn by partition id from a stream of their own (Flower's node ids are random per run
and its sampling uses the global `random`). A round leaves a RoundRecord and one ClientRecord per
client. A client that fails is shown with its traceback, counted, and takes no part in the average;
if all fail, the run ends with `AllClientsFailedError`. Checkpoints are written and continued from.

A method's file holds a subclass of `FederatedStrategy`, whose attribute ``client`` is what its
clients do (`strategies.contract.ClientHalf`).
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from torch import Tensor, nn

from fleet.clock import Rule, parallel
from fleet.phases import Phases
from fleet.plan import Fleet, RoundPlan, num_asked
from fleet.selection import num_selected, select
from fleet.work import ClientWork
from models.cost import Cost, cost
from quant.layers import QuantSpec
from strategies import messages
from strategies.client.proximal import check_mu
from strategies.client.training import LocalTraining, load_arrays
from strategies.contract import ClientHalf, Update
from strategies.server.aggregation import Average, combine, mean
from strategies.server.checkpoint import Arrays, Checkpoint, Checkpoints
from strategies.server.discovery import introductions
from strategies.server.results import (
    Outcome,
    all_failed,
    check_shapes,
    client_records,
    report_failures,
    round_record,
    train_loss,
)
from strategies.server.server_optimizer import NONE, PREFIX, ServerOptimizer, ServerSettings
from strategies.server.workload import local_round
from tracking.record import RoundRecord, Sink

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
# What `QuantSpec` is made of, as keys of the configuration.
QUANTIZERS = ("quant.bits", *(f"quant.{f.name}" for f in fields(QuantSpec)))
# Settings of one client's own, as items of a mapping.
Variant = tuple[tuple[str, bool | int | float | str], ...]
# Accuracy and mean cross-entropy of a network on the held-out test set.
Test = Callable[[nn.Module], tuple[float, float]]


class FederatedStrategy(FedAvg):
    """Base of the methods: a Flower strategy in which clients train in parallel and are averaged.

    Args:
        train: how clients train.
        clients_per_round: an integer counts clients, a float in (0, 1] is a share.
        seed: of the experiment.
        average: combines the clients' floating arrays.
        evaluate_every: rounds between two evaluations by ``evaluate_fn``; the last round always is.
        num_clients: nodes to wait for before the first round; None takes those that are there.
        fleet: the clients' devices, links and availability: who takes part, simulated seconds and
            joules; None has everybody take part and counts neither. Needs ``prepare``.
        over_select: with a fleet, how many times the clients wanted are asked.
        server: what the server does with the average; none takes it as it is. Needs ``prepare``.
        proximal_mu: FedProx's μ, which client halves read by ``messages.proximal_mu``.
    """

    # Keys and groups of the configuration that the method reads beyond the common ones.
    reads: ClassVar[tuple[str, ...]] = ()
    # Bit width where quant.bits is null.
    default_bits: ClassVar[int] = 32
    # What its clients do.
    client: ClassVar[ClientHalf[Any]]
    # Whether the server half runs beside each client: then not on SuperNodes, where it would leave
    # the server.
    needs_colocation: ClassVar[bool] = False

    def __init__(
        self,
        *,
        train: LocalTraining | None = None,
        clients_per_round: int | float = 1.0,
        seed: int = 0,
        average: Average = mean,
        evaluate_every: int = 1,
        num_clients: int | None = None,
        server: ServerSettings | None = None,
        proximal_mu: float = 0.0,
        fleet: Fleet | None = None,
        over_select: float = 1.0,
    ) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.fraction_evaluate = 0.0  # not through the constructor, which warns about it
        self.train = train or LocalTraining()
        self.clients_per_round = clients_per_round
        self.seed = seed
        self.average = average
        self.evaluate_every = evaluate_every
        self.num_clients = num_clients
        has_optimizer = server is not None and server.server_optimizer != NONE
        self.server_optimizer = ServerOptimizer(server) if server and has_optimizer else None
        check_mu(proximal_mu)
        self.proximal_mu = proximal_mu
        self.fleet = fleet
        self.over_select = over_select
        self.nodes: dict[int, int] = {}  # partition id → node id
        self.num_examples: dict[int, int] = {}  # partition id → samples
        self.model: nn.Module | None = None  # set by prepare()
        self.input_shape: tuple[int, ...] = ()  # set by prepare()
        self._shapes: dict[str, tuple[int, ...]] = {}  # of the global model's arrays
        self._cost: Cost | None = None  # of the model, until shapes change
        self._phases: dict[int, Phases] = {}  # of each client's round, until they do
        self._alone_phases: dict[int, Phases] | None = None  # of those without network
        self._plan: RoundPlan | None = None  # of this round
        self._now_s = 0.0  # simulated seconds since the experiment began
        self._trained: list[str] | None = None  # names of its trainable parameters
        self._sent: tuple[int, ArrayRecord] = (0, ArrayRecord())  # the round and its global model

    # What a method says of itself -----------------------------------------------------------

    @abstractmethod
    def state(self) -> Arrays:
        """Arrays beyond the global model that a checkpoint must hold; empty if there are none."""

    @abstractmethod
    def load_state(self, state: Arrays) -> None:
        """Take back what ``state`` returned."""

    def begin(self) -> None:
        """Forget what an earlier `start` left, before the first round of a new one."""

    def prepare(self, model: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
        """Return the global model, whose state is what the rounds train.

        A method that rewrites the network ends with ``return super().prepare(rewritten, …)``: here
        is noted what trains, which is all that a server optimizer touches.

        Args:
            model: the network that the user chose.
            input_shape: of one sample, such as (1, 28, 28).

        Raises:
            ValueError: the method cannot train this network; names the key.
        """
        self.model, self.input_shape, self._cost = model, input_shape, None
        self._phases, self._alone_phases = {}, None
        named = model.named_parameters(remove_duplicate=False)
        self._trained = [name for name, parameter in named if parameter.requires_grad]
        return model

    def evaluate(self, arrays: Mapping[str, Tensor], test: Test) -> dict[str, float]:
        """Return accuracy, loss and what a method adds, given the global model's state."""
        model = self.whole_model()
        load_arrays(model, arrays)
        accuracy, loss = test(model)
        return {"accuracy": accuracy, "loss": loss}

    def device_costs(self) -> list[Cost]:
        """Return what the parts of the network that are on the device cost, in order."""
        return [self.network_cost()]

    def network_cost(self) -> Cost:
        """Return what the whole network costs."""
        if self._cost is None:
            self._cost = cost(self.whole_model(), self.input_shape)
        return self._cost

    def model_bytes(self, partition: int) -> tuple[int, int]:
        """Bytes of the arrays that cross, to a client and back; `encode` and `train` decide."""
        names, state = self.crosses(partition), self.whole_model().state_dict()
        crossing = [state[name] for name in (state if names is None else names)]
        sent = sum(tensor.numel() * tensor.element_size() for tensor in crossing)
        return sent, sent

    def rule(self) -> Rule:
        """How clients and server take turns, for the simulated clock."""
        return parallel

    def client_works(self) -> dict[int, ClientWork]:
        """What a round takes each client that has data, from shapes alone."""
        (whole,) = self.device_costs()
        works: dict[int, ClientWork] = {}
        by_samples: dict[int, ClientWork] = {}
        for partition in self.with_data():
            samples = self.num_examples[partition]
            if samples not in by_samples:
                sent = self.model_bytes(partition)
                by_samples[samples] = local_round(whole, samples, self.train, sent)
            works[partition] = by_samples[samples]
        return works

    def alone_works(self) -> dict[int, ClientWork]:
        """What a round takes each client without network; none where it then takes no part."""
        return {}

    def describe(self) -> dict[str, float]:
        """Return what summary.json should say of the method's settings."""
        return {}

    def round_extra(self) -> dict[str, float]:
        """Return what every round's record should say, evaluated or not, of the latest round."""
        return {}

    def client_config(self) -> dict[str, bool | int | float | str]:
        """Return the settings that travel to every client with each round."""
        proximal = {messages.PROXIMAL_MU: self.proximal_mu} if self.proximal_mu else {}
        return messages.pack_settings(train=self.train) | proximal

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
        """Draw the clients of a round, in the order in which they train.

        With a fleet: those that are there, have the memory and will end in time. Shapes tell, so
        that nobody else trains.
        """
        with_data = self.with_data()
        if self.fleet is None:
            drawn = select(with_data, self.clients_per_round, self.seed, server_round)
            return self.order(drawn, server_round)
        wanted = num_selected(self.clients_per_round, len(with_data))
        count = num_asked(wanted, self.over_select, len(with_data))
        asked = self.order(select(with_data, count, self.seed, server_round), server_round)
        self._plan = self.fleet.plan(
            asked, self.phases(), self.rule(), server_round, self._now_s, wanted,
            self.alone_phases(),
        )  # fmt: skip
        return self._plan.participants

    def order(self, chosen: Sequence[int], server_round: int) -> list[int]:
        """Return the clients of a round in the order in which they train."""
        return list(chosen)

    def phases(self) -> Mapping[int, Phases]:
        """Each client's round on its device and link; made anew after ``prepare``."""
        if not self._phases and self.fleet is not None:
            self._phases = self.fleet.phases(self.client_works())
        return self._phases

    def alone_phases(self) -> Mapping[int, Phases]:
        """The same of those that train without network."""
        if self._alone_phases is None and self.fleet is not None:
            self._alone_phases = self.fleet.phases(self.alone_works())
        return self._alone_phases or {}

    def redraw(self, fleet: Fleet | None, num_examples: dict[int, int]) -> None:
        """Take other devices and another division of the data, as another seed draws them."""
        self.fleet, self.num_examples = fleet, num_examples
        self._phases, self._alone_phases = {}, None

    def check_fleet(self) -> None:
        """Refuse a fleet in which no client could ever take part.

        Raises:
            ValueError: all lack memory, or nobody can end by the deadline; names the key.
        """
        if self.fleet is not None:
            self.fleet.check(self.phases(), self.rule())

    def with_data(self) -> list[int]:
        """Partitions that are not empty."""
        return [p for p, count in self.num_examples.items() if count > 0]

    def requests(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, chosen: Sequence[int]
    ) -> list[Message]:
        """One message per chosen client; clients of one variant share its content."""
        self._shapes = {name: array.shape for name, array in arrays.items()}
        if self.server_optimizer is not None:
            if self._trained is None:
                raise RuntimeError("strategy.server_optimizer needs prepare() before start()")
            self._sent = server_round, arrays
        rates = messages.pack_settings(train=self.train.in_round(server_round))
        common = {**self.client_config(), **rates, messages.SEED: self.seed, **config}
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
        self.check_fleet()
        if self.server_optimizer is not None:
            self.server_optimizer.load_state(resume_from.state if resume_from else {})
        result, arrays, first, records = Result(), initial_arrays, 1, list[RoundRecord]()
        self._now_s = 0.0
        self.begin()
        if resume_from is not None:
            mine = {k: v for k, v in resume_from.state.items() if not k.startswith(PREFIX)}
            self.load_state(mine)
            arrays, first = messages.to_record(resume_from.arrays), resume_from.round + 1
            records = list(resume_from.records)
            self._now_s = sum(record.sim_s or 0.0 for record in records)
        elif evaluate_fn and (metrics := evaluate_fn(0, arrays)):
            result.evaluate_metrics_serverapp[0] = metrics
        for server_round in range(first, num_rounds + 1):
            started = time.perf_counter()
            config = ConfigRecord(dict(train_config or {}))
            arrays, outcomes = self.train_round(grid, server_round, arrays, config, timeout)
            is_due = server_round % self.evaluate_every == 0 or server_round == num_rounds
            metrics = evaluate_fn(server_round, arrays) if evaluate_fn and is_due else None
            plan, wall_s = self._plan, time.perf_counter() - started
            self._now_s += plan.sim_s if plan else 0.0
            record = round_record(server_round, outcomes, metrics, wall_s, plan)
            record = replace(record, extra={**record.extra, **self.round_extra()})
            records.append(record)
            for sink in sinks:
                sink.round(record, client_records(server_round, outcomes, plan))
            if checkpoints is not None and checkpoints.is_due(server_round, num_rounds):
                state = self.state()
                if self.server_optimizer is not None:
                    state = state | self.server_optimizer.state()
                content = messages.to_arrays(arrays)
                checkpoints.save(Checkpoint(server_round, content, state, records))
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
        if not outcomes:
            return arrays, []  # nobody could take part; the records say why
        report_failures(server_round, outcomes)
        averaged, _ = self.combine(outcomes)
        if averaged is None:
            averaged = self.all_lost(server_round, arrays, outcomes)
        return averaged, outcomes

    def all_lost(
        self, server_round: int, arrays: ArrayRecord, outcomes: Sequence[Outcome]
    ) -> ArrayRecord:
        """Return the global model of a round in which all of ``outcomes`` are failures.

        Raises:
            AllClientsFailedError: here always.
        """
        raise all_failed(server_round, outcomes)

    def exchange(self, grid: Grid, sent: Sequence[Message], timeout: float) -> list[Outcome]:
        """Send messages and return what came of each, in their order."""
        replies = {
            reply.metadata.src_node_id: reply
            for reply in grid.send_and_receive(sent, timeout=timeout)
        }
        partition_of = {node: partition for partition, node in self.nodes.items()}
        outcomes = []
        sizes: dict[tuple[int, frozenset[str] | None], int] = {}  # most clients get the same
        for message in sent:
            node = message.metadata.dst_node_id
            partition = partition_of[node]
            key = id(message.content), self.crosses(partition)
            if key not in sizes:
                sizes[key] = messages.payload_bytes(messages.read_request(message)[0], key[1])
            outcomes.append(self._outcome(partition, replies.get(node), sizes[key]))
        return outcomes

    def combine(
        self, outcomes: Sequence[Outcome]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what came back and let the server optimizer step; (None, None) if nothing did."""
        useful = [outcome for outcome in outcomes if outcome.update is not None]
        if not useful:
            return None, None
        updates = [outcome.update for outcome in useful if outcome.update is not None]
        weights = [update.num_examples for update in updates]
        averaged = combine([outcome.state for outcome in useful], weights, self.average)
        if self.server_optimizer is not None:
            assert self._trained is not None
            averaged = self.server_optimizer.step(*self._sent, averaged, self._trained)
        loss = train_loss(updates)
        return messages.to_record(averaged), MetricRecord({messages.LOSS: loss})

    def discover(self, grid: Grid, timeout: float = 3600) -> None:
        """Ask every node which partition it holds and how much data.

        Raises:
            ValueError: two nodes hold the same partition, or there are more nodes than clients.
            RuntimeError: a node answers with an error, too few nodes come, or nobody has data.
        """
        found = introductions(grid, self.num_clients, timeout)
        self.nodes = {partition: who.node for partition, who in found.items()}
        self.num_examples = {partition: who.num_examples for partition, who in found.items()}

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
                record = reply.content.array_records[messages.ARRAYS]
                sent = messages.payload_bytes(record, self.crosses(partition))
                update = replace(update, bytes_up=update.bytes_up + sent)
                state = self.decode(update)
                check_shapes(state, self._shapes)
            except (KeyError, ValueError, TypeError) as problem:
                update, error = None, f"its reply cannot be used: {problem!r}"
        num_examples = self.num_examples[partition]
        if update is None:
            return Outcome(partition, num_examples, bytes_down, error=error)
        return Outcome(partition, num_examples, bytes_down + update.bytes_down, update, state)
