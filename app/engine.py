"""Where clients run: in this process, or in a pool of workers that serves all jobs of a sweep."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Message
from flwr.clientapp import ClientApp

from app import client, device, experiment, processors, server, shipped_code
from app.background import in_background
from app.calls import Round, plan
from app.config.schema import EngineSettings
from app.experiment import Experiment, Prepared
from app.first_workers import CAN_FORK, FirstWorkers
from app.local_grid import LocalGrid, node_of
from app.time_limit import TimeLimit, TimeLimitError, series
from app.worker import answer
from strategies import messages
from tracking.progress import ProgressSink, Show

if TYPE_CHECKING:
    from app.actors import Actors

RAY_AFTER_S = 60.0  # of work: Ray takes the processors from the clients while it starts


class SerialGrid(LocalGrid):
    """Runs every client in this process, one after another: for tests and debuggers."""

    def __init__(
        self, num_nodes: int, run_config: Mapping[str, Any], app: ClientApp = client.app
    ) -> None:
        super().__init__(num_nodes, run_config)
        self._app = app

    def _execute(self, sent: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        with series():
            for message in sent:
                try:
                    yield answer(self._app, message, self._context(node_of(message)))
                except TimeLimitError as error:
                    yield messages.error_reply(message, error)


def serial_grid(chosen: Experiment, ends_process: bool = False) -> SerialGrid:
    """Return the grid of an experiment whose clients run in this process.

    Args:
        chosen: the experiment.
        ends_process: whether a client that cannot be interrupted ends it.
    """
    limit = TimeLimit(chosen.engine.client_timeout_s, ends_process)
    run_config = {**in_process(chosen), client.LIMIT: limit}
    return SerialGrid(chosen.data.num_clients, run_config)


class Workers:
    """A pool of workers, started when first used: the first ones forked, and then Ray's actors.

    Args:
        count: how many; None takes one per processor that this process may use, or of the cluster.
        address: of an existing Ray cluster; None starts one here.
        fork: whether clients run in forked processes until Ray is there.
        gpus: share of a GPU that each takes, as Ray counts them; None shares all that there are.
        code: names the code that a cluster's workers are started with.
    """

    def __init__(
        self,
        count: int | None = None,
        address: str | None = None,
        fork: bool = False,
        gpus: float | None = 0.0,
        code: str = "",
    ) -> None:
        self.wanted = (count, address, fork, gpus, code)
        self.count = count
        self.gpus = gpus
        self.address = address
        self.fork = fork and CAN_FORK and address is None
        self.first: FirstWorkers | None = None
        self.actors: Actors | None = None
        self._coming: Future[Actors] | None = None  # while Ray starts beside the first workers

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.actors.actors) if self.actors else self.count or processors.usable()

    def start(self) -> None:
        """Start the first workers, or Ray where there are to be none, unless they run already."""
        if self.actors or self.first:
            return
        if self.fork:
            self.first = FirstWorkers(self.size)
        else:
            self._start_ray()

    def run(self, state: Round) -> Iterator[Message]:
        """Run a round's clients, and hand out each reply when it is there."""
        if self.first is not None:
            yield from self.first.run(state, is_enough=self._are_actors_there)
        if state.queue and time.monotonic() < state.deadline:
            actors = self._start_ray()
            self._end_first()
            yield from actors.run(state)

    def close(self) -> None:
        """End them all, and Ray if it is ours."""
        self._end_first()
        if self._coming is not None:
            with contextlib.suppress(Exception):  # it did not start: nothing to end
                self.actors = self._coming.result()
            self._coming = None
        if self.actors is not None:
            self.actors.close()
            self.actors = None

    def _end_first(self) -> None:
        if self.first is not None:
            self.first.close()
            self.first = None

    def _are_actors_there(self) -> bool:
        """Whether Ray takes over: it is started, beside, once there was enough to do."""
        assert self.first is not None
        if self.actors is None and self.first.worked_s > RAY_AFTER_S:
            if self._coming is None:
                self._coming = in_background(self._new_actors)
            elif self._coming.done():
                self.actors = self._coming.result()
        return self.actors is not None and self.actors.are_there()

    def _start_ray(self) -> "Actors":
        """Wait for Ray and return its actors, which may still be starting."""
        if self.actors is None:
            self.actors = self._new_actors() if self._coming is None else self._coming.result()
            self._coming = None
        return self.actors

    def _new_actors(self) -> "Actors":
        from app.actors import Actors  # brings Ray, for which short runs need not wait

        return Actors(self.count, self.address, self.gpus)


class RayGrid(LocalGrid):
    """Runs clients in a pool of workers.

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

    @property
    def processes(self) -> int:
        """As many as the pool has, and this process may use processors."""
        return min(self._workers.size, processors.usable())

    def _execute(self, sent: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        token = f"{self._run.run_id}/{sent[0].metadata.message_id}" if sent else ""
        state = replace(
            plan(sent, token, self._workers.size),
            num_nodes=self._num_nodes,
            run_config=self._run_config,
            limit_s=self._limit_s,
            deadline=math.inf if timeout is None else time.monotonic() + timeout,
        )
        return self._workers.run(state)


def in_process(chosen: Experiment) -> dict[str, Any]:
    """What a client's process gets of an experiment."""
    engine = chosen.engine
    where = {client.DEVICE: engine.device, client.PRECISION: engine.precision}
    return {**experiment.run_config(chosen), **where}


def pool_of(engine: EngineSettings) -> tuple[int | None, str | None, bool, float | None]:
    """How `Workers` are wanted: none is forked where a GPU may be used, which takes no forks."""
    is_cpu = engine.device == device.CPU
    if engine.device == device.AUTO and engine.address is None:
        is_cpu = device.find(device.AUTO).type == device.CPU
    gpus = engine.gpus_per_worker if engine.device in (device.AUTO, device.CUDA) else 0.0
    return engine.workers, engine.address, engine.fork and is_cpu, 0.0 if is_cpu else gpus


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
        engine = chosen.engine
        if engine.name == "serial":
            return serial_grid(chosen)
        code = ""
        if engine.address is not None:
            experiment.strategy(chosen)  # loads what is the user's, as does the next line
            experiment.network(chosen)
            code = shipped_code.digest(shipped_code.users())
        wanted = (*pool_of(engine), code)
        if self._workers is None or self._workers.wanted != wanted:
            self.close()
            self._workers = Workers(*wanted)
        run_config = in_process(chosen)
        return RayGrid(chosen.data.num_clients, run_config, self._workers, engine.client_timeout_s)
