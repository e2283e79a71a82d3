"""Jobs of a sweep next to each other: which begins when, and that all is as one after another."""

import functools
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from command_line import run
from conftest import FAULTS, ROOT, SMALL, assert_same_run, simulate
from rich.console import Console

from app import signals
from app.config.composition import compose
from app.config.schema import Config
from app.engine import Simulator
from app.experiment import resolve
from app.job_memory import fitting, job_bytes
from app.jobs import Jobs, key_of, refuse_plugins
from app.mailbox import Event, RoundDone
from app.run_folder import LOCK
from app.side_by_side import Ended, Job, JobPool, SideBySide
from app.wanted_jobs import Wanted
from tracking.live import SweepView

LOGS = yaml.safe_load((ROOT / "conf" / "hydra" / "job_logging" / "plain.yaml").read_text())


def job(number: int, folder: Path, *overrides: str, key: str = "") -> Job:
    """A job in ``folder/<number>``, as `app.jobs` makes it."""
    own = folder / str(number)
    own.mkdir(parents=True, exist_ok=True)
    (folder / LOCK).touch()
    config = compose([*SMALL, *overrides])
    logs = json.loads(json.dumps(LOGS).replace("${hydra.runtime.output_dir}", str(own)))
    logs = json.loads(json.dumps(logs).replace("${hydra.job.name}", "cutbit"))
    return Job(
        number, " ".join(overrides), config, own, folder, "group", key or key_of(resolve(config)),
        None, logs, False, {}, Path.cwd(),
    )  # fmt: skip


def view(num_jobs: int) -> tuple[SweepView, io.StringIO]:
    """A view without a terminal, and what it writes to."""
    out = io.StringIO()
    return SweepView(num_jobs, Console(file=out, width=200)), out


# Which begins when --------------------------------------------------------------------------------


class Scripted:
    """A pool whose jobs end when somebody waits, the oldest first."""

    def __init__(self, size: int, failing: Sequence[int] = (), stopped_at: int = 0) -> None:
        self.begun: list[Job] = []
        self.calls: list[str] = []
        self._size, self._free, self._running = size, size, deque[Job]()
        self._failing, self._stopped_at = failing, stopped_at

    def room(self) -> int:
        return self._free

    def begin(self, job: Job) -> None:
        assert self._free > 0
        self._free -= 1
        self.begun.append(job)
        self._running.append(job)

    def news(self, timeout_s: float | None) -> Sequence[Event | Ended]:
        if timeout_s == 0:
            return []
        one = self._running.popleft()
        if one.number == self._stopped_at:
            raise signals.Stopped(signal.SIGTERM)
        self._free += 1
        return [Ended(one.number, failure="broken" if one.number in self._failing else "")]

    def release(self) -> None:
        assert not self._free or len(self._running) < self._size

    def stop(self) -> None:
        self.calls.append("stop")

    def close(self) -> None:
        self.calls.append("close")


@functools.cache
def plain() -> Config:
    return compose([])


def named(number: int, key: str) -> Job:
    return Job(
        number, "", plain(), Path(f"/sweep/{number}"), Path("/sweep"), "", key, None, {}, False,
        {}, Path("/"),
    )  # fmt: skip


def scheduled(pool: Scripted, keys: str) -> tuple[list[tuple[int, str]], dict[int, str]]:
    """Run a job for each letter; who began and was copied from where, and who failed."""
    failed: dict[int, str] = {}
    shown, _ = view(len(keys))
    beside = SideBySide(
        lambda: pool, shown, lambda one, failure: failed.update({one.number: failure})
    )
    for number, key in enumerate(keys, 1):
        beside.submit(named(number, key))
    beside.drain()
    return [(one.number, one.before.name if one.before else "") for one in pool.begun], failed


def test_identical_jobs_wait_for_the_first_and_for_nobody_else() -> None:
    begun, failed = scheduled(Scripted(2), "aabca")
    assert begun == [(1, ""), (3, ""), (2, "1"), (4, ""), (5, "1")]
    assert failed == {}


def test_where_the_first_of_identical_jobs_fails_the_next_runs() -> None:
    begun, failed = scheduled(Scripted(3, failing=[1, 2]), "aaab")
    assert begun == [(1, ""), (4, ""), (2, ""), (3, "")]
    assert failed == {1: "broken", 2: "broken"}


def test_what_has_finished_already_is_copied() -> None:
    pool = Scripted(1)
    beside = SideBySide(lambda: pool, view(3)[0], lambda *_: None)
    beside.settle("a", Path("/sweep/1"))
    beside.submit(named(2, "b"))
    beside.settle("b", Path("/sweep/3"))  # after one that is the same, and runs
    for number, key in ((4, "a"), (5, "b")):
        beside.submit(named(number, key))
    beside.drain()
    copied = {one.number: one.before and one.before.name for one in pool.begun}
    assert copied == {2: None, 4: "1", 5: "2"}


def test_one_job_is_prepared_ahead_and_not_more() -> None:
    pool = Scripted(2)
    shown, _ = view(5)
    beside = SideBySide(lambda: pool, shown, lambda *_: None)
    for number, key in enumerate("abcde", 1):
        beside.submit(named(number, key))
        assert [one.number for one in pool.begun] == list(
            range(1, max(number - 1, min(number, 2)) + 1)
        )


def test_a_stop_reaches_the_pool_and_nothing_begins_after_it() -> None:
    pool = Scripted(1, stopped_at=2)
    shown, out = view(4)
    beside = SideBySide(lambda: pool, shown, lambda *_: None)
    with pytest.raises(signals.Stopped):
        for number, key in enumerate("abcd", 1):
            beside.submit(named(number, key))
        beside.drain()
    beside.drain()
    beside.close()
    assert [one.number for one in pool.begun] == [1, 2]
    assert pool.calls == ["stop", "close"]
    assert "error" not in out.getvalue()


def test_a_pool_that_cannot_start_is_not_started_for_each_job() -> None:
    starts = []

    def start() -> Scripted:
        starts.append(1)
        raise ValueError("no room")

    beside = SideBySide(start, view(2)[0], lambda *_: None)
    for number in (1, 2):
        with pytest.raises(ValueError, match="no room"):
            beside.submit(named(number, "a"))
    beside.drain()
    assert len(starts) == 1


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "is_sweep", "message"),
    [
        ("sweep.jobs=0", True, "sweep.jobs=0: takes 1 to 1000, or auto"),
        ("sweep.jobs=many", True, "sweep.jobs=many: takes 1 to 1000, or auto"),
        ("sweep.jobs=2", False, "sweep.jobs=2: runs jobs side by side; takes -m"),
        ("sweep.jobs=1,2", True, "takes one value for all jobs"),
        ("sweep.jobs=2 engine=ray,serial", True, "engine=ray,serial: takes one value"),
        ("sweep.jobs=2 engine.workers=1,2", True, "engine.workers=1,2: takes one value"),
        ("sweep.jobs=4 engine.workers=2", True, "sweep.jobs=4: engine.workers=2 takes as many"),
        ("hydra/launcher=joblib", True, "hydra/launcher=joblib: takes basic; sweep.jobs=2"),
        ("hydra/sweeper=optuna", True, "hydra/sweeper=optuna: takes basic, which runs every"),
    ],
)
def test_what_does_not_go_together(overrides: str, is_sweep: bool, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Jobs().check(overrides.split(), is_sweep)


def test_hydras_own_may_be_named() -> None:
    refuse_plugins(["hydra/launcher=basic", "hydra/sweeper=basic", "hydra.sweep.dir=here"])


# How many fit -------------------------------------------------------------------------------------


def test_how_many_fit() -> None:
    assert fitting([4], [10], 3) == 3  # memory
    assert fitting([2], [10], 3) == 2  # a CPU each
    assert fitting([2, 8, 1], [2, 10, 10], 3) == 0 + 3 + 1
    assert fitting([8], [2], 3) == 1  # one runs all the same


def test_what_a_job_takes_grows_with_its_parts() -> None:
    def of(*overrides: str) -> int:
        from app.experiment import check

        chosen = resolve(compose([*SMALL, *overrides]))
        return job_bytes(chosen, check(chosen).model)

    first = of()
    assert of("model.width=64") > first
    assert of("train.batch_size=500") > first
    assert of("data.max_train=100") < first


# On Ray -------------------------------------------------------------------------------------------

LONG = ("strategy=oqfl", "rounds=5000", "checkpoint.every=5000")


@pytest.fixture(scope="module")
def pool(ray_simulator: Simulator) -> Iterator[JobPool]:
    """Two processes; those of the other tests give way to them."""
    ray_simulator.close()
    pool = JobPool(Wanted(2, None, None), 100, 0, print)
    yield pool
    pool.close()


@pytest.mark.timeout(600)
def test_all_is_as_one_after_another(pool: JobPool, tmp_path: Path) -> None:
    """Several methods, one that fails, one whose process is killed, and a duplicate."""
    FAULTS.write_text("1 kill")
    overrides = [
        ("strategy=fedavg",),
        ("strategy=fedavg", "strategy._target_=tests.app.faulty.Faulty"),
        ("strategy=fedavg", "quant.bits=2"),  # which it does not read
        ("strategy=oqfl", "quant.bits=4"),
        ("strategy=fedavg", "train.lr=1e30"),
        ("strategy=splitfed_v3", "seed=1"),
    ]
    failed: dict[int, str] = {}
    shown, out = view(len(overrides))
    beside = SideBySide(
        lambda: pool, shown, lambda one, failure: failed.update({one.number: failure})
    )
    try:
        for number, given in enumerate(overrides):
            beside.submit(job(number, tmp_path / "two", *given))
        beside.drain()
    finally:
        FAULTS.write_text("")
    for number in (0, 3, 5):
        simulate(tmp_path / "one" / str(number), *overrides[number])
        assert_same_run(tmp_path / "one" / str(number), tmp_path / "two" / str(number))
        log = (tmp_path / "two" / str(number) / "cutbit.log").read_text()
        assert "[app.server][INFO] training starts" in log
    assert_same_run(tmp_path / "two" / "0", tmp_path / "two" / "2")
    assert json.loads((tmp_path / "two" / "2" / "summary.json").read_text())["same_as"] == "0"
    assert failed.keys() == {1, 4}
    assert failed[1].startswith("the job's process died: ")
    assert "FloatingPointError: training diverged" in failed[4]
    for number in (1, 4):
        text = (tmp_path / "two" / str(number) / "error.txt").read_text()
        assert (
            text.splitlines()[-1] and not (tmp_path / "two" / str(number) / "summary.json").exists()
        )
    lines = out.getvalue().splitlines()
    for number in (0, 3, 5):
        assert any(
            f"job {number}/6 {' '.join(overrides[number])}: round 2/2  acc" in one for one in lines
        )
    assert any("job 2/6" in one and "the same experiment as job 0" in one for one in lines)
    assert any("job 4/6" in one and "WARNING: round 1: client" in one for one in lines)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_client_that_cannot_be_interrupted_ends_its_job_alone(
    pool: JobPool, tmp_path: Path
) -> None:
    """One that sleeps is left out, as it is in the driver's process."""
    faulty = (
        "strategy=fedavg", "strategy._target_=tests.app.faulty.Faulty", "engine.client_timeout_s=3"
    )  # fmt: skip
    failed: dict[int, str] = {}
    beside = SideBySide(
        lambda: pool, view(2)[0], lambda one, failure: failed.update({one.number: failure})
    )
    for number, fault in enumerate(("1 hang-in-c", "1 hang")):
        FAULTS.write_text(fault)
        try:
            beside.submit(job(number, tmp_path, *faulty, f"seed={number}"))
            beside.drain()
        finally:
            FAULTS.write_text("")
    assert failed.keys() == {0} and "the job's process died" in failed[0]
    assert json.loads((tmp_path / "1" / "summary.json").read_text())["num_failed"] == 2


@pytest.mark.timeout(600)
def test_a_job_that_is_stopped_keeps_its_last_round(pool: JobPool, tmp_path: Path) -> None:
    """The last test here: after it the processes run nothing more."""
    pool.begin(job(0, tmp_path, *LONG))
    while not any(isinstance(one, RoundDone) for one in pool.news(None)):
        pass
    pool.stop()
    folder = tmp_path / "0"
    num = len((folder / "rounds.jsonl").read_text().splitlines())
    assert [path.name for path in (folder / "checkpoint").iterdir()] == [f"{num:06d}"]
    assert not (folder / "error.txt").exists() and not (folder / "summary.json").exists()
    again = (*LONG, f"rounds={num + 1}")
    simulate(folder, *again, "resume=true")
    simulate(tmp_path / "whole", *again)
    assert_same_run(tmp_path / "whole", folder)


# Whole command lines ------------------------------------------------------------------------------

SWEEP = (
    "-m", "strategy=fedavg,oqfl", "quant.bits=2,4", "seed=0,1", *SMALL, "rounds=8",
    "checkpoint.every=2", "tracker.wandb.mode=offline",
)  # fmt: skip


def started(*arguments: str) -> "subprocess.Popen[str]":
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "main.py", *arguments], cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def groups(sweep: Path) -> set[str]:
    """Under which groups wandb has the runs of a sweep."""
    found = set()
    for path in sweep.glob("*/wandb/offline-run-*/*.wandb"):
        found |= set(re.findall(rb"[\w-]+/" + sweep.name.encode(), path.read_bytes()))
    return {one.decode() for one in found}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_killed_sweep_goes_on_side_by_side(tmp_path: Path) -> None:
    """Its driver is killed amidst, and started again at once; one after another is the same."""
    two = (*SWEEP, "sweep.jobs=2", f"hydra.sweep.dir={tmp_path / 'two'}")
    process = started(*two)
    deadline = time.monotonic() + 240
    while not (tmp_path / "two" / "1" / "checkpoint" / "000004").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    num_finished = len(list((tmp_path / "two").glob("*/summary.json")))
    again = started(*two, "resume=true")
    out, err = again.communicate(timeout=900)
    assert again.returncode == 0, err
    assert num_finished <= err.count("finished already") <= num_finished + 2
    assert "continued after round" in err and "the same experiment as job" in err
    one = started(*SWEEP, f"hydra.sweep.dir={tmp_path / 'one'}")
    expected, _ = one.communicate(timeout=900)
    for number in range(8):
        assert_same_run(tmp_path / "one" / str(number), tmp_path / "two" / str(number))
    assert rows(out) == rows(expected) and len(rows(out)) == 8
    assert groups(tmp_path / "two") == {f"{tmp_path.name}/two"}
    assert len(list((tmp_path / "two").glob("*/wandb/offline-run-*"))) == 8


def rows(out: str) -> list[list[str]]:
    """The rows of the table, without seconds."""
    cells = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
    return [[cell for cell in row if not re.fullmatch(r"\d+\.\d", cell)] for row in cells]


CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
node = cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.remove_node(node)
print("gone", flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_machines_of_which_one_goes(tmp_path: Path) -> None:
    """Its job fails, the others run where there is room, as they do here."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    cluster = subprocess.Popen([sys.executable, "-c", CLUSTER], text=True, env=env, **pipes)  # type: ignore[call-overload]
    try:
        address = cluster.stdout.readline().strip()
        jobs = ("-m", "seed=0,1,2,3", *SMALL, "engine=ray", "rounds=12")
        there = (*jobs, "sweep.jobs=2", f"engine.address={address}")
        many = run(*there, "sweep.jobs=3", f"hydra.sweep.dir={tmp_path / 'many'}")
        assert many.stderr.count("sweep.jobs=3: the cluster has 2 CPUs") == 8
        process = started(*there, f"hydra.sweep.dir={tmp_path / 'two'}")
        deadline = time.monotonic() + 300
        while len(list((tmp_path / "two").glob("*/checkpoint/*"))) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        cluster.stdin.write("\n")
        cluster.stdin.flush()
        out, err = process.communicate(timeout=900)
        assert process.returncode == 1
        assert sum("failed" in row for row in rows(out)) == 1, err
        assert "the job's process died" in err
        again = started(*there, "resume=true", f"hydra.sweep.dir={tmp_path / 'two'}")
        out, err = again.communicate(timeout=900)
        # There is one CPU left.
        assert again.returncode == 1 and "sweep.jobs=2: the cluster has 1 CPUs" in err
        last = (*there, "sweep.jobs=auto", "resume=true", f"hydra.sweep.dir={tmp_path / 'two'}")
        ended = started(*last)
        out, err = ended.communicate(timeout=900)
        assert ended.returncode == 0, err
    finally:
        cluster.communicate("\n", timeout=60)
    one = started(*jobs, "engine=serial", f"hydra.sweep.dir={tmp_path / 'one'}")
    one.communicate(timeout=900)
    for number in range(4):
        assert_same_run(tmp_path / "one" / str(number), tmp_path / "two" / str(number))
