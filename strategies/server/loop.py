"""The one loop that runs any method: a Flower strategy made of a `Method`.

What Flower's own loop lacks: clients are drawn by partition id from a stream of their own (Flower's
node ids are random per run, and its sampling uses the global `random`); a simulated clock decides
beforehand who takes part; a round leaves a RoundRecord, and one ClientRecord per client; a client
that fails is shown with its traceback, counted, and takes no part in the average; if all fail, the
run ends with `AllClientsFailedError`; checkpoints are written and continued from.

What a round does is in `strategies.server.federation`; this says when.

A method is a subclass that brings a constructor alone, which names the method's parts.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result as FlowerResult
from flwr.serverapp.strategy import Strategy
from torch import nn

from models.inputs import Inputs
from strategies import messages
from strategies.contract import ClientHalf, Settings
from strategies.server.best import keeping_best
from strategies.server.checkpoint import Checkpoints
from strategies.server.discovery import introductions
from strategies.server.federation import Asked, Federation, by_partition, settings_of
from strategies.server.method import (
    Clients,
    Method,
    Prepared,
    RoundArguments,
    RoundSettings,
    ServerState,
    Start,
    Test,
)
from strategies.server.planner import Planner
from strategies.server.results import (
    all_failed,
    client_records,
    forms,
    report_failures,
    round_record,
    train_loss,
)
from strategies.server.schedules import Parallel, scheduled
from strategies.server.watch import NOTHING, Watch
from tracking.record import Sink

if TYPE_CHECKING:  # websockets and cryptography, which simulations do without
    from strategies.server.half_service import HalfService

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class FederatedStrategy(Strategy):
    """A Flower strategy that runs a method.

    Args:
        method: its parts.
        rounds: `RoundSettings`, as keywords.
    """

    # The client's side of the method, which `app.client` runs.
    client: ClassVar[ClientHalf[Any]]
    # Keys and groups of the configuration that the method reads beyond the common ones.
    reads: ClassVar[tuple[str, ...]] = ()
    # Bit width where quant.bits is null.
    default_bits: ClassVar[int] = 32
    # Whether the network is cut and the server has a half of it: beside each client in a
    # simulation; for SuperNodes at an address that they dial.
    has_server_half: ClassVar[bool] = False
    # Whether each client keeps a part of its own, so that the global model is nobody's.
    is_private: ClassVar[bool] = False

    def __init__(self, method: Method, **rounds: Unpack[RoundArguments]) -> None:
        self.rounds = RoundSettings(**rounds)
        self.method = replace(
            method, schedule=scheduled(method.schedule, self.rounds, method.outage)
        )
        method.network.check(self.rounds)
        self.network: Prepared | None = None  # set by prepare()
        self._given: nn.Module | None = None  # what prepare() was given
        self._federation: Federation | None = None  # of configure_train() and aggregate_train()
        self._entered = ServerState()  # the state of the round that configure_train() began

    def prepare(
        self,
        model: nn.Module,
        input_shape: Inputs,
        num_examples: Mapping[int, int] | None = None,
    ) -> nn.Module:
        """Return the global model, whose state is what the rounds train.

        Args:
            model: the network that the user chose.
            input_shape: of one sample, such as (1, 28, 28); `models.inputs` has tokens and several
                inputs.
            num_examples: samples of each partition, as far as they are known beforehand.

        Raises:
            ValueError: the method cannot train this network; names the key.
        """
        clients = Clients(num_examples or {}, self.rounds.fleet)
        rule = self.method.schedule.rule
        network = self.method.network.prepare(model, input_shape, clients, self.rounds, rule)
        self.network, self._given = network, model
        return network.in_round(1).model

    def prepared(self) -> Prepared:
        """Return the network that `prepare` made.

        Raises:
            RuntimeError: it was not called.
        """
        if self.network is None:
            raise RuntimeError(f"{type(self).__name__} needs prepare() before start()")
        return self.network

    def check_fleet(
        self, network: Prepared | None = None, num_examples: Mapping[int, int] | None = None
    ) -> None:
        """Refuse a fleet in which no client could ever take part.

        Args:
            network: prepared; None takes this strategy's own.
            num_examples: samples of each partition; None takes those that the network knows.

        Raises:
            ValueError: all lack memory, or no client can meet the deadline; names the key.
        """
        network = network or self.prepared()
        if num_examples is not None:
            network = network.for_clients(Clients(num_examples, self.rounds.fleet))
        first = network.in_round(1)
        Planner(self.method, self.rounds, first.clients).check(first)

    def client_settings(self, server_round: int = 1) -> Settings:
        """Return what every client of a round is told, but for the seed."""
        return settings_of(self.method, self.rounds, self.network, server_round)

    # Flower's contract ----------------------------------------------------------------------------

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
        test: Test | None = None,
        sinks: Sequence[Sink] = (),
        checkpoints: Checkpoints | None = None,
        resume_from: ServerState | None = None,
        watch: Watch = NOTHING,
        service: "HalfService | None" = None,
        undisturbed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> FlowerResult:
        """Run the experiment; see Flower's ``Strategy.start`` for the arguments up to evaluate_fn.

        Differences: clients do not evaluate, so ``evaluate_config`` is not used; ``evaluate_fn`` is
        called every ``evaluate_every`` rounds and after the last, and before the first round.

        Args:
            test: instead of ``evaluate_fn``: accuracy and loss of a network on the test set, or
                these and more by their names, by which the method evaluates what it trains, its
                link and private parts included.
            sinks: each gets every round's records.
            checkpoints: where to write checkpoints; None writes none.
            resume_from: continue from this state.
            watch: what else is evaluated, what ends the run early, which state is kept.
            service: has the server's halves in this process, for clients that dial it; None has
                them beside the clients, as in a simulation.
            undisturbed: within what it returns a finished round is recorded and saved; it may hold
                back the signals that would end the run in the middle of that.

        Raises:
            AllClientsFailedError: no client of a round returned anything.
        """
        federation = self.federation(grid, timeout, train_config)
        if service is not None:
            from strategies.server.elsewhere import Elsewhere

            assert self._given is not None, "a network that is cut needs prepare()"
            elsewhere = Elsewhere(service, self.client, self._given)
            federation = replace(federation, elsewhere=elsewhere)
        if federation.network is not None:
            federation.planner.check(federation.network.in_round(1))
        result = FlowerResult()
        state = resume_from or ServerState(arrays=messages.to_arrays(initial_arrays))
        if resume_from is None and evaluate_fn and (metrics := evaluate_fn(0, initial_arrays)):
            result.evaluate_metrics_serverapp[0] = metrics
        while state.round < num_rounds and not watch.is_over(state):
            started, number = time.perf_counter(), state.round + 1
            state = federation.enter(state)
            chosen = federation.choose(state)
            state, linked, alone = federation.train(state, chosen)
            results = by_partition(linked + alone)
            has_failed = bool(results) and all(one.update is None for one in results)
            if has_failed and not chosen.may_fail:
                raise all_failed(number, results)
            state = federation.aggregate(state, linked)
            evaluated, own = dict[str, float](), dict[int, float]()
            if number % self.rounds.evaluate_every == 0 or number == num_rounds:
                after = replace(state, round=number)
                if test is not None:
                    evaluated = federation.evaluate(after, chosen.alone, test)
                elif evaluate_fn is not None:
                    found = evaluate_fn(number, messages.to_record(state.arrays))
                    evaluated = dict(found or {})  # type: ignore[arg-type]
                if watch.test_clients is not None:
                    said, own = watch.test_clients(federation, after)
                    evaluated |= said
            report = self.method.report(federation.in_round(number), results, chosen.alone)
            report |= chosen.report
            wall_s = time.perf_counter() - started
            record = round_record(number, results, evaluated, report, wall_s, chosen.plan)
            record = replace(record, evaluated_on=watch.evaluated_on)
            state = replace(state, round=number, records=(*state.records, record))
            state = keeping_best(state) if watch.keeps_best else state
            with undisturbed():
                for sink in sinks:
                    sink.round(record, client_records(number, results, chosen.plan, own))
                if checkpoints is not None:
                    checkpoints.after(state, number if watch.is_over(state) else num_rounds)
            del linked, alone, results  # their arrays, before those of the next round come
            if evaluated:
                result.evaluate_metrics_serverapp[number] = MetricRecord(dict(evaluated))
            if record.train_loss is not None:
                loss = MetricRecord({messages.LOSS: record.train_loss})
                result.train_metrics_clientapp[number] = loss
        watch.at_end(federation, state)
        result.arrays = messages.to_record(state.arrays)
        return result

    def federation(
        self, grid: Grid, timeout: float = 3600, config: ConfigRecord | None = None
    ) -> Federation:
        """Ask every node which partition it holds and how much data, and return what a run needs.

        Raises:
            RuntimeError: the method needs `prepare`, which was not called.
            ValueError: two nodes hold the same partition, or there are more nodes than clients.
            RuntimeError: a node answers with an error, too few nodes come, or nobody has data.
        """
        needs = self.method.needs_prepare or ("a fleet" if self.rounds.fleet else "")
        if needs and self.network is None:
            raise RuntimeError(f"{needs} needs prepare() before start()")
        found = introductions(grid, self.rounds.num_clients, timeout)
        clients = Clients({p: who.num_examples for p, who in found.items()}, self.rounds.fleet)
        nodes = {partition: who.node for partition, who in found.items()}
        network = None if self.network is None else self.network.for_clients(clients)
        planner = Planner(self.method, self.rounds, clients)
        return Federation(
            self.method, self.rounds, clients, nodes, network, grid, timeout, dict(config or {}),
            planner,
        )  # fmt: skip

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message per chosen client, in the order of partition ids; for a loop of one's own.

        Raises:
            RuntimeError: clients do not all train at once, which only `start` can do.
        """
        if not isinstance(self.method.schedule, Parallel):
            raise RuntimeError(
                f"{type(self).__name__}: its clients do not all train at once; start() runs it"
            )
        federation = self._federation
        if federation is None or federation.grid is not grid:
            federation = self.federation(grid)
        federation = replace(federation, config=dict(config))
        state = ServerState(server_round - 1, messages.to_arrays(arrays), self._entered.extra)
        self._federation, self._entered = federation, federation.enter(state)
        chosen = federation.choose(self._entered)
        return federation.requests(
            self._entered, Start(self._entered.arrays, chosen.linked, told=chosen.told)
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the replies to `configure_train`, whatever order they came in."""
        federation, state = self._federation, self._entered
        if federation is None:
            raise RuntimeError("aggregate_train() comes after configure_train()")
        expected = forms(state.arrays)
        network, names = federation.in_round(server_round), self.method.wire.names
        partition_of = {node: partition for partition, node in federation.nodes.items()}
        results = [
            federation.result(
                Asked(partition, expected, network, names(network, partition), 0, state.arrays),
                reply,
            )
            for reply in replies
            for partition in [partition_of[reply.metadata.src_node_id]]
        ]
        results = by_partition(results)
        report_failures(server_round, results)
        updates = [result.update for result in results if result.update is not None]
        if not updates:
            return None, None
        self._entered = federation.aggregate(state, results)
        metrics = MetricRecord({messages.LOSS: train_loss(updates)})
        return messages.to_record(self._entered.arrays), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """None: the server evaluates."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """None: the server evaluates."""
        return None

    def summary(self) -> None:
        """Nothing: the run's folder says what runs."""
