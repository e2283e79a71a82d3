"""Lives of a run, each in a process that ends by a kill or by itself.

A life is forked from this process, which has everything imported and the data in memory, so that
one costs little more than the rounds that it lasts.
"""

import builtins
import io
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, small
from test_conformance import ROWS

from app import experiment
from app.engine import Simulator
from app.experiment import Experiment
from app.run_folder import is_finished, locked
from strategies.server import checkpoint
from tracking.record import ClientRecord, RoundRecord

KILLED = 137
# Few samples: what counts is what is written, and how often.
TINY = ("resume=true", "rounds=3", "clients.total=3", "data.max_train=36", "data.max_test=30")
CASES = [
    pytest.param((f"strategy={name}", *row), id=" ".join((name, *row)))
    for name, rows in ROWS.items()
    for row in rows
]


def tiny(*overrides: str) -> Experiment:
    """A run of a tenth of a second; its data are loaded here, for all that is forked."""
    few = [text.replace("clients.per_round=4", "clients.per_round=2") for text in overrides]
    chosen = small(*TINY, *few)
    experiment.dataset(chosen)
    experiment.division(chosen)
    return chosen


class _Silent:
    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        pass

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        pass


def live(chosen: Experiment, folder: Path) -> None:
    """What one process does, as `app.jobs` does it."""
    if is_finished(folder, chosen):
        return
    with locked(folder):
        Simulator().run(chosen, folder, show=lambda num_rounds, done: _Silent())


def fork(act: Callable[[], None], errors: Path) -> int:
    """Run ``act`` in a fork of this process and return its process id.

    It ends with 0, or with 1 and its traceback in the file ``errors``.
    """
    if pid := os.fork():
        return pid
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        act()
        code = 0
    except BaseException:
        errors.write_text(traceback.format_exc())
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Return the exit code of a fork, as shells give it."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 128 - code if code < 0 else code


def first(chosen: Experiment, folder: Path) -> float:
    """Run without a kill, so that forks find everything loaded; return how long one of them takes.

    With a GPU a fork cannot train after this process has.
    """
    if not torch.cuda.is_available():
        live(chosen, folder)
    return whole(chosen, folder.with_name(f"{folder.name}-again"))


def whole(chosen: Experiment, folder: Path) -> float:
    """Run to the end without a kill and return how long that took."""
    started = time.monotonic()
    errors = folder.with_suffix(".txt")
    assert wait(fork(lambda: live(chosen, folder), errors)) == 0, errors.read_text()
    return time.monotonic() - started


def kill_after(chosen: Experiment, folder: Path, seconds: float) -> bool:
    """Kill a life after some time; return whether it was killed, and had not ended before."""
    errors = folder.with_suffix(".txt")
    pid = fork(lambda: live(chosen, folder), errors)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    code = wait(pid)
    assert code in (0, KILLED), errors.read_text()
    return code == KILLED


def kill_process_after(arguments: Sequence[str], seconds: float) -> int | None:
    """Kill `main.py` after some time; return its exit code if it ended before."""
    process = subprocess.Popen(
        [sys.executable, "main.py", *arguments],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    assert process.returncode == 0, said
    return process.returncode


# Events of the file system ------------------------------------------------------------------------


def die_at(chosen: Experiment, folder: Path, number: int) -> bool:
    """Let a life end before its event ``number`` (from 0); return whether there was one."""
    errors = folder.with_suffix(".txt")

    def act() -> None:
        with _dying_at(folder, number):
            live(chosen, folder)

    code = wait(fork(act, errors))
    assert code in (0, KILLED), errors.read_text()
    return code == KILLED


@contextmanager
def _dying_at(folder: Path, number: int) -> Iterator[None]:
    """Count what changes files in the folder, and end the process before one of them.

    Of a write half is written: what is on disk then is a file that was cut off.
    """
    count = 0

    def is_last(*paths: Any) -> bool:
        nonlocal count
        if paths and not any(_is_in(path, folder) for path in paths):
            return False
        count += 1
        return count > number

    def before(real: Callable[..., Any], num_paths: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_last(*args[:num_paths]):
                os._exit(KILLED)
            return real(*args, **kwargs)

        return call

    write, save_file, open_file = os.write, checkpoint.save_file, io.open

    def half_write(descriptor: int, content: bytes) -> int:
        if is_last():
            write(descriptor, content[: len(content) // 2])
            os._exit(KILLED)
        return write(descriptor, content)

    def half_save(arrays: Any, path: Path) -> None:
        save_file(arrays, path)
        if is_last(path):
            os.truncate(path, path.stat().st_size // 2)
            os._exit(KILLED)

    def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode[0] in "wxa" and is_last(path):
            os._exit(KILLED)
        return open_file(path, mode, *args, **kwargs)

    patches: list[tuple[Any, str, Any]] = [
        *((os, name, before(getattr(os, name), 1)) for name in ("unlink", "rmdir", "mkdir")),
        *((os, name, before(getattr(os, name), 2)) for name in ("rename", "replace")),
        (os, "fsync", before(os.fsync, 0)),
        (os, "write", half_write),
        (io, "open", opened),
        (builtins, "open", opened),
        (checkpoint, "save_file", half_save),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for module, name, replacement in patches:
            patch.setattr(module, name, replacement)
        yield


def _is_in(path: Any, folder: Path) -> bool:
    return isinstance(path, str | os.PathLike) and str(folder) in os.fspath(path)
