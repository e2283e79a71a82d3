"""The one loop that runs any method: a Flower strategy made of a `Method`.

What Flower's own loop lacks: clients are drawn by partition id from a stream of their own (Flower's
node ids are random per run, and its sampling uses the global `random`); a simulated clock decides
beforehand who takes part; a round leaves a RoundRecord, and one ClientRecord per client; a client
that fails is shown with its traceback, counted, and takes no part in the average; if all fail, the
run ends with `AllClientsFailedError`; checkpoints are written and continued from.

A round is a function of the state with which it begins:

    choose      schedule and planner: who is there, fits and ends in time
    train       schedule: in parallel, or one handing on to the next; messages by the wire
    keep        private: what stays with its client
    aggregate   over those that hold an array, then the server optimizer

A method is a subclass that brings a constructor alone, which names the method's parts.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, Unpack

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result as FlowerResult
from flwr.serverapp.strategy import Strategy
from torch import nn

from fleet.seeds import derive_seed
from fleet.selection import BY_LOSS
from models.inputs import Inputs
from models.objective import TaskSettings
from models.trace import preserved_randomness, seed_all
from strategies import messages
from strategies.contract import (
    ClientHalf,
    Settings,
    Task,
    Update,
    check_arrays,
    check_report,
)
from strategies.server.best import keeping_best
from strategies.server.buffered import brought_up
from strategies.server.checkpoint import Checkpoints
from strategies.server.discovery import introductions
from strategies.server.losses import with_losses
from strategies.server.method import (
    Arrays,
    Chosen,
    Clients,
    Method,
    Network,
    Prepared,
    Result,
    RoundArguments,
    RoundSettings,
    ServerState,
    Start,
    Test,
    TestOf,
    Variant,
    parted,
)
from strategies.server.planner import Planner
from strategies.server.results import (
    all_failed,
    check_forms,
    client_records,
    forms,
    report_failures,
    round_record,
    train_loss,
)
from strategies.server.schedules import Parallel, scheduled
from strategies.server.spool import Spool
from strategies.server.watch import NOTHING, Watch
from tracking.record import Sink

if TYPE_CHECKING:  # websockets and cryptography, which simulations do without
    from strategies.server.elsewhere import Elsewhere
    from strategies.server.half_service import HalfService, OpenRound, Trained, Turn

Named = TypeVar("Named")
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass(frozen=True, eq=False)
class Federation:
    """One method on one grid: what stays the same over the rounds of a run.

    Attributes:
        method: its parts.
        rounds: how rounds go.
        clients: who there is.
        nodes: partition id → node id.
        network: prepared; None where the caller did not prepare it.
        grid: where the nodes are.
        timeout_s: how long a round waits for replies.
        config: what the caller sends to clients besides.
        planner: draws the clients of each round.
        elsewhere: makes the server's halves, where devices dial them; None has them beside the
            clients.
    """

    method: Method
    rounds: RoundSettings
    clients: Clients
    nodes: Mapping[int, int]
    network: Prepared | None
    grid: Grid
    timeout_s: float
    config: Mapping[str, Any]
    planner: Planner
    elsewhere: "Elsewhere | None" = None

    def in_round(self, server_round: int) -> Network | None:
        """The network of a round."""
        return None if self.network is None else self.network.in_round(server_round)

    def choose(self, state: ServerState) -> Chosen:
        """Draw the clients of the next round."""
        return self.method.schedule.choose(self.planner, self.network, state)

    def enter(self, state: ServerState) -> ServerState:
        """Return the state with which the next round begins."""
        if self.network is not None:
            state = self.network.enter(state, state.round + 1)
        return state if self.method.private is None else self.method.private.begin(state)

    def train(
        self, state: ServerState, chosen: Chosen
    ) -> tuple[ServerState, list[Result], list[Result]]:
        """Have a round's clients train.

        Returns:
            the state with what was handed on and what clients keep, the results of those that
            train with the server, and of those that train without a network.
        """
        number, network = state.round + 1, self.in_round(state.round + 1)

        entered = state

        def exchange(starts: Sequence[Start]) -> list[Result]:
            if self.elsewhere is None and any(start.in_turn for start in starts):
                return self.in_turn(entered, starts)
            return self.exchange(entered, starts)

        state, linked = self.method.schedule.run(state, network, chosen, exchange)
        linked = by_partition(linked)
        report_failures(number, linked)
        apart = Start(entered.arrays, chosen.alone)
        alone = by_partition(self.exchange(entered, [apart], is_alone=True))
        report_failures(number, alone)
        if self.method.private is not None and network is not None:
            state = self.method.private.keep(state, network, linked + alone, chosen.alone)
        if (fleet := self.clients.fleet) is not None and fleet.selection in BY_LOSS:
            state = with_losses(state, linked)
        return state, linked, alone

    def aggregate(self, state: ServerState, results: Sequence[Result]) -> ServerState:
        """Return the state with the next global model."""
        useful = [result for result in results if result.update is not None]
        network = self.in_round(state.round + 1)
        if self.method.private is not None and network is not None:
            useful = list(self.method.private.shared(network, self.clients, useful))
        trained = None if network is None else trained_names(network.model)
        useful = brought_up(useful, state.arrays, trained)
        return self.method.aggregate(state, useful, trained)

    def evaluate(self, state: ServerState, alone: Sequence[int], test: Test) -> dict[str, float]:
        """Accuracy, loss and the method's own of the state after a round.

        A network that draws random numbers draws the same ones whenever this state is evaluated.
        """
        number = max(1, state.round)
        network, seed = self.in_round(number), self.rounds.seed
        assert network is not None, "an evaluation by networks needs prepare()"
        with preserved_randomness():
            seed_all(derive_seed(seed, "evaluate", number))
            if self.method.private is None:
                return network.evaluate(tensors(state.arrays), test)
            return self.method.private.evaluate(state, network, self.clients, alone, seed, test)

    def evaluate_each(
        self, state: ServerState, partitions: Sequence[int], test_of: TestOf
    ) -> list[dict[str, float]]:
        """Test the state after a round on clients' own samples, in one pass or one for each."""
        number = max(1, state.round)
        network, private = self.in_round(number), self.method.private
        assert network is not None, "an evaluation by networks needs prepare()"
        with preserved_randomness():
            seed_all(derive_seed(self.rounds.seed, "evaluate", number))
            if private is not None:
                return private.evaluate_each(state, network, partitions, test_of)
            return network.evaluate_each(tensors(state.arrays), partitions, test_of)

    def alone(self, state: ServerState) -> Sequence[int]:
        """The clients that trained without a network in the last round of a state."""
        if self.method.outage is None or not state.round:
            return []
        return self.choose(replace(state, round=state.round - 1, records=state.records[:-1])).alone

    def in_turn(self, state: ServerState, starts: Sequence[Start]) -> list[Result]:
        """Have clients train one after another, handing on the server's part; one message each."""
        handed_on: Arrays = {}
        results = list[Result]()
        turns = [(start, partition) for start in starts for partition in start.partitions]
        for start, partition in turns:
            network = self.in_round(start.server_round or state.round + 1)
            assert network is not None, "a network that is cut needs prepare()"
            arrays = {**start.arrays, **handed_on}
            one = replace(start, arrays=arrays, partitions=[partition], in_turn=False)
            (result,) = self.exchange(state, [one])
            device, server = parted(network, result)
            handed_on = {**handed_on, **server}
            results.append(replace(result, arrays=device))
        return with_handed_on(results, handed_on)

    def exchange(
        self, state: ServerState, starts: Sequence[Start], *, is_alone: bool = False
    ) -> list[Result]:
        """Send a round's messages and return what came of each, in their order.

        Replies are taken one by one, as they come: together they may not fit into memory.
        """
        asked: dict[int, Asked] = {}  # by node
        sent: list[Message] = []
        turns: list[Turn] = []
        for start in starts:
            network = self.in_round(start.server_round or state.round + 1)
            whole = forms(start.arrays)
            sizes: dict[tuple[int, frozenset[str] | None], int] = {}  # most get the same
            messages_of = self.requests(state, start, is_alone=is_alone)
            for partition, message in zip(start.partitions, messages_of, strict=True):
                names = frozenset() if is_alone else self.method.wire.names(network, partition)
                key = id(message.content), names
                if key not in sizes:
                    arrays = messages.read_request(message)[0]
                    sizes[key] = messages.payload_bytes(arrays, names)
                expected = on_device(network, partition, whole) if is_alone else whole
                asked[self.nodes[partition]] = Asked(
                    partition, expected, network, names, sizes[key]
                )
                sent.append(message)
                if self.elsewhere is not None and not is_alone:
                    task = self.task(message, partition)
                    turns.append(self.elsewhere.turn(network, start.arrays, task))
        with self.invited(sent, turns, any(start.in_turn for start in starts)) as halves:
            return self.replies(state, sent, asked, halves)

    @contextmanager
    def invited(
        self, sent: Sequence[Message], turns: "Sequence[Turn]", in_turn: bool
    ) -> "Iterator[OpenRound | None]":
        """Open the server's halves to a round's devices, and tell each where to dial."""
        if self.elsewhere is None or not turns:
            yield None
            return
        with self.elsewhere.service.open_round(turns, in_turn) as (halves, invitations):
            for message, turn in zip(sent, turns, strict=True):
                invitation = invitations[turn.partition]
                message.content = messages.inviting(message.content, invitation)
            yield halves

    def replies(
        self,
        state: ServerState,
        sent: Sequence[Message],
        asked: Mapping[int, "Asked"],
        halves: "OpenRound | None",
    ) -> list[Result]:
        """Send messages and return what came of each, in the order of ``asked``."""
        size = sum(array.nbytes for array in state.arrays.values())
        spool = Spool(len(sent) * size)
        results: dict[int, Result] = {}
        for reply in self.grid.send_and_receive(sent, timeout=self.timeout_s):
            node = reply.metadata.src_node_id
            if node not in asked:  # it is gone, and its SuperLink answers for it
                node = answered_for(reply, sent)
            result = self.result(asked[node], reply, halves)
            results[node] = replace(result, arrays=spool.put(result.arrays))
        found = [results.get(node) or self.result(one, None) for node, one in asked.items()]
        if halves is None or not halves.in_turn:
            return found
        network = self.in_round(state.round + 1)
        assert network is not None, "a network that is cut needs prepare()"
        return after_turns(network, found, halves)

    def requests(
        self, state: ServerState, start: Start, *, is_alone: bool = False
    ) -> list[Message]:
        """One message per client; clients of one variant share its content."""
        number = start.server_round or state.round + 1
        network = self.in_round(number)
        settings = self.settings(number) | ({messages.ALONE: True} if is_alone else {})
        private = self.method.private if network is not None else None
        contents: dict[Variant, RecordDict] = {}
        sent: list[Message] = []
        for partition in start.partitions:
            variant = () if network is None else network.variant(partition)
            variant += start.told.get(partition, ())
            own: Arrays = {}
            if private is not None and network is not None:
                own = private.own(state, network, partition)
            content = contents.get(variant) if not own else None
            if content is None:
                arrays = self.method.wire.encode(
                    network, {**start.arrays, **own}, partition, number, self.rounds.seed
                )
                if is_alone or self.elsewhere is not None:
                    arrays = on_device(network, partition, arrays)
                config = ConfigRecord({**settings, **dict(variant)})
                content = messages.request(messages.to_record(arrays), config, number)
                if not own:
                    contents[variant] = content
            sent.append(
                Message(
                    content=content,
                    message_type=MessageType.TRAIN,
                    dst_node_id=self.nodes[partition],
                )
            )
        return sent

    def settings(self, server_round: int) -> dict[str, Any]:
        """What every client of a round is told."""
        told = settings_of(self.method, self.rounds, self.network, server_round)
        return {**told, messages.SEED: self.rounds.seed, **self.config}

    def task(self, message: Message, partition: int) -> Task:
        """What a message tells its client to do."""
        _, config, number = messages.read_request(message)
        return messages.task_of(config, number, partition, self.clients.num_examples[partition])

    def result(
        self, asked: "Asked", reply: Message | None, halves: "OpenRound | None" = None
    ) -> Result:
        """Return what came of a client; ``reply`` is None where it did not answer."""
        partition, sent_bytes = asked.partition, asked.sent_bytes
        result = Result(partition, self.clients.num_examples[partition], bytes_down=sent_bytes)
        if reply is None:
            return replace(result, error="no answer in time")
        if reply.has_error():
            return replace(result, error=messages.why(reply))
        try:
            update = messages.read_reply(reply)
            if halves is not None:
                update = completed(update, halves.take(partition))
            check_report(update, result.num_examples)
            arrays, masks = self.method.wire.decode(asked.network, update.arrays, partition)
            check_forms(arrays, asked.expected)
            check_arrays(arrays)
        except Exception as problem:  # a stranger's bytes fail to be read in any way
            return replace(result, error=f"its reply cannot be used: {problem!r}")
        return replace(
            result,
            bytes_up=update.bytes_up + messages.update_bytes(update, asked.names),
            bytes_down=update.bytes_down + sent_bytes,
            update=replace(update, arrays={}),
            arrays=arrays,
            masks=masks,
        )


@dataclass(frozen=True)
class Asked:
    """What a client was sent, and what its answer must be like.

    Attributes:
        partition: the client.
        expected: `forms` of the arrays from which it began.
        network: that it trains.
        names: of the arrays that cross the network; None for all.
        sent_bytes: of those that it was sent.
    """

    partition: int
    expected: Mapping[str, str]
    network: Network | None
    names: frozenset[str] | None
    sent_bytes: int


def answered_for(reply: Message, sent: Sequence[Message]) -> int:
    """The node of the message to which somebody else replied."""
    of = {one.metadata.message_id: one.metadata.dst_node_id for one in sent}
    return of[reply.metadata.reply_to_message_id]


def completed(update: Update, trained: "Trained") -> Update:
    """Return a device's update with the server's half of it, whose bytes the server counted."""
    arrays = {**update.arrays, **trained.arrays}
    up, down = trained.bytes_up, trained.bytes_down
    return replace(update, arrays=arrays, bytes_up=up, bytes_down=down)


def after_turns(network: Network, results: Sequence[Result], halves: "OpenRound") -> list[Result]:
    """Return the results of clients from one to the next of whom the server's part went.

    The last has it as it was left. Where a client's reply is lost after its turn had ended, the
    part that others went on from keeps its steps, and the client's error says so.
    """
    left = list[Result]()
    for result in results:
        error = result.error
        if error is not None and halves.has_ended(result.partition):
            error = f"{error.rstrip()}; its turn had ended: the server's half keeps its steps"
        left.append(replace(result, arrays=parted(network, result)[0], error=error))
    return with_handed_on(left, {n: tensor.numpy() for n, tensor in halves.handed_on.items()})


def with_handed_on(results: Sequence[Result], server: Arrays) -> list[Result]:
    """Give the last of clients in turn the server's part as it was left."""
    last = (replace(result, arrays={**server, **result.arrays}) for result in results[-1:])
    return [*results[:-1], *last]


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
                Asked(partition, expected, network, names(network, partition), 0), reply
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


def settings_of(
    method: Method, rounds: RoundSettings, network: Prepared | None, server_round: int
) -> Settings:
    """Return what a method has every client of a round know: training, network, wire, its own."""
    return {
        **messages.pack_settings(train=rounds.train.in_round(server_round)),
        **({} if rounds.task == TaskSettings() else messages.pack_settings(task=rounds.task)),
        **({} if network is None else network.in_round(server_round).settings),
        **method.wire.settings,
        **method.settings,
    }


def by_partition(results: Iterable[Result]) -> list[Result]:
    """Return results in the order of partition ids, whatever order they came in."""
    return sorted(results, key=lambda result: result.partition)


def trained_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters that train, which is all a server optimizer touches."""
    named = model.named_parameters(remove_duplicate=False)
    return [name for name, parameter in named if parameter.requires_grad]


def on_device(
    network: Network | None, partition: int, named: Mapping[str, Named]
) -> dict[str, Named]:
    """Return those of what has the names of arrays that are on a client's device."""
    names = None if network is None else network.on_device(partition)
    return {name: one for name, one in named.items() if names is None or name in names}


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """Return the same as tensors that share their memory."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
