"""The first workers of a run: processes forked from the driver, which are there at once.

Ray and its actors need tens of seconds of processor time before the first client trains, most of
it to import what the driver has imported already. A forked process has all of it, and the data as
well, in a hundredth of a second. So clients train here until Ray's actors have answered, and a run
that is over by then never starts Ray. Who trains a client does not change what comes of it.

Forked only where that is safe: on Linux, and before the driver has threads that hold locks (wandb's
and Ray's). So a process that dies is not replaced, as Ray's actors are; its clients run elsewhere.
"""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

from flwr.app import Message

from app import processors, runtime, signals
from app.calls import MAX_DEATHS, Call, Round
from app.local_grid import node_of
from app.shared_replies import SharedReplies
from app.worker import Worker

NICENESS = 15  # as Ray gives its workers, so that the driver goes first
LOOK_S = 0.2  # how often somebody asks whether Ray's actors are there
CAN_FORK = sys.platform == "linux"
PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


@dataclass
class _Fork:
    """A forked process.

    Attributes:
        pid: of it.
        pipe: to it.
        replies: from it.
        given: the clients that it has, by their place in the round, the one that it runs first.
        deaths: of workers over these clients.
        known: the contents that it has, by their keys.
        due: when it is ended from here, because it does not even end itself.
    """

    pid: int
    pipe: Connection
    replies: SharedReplies
    given: list[int] = field(default_factory=list)
    deaths: int = 0
    known: frozenset[str] = frozenset()
    due: float = float("inf")


class FirstWorkers:
    """Processes forked from this one.

    Args:
        count: how many.

    Attributes:
        worked_s: seconds in which they had something to do.
    """

    def __init__(self, count: int) -> None:
        self.worked_s = 0.0
        self._forks = [_fork() for _ in range(count)]

    def run(self, state: Round, is_enough: Callable[[], bool]) -> Iterator[Message]:
        """Run what is queued, until nothing is or ``is_enough`` says so; what runs is waited for.

        Args:
            state: of the round.
            is_enough: asked before each call, and a few times a second.

        Yields:
            Each reply when it is there.
        """
        is_over = False
        try:
            while True:
                begun = time.monotonic()
                is_over = is_over or is_enough()
                for fork in [] if is_over else [one for one in self._forks if not one.given]:
                    if state.queue:
                        self._give(fork, state)
                busy = {one.pipe: one for one in self._forks if one.given}
                if not busy:
                    return
                for pipe in wait(list(busy), timeout=min(LOOK_S, max(0.0, state.deadline - begun))):
                    assert isinstance(pipe, Connection)
                    self._take(busy[pipe], state)
                self._end_overdue(state.deadline)
                self.worked_s += time.monotonic() - begun
                while state.replies:
                    yield state.replies.popleft()
        finally:  # where the round is given up, what they answer is for nobody
            for fork in [one for one in self._forks if one.given]:
                self._end(fork)

    def close(self) -> None:
        """End them."""
        for fork in list(self._forks):
            self._end(fork)

    def _give(self, fork: _Fork, state: Round) -> None:
        """Hand a call to a process that has none; it reads at once, so that sending ends."""
        call = state.queue.popleft()
        fork.given, fork.deaths = list(call.indices), call.deaths
        keys = frozenset(state.keys[i] for i in call.indices)
        contents = {key: None if key in fork.known else state.contents[key] for key in keys}
        fork.known = keys
        fork.due = time.monotonic() + state.longest_s(call)
        with contextlib.suppress(OSError):  # it is dead, which the next look at its pipe shows
            work = (contents, state.jobs(call), state.num_nodes, state.run_config)
            fork.pipe.send((fork.replies.freed(), work))

    def _take(self, fork: _Fork, state: Round) -> None:
        """Take a reply, or note that the process has ended."""
        try:
            reply = fork.replies.take(fork.pipe)
        except (EOFError, OSError):
            self._recover(fork, state)
            return
        if reply is None:  # after a client that took too long it runs no other
            _requeue(state, [Call(fork.given)] if fork.given else [])
            self._end(fork)
            return
        state.replies.append(reply)
        fork.given.pop(0)
        fork.deaths = 0  # of the others nobody has died

    def _recover(self, fork: _Fork, state: Round) -> None:
        """Run the clients of a process that died elsewhere: the first that has not answered died.

        Each answer is sent before the next client begins.
        """
        guilty, *others = fork.given
        how = self._end(fork)
        who = node_of(state.sent[guilty])
        log.warning("a worker died while it ran client %s; run again: %s", who, how)
        _requeue(state, [Call(others)] if others else [])
        if fork.deaths + 1 < MAX_DEATHS:
            _requeue(state, [Call([guilty], fork.deaths + 1)])
        else:
            text = f"its worker died {MAX_DEATHS} times: {how}"
            state.replies.append(runtime.unknown_error(state.sent[guilty], text))

    def _end_overdue(self, deadline: float) -> None:
        """End who is stopped, or everybody at work when the round is over."""
        now = time.monotonic()
        for fork in [one for one in self._forks if one.given]:
            if now >= deadline:
                self._end(fork)
            elif now >= fork.due:
                os.kill(fork.pid, signal.SIGKILL)

    def _end(self, fork: _Fork) -> str:
        """End a process, and return how it ended."""
        self._forks.remove(fork)
        fork.pipe.close()
        fork.replies.close()
        with contextlib.suppress(ProcessLookupError):
            pid, status = os.waitpid(fork.pid, os.WNOHANG)
            if pid == 0:
                os.kill(fork.pid, signal.SIGKILL)
                pid, status = os.waitpid(fork.pid, 0)
            if os.WIFSIGNALED(status):
                return signal.Signals(os.WTERMSIG(status)).name
            return f"exit code {os.waitstatus_to_exitcode(status)}"
        return "gone"


def _requeue(state: Round, calls: list[Call]) -> None:
    state.queue.extendleft(reversed(calls))


# In the forked process ----------------------------------------------------------------------------


def _fork() -> _Fork:
    ours, theirs = Pipe()
    replies = SharedReplies()
    driver = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        return _Fork(pid, ours, replies)
    try:
        _become_worker(driver, theirs, replies)
        _serve(theirs, replies)
    finally:
        os._exit(1)  # nothing of the driver's is to run here, such as what it does at exit


def _become_worker(driver: int, pipe: Connection, replies: SharedReplies) -> None:
    """Let go of what is the driver's: its files, locks, output, signals and log."""
    for number in signals.numbers():
        signal.signal(number, signal.SIG_IGN)  # the driver hears them, and ends its workers
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:
        os._exit(1)
    silence = os.open(os.devnull, os.O_RDWR)
    open_ones = {int(entry.name) for entry in Path("/proc/self/fd").iterdir()}
    for descriptor in open_ones - {silence, pipe.fileno(), replies.file}:
        # Not closed: who holds the number would close what has it by then.
        with contextlib.suppress(OSError):
            os.dup2(silence, descriptor, inheritable=descriptor < 3)
    logging.getLogger().handlers[:] = [logging.NullHandler()]
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    processors.use_one()


def _serve(pipe: Connection, replies: SharedReplies) -> None:
    """Run what comes until the driver is gone."""
    worker = Worker(fetch=lambda content: content)
    while True:
        try:
            freed, work = pipe.recv()
        except (EOFError, OSError):
            return
        replies.free(freed)
        for reply in worker.replies(*work):
            try:
                replies.send(pipe, reply)
            except OSError:
                return
        if worker.is_spent:
            pipe.send(None)
            return
