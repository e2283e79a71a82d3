"""What `flwr run` starts: its checks before anything is written, and the bundle that it ships."""

import io
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SMALL, assert_same_run, simulate
from flwr.app import Context, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.cli.utils import collect_files

from app import runtime, server
from app.engine import SerialGrid
from app.worker import make_context

TWO = ("strategy=fedavg", "clients.total=2")
CUT = "strategy=splitfed_v1"
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
PACKAGES = ("app", "conf", "data", "fleet", "models", "quant", "strategies", "tracking")


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., None]:
    """Start the ServerApp as Flower does, with two nodes, into tmp_path/run."""

    def go(*overrides: str, num_nodes: int = 2, **run_config: Any) -> None:
        text = " ".join([*SMALL, *TWO, *overrides])
        given = {"overrides": text, "output": str(tmp_path / "run"), **run_config}
        context = Context(1, 1, {}, RecordDict(), given)
        server.main(SerialGrid(num_nodes, given), context)

    return go


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "is_simulated", lambda grid: True)


def test_a_run(start: Callable[..., None], tmp_path: Path) -> None:
    start()
    simulate(tmp_path / "ours", *TWO)
    assert_same_run(tmp_path / "run", tmp_path / "ours")


@pytest.mark.parametrize(
    ("overrides", "run_config", "line"),
    [
        ((), {"output": ""}, "output='': takes an absolute folder to write the run to"),
        ((), {"output": "runs/x"}, "output='runs/x': takes an absolute folder to write the run to"),
        ((), {"output": "~/x"}, "output='~/x': takes an absolute folder to write the run to"),
        ((), {"nodes_timeout_s": -1}, "nodes_timeout_s=-1: takes seconds, 0 or more"),
        ((), {"nodes_timeout_s": "long"}, "nodes_timeout_s='long': takes seconds, 0 or more"),
        ((), {"overrides": "name='x"}, 'overrides="name=\'x": No closing quotation'),
        (("strategy=nope",), {}, "strategy=nope: takes "),
        (("rounds=0",), {}, "rounds=0: takes 1 or more"),
        (("quant.bit=4",), {}, "quant.bit: unknown key; did you mean quant.bits"),
        (("data=mnist", "data.root=/nowhere"), {}, "/nowhere"),
        (("model=ecg1d",), {}, "model=ecg1d with data=digits: ecg1d takes signals"),
        (
            (CUT,),
            {},
            "strategy=splitfed_v1: on SuperNodes the server keeps its half of the network",
        ),
        ((CUT,), {"half_address": "here"}, "half_address='here': takes host:port"),
        ((CUT,), {"half_address": "192.0.2.1:0"}, "half_address=192.0.2.1:0: cannot listen there"),
        (
            (CUT,),
            {"half_address": "127.0.0.1:0", "half_cert": "x.pem"},
            "half_cert='x.pem' half_key='': takes both files, or neither",
        ),
        (
            (CUT,),
            {"half_address": "127.0.0.1:0", "half_timeout_s": 0},
            "half_timeout_s=0: takes seconds above 0",
        ),
        (("clients.total=1",), {}, "clients.total=1: there are 2 nodes"),
        (
            ("clients.total=3",),
            {"nodes_timeout_s": 0},
            "clients.total=3: only 2 nodes came in 0 s",
        ),
    ],
)
def test_what_cannot_start_is_one_line_and_writes_nothing(
    overrides: tuple[str, ...],
    run_config: dict[str, Any],
    line: str,
    start: Callable[..., None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ValueError) as raised:
        start(*overrides, **run_config)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__
    assert f"error: {raised.value}" in caplog.messages
    assert list(tmp_path.iterdir()) == []


def test_output_that_is_no_folder(start: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OSError, match=r"cannot write run/\.lock to .*: File exists"):
        start()
    assert (tmp_path / "run").read_text() == "mine"


def test_a_simulation_takes_the_server_half_to_the_clients(
    start: Callable[..., None], simulated: None, tmp_path: Path
) -> None:
    start(CUT)
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("num_nodes", [1, 3])
def test_a_simulation_has_as_many_nodes_as_clients_or_ends(
    num_nodes: int,
    start: Callable[..., None],
    simulated: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "SIMULATED_S", 0.1)
    with pytest.raises(ValueError, match=rf"clients\.total=2: .* {num_nodes} nodes.*supernodes=2"):
        start(num_nodes=num_nodes, nodes_timeout_s=1000)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_leaves_its_error(
    start: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ArithmeticError("the test set is gone")

    with monkeypatch.context() as patch:
        patch.setattr(server, "in_rounds", lambda *_: broken)
        with pytest.raises(ArithmeticError):
            start()
    assert "the test set is gone" in (tmp_path / "run" / "error.txt").read_text()
    assert not (tmp_path / "run" / "summary.json").exists()
    with pytest.raises(ValueError, match="holds a run already; resume=true continues it"):
        start()
    assert (tmp_path / "run" / "error.txt").exists()
    start("resume=true")
    assert not (tmp_path / "run" / "error.txt").exists()
    simulate(tmp_path / "ours", *TWO)
    assert_same_run(tmp_path / "run", tmp_path / "ours")


# Nodes ------------------------------------------------------------------------------------------


class OddNodes(SerialGrid):
    """Nodes whose configuration is what a user typed for `--node-config`."""

    def __init__(self, *node_configs: dict[str, Any]) -> None:
        super().__init__(len(node_configs), {"overrides": " ".join([*SMALL, *TWO])})
        self._node_configs = node_configs

    def _context(self, node: int) -> Context:
        context = make_context(1, node, self._num_nodes, self._run_config)
        context.node_config = self._node_configs[node]
        return context


@pytest.mark.parametrize(
    ("second", "line"),
    [
        ({}, "partition-id=missing: takes the number of the node's part of the data, from 0"),
        ({"partition-id": "b"}, "partition-id=b: takes the number"),
        ({"partition-id": -1}, "partition-id=-1: takes the number"),
        ({"partition-id": 2}, "clients.total=2: there is no client 2"),
        ({"partition-id": 0}, "two nodes hold partition 0; each needs one of its own"),
    ],
)
def test_nodes_with_wrong_partitions(second: dict[str, Any], line: str, tmp_path: Path) -> None:
    nodes = OddNodes({"partition-id": 0}, second)
    given = {"overrides": " ".join([*SMALL, *TWO]), "output": str(tmp_path / "run")}
    with pytest.raises((ValueError, RuntimeError)) as raised:
        server.main(nodes, Context(1, 1, {}, RecordDict(), given))
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_supernodes_that_come_late_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Late(OddNodes):
        asked = 0

        def get_node_ids(self) -> Iterable[int]:
            self.asked += 1
            return range(min(self.asked // 3, 2))

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    given = {"overrides": " ".join([*SMALL, *TWO]), "output": str(tmp_path / "run")}
    server.main(
        Late({"partition-id": 0}, {"partition-id": 1}), Context(1, 1, {}, RecordDict(), given)
    )
    said = [text for text in caplog.messages if text.startswith("waiting")]
    assert said == [f"waiting for nodes: {there} of 2 are there" for there in (0, 1)]
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_node_may_hold_any_partition_that_nobody_else_holds(tmp_path: Path) -> None:
    nodes = OddNodes({"partition-id": 1, "num-partitions": 7}, {"partition-id": "0"})
    given = {"overrides": " ".join([*SMALL, *TWO]), "output": str(tmp_path / "run")}
    server.main(nodes, Context(1, 1, {}, RecordDict(), given))
    simulate(tmp_path / "ours", *TWO)
    assert_same_run(tmp_path / "run", tmp_path / "ours")


# The bundle -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle() -> zipfile.ZipFile:
    """What `flwr run` ships from here, had this folder also what a used one has."""
    used = ("runs/x/rounds.jsonl", "runs/x/checkpoint/a.json", ".venv/lib/a.py", "wandb/a.json")
    found = {path: ROOT / path for path in shipped_from_disk()}
    content, _ = build_fab_from_files({**found, **dict.fromkeys(used, b"")})
    return zipfile.ZipFile(io.BytesIO(content))


def shipped_from_disk() -> list[str]:
    """Files of this checkout; not those of .venv, which are many."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "."]
    inside = [f"{folder.name}/{name}" for folder in folders for name in collect_files(folder)]
    return [*inside, *(path.name for path in ROOT.iterdir() if path.is_file())]


def test_the_bundle_holds_the_code_and_conf_and_nothing_else_that_is_large(
    bundle: zipfile.ZipFile,
) -> None:
    names = set(bundle.namelist())
    for folder in PACKAGES:
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in (".py", ".yaml", ".json", ".csv"):
                assert str(path.relative_to(ROOT)) in names
    assert not [name for name in names if name.startswith((".venv/", "wandb/", "runs/x"))]
    assert sum(info.compress_size for info in bundle.infolist()) < 3_000_000


def test_the_bundle_runs_where_it_is_unpacked(bundle: zipfile.ZipFile, tmp_path: Path) -> None:
    bundle.extractall(tmp_path)
    code = (
        "import app.client, app.config.composition, app.experiment, app.server\n"
        "config = app.config.composition.compose(['strategy=oqfl', 'quant.bits=4'])\n"
        "config = app.experiment.resolve(config)\n"
        "app.experiment.strategy(config)\n"
        "print(app.server.__file__, app.config.composition.CONF, config.quant.bits)\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [f"{tmp_path}/app/server.py", f"{tmp_path}/conf", "4"]
