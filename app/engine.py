"""Grids that host our ClientApp without Flower's simulation runtime: in Ray actors, or in-process.

Flower's simulation polls, starts its actors for each run and sends the model with every message;
`flwr run` besides builds an environment per run. Here the actors live as long as the sweep, a
round's model is put into Ray's object store once, several clients go into one actor call, and an
actor that dies is replaced and its clients are run again.

What Flower does not publish (task identity, message ids, runs) is in `app.runtime`.
"""

import itertools
import logging
import math
import time
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from flwr.app import Context, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from ray.exceptions import RayError, RayTaskError

from app import client, experiment, ray_session, runtime, server, signals
from app.experiment import Experiment, Prepared
from app.ray_session import RaySession
from app.time_limit import GRACE_S, TimeLimit, TimeLimitError
from strategies import messages
from tracking.progress import ProgressSink, Show

CLIENTS_PER_CALL = 10  # measured.md: beyond this nothing is gained
BYTES_PER_CALL = 64 << 20  # of what is sent; as much comes back at once
CALLS_IN_FLIGHT = 2  # per actor, so that it never waits for the driver
MAX_DEATHS = 2  # of its actor, before a client is given up
START_S = 600.0  # that a worker may take to start and to load data, before its first client

log = logging.getLogger(__name__)


class LocalGrid(Grid):
    """What both grids share: nodes, ids and messages. Node ids are the partition ids, from 0.

    Args:
        num_nodes: how many clients there are.
        run_config: what the ClientApp finds in its context.
    """

    _run_ids = itertools.count(1)

    def __init__(self, num_nodes: int, run_config: Mapping[str, Any]) -> None:
        self._run = runtime.start_run(next(self._run_ids))
        self._num_nodes = num_nodes
        self._run_config = dict(run_config)
        self._message_ids = itertools.count(1)
        self._replies: dict[str, Message] = {}

    def set_run(self, run: runtime.Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> runtime.Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message to a node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes; they are always there."""
        return range(self._num_nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run the messages now and keep the replies for `pull_messages`."""
        sent = list(messages)
        for reply in self.send_and_receive(sent):
            self._replies[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand out the replies to these messages, each once."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Run the messages and hand out each reply when it is there, in any order.

        Nothing runs before the first is asked for, and nothing that was handed out is kept. Replies
        that are not there after ``timeout`` seconds are left out; SerialGrid, which runs one client
        after another in this process, waits for all.
        """
        sent = list(messages)
        for message in sent:
            runtime.number(message, str(next(self._message_ids)))
        return self._execute(sent, timeout)

    @abstractmethod
    def _execute(self, sent: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        """Run messages that have ids."""

    def _context(self, node: int) -> Context:
        return make_context(self._run.run_id, node, self._num_nodes, self._run_config)


def make_context(run_id: int, node: int, num_nodes: int, run_config: Mapping[str, Any]) -> Context:
    """Return the context of one client, as Flower's runtimes make it."""
    return Context(
        run_id=run_id,
        node_id=node,
        node_config={"partition-id": node, "num-partitions": num_nodes},
        state=RecordDict(),
        run_config=dict(run_config),
    )


class SerialGrid(LocalGrid):
    """Runs every client in this process, one after another: for tests and debuggers."""

    def __init__(
        self, num_nodes: int, run_config: Mapping[str, Any], app: ClientApp = client.app
    ) -> None:
        super().__init__(num_nodes, run_config)
        self._app = app

    def _execute(self, sent: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        for message in sent:
            try:
                yield answer(self._app, message, self._context(_node(message)))
            except TimeLimitError as error:
                yield messages.error_reply(message, error)


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """Run the app; what it raises becomes an error reply with the traceback.

    Raises:
        TimeLimitError: the client took too long; there is no saying what it was amidst.
        KeyboardInterrupt: the user's, or for all that can be told so.
    """
    try:
        return app(message, context)
    except (TimeLimitError, KeyboardInterrupt):
        raise
    except BaseException as error:
        return messages.error_reply(message, error)


def _node(message: Message) -> int:
    return message.metadata.dst_node_id


# Ray ----------------------------------------------------------------------------------------------


class Worker:
    """A Ray actor that runs clients; data and network stay in its process."""

    def __init__(self) -> None:
        self._contents: dict[str, RecordDict] = {}
        self._is_spent = False

    def handle(
        self,
        contents: Mapping[str, "ray.ObjectRef[RecordDict]"],
        jobs: Sequence[tuple[str, Metadata]],
        num_nodes: int,
        run_config: Mapping[str, Any],
    ) -> list[Message]:
        """Run several clients.

        Args:
            contents: where each distinct content lies, by a key.
            jobs: key of the content and metadata of each message.
            num_nodes: clients in the run.
            run_config: what the ClientApp finds in its context.

        Returns:
            The replies in the order of the jobs. After a client that took too long this process
            runs no other: the replies end with that client's, and of later calls there are none.
        """
        # Contents of the call before are kept: in most rounds all clients get the same one.
        self._contents = {
            key: self._contents[key] if key in self._contents else ray.get(reference)
            for key, reference in contents.items()
        }
        replies: list[Message] = []
        for key, metadata in jobs:
            if self._is_spent:
                break
            message = runtime.rebuild(self._contents[key], metadata)
            context = make_context(metadata.run_id, metadata.dst_node_id, num_nodes, run_config)
            try:
                replies.append(answer(client.app, message, context))
            except (TimeLimitError, KeyboardInterrupt) as error:  # a worker's user is elsewhere
                replies.append(messages.error_reply(message, error))
                self._is_spent = isinstance(error, TimeLimitError)
        return replies


class Workers:
    """A pool of actors, started when first used; one pool serves all jobs of a sweep.

    Args:
        count: how many; None takes one per core of the machine or cluster.
        address: of an existing Ray cluster; None starts one here.
    """

    def __init__(self, count: int | None = None, address: str | None = None) -> None:
        self.count = count
        self.address = address
        self._session: RaySession | None = None  # where Ray was started here
        self.actors: list[Any] = []  # ray.actor.ActorHandle, which knows no methods

    def start(self) -> None:
        """Start Ray and the actors, unless they run already."""
        if self.actors:
            return
        if not ray.is_initialized():
            with signals.shielded():  # Ray puts handlers of its own in the place of ours
                self._session = ray_session.start(self.count, self.address)
        available = int(ray.cluster_resources().get("CPU", 1))
        count = self.count or max(1, available)
        if count > available:
            raise ValueError(f"engine.workers={count}: the cluster has {available} CPUs")
        self.actors = [self._new_actor() for _ in range(count)]

    def replace(self, index: int) -> None:
        """Put a new actor in the place of one that died or hangs."""
        ray.kill(self.actors[index])
        self.actors[index] = self._new_actor()

    def close(self) -> None:
        """End the actors, and Ray if it is ours."""
        for actor in self.actors if ray.is_initialized() else []:
            ray.kill(actor)
        self.actors = []
        if self._session is not None:
            self._session.close()
            self._session = None

    def _new_actor(self) -> Any:
        return ray.remote(num_cpus=1)(Worker).remote()


@dataclass
class _Call:
    """Clients that go to an actor together; ``deaths`` counts actors that died over them."""

    indices: list[int]
    deaths: int = 0


@dataclass
class _Round:
    """The state of one `send_and_receive`.

    Attributes:
        sent: its messages; clients are known by their place in it.
        contents: where each distinct content lies, by a key.
        keys: of the content of each message.
        queue: what no actor has yet.
        replies: those that are to be handed out.
        flying: what actors have: which one, and its clients.
        heard: when each actor was last idle or answered.
    """

    sent: Sequence[Message]
    contents: dict[str, "ray.ObjectRef[RecordDict]"]
    keys: list[str]
    queue: deque[_Call]
    replies: deque[Message] = field(default_factory=deque)
    flying: dict[Any, tuple[int, _Call]] = field(default_factory=dict)
    heard: dict[int, float] = field(default_factory=dict)


class RayGrid(LocalGrid):
    """Runs clients in a pool of actors.

    Args:
        num_nodes: how many clients there are.
        run_config: what the ClientApp finds in its context.
        workers: the pool.
        limit_s: seconds that a client may train; None for no limit.
    """

    def __init__(
        self,
        num_nodes: int,
        run_config: Mapping[str, Any],
        workers: Workers,
        limit_s: float | None = None,
    ) -> None:
        limit = TimeLimit(limit_s, ends_process=True)
        super().__init__(num_nodes, {**run_config, client.LIMIT: limit})
        self._workers = workers
        self._limit_s = limit_s
        workers.start()

    def _execute(self, sent: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        state = self._plan(sent)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while state.queue or state.flying:
            self._fill(state)
            if not self._advance(state, deadline):
                return
            while state.replies:
                yield state.replies.popleft()

    def _advance(self, state: _Round, deadline: float) -> bool:
        """Wait for a call to end, and take what it answers; whether it is before ``deadline``."""
        due = self._due(state)
        until = min([deadline, *due.values()])
        ready, _ = ray.wait(
            list(state.flying),
            num_returns=1,
            timeout=None if until == math.inf else max(0, until - time.monotonic()),
        )
        for reference in ready:
            if reference in state.flying:  # a dead actor's other calls are gone already
                self._collect(state, reference)
        if ready:
            return True
        if time.monotonic() >= deadline:
            for index in {index for index, _ in state.flying.values()}:
                self._workers.replace(index)
            return False
        for index, when in due.items():
            if time.monotonic() >= when:
                ray.kill(self._workers.actors[index])
                self._recover(state, index)
        return True

    def _plan(self, sent: Sequence[Message]) -> _Round:
        """Put each distinct content into the object store once, and group the clients.

        A reply is about as large as what was sent: with a large model few clients share a call.
        """
        keys = [str(id(message.content)) for message in sent]
        distinct = {key: message.content for key, message in zip(keys, sent, strict=True)}
        # A key must not come again with another content while a worker remembers it.
        token = f"{self._run.run_id}/{sent[0].metadata.message_id}/" if sent else ""
        contents = {token + key: ray.put(content) for key, content in distinct.items()}
        largest = max((_num_bytes(content) for content in distinct.values()), default=0)
        per_call = len(sent) // (len(self._workers.actors) * CALLS_IN_FLIGHT * 2)
        per_call = max(1, min(CLIENTS_PER_CALL, per_call, BYTES_PER_CALL // max(1, largest)))
        indices = range(len(sent))
        calls = [_Call(list(indices[i : i + per_call])) for i in range(0, len(sent), per_call)]
        return _Round(sent, contents, [token + key for key in keys], deque(calls))

    def _fill(self, state: _Round) -> None:
        """Give work to every actor that has room for it, and to a suspect an actor of its own."""
        busy = Counter(index for index, _ in state.flying.values())
        taken = {index for index, call in state.flying.values() if call.deaths}
        for _ in range(CALLS_IN_FLIGHT):
            for index, actor in enumerate(self._workers.actors):
                is_suspect = bool(state.queue) and state.queue[0].deaths > 0
                room = 1 if is_suspect else CALLS_IN_FLIGHT
                if not state.queue or index in taken or busy[index] >= room:
                    continue
                if is_suspect:
                    taken.add(index)
                if not busy[index]:
                    state.heard[index] = time.monotonic()
                call = state.queue.popleft()
                reference = actor.handle.remote(
                    {state.keys[i]: state.contents[state.keys[i]] for i in call.indices},
                    [(state.keys[i], state.sent[i].metadata) for i in call.indices],
                    self._num_nodes,
                    self._run_config,
                )
                state.flying[reference] = (index, call)
                busy[index] += 1

    def _collect(self, state: _Round, reference: Any) -> None:
        """Take a call's replies; if its actor is dead or spent, replace it and queue the rest."""
        index, call = state.flying[reference]
        try:
            rest = self._take(state, reference, call)
        except RayError:
            self._recover(state, index)
            return
        del state.flying[reference]
        state.heard[index] = time.monotonic()
        if rest.indices:
            behind = [other for owner, other in state.flying.values() if owner == index]
            state.flying = {r: it for r, it in state.flying.items() if it[0] != index}
            state.queue.extendleft(reversed([rest, *behind]))
            self._workers.replace(index)

    def _take(self, state: _Round, reference: Any, call: _Call) -> _Call:
        """Take a call's replies and return those of its clients that the actor did not run."""
        try:
            replies = ray.get(reference)
        except RayTaskError as error:
            replies = [messages.error_reply(state.sent[i], error) for i in call.indices]
        state.replies.extend(replies)
        return _Call(call.indices[len(replies) :], call.deaths)

    def _due(self, state: _Round) -> dict[int, float]:
        """When each busy actor is to be ended from here, because it does not even end itself."""
        if self._limit_s is None:
            return {}
        first = dict(reversed(state.flying.values()))  # of each actor's calls
        per_client = self._limit_s + 2 * GRACE_S
        return {
            index: state.heard[index] + START_S + len(call.indices) * per_client
            for index, call in first.items()
        }

    def _recover(self, state: _Round, index: int) -> None:
        """Replace a dead actor; of its calls the first without replies is suspect.

        It took them in the order in which they were sent, and they fail in any order. The suspect
        may be innocent: replies of a moment before the death are lost with it. So it runs again
        alone, where nobody else can end its actor.
        """
        lost: list[tuple[_Call, RayError]] = []
        mine = [(ref, call) for ref, (owner, call) in state.flying.items() if owner == index]
        for reference, call in mine:
            del state.flying[reference]
            try:
                self._take(state, reference, call)
            except RayError as error:
                lost.append((call, error))
        (call, death), *behind = lost
        clients = ", ".join(str(_node(state.sent[i])) for i in call.indices)
        reason = str(death).splitlines()[0]
        log.warning("a worker died while it ran client %s; run again: %s", clients, reason)
        self._workers.replace(index)
        state.queue.extendleft(other for other, _ in reversed(behind))
        deaths = call.deaths + 1
        if len(call.indices) > 1:
            state.queue.extendleft(_Call([i], deaths) for i in reversed(call.indices))
        elif deaths < MAX_DEATHS:
            state.queue.appendleft(_Call(call.indices, deaths))
        else:
            (lost_one,) = call.indices
            text = f"its worker died {deaths} times: {reason}"
            state.replies.append(runtime.unknown_error(state.sent[lost_one], text))


def _num_bytes(content: RecordDict) -> int:
    return sum(messages.payload_bytes(record) for record in content.array_records.values())


# A whole run --------------------------------------------------------------------------------------


class Simulator:
    """Runs experiments one after another, on one pool of workers."""

    def __init__(self) -> None:
        self._workers: Workers | None = None

    def run(
        self,
        chosen: Experiment,
        folder: Path,
        group: str = "",
        show: Show = ProgressSink,
        prepared: Prepared | None = None,
    ) -> dict[str, Any]:
        """Simulate one experiment; arguments and result as `app.server.run`."""
        experiment.division(chosen)  # prepared here, so that the workers find it in the cache
        # Each client has its limit; a round takes as long as its clients do.
        return server.run(
            chosen, self._grid(chosen), folder, group, show, prepared, timeout_s=math.inf
        )

    def close(self) -> None:
        """End the workers."""
        if self._workers is not None:
            self._workers.close()

    def _grid(self, chosen: Experiment) -> LocalGrid:
        num_clients, engine = chosen.data.num_clients, chosen.engine
        run_config = experiment.run_config(chosen)
        if engine.name == "serial":
            limit = TimeLimit(engine.client_timeout_s)
            return SerialGrid(num_clients, {**run_config, client.LIMIT: limit})
        wanted = (engine.workers, engine.address)
        if self._workers is None or (self._workers.count, self._workers.address) != wanted:
            self.close()
            self._workers = Workers(*wanted)
        return RayGrid(num_clients, run_config, self._workers, engine.client_timeout_s)
