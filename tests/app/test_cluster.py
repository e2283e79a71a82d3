"""Experiments on clusters of two and three Ray nodes, which have neither our code nor our data."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, assert_same_run, simulate
from ray_cluster import RayCluster, joined

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
    # Each machine was sent each of the three sets of data and divisions once at most.
    for index in (1, 2, 3):
        assert len(list(cluster.cache(index).glob("sent-*.safetensors"))) in (1, 2, 3)
        assert not list(cluster.cache(index).glob("d*"))  # none prepared any


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
