"""SIGTERM, SIGHUP and Ctrl-C end a run in order: what is done is kept, nothing is left running."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, assert_same_run, simulate
from lives import fork, wait

from app import signals
from app.run_folder import FolderTakenError, locked

QUIET = (
    "strategy=fedavg", "clients.total=3", "data.max_train=36", "train.epochs=1",
    "train.batch_size=16", "checkpoint.every=500", "tracker.wandb.mode=disabled",
)  # fmt: skip


def started(*arguments: str, ignored: int | None = None) -> "subprocess.Popen[str]":
    def prepare() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "main.py", *arguments], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=prepare,
    )  # fmt: skip


def wait_for_rounds(process: "subprocess.Popen[str]", folder: Path, num: int) -> None:
    path, deadline = folder / "rounds.jsonl", time.monotonic() + 240
    while not path.exists() or len(path.read_bytes().splitlines()) < num:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_sweep_is_stopped_and_another_is_refused(tmp_path: Path) -> None:
    """SIGHUP is ignored, as under nohup; SIGTERM ends the first job, and the second never begins.

    While it runs its folders are locked. What was done goes on as if nothing had been.
    """
    rounds = ("rounds=2000", "engine=serial")
    process = started("-m", "seed=0,1", *QUIET, *rounds, f"hydra.sweep.dir={tmp_path}",
                      ignored=signal.SIGHUP)  # fmt: skip
    wait_for_rounds(process, tmp_path / "0", 3)
    process.send_signal(signal.SIGHUP)
    for folder in (tmp_path, tmp_path / "0"):
        refused = rf"{folder}: process {process.pid} on .* works"
        with pytest.raises(FolderTakenError, match=refused), locked(folder):
            pass
    wait_for_rounds(process, tmp_path / "0", 5)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # as `timeout` does
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 30  # ten seconds, on a machine that has nothing else to do
    assert process.returncode == 143, err
    line = "stopped by SIGTERM; the same command with resume=true continues"
    assert err.splitlines()[-1] == line and "Traceback" not in err
    assert "unfinished" in out and str(tmp_path / "report.html") in out
    assert not (tmp_path / "1").exists() and not (tmp_path / "0" / "error.txt").exists()
    num = len((tmp_path / "0" / "rounds.jsonl").read_bytes().splitlines())
    assert [path.name for path in (tmp_path / "0" / "checkpoint").iterdir()] == [f"{num:06d}"]
    with locked(tmp_path), locked(tmp_path / "0"):
        pass

    resumed = (*QUIET, f"rounds={num + 1}")
    simulate(tmp_path / "0", *resumed, "resume=true")
    simulate(tmp_path / "whole", *resumed)
    assert_same_run(tmp_path / "whole", tmp_path / "0")


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
@pytest.mark.parametrize("to_all", [False, True], ids=["process", "all its processes"])
@pytest.mark.parametrize("is_sweep", [False, True], ids=["run", "jobs side by side"])
def test_nothing_of_ray_is_left(name: str, to_all: bool, is_sweep: bool, tmp_path: Path) -> None:
    pytest.importorskip("ray")  # which brings psutil, and puts it where it is found
    import psutil

    on_ray = ("rounds=2000", "engine=ray", "engine.workers=2", "engine.fork=false")
    if is_sweep:
        on_ray = (*on_ray, "sweep.jobs=2", "seed=0,1,2", "tracker.wandb.mode=offline")
        folders = [tmp_path / "0", tmp_path / "1"]
    else:
        folders = [tmp_path]
    folder = f"hydra.{'sweep' if is_sweep else 'run'}.dir={tmp_path}"
    process = started(*(["-m"] if is_sweep else []), *QUIET, *on_ray, folder)
    for one in folders:
        wait_for_rounds(process, one, 3)
    below = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    for one in [*below, process] if to_all else [process]:
        one.send_signal(signal.Signals[name])
    out, err = process.communicate(timeout=60)
    print(f"\n{name}: ended within {time.monotonic() - began:.1f} s")
    assert process.returncode == 128 + signal.Signals[name]
    assert f"stopped by {name}" in err and "Traceback" not in err
    assert out.count("unfinished") == len(folders)
    for one in folders:
        assert len(list((one / "checkpoint").glob("*"))) == 1
        assert not (one / "error.txt").exists()
    time.sleep(1)
    assert [one for one in below if one.is_running() and one.status() != "zombie"] == []


def exit_code(act: str, tmp_path: Path) -> int:
    """Of a process that handles signals and then acts."""

    def run() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signals.install()
        try:
            exec(act, {"signals": signals, "os": os, "signal": signal, "time": time})
        except signals.Stopped as stopped:
            os._exit(stopped.code)

    return wait(fork(run, tmp_path / "errors"))


KILL = "os.kill(os.getpid(), signal.SIGTERM)\n"
LATER = "signals.TOGETHER_S = 0\n"
HUP = "os.kill(os.getpid(), signal.SIGHUP)\n"


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (KILL, 143),
        (HUP, 129),
        ("with signals.held():\n " + KILL + " os._exit(0)", 0),  # not within the block
        ("with signals.held():\n " + KILL, 143),  # but at its end
        ("with signals.shielded():\n " + KILL, 143),
        # Ray's handler is not ours: the first signal after it is.
        ("with signals.held():\n signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + KILL, 143),
        # Swallowed by somebody, raised again where the next round ends.
        ("try:\n " + KILL + "except BaseException:\n pass\nwith signals.held():\n pass", 143),
        # One that comes together with another is the same; a later one ends at once.
        ("with signals.held():\n " + KILL + " " + HUP + " os._exit(0)", 0),
        (LATER + "with signals.held():\n " + KILL + " time.sleep(1e-3)\n " + HUP, 129),
        # Told to ignore one, as by nohup.
        ("signal.signal(signal.SIGHUP, signal.SIG_IGN)\nsignals.install()\n" + HUP, 0),
    ],
)
def test_a_signal_is_raised_once_and_where_it_may(act: str, code: int, tmp_path: Path) -> None:
    assert exit_code(act, tmp_path) == code


def test_a_lock_is_given_back_by_a_process_that_dies(tmp_path: Path) -> None:
    def hold() -> None:
        with locked(tmp_path):
            os._exit(7)

    assert wait(fork(hold, tmp_path.with_suffix(".txt"))) == 7
    with locked(tmp_path):
        pass
