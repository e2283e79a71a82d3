"""`flwr run .` as a user types it: in Flower's simulation, and on a SuperLink with SuperNodes.

The app runs from the bundle that `flwr run` installs under FLWR_HOME, never from this checkout.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, assert_same_run
from flower_home import FlowerHome

OVERRIDES = (
    "strategy=oqfl", "quant.bits=4", "clients.total=2", "rounds=2", "train.epochs=1",
    "tracker.wandb.mode=disabled",
)  # fmt: skip
CUT = ("strategy=splitfed_v1", *OVERRIDES[2:])
TWO_NODES = "num-supernodes=2 client-resources-num-cpus=1 init-args-num-cpus=1"

pytestmark = [
    pytest.mark.timeout(1500),  # Flower starts again what takes 30 s to start
    pytest.mark.skipif(sys.platform != "linux", reason="FlowerHome finds processes in /proc"),
]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[FlowerHome]:
    with FlowerHome(tmp_path / "flower") as home:
        yield home
    assert home.processes() == []


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the same configuration by main.py."""
    return by_main(tmp_path_factory.mktemp("expected"), *OVERRIDES)


def by_main(folder: Path, *overrides: str) -> Path:
    command = ["main.py", "engine=serial", *overrides, f"hydra.run.dir={folder}"]
    subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=True)
    return folder


@pytest.mark.long  # test_half_supernodes.py runs on SuperNodes, test_own_app.py in a simulation
def test_simulation(home: FlowerHome, tmp_path: Path) -> None:
    """Where the server half may run beside the clients, too."""
    link = home.superlink("--simulation")
    options = ("--federation-config", TWO_NODES)
    run = home.run(link, *options, overrides=" ".join(CUT), output=str(tmp_path / "run"))
    assert run.status == "finished:completed", home.logs()
    assert_same_run(by_main(tmp_path / "main", *CUT), tmp_path / "run")


@pytest.mark.long  # starts a SuperLink; test_flower_start.py has the refusal itself
def test_superlink_refuses(home: FlowerHome, tmp_path: Path) -> None:
    """A run that cannot start says why, counts as failed, and leaves no folder."""
    link, folder = home.superlink(), tmp_path / "run"
    refused = home.run(link, overrides=" ".join(CUT), output=str(folder))
    assert refused.status == "finished:failed"
    assert "error: strategy=splitfed_v1: on SuperNodes the server keeps its half" in refused.log
    assert "takes -c 'half_address=" in refused.details
    assert not folder.exists()


@pytest.mark.long  # a process per message, which takes long to start
def test_supernodes(home: FlowerHome, expected: Path, tmp_path: Path) -> None:
    link = home.superlink()
    for partition in (1, 0):
        home.supernode(link, f"partition-id={partition}")
    run = home.run(link, overrides=" ".join(OVERRIDES), output=str(tmp_path / "run"))
    assert run.status == "finished:completed", home.logs()
    assert_same_run(expected, tmp_path / "run")


@pytest.mark.long  # as test_simulation, and test_supernodes
@pytest.mark.parametrize("is_simulated", [True, False], ids=["simulation", "supernodes"])
def test_server_steps(is_simulated: bool, home: FlowerHome, tmp_path: Path) -> None:
    """Asynchronous learning: messages of several rounds at once, one of whose models is old."""
    steps = (
        "schedule=buffered",
        "schedule.buffer=1",
        "fleet=mobile",
        "fleet.jitter=0.5",
        "rounds=4",
    )
    chosen = (*OVERRIDES, *steps)
    by_main(tmp_path / "main", *chosen)
    if is_simulated:
        options = ("--federation-config", TWO_NODES)
        link = home.superlink("--simulation")
    else:
        options, link = (), home.superlink()
        for partition in (0, 1):
            home.supernode(link, f"partition-id={partition}")
    run = home.run(link, *options, overrides=" ".join(chosen), output=str(tmp_path / "run"))
    assert run.status == "finished:completed", home.logs()
    assert_same_run(tmp_path / "main", tmp_path / "run")
    assert '"staleness_max": 2.0' in (tmp_path / "run" / "rounds.jsonl").read_text()
