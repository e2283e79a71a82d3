"""A pool of Ray actors that run clients.

Flower's simulation polls, starts its actors for each run and sends the model with every message.
Here the actors live as long as the sweep, a round's model is put into Ray's object store once,
several clients go into one actor call, and an actor that dies is replaced and its clients are run
again. In somebody else's cluster (`app.cluster`) actors are spread over the machines, and code and
data are sent there; of a machine that goes away, the clients run on the others.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import ray
from flwr.app import Message
from ray.exceptions import RayError, RayTaskError

from app import ray_session, runtime, signals
from app.calls import CALLS_IN_FLIGHT, MAX_DEATHS, Call, Round
from app.cluster import Machines, node_id
from app.local_grid import node_of
from app.shipped_data import Sender
from app.worker import Worker
from strategies import messages

LOOK_S = 1.0  # how often somebody looks for machines while no actor has one
HEAD_LOOK_S = 10.0  # and whether a cluster's head is there
FAILING_S = 60.0  # in which no actor starts, before none is taken to
SAID_S = 30.0  # after which waiting for one is said

log = logging.getLogger(__name__)


class Actors:
    """Starts Ray and the actors, which come up by and by.

    Args:
        count: how many; None takes one per CPU that Ray counts.
        address: of an existing Ray cluster; None starts one here.
        gpus: share of a GPU that each takes; None shares all that there are.

    Raises:
        ValueError: there are fewer processors or GPUs, the cluster does not take us, or one of its
            machines has other libraries; names the key.
    """

    def __init__(
        self, count: int | None = None, address: str | None = None, gpus: float | None = 0.0
    ) -> None:
        self.actors: list[Any] = []  # handles, which know no methods
        self.machine_of: dict[int, str] = {}  # of each actor that has started
        self._coming: dict[int, Any] = {}  # what each actor that has not will answer
        self._failed_starts: list[float] = []  # when, in a row
        self._waits_since: float | None = None  # when no actor had anything to run
        self._is_said = False  # where they are
        self._machines: Machines | None = None  # of somebody else's cluster
        self._session = ray_session.start_once(count, address)
        try:
            if address is not None:
                self._machines = Machines(address)
                self._machines.check()
            resources = ray.cluster_resources()
            available = int(resources.get("CPU", 1))
            wanted = count or max(1, available)
            if wanted > available:
                raise ValueError(f"engine.workers={count}: the cluster has {available} CPUs")
            there = float(resources.get("GPU", 0))
            if count is None and gpus and gpus <= there:
                wanted = min(wanted, int(there / gpus))  # as many as have room
            self._gpus = there / wanted if gpus is None else gpus
            if self._gpus * wanted > there + 1e-6:
                raise ValueError(
                    f"engine.gpus_per_worker={gpus}: {wanted} workers take "
                    f"{self._gpus * wanted:g} GPUs, the cluster has {there:g}"
                )
        except BaseException:
            self.close()
            raise
        self._sender = Sender(ray.put)
        self.actors = [self._new() for _ in range(wanted)]
        self._coming = {index: one.is_there.remote() for index, one in enumerate(self.actors)}

    def are_there(self) -> bool:
        """Whether all have started."""
        if self._coming:
            self._greet(0)
        return not self._coming

    def run(self, state: Round) -> Iterator[Message]:
        """Run what is queued, and hand out each reply when it is there."""
        if self._machines is not None:
            state.run_config = self._sender.run_config(state.run_config)
        state.references = {key: ray.put(content) for key, content in state.contents.items()}
        while state.queue or state.flying:
            self._fill(state)
            try:
                is_in_time = self._advance(state)
            except KeyboardInterrupt:  # which Ray makes of any signal's exception
                signals.check()
                raise
            if not is_in_time:
                return
            while state.replies:
                yield state.replies.popleft()

    def replace(self, index: int) -> None:
        """Put a new actor in the place of one that died or hangs."""
        ray.kill(self.actors[index])
        self.machine_of.pop(index, None)
        self.actors[index] = self._new()
        self._coming[index] = self.actors[index].is_there.remote()  # no work before it answers

    def close(self) -> None:
        """End the actors, and Ray if it is ours."""
        is_headless = self._machines is not None and self._machines.is_headless
        for actor in self.actors if ray.is_initialized() and not is_headless else []:
            ray.kill(actor)
        self.actors = []
        if self._session is not None:
            self._session.close()
            self._session = None

    def _new(self) -> Any:
        """Start an actor; on somebody else's machines they do not crowd on a few."""
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": self._gpus}
        if self._machines is not None:
            options["scheduling_strategy"] = "SPREAD"
        return ray.remote(**options)(Worker).remote(ray.get, node_id)

    def _greet(self, timeout_s: float | None) -> None:
        """Take what starting actors have answered, and start those anew that did not start.

        Raises:
            RuntimeError: none starts.
            ValueError: one is on a machine with other libraries; names engine.address.
        """
        coming = list(self._coming.values())
        ready, _ = ray.wait(coming, num_returns=len(coming), timeout=timeout_s)
        for index, reference in list(self._coming.items()):
            if reference not in ready:
                continue
            del self._coming[index]
            try:
                self.machine_of[index] = ray.get(reference)
                self._failed_starts = []
                self._say_where()
            except RayError as error:
                now = time.monotonic()
                self._failed_starts.append(now)
                many = len(self._failed_starts) > MAX_DEATHS * len(self.actors)
                if many and now - self._failed_starts[0] > FAILING_S:
                    reason = str(error).strip().splitlines()[0]
                    raise RuntimeError(f"no worker can be started: {reason}") from error
                self.replace(index)
            else:
                if self._machines is not None:  # it may have come after the others were checked
                    self._machines.check([self.machine_of[index]])

    def _say_where(self) -> None:
        """Once all have started in somebody else's cluster: on how many machines they are."""
        if self._machines is not None and not (self._coming or self._is_said):
            self._is_said = True
            log.info(
                "engine.address=%s: %d workers on %d machines",
                self._machines.address, len(self.actors), len(set(self.machine_of.values())),
            )  # fmt: skip

    def _advance(self, state: Round) -> bool:
        """Wait for a call to end, and take what it answers; whether it is before the deadline."""
        due = self._due(state)
        until = min([state.deadline, *due.values()])
        if not state.flying:
            until = min(until, time.monotonic() + LOOK_S)
        if self._machines is not None:
            until = min(until, time.monotonic() + HEAD_LOOK_S)
        ready, _ = ray.wait(
            [*state.flying, *self._coming.values()],
            num_returns=1,
            timeout=None if until == math.inf else max(0, until - time.monotonic()),
        )
        for reference in ready:
            if reference in state.flying:  # a dead actor's other calls are gone already
                self._collect(state, reference)
        if self._coming:
            self._greet(0)
        if ready:
            self._waits_since = None
            return True
        if time.monotonic() >= state.deadline:
            for index in {index for index, _ in state.flying.values()}:
                self.replace(index)
            return False
        for index, when in due.items():
            if time.monotonic() >= when:
                ray.kill(self.actors[index])
                self._recover(state, index)
        if self._machines is not None and self._machines.has_head():
            self._wait(self._machines, is_idle=not state.flying)
        return True

    def _wait(self, machines: Machines, is_idle: bool) -> None:
        """Where no actor has started, see that there is a machine to wait for.

        Raises:
            NoMachineError: there is none.
        """
        if not is_idle:
            self._waits_since = None
            return
        machines.require()
        now = time.monotonic()
        if self._waits_since is None:
            self._waits_since = now
        elif self._waits_since + SAID_S < now < math.inf:
            log.warning("engine.address=%s: others use all CPUs; waiting", machines.address)
            self._waits_since = math.inf  # said

    def _fill(self, state: Round) -> None:
        """Give work to every actor that has room for it, and to a suspect an actor of its own."""
        busy = Counter(index for index, _ in state.flying.values())
        taken = {index for index, call in state.flying.values() if call.deaths}
        for _ in range(CALLS_IN_FLIGHT):
            for index, actor in enumerate(self.actors):
                if index in self._coming:
                    continue
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
                    {state.keys[i]: state.references[state.keys[i]] for i in call.indices},
                    state.jobs(call),
                    state.num_nodes,
                    state.run_config,
                )
                state.flying[reference] = (index, call)
                busy[index] += 1

    def _collect(self, state: Round, reference: Any) -> None:
        """Take a call's replies; if its actor is dead or spent, replace it and queue the rest."""
        index, call = state.flying[reference]
        try:
            rest = self._take(state, reference, index, call)
        except RayError:
            self._recover(state, index)
            return
        del state.flying[reference]
        state.heard[index] = time.monotonic()
        if rest.indices:
            behind = [other for owner, other in state.flying.values() if owner == index]
            state.flying = {r: it for r, it in state.flying.items() if it[0] != index}
            state.queue.extendleft(reversed([rest, *behind]))
            self.replace(index)

    def _take(self, state: Round, reference: Any, index: int, call: Call) -> Call:
        """Take a call's replies and return those of its clients that the actor did not run.

        What a client raises is its reply, so that a call fails over what we do around it. An actor
        may outlive its machine's Ray by a moment, in which it reaches nothing.

        Raises:
            RayError: the actor or its machine is gone.
        """
        try:
            replies = ray.get(reference)
        except RayTaskError as error:
            if self._is_on_lost_machine(index):
                raise
            replies = [messages.error_reply(state.sent[i], error) for i in call.indices]
        state.replies.extend(replies)
        return Call(call.indices[len(replies) :], call.deaths)

    def _is_on_lost_machine(self, index: int) -> bool:
        machine = self.machine_of.get(index)
        return (
            self._machines is not None and machine is not None and self._machines.is_lost(machine)
        )

    def _due(self, state: Round) -> dict[int, float]:
        """When each busy actor is to be ended from here, because it does not even end itself."""
        if state.limit_s is None:
            return {}
        first = dict(reversed(state.flying.values()))  # of each actor's calls
        return {index: state.heard[index] + state.longest_s(call) for index, call in first.items()}

    def _recover(self, state: Round, index: int) -> None:
        """Replace a dead actor; of its calls the first without replies is suspect.

        It took them in the order in which they were sent, and they fail in any order. The suspect
        may be innocent: replies of a moment before the death are lost with it. So it runs again
        alone, where nobody else can end its actor.
        """
        if self._machines is not None:
            self._machines.wait_for_head()
        lost: list[tuple[Call, RayError]] = []
        mine = [(ref, call) for ref, (owner, call) in state.flying.items() if owner == index]
        for reference, call in mine:
            del state.flying[reference]
            try:
                self._take(state, reference, index, call)
            except RayError as error:
                lost.append((call, error))
        if self._is_on_lost_machine(index):
            self.replace(index)
            state.queue.extendleft(call for call, _ in reversed(lost))  # nobody's fault
            return
        (call, death), *behind = lost
        clients = ", ".join(str(node_of(state.sent[i])) for i in call.indices)
        reason = str(death).splitlines()[0]
        log.warning("a worker died while it ran client %s; run again: %s", clients, reason)
        self.replace(index)
        state.queue.extendleft(other for other, _ in reversed(behind))
        deaths = call.deaths + 1
        if len(call.indices) > 1:
            state.queue.extendleft(Call([i], deaths) for i in reversed(call.indices))
        elif deaths < MAX_DEATHS:
            state.queue.appendleft(Call(call.indices, deaths))
        else:
            (lost_one,) = call.indices
            text = f"its worker died {deaths} times: {reason}"
            state.replies.append(runtime.unknown_error(state.sent[lost_one], text))
