"""A pool of Ray actors that run clients.

Flower's simulation polls, starts its actors for each run and sends the model with every message.
Here the actors live as long as the sweep, a round's model is put into Ray's object store once,
several clients go into one actor call, and an actor that dies is replaced and its clients are run
again.
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

from app import ray_session, runtime
from app.calls import CALLS_IN_FLIGHT, MAX_DEATHS, Call, Round
from app.local_grid import node_of
from app.worker import Worker
from strategies import messages

log = logging.getLogger(__name__)


class Actors:
    """Starts Ray and the actors, which come up by and by.

    Args:
        count: how many; None takes one per core of the machine or cluster.
        address: of an existing Ray cluster; None starts one here.
        gpus: share of a GPU that each takes; None shares all that there are.

    Raises:
        ValueError: there are fewer processors or GPUs, or the cluster does not take us; names
            the key.
    """

    def __init__(
        self, count: int | None = None, address: str | None = None, gpus: float | None = 0.0
    ) -> None:
        self.actors: list[Any] = []  # handles, which know no methods
        self._session = ray_session.start_once(count, address)
        resources = ray.cluster_resources()
        available = int(resources.get("CPU", 1))
        wanted = count or max(1, available)
        if wanted > available:
            self.close()
            raise ValueError(f"engine.workers={count}: the cluster has {available} CPUs")
        there = float(resources.get("GPU", 0))
        self._gpus = there / wanted if gpus is None else gpus
        if self._gpus * wanted > there + 1e-6 and count is None and there >= self._gpus:
            wanted = int(there / self._gpus)  # as many as have room
        if self._gpus * wanted > there + 1e-6:
            self.close()
            raise ValueError(
                f"engine.gpus_per_worker={gpus}: {wanted} workers take {self._gpus * wanted:g} "
                f"GPUs, the cluster has {there:g}"
            )
        self.actors = [self._new_actor() for _ in range(wanted)]
        self._coming = [actor.is_there.remote() for actor in self.actors]

    def are_there(self) -> bool:
        """Whether all have started."""
        if self._coming:
            _, self._coming = ray.wait(self._coming, num_returns=len(self._coming), timeout=0)
        return not self._coming

    def run(self, state: Round) -> Iterator[Message]:
        """Run what is queued, and hand out each reply when it is there."""
        state.references = {key: ray.put(content) for key, content in state.contents.items()}
        while state.queue or state.flying:
            self._fill(state)
            if not self._advance(state):
                return
            while state.replies:
                yield state.replies.popleft()

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
        return ray.remote(num_cpus=1, num_gpus=self._gpus)(Worker).remote(ray.get)

    def _advance(self, state: Round) -> bool:
        """Wait for a call to end, and take what it answers; whether it is before the deadline."""
        due = self._due(state)
        until = min([state.deadline, *due.values()])
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
        if time.monotonic() >= state.deadline:
            for index in {index for index, _ in state.flying.values()}:
                self.replace(index)
            return False
        for index, when in due.items():
            if time.monotonic() >= when:
                ray.kill(self.actors[index])
                self._recover(state, index)
        return True

    def _fill(self, state: Round) -> None:
        """Give work to every actor that has room for it, and to a suspect an actor of its own."""
        busy = Counter(index for index, _ in state.flying.values())
        taken = {index for index, call in state.flying.values() if call.deaths}
        for _ in range(CALLS_IN_FLIGHT):
            for index, actor in enumerate(self.actors):
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
            self.replace(index)

    def _take(self, state: Round, reference: Any, call: Call) -> Call:
        """Take a call's replies and return those of its clients that the actor did not run."""
        try:
            replies = ray.get(reference)
        except RayTaskError as error:
            replies = [messages.error_reply(state.sent[i], error) for i in call.indices]
        state.replies.extend(replies)
        return Call(call.indices[len(replies) :], call.deaths)

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
        lost: list[tuple[Call, RayError]] = []
        mine = [(ref, call) for ref, (owner, call) in state.flying.items() if owner == index]
        for reference, call in mine:
            del state.flying[reference]
            try:
                self._take(state, reference, call)
            except RayError as error:
                lost.append((call, error))
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
