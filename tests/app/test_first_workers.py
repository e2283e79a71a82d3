"""Clients in forked processes until Ray is there: the same results, and faults that stay theirs."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, assert_same_run, simulate, small

from app import engine
from app.actors import Actors
from app.background import in_background
from app.engine import Simulator, Workers
from app.first_workers import CAN_FORK, FirstWorkers

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="forked on Linux alone")
FAULTY = ("strategy=fedavg", "strategy._target_=tests.app.faulty.Faulty", "clients.total=12")
FORKED = ("engine=ray", "engine.workers=3", "engine.fork=true")


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    """Ray is never started."""
    monkeypatch.setattr(engine, "RAY_AFTER_S", float("inf"))
    simulator = Simulator()
    yield simulator
    assert simulator._workers is not None and simulator._workers.actors is None
    simulator.close()


def failed(folder: Path) -> set[tuple[int, int]]:
    rows = map(json.loads, (folder / "clients.jsonl").read_text().splitlines())
    return {(row["round"], row["partition"]) for row in rows if row["status"] == "failed"}


@pytest.mark.parametrize("method", ["oqfl", "splitfed_v2", "splitfed_v3"])
def test_the_same_as_in_one_process(method: str, tmp_path: Path, forked: Simulator) -> None:
    """A content for all, one after another, and one for each."""
    simulate(tmp_path / "serial", f"strategy={method}")
    simulate(tmp_path / "forked", f"strategy={method}", *FORKED, simulator=forked)
    assert_same_run(tmp_path / "serial", tmp_path / "forked")


def test_a_sweep_over_the_key_gets_the_pool_that_each_job_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Workers, "start", lambda _: None)
    simulator, found = Simulator(), []
    for fork in ("true", "false", "false"):
        simulator._grid(small(*FORKED, f"engine.fork={fork}"))
        found.append(simulator._workers)
    assert [workers.fork for workers in found if workers] == [True, False, False]
    assert found[0] is not found[1] is found[2]


def test_clients_that_raise_end_their_process_or_take_too_long(
    tmp_path: Path, forked: Simulator, faults: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    options = (*FAULTY, *FORKED, "engine.client_timeout_s=2")
    simulate(tmp_path / "well", *FAULTY)
    faults(c2="die-once", c9="die-once")  # two of three processes end; their clients run again
    simulate(tmp_path / "died", *options, simulator=forked)
    assert_same_run(tmp_path / "well", tmp_path / "died")
    assert "a worker died while it ran client" in caplog.text
    forked.close()
    faults(c1="raise", c5="kill", c8="hang", c11="modes-on")
    simulate(tmp_path / "faulty", *options, "engine.workers=5", "rounds=1", simulator=forked)
    assert failed(tmp_path / "faulty") == {(1, 1), (1, 5), (1, 8), (1, 11)}
    for text in ("this phone is broken", "died 2 times: SIGKILL", "no answer in 2 s", "modes-on"):
        assert text in caplog.text


def test_ray_takes_over_in_the_midst_of_a_round(
    tmp_path: Path, ray_simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(tmp_path / "serial", "clients.total=40")
    actors = ready(ray_simulator)
    monkeypatch.setattr(engine, "RAY_AFTER_S", 0.02)
    monkeypatch.setattr(Workers, "_new_actors", lambda _: actors)
    simulator = Simulator()
    folder = tmp_path / "both"
    simulate(folder, "clients.total=40", *FORKED, simulator=simulator)
    workers = simulator._workers
    assert workers is not None and workers.first is None and workers.actors is actors
    assert_same_run(tmp_path / "serial", folder)


def ready(simulator: Simulator) -> Actors:
    """Return its actors when they have started."""
    simulator._grid(small("engine=ray", "engine.workers=2"))
    assert simulator._workers is not None
    actors = simulator._workers.actors
    assert actors is not None
    while not actors.are_there():
        time.sleep(0.05)
    return actors


def test_where_all_of_them_are_gone_ray_runs_the_rest(
    tmp_path: Path,
    ray_simulator: Simulator,
    faults: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actors = ready(ray_simulator)
    monkeypatch.setattr(engine, "RAY_AFTER_S", float("inf"))
    monkeypatch.setattr(Workers, "_new_actors", lambda _: actors)
    simulate(tmp_path / "well", *FAULTY)
    faults(c2="die-once", c3="die-once")
    options = (*FAULTY, *FORKED, "engine.workers=2")
    simulate(tmp_path / "died", *options, simulator=Simulator())
    assert_same_run(tmp_path / "well", tmp_path / "died")


def test_what_runs_in_the_background_has_a_folder_and_signals_of_its_own(tmp_path: Path) -> None:
    here = Path.cwd()

    def look() -> tuple[str, set[signal.Signals], int]:
        os.chdir(tmp_path)
        child = subprocess.Popen(["sleep", "600"])
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return str(Path.cwd()), {signal.Signals(n) for n in blocked}, child.pid

    folder, blocked, child = in_background(look).result(timeout=30)
    try:
        assert (folder, Path.cwd()) == (str(tmp_path), here)
        assert Path(f"/proc/{child}/cwd").readlink() == tmp_path
        assert blocked >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        os.kill(child, signal.SIGKILL)

    def fail() -> None:
        raise ValueError("no Ray here")

    with pytest.raises(ValueError, match="no Ray here"):
        in_background(fail).result(timeout=30)


def test_they_hold_nothing_of_the_drivers(tmp_path: Path) -> None:
    """Neither its locks nor its pipes; and its output is not written twice."""
    path = tmp_path / "lock"
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        workers = FirstWorkers(2)
        pids = [fork.pid for fork in workers._forks]
        deadline = time.monotonic() + 10
        while any(str(path) in _files(pid) for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for pid in pids:  # its pipe, and the memory of its replies
            memory, pipe = sorted(name for name in _files(pid) if name != os.devnull)
            assert pipe.startswith("socket:") and memory.startswith("/memfd:cutbit-replies")
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    workers.close()
    workers.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def _files(pid: int) -> list[str]:
    return [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_they_end_with_the_driver(end: signal.Signals) -> None:
    code = """
        import time
        from app.first_workers import FirstWorkers
        print(*[fork.pid for fork in FirstWorkers(2)._forks], flush=True)
        time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        pids = [int(text) for text in driver.stdout.readline().split()]
        assert len(pids) == 2
        driver.send_signal(end)
        driver.wait(timeout=30)
    deadline = time.monotonic() + 30
    while any(_is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
