"""Jobs of a sweep next to each other, each with its clients in one process of the Ray pool.

The driver checks and prepares jobs as it does for one after another; `SideBySide` says which may
begin, and `JobPool` runs them. Of jobs that are the same experiment one runs, and the others wait
for its results. A process that dies takes its job along and no other.
"""

import logging
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import ray
from hydra.core.utils import configure_log
from omegaconf import OmegaConf
from ray.exceptions import RayError

from app import experiment, ray_session, server, signals
from app.cluster import Machines
from app.config.schema import AUTO, Config
from app.engine import serial_grid
from app.job_memory import fitting
from app.mailbox import Begun, Event, Mailbox, RoundDone, Said
from app.one_job import carry_out, said
from app.run_folder import LOCK, FolderTakenError, locked
from app.wanted_jobs import Wanted
from tracking.live import JobView, SweepView
from tracking.progress import ConsoleHandler
from tracking.record import ClientRecord, RoundRecord, Sink

STOP_S = 30.0  # that jobs have to write their checkpoints in, once they are told to stop
LOCK_S = 15.0  # that a job's folder may stay locked by a process whose driver was killed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A job that is ready to run, wherever that is.

    Attributes:
        number: from 1.
        what: what tells it from the others.
        config: its configuration.
        folder: its own, absolute.
        sweep: folder of the sweep, absolute.
        group: the sweep's name for wandb.
        key: equal where one job's results are another's.
        before: a finished run of the same experiment.
        logs: Hydra's configuration of logging.
        verbose: Hydra's `verbose`.
        environment: variables to set meanwhile.
        cwd: folder to run in.
    """

    number: int
    what: str
    config: Config
    folder: Path
    sweep: Path
    group: str
    key: str
    before: Path | None
    logs: Any
    verbose: Any
    environment: Mapping[str, str]
    cwd: Path


@dataclass(frozen=True)
class Ended:
    """A job has ended.

    Attributes:
        number: of the job.
        outcome: why it was not run; empty where it was.
        failure: one line for what went wrong, or empty.
    """

    number: int
    outcome: str = ""
    failure: str = ""


class Pool(Protocol):
    """What `SideBySide` needs of a pool."""

    def room(self) -> int:
        """How many more jobs can begin."""

    def begin(self, job: Job) -> None:
        """Begin a job; there is room."""

    def news(self, timeout_s: float | None) -> Sequence[Event | Ended]:
        """What happened since the last call; waits for something to happen."""

    def release(self) -> None:
        """End the processes that have no job."""

    def stop(self) -> None:
        """Have all jobs stop where they can be continued from."""

    def close(self) -> None:
        """End all processes."""


# In the driver ------------------------------------------------------------------------------------


@dataclass
class _Running:
    job: Job
    view: JobView
    sink: Sink | None = None


class SideBySide:
    """Decides which job begins when, and shows what comes of it.

    Args:
        start: makes the pool, when the first job is there.
        view: of the sweep.
        failed: is told of each job that fails, and why.
    """

    def __init__(
        self, start: Callable[[], Pool], view: SweepView, failed: Callable[[Job, str], None]
    ) -> None:
        self._start, self._view, self._failed = start, view, failed
        self._pool: Pool | None = None
        self._waiting: deque[Job] = deque()
        self._running: dict[int, _Running] = {}
        self._finished: dict[str, Path] = {}
        self._broken: BaseException | None = None  # why there are no processes any more

    def submit(self, job: Job) -> None:
        """Take a job, and return once there is room to prepare the next.

        One that waits for an identical one is in nobody's way, and one more may be ready, so that
        a process that becomes free need not wait for the driver.

        Raises:
            ValueError: there is no such pool; names the key.
        """
        if self._broken is not None:
            raise self._broken
        self._waiting.append(job)
        with self._stopping():
            self._pool = self._pool or self._start()
            self._advance(0)
            while len(self._ready()) > 1:
                self._advance(None)

    def settle(self, key: str, folder: Path) -> None:
        """Take note of a job that need not be run, because it has finished.

        An identical one that came before is to have the name under which others copy from it.
        """
        if all(job.key != key for job in self._unfinished()):
            self._finished.setdefault(key, folder)

    @property
    def width(self) -> int:
        """How many run at a time; 1 before the first."""
        return 1 if self._pool is None else len(self._running) + self._pool.room()

    def wait(self, number: int) -> None:
        """Return once the job of this number has ended.

        Raises:
            BaseException: what has ended all jobs.
        """
        with self._stopping():
            while any(job.number == number for job in self._unfinished()):
                if self._broken is not None:
                    raise self._broken
                self._advance(None)

    def drain(self) -> None:
        """Run all jobs that are still there to their ends."""
        with self._stopping():
            while self._broken is None and (self._waiting or self._running):
                assert self._pool is not None
                self._fill()
                if not self._ready():
                    self._pool.release()
                self._advance(None)

    def close(self) -> None:
        """End all processes."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _unfinished(self) -> list[Job]:
        """Those that wait or run."""
        return [*self._waiting, *(one.job for one in self._running.values())]

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Stop all jobs if the driver is told to stop, or something goes wrong with it."""
        try:
            yield
        except BaseException as error:
            self._broken = error
            if self._pool is not None:
                self._pool.stop()
            for one in self._running.values():
                one.view.leave()
            self._running.clear()
            raise

    def _advance(self, timeout_s: float | None) -> None:
        """Begin what can, and wait for news."""
        assert self._pool is not None
        self._fill()
        if not self._running:
            return
        for event in self._pool.news(timeout_s):
            if one := self._running.get(event.number):
                self._take(one, event)
        self._fill()

    def _fill(self) -> None:
        assert self._pool is not None
        while self._pool.room() and (ready := self._ready()):
            job = ready[0]
            self._waiting.remove(job)
            self._running[job.number] = _Running(job, self._view.begin(job.number, job.what))
            self._pool.begin(replace(job, before=self._finished.get(job.key, job.before)))

    def _ready(self) -> list[Job]:
        """Those that wait for no other, of each experiment one."""
        taken = {one.job.key for one in self._running.values()}
        ready = []
        for job in self._waiting:
            if job.key not in taken:
                ready.append(job)
                taken.add(job.key)
        return ready

    def _take(self, one: _Running, event: Event | Ended) -> None:
        match event:
            case Begun():
                one.sink = one.view.progress(event.num_rounds, event.done)
            case RoundDone():
                if one.sink is not None:
                    one.sink.round(event.record, ())
            case Said():
                one.view.say(event.text)
            case Ended():
                del self._running[event.number]
                if one.sink is not None:
                    one.sink.finish(None)
                if event.failure:
                    self._failed(one.job, event.failure)
                    one.view.end(f"error: {event.failure}", failed=True)
                else:
                    one.view.end(event.outcome)
                    self._finished.setdefault(one.job.key, one.job.folder)


class JobPool:
    """Processes on Ray, each for one job after another.

    Args:
        how: how many, and where.
        num_jobs: more processes than jobs are of no use.
        job_bytes: about what a job needs.
        say: writes a line for the user.
    """

    def __init__(
        self, how: Wanted, num_jobs: int, job_bytes: int, say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._session = ray_session.start_once(how.jobs or how.workers, how.address)
        self._busy: dict[Any, tuple[Job, Any]] = {}  # by the reference of its result
        self._idle: list[Any] = []  # started, without a job
        self._mail: Any = None
        try:
            if how.address is not None:
                Machines(how.address).check()
            nodes = [one["Resources"] for one in ray.nodes() if one["Alive"]]
            num_cpus = [int(one.get("CPU", 0)) for one in nodes]
            memory = [int(one.get("memory", 0)) for one in nodes]
            self._size, self._options = _size(how, num_jobs, job_bytes, num_cpus, memory)
            if how.jobs is None:
                say(
                    f"sweep.jobs={AUTO}: {self._size} side by side ({sum(num_cpus)} CPUs; a job "
                    f"takes about {job_bytes / 2**30:.1f} of {sum(memory) / 2**30:.1f} GiB)"
                )
            self._mail = ray.remote(num_cpus=0)(Mailbox).remote()
            self._taking = self._mail.take.remote()
            self._idle = [self._new() for _ in range(self._size)]
        except BaseException:
            self.close()
            raise

    def room(self) -> int:
        """How many more jobs can begin."""
        return self._size - len(self._busy)

    def begin(self, job: Job) -> None:
        """Begin a job; there is room."""
        actor = self._idle.pop(0) if self._idle else self._new()
        self._busy[actor.run.remote(job)] = (job, actor)

    def news(self, timeout_s: float | None) -> Sequence[Event | Ended]:
        """What happened since the last call; waits for something to happen."""
        mail = [] if self._taking is None else [self._taking]
        ready, _ = ray.wait([*mail, *self._busy], num_returns=1, timeout=timeout_s)
        found: list[Event | Ended] = []
        if any(one is not self._taking for one in ready):
            found += self._mailed(is_flushed=True)  # what the job said came before its end
            found += [self._ended(one) for one in ready if one in self._busy]
        elif ready:
            found += self._mailed()
        return found

    def release(self) -> None:
        """End the processes that have no job.

        In a cluster that has become smaller, a process that has one may wait for their places.
        """
        while self._idle:
            ray.kill(self._idle.pop())

    def stop(self) -> None:
        """Have all jobs stop where they can be continued from; those that do not are ended."""
        with suppress(RayError):
            ray.get(self._mail.stop.remote(), timeout=STOP_S)
        deadline = time.monotonic() + STOP_S
        while self._busy and (left := deadline - time.monotonic()) > 0:
            ready, _ = ray.wait(list(self._busy), num_returns=1, timeout=left)
            for one in ready:
                job, _ = self._busy.pop(one)
                with suppress(RayError):
                    if ray.get(one).failure:  # which is what became of the signal
                        (job.folder / "error.txt").unlink(missing_ok=True)
        for job, actor in self._busy.values():
            ray.kill(actor)
            self._say(f"job {job.number}: did not stop within {STOP_S:.0f} s, and was ended")
        self._busy.clear()

    def close(self) -> None:
        """End all processes, and Ray if it is ours."""
        if self._session is not None:
            self._session.close()
            self._session = None
            return
        actors = [*self._idle, *(actor for _, actor in self._busy.values()), self._mail]
        for actor in filter(None, actors if ray.is_initialized() else []):
            ray.kill(actor)

    def _new(self) -> Any:
        return ray.remote(**self._options)(JobProcess).remote(self._mail, sys.argv)

    def _mailed(self, is_flushed: bool = False) -> list[Event]:
        """Take what is in the mailbox; without one the jobs run on, and are not shown."""
        if self._taking is None:
            return []
        try:
            if is_flushed:
                self._mail.flush.remote()
            events: list[Event] = ray.get(self._taking)
        except RayError as error:
            self._taking = None
            self._say(f"rounds are no longer shown: {str(error).splitlines()[0]}")
            return []
        self._taking = self._mail.take.remote()
        return events

    def _ended(self, reference: Any) -> Ended:
        """Take a job's end; where its process died, the next job gets a new one."""
        job, actor = self._busy.pop(reference)
        try:
            ended: Ended = ray.get(reference)
        except RayError as error:
            ray.kill(actor)
            return Ended(job.number, failure=said(_died(error), job.folder))
        self._idle.append(actor)
        return ended


class JobDiedError(RuntimeError):
    """The process of a job is gone."""


def _died(error: RayError) -> JobDiedError:
    """What became of a job's process, in one line, and all that Ray says of it below."""
    text = str(error).strip()
    found = re.search(r"Worker exit detail: (.*?)(?: Some common causes|\n|$)", text)
    reason = found[1] if found else text.splitlines()[0]
    return JobDiedError(f"the job's process died: {reason}\n{text}")


def _size(
    how: Wanted, num_jobs: int, job_bytes: int, num_cpus: Sequence[int], memory: Sequence[int]
) -> tuple[int, dict[str, Any]]:
    """How many processes to start, and what Ray is to keep for each.

    Raises:
        ValueError: there are not as many CPUs; names sweep.jobs.
    """
    if how.jobs is not None:
        if how.jobs > sum(num_cpus):
            raise ValueError(f"sweep.jobs={how.jobs}: the cluster has {sum(num_cpus)} CPUs")
        return min(how.jobs, num_jobs), {"num_cpus": 1}
    size = min(fitting(num_cpus, memory, job_bytes), how.workers or sum(num_cpus), num_jobs)
    is_room = job_bytes <= max(memory, default=0)  # else one runs all the same
    return size, {"num_cpus": 1} | ({"memory": job_bytes} if is_room else {})


# In a job's process -------------------------------------------------------------------------------


def run_job(job: Job, post: Callable[[Event], None]) -> Ended:
    """Run a job in this process, whatever its end.

    Args:
        job: it.
        post: takes what is to be shown.

    Raises:
        Stopped: it is to stop.
    """
    with _surroundings(job), _logged(job, post):
        try:
            check_shared(job)
            chosen = experiment.resolve(job.config)
            with _locked(job):
                outcome = carry_out(
                    chosen,
                    job.folder,
                    job.group,
                    lambda: job.before,
                    lambda: _simulate(job, chosen, post),
                )
        except signals.Stopped:
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # nobody's keyboard is here
            signals.check()
            log.info("failed", exc_info=True)
            return Ended(job.number, failure=said(error, job.folder))
    return Ended(job.number, outcome)


def _simulate(job: Job, chosen: experiment.Experiment, post: Callable[[Event], None]) -> None:
    """Run a job with its clients one after another, as engine=serial does."""

    def show(num_rounds: int, done: Sequence[RoundRecord]) -> Sink:
        post(Begun(job.number, num_rounds, list(done)))
        return _Poster(job.number, post)

    experiment.division(chosen)
    # The process is this job's: a client that cannot be interrupted ends it.
    grid = serial_grid(chosen, ends_process=True)
    server.run(chosen, grid, job.folder, job.group, show, timeout_s=math.inf)


class JobProcess:
    """A Ray actor that runs whole jobs; data and networks stay in its process.

    Args:
        mail: where to post what happens, and to hear that jobs are to stop.
        argv: the driver's command line, which wandb stores.
    """

    def __init__(self, mail: Any, argv: Sequence[str]) -> None:
        logging.raiseExceptions = False
        sys.argv[:] = argv
        self._mail = mail
        self._is_told = threading.Event()
        self._is_running = False
        self._posted: Any = None
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self, job: Job) -> Ended:
        """Run a job to its end, whatever that is."""
        ended = Ended(job.number, failure="was told to stop")
        with suppress(signals.Stopped), self._stoppable():
            ended = run_job(job, self._post)
        if self._posted is not None:  # it is there before the driver hears of the end
            with suppress(RayError):
                ray.get(self._posted)
        return ended

    def _post(self, event: Event) -> None:
        self._posted = self._mail.post.remote(event)

    def _listen(self) -> None:
        """Wait for the driver's word to stop, and interrupt the main thread."""
        with suppress(RayError):
            ray.get(self._mail.stopped.remote())
            self._is_told.set()
            if self._is_running:
                signal.pthread_kill(
                    threading.main_thread().ident or 0, signal.Signals[signals.INNER]
                )

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Have the driver's word raise `Stopped` within.

        Raises:
            Stopped: it came, now or before.
        """
        number = signal.Signals[signals.INNER]
        signal.signal(number, signal.SIG_DFL)
        signals.install((signals.INNER,))
        self._is_running = True
        try:
            if self._is_told.is_set():
                raise signals.Stopped(number)
            yield
        finally:
            self._is_running = False
            signal.signal(number, signal.SIG_IGN)


class _Poster:
    """Sends a job's rounds to the driver."""

    def __init__(self, number: int, post: Callable[[Event], None]) -> None:
        self._number, self._post = number, post

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Send a round."""
        self._post(RoundDone(self._number, record))

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Leave it to the job's result."""


class _Terminal(logging.Handler):
    """Sends to the driver what a log would write to the terminal."""

    def __init__(self, number: int, post: Callable[[Event], None]) -> None:
        super().__init__()
        self._number, self._post = number, post

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        self._post(Said(self._number, self.format(record)))


@contextmanager
def _logged(job: Job, post: Callable[[Event], None]) -> Iterator[None]:
    """Log into the job's folder as Hydra does for one in the driver's process."""
    configure_log(OmegaConf.create(job.logs), job.verbose)
    root = logging.getLogger()
    for handler in root.handlers:
        if isinstance(handler, ConsoleHandler):
            terminal = _Terminal(job.number, post)
            terminal.setLevel(handler.level)
            terminal.setFormatter(handler.formatter)
            root.removeHandler(handler)
            root.addHandler(terminal)
            break
    try:
        yield
    finally:
        for handler in list(root.handlers):
            root.removeHandler(handler)
            handler.close()


@contextmanager
def _surroundings(job: Job) -> Iterator[None]:
    """Run in the folder and with the variables that the job would have in the driver."""
    environ: MutableMapping[str, str] = os.environ
    before = {name: environ.get(name) for name in job.environment}
    cwd = Path.cwd()
    environ.update(job.environment)
    with suppress(OSError):  # another machine may not have it
        os.chdir(job.cwd)
    try:
        yield
    finally:
        os.chdir(cwd)
        for name, value in before.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value


@contextmanager
def _locked(job: Job) -> Iterator[None]:
    """Lock a job's folder; one that a killed sweep left is free when its last process has gone."""
    if job.folder == job.sweep:  # which the driver has locked
        yield
        return
    deadline = time.monotonic() + LOCK_S
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(job.folder))
                break
            except FolderTakenError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        yield


def check_shared(job: Job) -> None:
    """Refuse a machine that does not see the folder that the driver writes to.

    Raises:
        ValueError: names hydra.sweep.dir.
    """
    if not (job.folder.is_dir() and (job.sweep / LOCK).is_file()):
        raise ValueError(
            f"hydra.sweep.dir={job.sweep}: is not there on {socket.gethostname()}; sweep.jobs with "
            "engine.address takes a folder that all machines share"
        )
