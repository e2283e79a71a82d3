"""A method on a grid, over the rounds of a run: what a round does with the state.

    choose      schedule and planner: who is there, fits and ends in time
    enter       network and private parts: the state with which the round begins
    train       schedule: in parallel, or one handing on to the next; messages by the wire;
                private: what stays with its client
    aggregate   over those that hold an array, then the server optimizer
    evaluate    the network of the round, which changes nothing

Each is a function of a `ServerState`; `strategies.server.loop` says when.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import nn

from fleet.seeds import derive_seed
from fleet.selection import BY_LOSS
from models.objective import TaskSettings
from models.trace import preserved_randomness, seed_all
from strategies import messages
from strategies.blocks import Block, Form
from strategies.contract import Settings, Task, Update, check_arrays, check_report
from strategies.server.buffered import brought_up
from strategies.server.losses import with_losses
from strategies.server.method import (
    Arrays,
    Chosen,
    Clients,
    Method,
    Network,
    Prepared,
    Result,
    RoundSettings,
    ServerState,
    Start,
    Test,
    TestOf,
    Variant,
    parted,
)
from strategies.server.planner import Planner
from strategies.server.results import check_forms, forms, report_failures
from strategies.server.spool import Spool

if TYPE_CHECKING:  # websockets and cryptography, which simulations do without
    from strategies.server.elsewhere import Elsewhere
    from strategies.server.half_service import OpenRound, Trained, Turn

Named = TypeVar("Named")


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
                    partition, expected, network, names, sizes[key], start.arrays
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
            kept = spool.put(result.arrays)
            results[node] = result if kept is result.arrays else replace(result, arrays=kept)
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
        importance = 1.0 if asked.network is None else asked.network.importance(partition)
        num_examples = self.clients.num_examples[partition]

        def failed(why: str) -> Result:
            return Result(
                partition, num_examples, bytes_down=sent_bytes, discount=importance, error=why
            )

        if reply is None:
            return failed("no answer in time")
        if reply.has_error():
            return failed(messages.why(reply))
        try:
            update = messages.read_reply(reply)
            if halves is not None:
                update = completed(update, halves.take(partition))
            check_report(update, num_examples)
            arrays, masks = self.method.wire.decode(
                asked.network, update.arrays, partition, asked.began
            )
            check_forms(arrays, asked.expected)
            if forms(arrays) is not asked.expected:  # they came in another order
                arrays = {name: arrays[name] for name in asked.expected}
            block = Block.of(arrays)
            check_arrays(block)
        except Exception as problem:  # a stranger's bytes fail to be read in any way
            return failed(f"its reply cannot be used: {problem!r}")
        return Result(
            partition,
            num_examples,
            bytes_up=update.bytes_up + messages.update_bytes(update, asked.names),
            bytes_down=update.bytes_down + sent_bytes,
            discount=importance,
            update=replace(update, arrays={}),
            arrays=block,
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
        began: the global model of which it was sent its part.
    """

    partition: int
    expected: Mapping[str, Form]
    network: Network | None
    names: frozenset[str] | None
    sent_bytes: int
    began: Arrays


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
