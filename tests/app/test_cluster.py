"""Experiments on clusters of two and three Ray nodes, which have neither our code nor our data."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray.cloudpickle
import yaml
from conftest import ROOT, SMALL, assert_same_run, simulate, small
from flwr.app import Message, RecordDict
from ray.exceptions import RayActorError
from ray_cluster import RayCluster, joined, python
from test_engine import bare

import targets
from app import actors, cluster, experiment, ray_session, shipped_code, shipped_data, signals
from app.actors import Actors
from app.calls import Call, Round
from app.cluster import Machines, NoMachineError
from app.config.composition import compose
from app.local_grid import LocalGrid
from app.shipped_data import DATA, Sender
from app.worker import Worker
from strategies import messages

pytestmark = pytest.mark.timeout(900)
ON = [one for one in SMALL if one != "engine=serial"]
# Runs each of the experiments in argv, and says on which machines its workers are.
DRIVER = """
import json, sys
from pathlib import Path
sys.path.insert(0, "tests")
from conftest import small
from app.engine import Simulator

simulator, found = Simulator(), []
for folder, *overrides in json.loads(sys.argv[1]):
    simulator.run(small(*overrides), Path(folder))
    actors = simulator._workers.actors
    while not actors.are_there():
        pass
    found.append(sorted(actors.machine_of.values()))
simulator.close()
print(json.dumps(found))
"""
BLOCKS = """
from torch import nn

def block(i, o):
    return nn.Sequential(nn.Linear(i, o), nn.ReLU())
"""
NET = """
from torch import nn
{imports}

class MyNet(nn.Sequential):
    def __init__(self, input_shape, num_classes, width=16):
        size = input_shape[0] * input_shape[1] * input_shape[2]
        super().__init__(nn.Flatten(), block(size, width), nn.Linear(width, num_classes))
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RayCluster]]:
    started: list[RayCluster] = []

    def start(*cpus: int, at: str = "cluster", **given: object) -> RayCluster:
        started.append(RayCluster(tmp_path / at, cpus, **given))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for one in started:
        one.close()


class Run:
    """`python main.py` in a process of its own."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder = folder
        given = [*ON, "engine=ray", *overrides, f"hydra.run.dir={folder}"]
        self.process = subprocess.Popen(
            [sys.executable, "main.py", *given], cwd=ROOT, env=joined(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def ended(self) -> tuple[int, str]:
        """Its exit code, and what it wrote to stderr."""
        _, err = self.process.communicate(timeout=400)
        return self.process.returncode, err

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not is_so():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def log(self) -> str:
        return (self.folder / "cutbit.log").read_text()


@pytest.mark.long
def test_two_and_three_machines_give_what_one_process_gives(
    tmp_path: Path, start: Callable[..., RayCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is the user's, and on machines that have nothing of it."""
    nets = tmp_path / "nets"
    nets.mkdir()
    (nets / "blocks.py").write_text(BLOCKS)
    (nets / "mine.py").write_text(NET.format(imports="from .blocks import block"))
    package = tmp_path / "path" / "my_pkg"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(BLOCKS)
    (package / "nets.py").write_text(NET.format(imports="from my_pkg.parts import block"))
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    simulate(tmp_path / "before", "strategy=fedavg", "rounds=1")
    experiments = {
        "plain": ("strategy=fedavg",),
        "file": ("strategy=oqfl", f"model._target_={nets}/mine.py:MyNet"),
        "package": ("strategy=fedavg", "model._target_=my_pkg.nets.MyNet", "seed=1"),
        "weights": (
            "strategy=splitfed_v1", "link.up=int8", "data.partition=dirichlet",
            f"model.weights={tmp_path / 'before' / 'model.safetensors'}",
        ),
    }  # fmt: skip
    for name, overrides in experiments.items():
        simulate(tmp_path / "serial" / name, *overrides)
    cluster = start(0, 1, 1, 1)
    for count in (2, 3):
        given = [
            [str(tmp_path / str(count) / name), "engine=ray", f"engine.workers={count}",
             f"engine.address={cluster.address}", *overrides]
            for name, overrides in experiments.items()
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", DRIVER, json.dumps(given)], cwd=ROOT,
            env=joined(), text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        for machines in json.loads(done.stdout):
            assert len(machines) == len(set(machines)) == count  # one worker on each
        for name in experiments:
            assert_same_run(tmp_path / "serial" / name, tmp_path / str(count) / name)
    # Each machine was sent each of the three data sets with their divisions once at most.
    for index in (1, 2, 3):
        assert 1 <= len(list(cluster.cache(index).glob("*.safetensors"))) <= 3
        assert all(path.name.startswith("sent-") for path in cluster.cache(index).iterdir())


@pytest.mark.long
def test_a_machine_that_dies_in_mid_round(
    tmp_path: Path, start: Callable[..., RayCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client runs elsewhere; the round ends, with the same results; it is said once."""
    method = ("strategy=fedavg", "strategy._target_=tests.app.waiting.Waiting", "clients.total=8")
    cluster = start(0, 1, 1, 1, HOLD=str(tmp_path))
    run = Run(tmp_path / "two", *method, f"engine.address={cluster.address}")
    run.wait_for((tmp_path / "there").exists)
    run.wait_for(lambda: "3 workers on 3 machines" in run.log())
    time.sleep(2)
    cluster.say("lose", 2)
    (tmp_path / "go").touch()
    code, err = run.ended()
    assert code == 0, err
    assert err.count("is gone (1 so far); its clients run on the others") == 1, err
    assert "a worker died" not in err
    monkeypatch.setenv("HOLD", str(tmp_path))
    simulate(tmp_path / "serial", *method)
    assert_same_run(tmp_path / "serial", tmp_path / "two")


@pytest.mark.long
@pytest.mark.parametrize("how", ["machines", "head"])
def test_all_machines_are_gone(
    how: str, tmp_path: Path, start: Callable[..., RayCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line; with another machine the run goes on where it was."""
    method = ("strategy=fedavg", "strategy._target_=tests.app.waiting.Waiting", "rounds=3")
    cluster = start(0, 1, 1, HOLD=str(tmp_path))
    (tmp_path / "go").touch()
    run = Run(tmp_path / "two", *method, f"engine.address={cluster.address}")
    run.wait_for((tmp_path / "two" / "checkpoint" / "000001").exists)
    (tmp_path / "go").unlink()
    time.sleep(2)
    if how == "head":
        cluster.say("crash", 0)
    else:
        cluster.say("lose", 1)
        cluster.say("lose", 2)
    code, err = run.ended()
    print(err)
    assert code == 1
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    reason = "its head is gone" if how == "head" else "no machine with a CPU is left"
    assert len(errors) == 1 and reason in errors[0], err
    (tmp_path / "go").touch()
    if how == "head":  # another cluster takes its place
        cluster = start(1, at="other", HOLD=str(tmp_path))
    else:
        cluster.say("add", 1)
    code, err = Run(
        tmp_path / "two", *method, f"engine.address={cluster.address}", "resume=true"
    ).ended()
    assert code == 0, err
    monkeypatch.setenv("HOLD", str(tmp_path))
    simulate(tmp_path / "serial", *method)
    assert_same_run(tmp_path / "serial", tmp_path / "two")


@pytest.mark.long
def test_a_machine_with_another_torch_is_refused(
    tmp_path: Path, start: Callable[..., RayCluster]
) -> None:
    other = tmp_path / "libraries"
    (other / "torch-2.12.0.dist-info").mkdir(parents=True)
    (other / "torch-2.12.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.12.0\n")
    there = start(0, 1, 1, environments={2: {"PYTHONPATH": str(other)}})
    run = Run(tmp_path / "run", "strategy=fedavg", f"engine.address={there.address}")
    code, err = run.ended()
    (error,) = err.splitlines()
    assert code == 1
    assert error.startswith(f"error: engine.address={there.address}: machine ")
    assert "has torch 2.12.0, this machine 2." in error and "the same versions on all" in error
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
trap 'kill $(jobs -p)' TERM
for ((i = 0; i < SLURM_NNODES; i++)); do SLURM_PROCID=$i "$@" & done
wait
"""


@pytest.mark.long
def test_the_slurm_script(tmp_path: Path) -> None:
    """Slurm's commands start both nodes on this machine; told to end, the job is queued again."""
    commands, number = tmp_path / "bin", str(os.getpid())
    commands.mkdir()
    (commands / "srun").write_text(SRUN)
    (commands / "scontrol").write_text('#!/bin/bash\necho "scontrol $*"\n')
    for one in commands.iterdir():
        one.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {
        "PATH": f"{commands}:{Path(sys.executable).parent}:{env['PATH']}", "HOME": str(tmp_path),
        "SLURM_JOB_ID": number, "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "1",
        "HOLD": str(tmp_path),
    }  # fmt: skip
    method = ("strategy=fedavg", "strategy._target_=tests.app.waiting.Waiting", "rounds=6")
    command = ["bash", "docs/cluster/slurm.sh", *ON, *method, f"hydra.run.dir={tmp_path / 'run'}"]

    def started() -> "subprocess.Popen[str]":
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=ROOT, env=env, text=True, **pipes)  # type: ignore[call-overload,no-any-return]

    first = started()
    deadline = time.monotonic() + 240
    while not (tmp_path / "there").exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    first.terminate()
    out, _ = first.communicate(timeout=200)
    assert first.returncode == 143 and f"scontrol requeue {number}" in out, out
    (tmp_path / "go").touch()
    again = started()
    out, _ = again.communicate(timeout=400)
    assert again.returncode == 0, out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 6
    assert "2 workers on 2 machines" in (tmp_path / "run" / "cutbit.log").read_text()


# Without Ray --------------------------------------------------------------------------------------


def test_a_file_that_was_sent_takes_the_place_of_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets, package = tmp_path / "nets", tmp_path / "path" / "sent_pkg"
    nets.mkdir()
    package.mkdir(parents=True)
    (nets / "blocks.py").write_text(BLOCKS)
    (nets / "mine.py").write_text(NET.format(imports="from .blocks import block"))
    (nets / "secret.py").write_text("")  # nobody imports it
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(BLOCKS)
    monkeypatch.syspath_prepend(str(package.parent))
    file = targets.pin(f"{nets}/mine.py:MyNet", "model._target_")
    for target in (file, "sent_pkg.nets.block"):
        targets.locate(target, "model._target_", "")
    sent, own = shipped_code.ours(), shipped_code.users()
    assert {"app/worker.py", "targets.py", "conf/config.yaml", "data/cache.py"} <= set(sent)
    assert not any(name.startswith(("runs/", "tests/", "docs/", ".")) for name in sent)
    assert sum(path.stat().st_size for path in sent.values()) < 3e6
    assert {"sent_pkg/__init__.py", "sent_pkg/nets.py"} <= set(own)
    assert [path.name for path in own.values() if path.parent == nets] == ["blocks.py", "mine.py"]
    assert not any("site-packages" in str(path) for path in own.values())
    with shipped_code.folder(own) as folder:
        for path in nets.glob("*.py"):
            path.unlink()
        for name in [name for name in sys.modules if name.startswith(shipped_code.FILES)]:
            monkeypatch.delitem(sys.modules, name)
        with pytest.raises(ValueError, match="no such file"):
            targets.locate(file, "model._target_", "")
        monkeypatch.setattr(targets, "SHIPPED", folder / "shipped")
        net = targets.locate(file, "model._target_", "")
    assert sum(p.numel() for p in net((1, 8, 8), 10).parameters()) == 16 * 65 + 170


class Grid(LocalGrid):
    def _execute(self, sent: Any, timeout: float | None) -> Any:
        raise NotImplementedError


def test_data_are_sent_once_to_a_machine_that_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients answer there as they do here, and the files are not asked for."""
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "mine.npz",
        train_x=rng.random((60, 1, 8, 8), np.float32), train_y=np.arange(60) % 3,
        test_x=rng.random((9, 1, 8, 8), np.float32), test_y=np.arange(9) % 3,
    )  # fmt: skip
    chosen = small("strategy=fedavg", "data=arrays", f"data.path={tmp_path / 'mine.npz'}")
    sender, store = Sender(lambda content: content), list[int]()
    here = {**experiment.run_config(chosen)}
    there = sender.run_config(here)
    assert sender.sent(chosen) is there[DATA]  # not put twice
    assert there[DATA].num_bytes < 60 * 64 * 4 + 4000  # nothing of the test
    other = replace(chosen.data, seed=1)
    assert sender.sent(replace(chosen, data=other)).key != there[DATA].key  # another division

    def fetch(content: Any) -> Any:
        if isinstance(content, np.ndarray):
            store.append(len(content))
        return content

    def numbers(run_config: Any) -> list[int]:
        grid = Grid(6, run_config)
        jobs = []
        for node in range(6):
            message = Message(RecordDict(), node, "query")
            jobs.append(("key", message.metadata))
        replies = Worker(fetch).replies({"key": RecordDict()}, jobs, 6, grid._run_config)
        return [messages.read_introduction(reply)[1] for reply in replies]

    expected = numbers(here)
    experiment.forget_data()
    (tmp_path / "mine.npz").unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):  # the second worker of the machine finds what the first one fetched
        shipped_data.forget()
        assert numbers(there) == expected
    assert store == [there[DATA].num_bytes]
    samples = shipped_data.client_data(there, chosen, 5)
    assert len(samples) == expected[5]
    with pytest.raises(ValueError, match=r"clients.total=6: there is no client 6"):
        shipped_data.client_data(there, chosen, 6)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder: all works without
    shipped_data.forget()
    assert numbers(there) == expected and len(store) == 2
    shipped_data.forget()


def node(name: str, cpus: int = 1) -> dict[str, Any]:
    return {
        "NodeID": name, "Alive": True, "NodeManagerHostname": "host", "Resources": {"CPU": cpus},
        "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": 1 if name == "head" else 2,
    }  # fmt: skip


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Machines:
    """Those of a cluster with a head and two others, `a` and `b`, all of which answer."""
    context = SimpleNamespace(gcs_address="127.0.0.1:1", get_node_id=lambda: "head")
    monkeypatch.setattr(cluster.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [node("head", 0), node("a"), node("b")])
    monkeypatch.setattr(cluster, "_answers", lambda host, port: True)
    return Machines("here:1")


def test_calls_of_a_lost_machine_are_nobodys_fault(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They go back as they are, of all its workers, and it is said once."""

    class Pool(Actors):
        def replace(self, index: int) -> None:
            self.machine_of.pop(index)

    def get(reference: str, **_: object) -> object:
        raise RayActorError

    monkeypatch.setattr(actors.ray, "get", get)
    pool = bare(Pool)
    pool._machines, pool.machine_of = machines, {0: "a", 1: "b", 2: "b"}
    state = Round(["m"] * 9, {}, [], deque([Call([8])]))
    given = {"w": (0, [0, 1]), "x": (1, [2, 3]), "y": (1, [4, 5]), "z": (2, [6])}
    state.flying = {name: (index, Call(of)) for name, (index, of) in given.items()}
    monkeypatch.setattr(cluster, "_answers", lambda host, port: port == 1)
    machines.lost.append("a")  # said before
    for name in ("y", "z"):
        pool._collect(state, name)
    assert [(c.indices, c.deaths) for c in state.queue] == [
        ([6], 0), ([2, 3], 0), ([4, 5], 0), ([8], 0)
    ]  # fmt: skip
    assert list(state.flying) == ["w"] and pool.machine_of == {0: "a"}
    assert caplog.text.count("machine host (b) is gone (2 so far); its clients run on") == 1


def test_an_actor_gets_work_when_it_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a cluster that became smaller it may wait for a machine for ever."""
    pool = bare()
    pool.actors = [SimpleNamespace(handle=SimpleNamespace(remote=lambda *_: "x")), None]
    pool._coming = {1: "pending"}
    state = Round(["m"] * 2, {}, ["k"] * 2, deque([Call([0]), Call([1])]), references={"k": None})
    state.jobs = lambda call: []  # type: ignore[method-assign]
    pool._fill(state)
    assert {index for index, _ in state.flying.values()} == {0}


def test_machines_are_compared_once_also_those_that_come_late(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    mine = cluster.reader()(cluster.COMPARED)

    def get(node: str, timeout: float) -> dict[str, str]:
        asked.append(node)
        return mine | ({"flwr": "1.0"} if node == "b" else {})

    monkeypatch.setattr(cluster, "_ask", lambda node: node)
    monkeypatch.setattr(cluster.ray, "get", get)
    for _ in range(2):
        machines.check(["a"])
    with pytest.raises(
        ValueError, match=r"^engine.address=here:1: machine host \(b\) has flwr 1.0,"
    ):
        machines.check()
    assert asked == ["a", "b"]  # not the head, which has no CPUs


def test_workers_that_never_start_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool(Actors):
        def replace(self, index: int) -> None:
            self._coming[index] = "again"

    def get(reference: str) -> None:
        raise RayActorError(error_msg="no such module")

    monkeypatch.setattr(actors.ray, "wait", lambda all_of, **_: (all_of, []))
    monkeypatch.setattr(actors.ray, "get", get)
    monkeypatch.setattr(actors, "FAILING_S", 0.0)
    pool = bare(Pool)
    pool.actors, pool._failed_starts, pool._coming = [None], [], {0: "first"}
    for _ in range(2):
        pool._greet(0)  # it is tried again
    with pytest.raises(RuntimeError, match=r"^no worker can be started: .*no such module"):
        pool._greet(0)


def test_a_signal_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises KeyboardInterrupt in the place of what a handler raised."""

    def interrupted(self: object, state: object) -> None:
        with pytest.raises(signals.Stopped):
            signal.raise_signal(signal.SIGUSR1)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGUSR1)
    signals.install(("SIGUSR1",))
    try:
        monkeypatch.setattr(Actors, "_advance", interrupted)
        pool = bare()
        pool.actors = []
        with pytest.raises(signals.Stopped):
            list(pool.run(Round([], {}, [], deque([Call([0])]))))
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_without_machines_nobody_waits(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    machines.require()
    machines.lost += ["a", "b"]  # which Ray has not noticed
    with pytest.raises(NoMachineError, match=r"^engine.address=here:1: no machine with a CPU is"):
        machines.require()
    assert not machines.is_gone("a") and machines.is_gone("c") and not machines.is_gone(None)
    assert machines.has_head()
    machines._here = "c"
    with pytest.raises(NoMachineError, match=r"^engine.address=here:1: the Ray of this machine is"):
        machines.has_head()
    monkeypatch.setattr(cluster, "_answers", lambda host, port: False)
    assert not machines.has_head()  # it may come back
    monkeypatch.setattr(cluster, "HEAD_S", -1.0)
    with pytest.raises(NoMachineError, match=r"^engine.address=here:1: its head is gone; the same"):
        machines.has_head()


def test_versions_are_compared(tmp_path: Path) -> None:
    mine = {"python": "3.11", "torch": "2.13.0", "flwr": "1.42.0"}
    assert cluster.differences(mine, mine) == ""
    assert cluster.differences(mine, mine | {"torch": "2.12.1", "flwr": ""}) == (
        "torch 2.12.1, this machine 2.13.0; no flwr; takes the same versions on all"
    )
    found = cluster.reader()(["torch", "no-such-thing"])
    assert "+" not in found["torch"] and found["no-such-thing"] == ""
    # It runs where there is nothing of ours.
    (tmp_path / "task").write_bytes(ray.cloudpickle.dumps(cluster.reader()))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))(['numpy']))"
    done = subprocess.run(
        [python(tmp_path / "python"), "-c", code, str(tmp_path / "task")], text=True, check=True,
        capture_output=True, cwd=tmp_path,
    )  # fmt: skip
    assert f"'numpy': '{np.__version__}'" in done.stdout


def test_what_ray_says_of_a_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of Python or Ray, or a machine that is none of the cluster's."""

    def init(**_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n")

    monkeypatch.setattr(ray_session.ray, "init", init)
    monkeypatch.setattr(ray_session, "answers", lambda *_: True)
    before = dict(os.environ)
    with pytest.raises(
        ValueError, match=r"=127\.0\.0\.1:1: Version mismatch: The .* Ray: 2\.50\.0$"
    ):
        ray_session.start(None, "127.0.0.1:1")
    assert dict(os.environ) == before


def test_the_manifest_starts_what_the_page_says() -> None:
    manifest = yaml.safe_load((ROOT / "docs" / "cluster" / "kubernetes.yaml").read_text())
    spec = manifest["spec"]
    overrides = spec["entrypoint"].split()
    assert overrides[:2] == ["python", "main.py"]
    assert compose(overrides[2:-1]).engine.address == "auto"  # all but the folder
    assert {"resume=true", "hydra.run.dir=/runs/oqfl"} <= set(overrides)
    inner = spec["rayClusterSpec"]
    assert inner["rayVersion"] == ray.__version__ and inner["authOptions"] == {"mode": "token"}
    assert f"rayproject/ray:{ray.__version__}-" in (ROOT / "docs/cluster/Dockerfile").read_text()
    assert inner["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
