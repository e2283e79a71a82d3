"""docs/EXTEND.md: its examples run as they stand, in a folder that has names of ours in it."""

import contextlib
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, small
from omegaconf import OmegaConf

import targets
from app import experiment
from app.config.composition import compose, from_stored
from app.jobs import Jobs, expand, preset
from data.partition import partition
from models.build import build
from models.split import cut
from quant.codec import LinkSettings, Packet, make_codec

PAGE = (ROOT / "docs" / "EXTEND.md").read_text()
FILES = re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)```", PAGE, re.M | re.S)
COMMANDS = re.findall(r"```bash\n(.*?)\n```", PAGE, re.S)
QUICK = [
    "engine=serial", "rounds=1", "clients.total=3", "data.max_train=60", "data.max_test=60",
    "train.epochs=1", "tracker.wandb.mode=disabled", "checkpoint.every=0",
]  # fmt: skip
# Runs commands one after another in one process, each as it would run in its own.
DRIVER = """
import json, runpy, sys
codes = []
for command, *arguments in json.loads(sys.argv[1]):
    sys.argv = [command, *arguments]
    try:
        if command.endswith(".py"):
            runpy.run_path(command, run_name="__main__")
        else:
            runpy.run_module(command, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        codes.append(end.code)
sys.exit(any(codes))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: the page's files, and packages that have the names of ours."""
    folder = tmp_path_factory.mktemp("user")
    for name, text in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("app", "data", "models", "strategies"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('not ours')")
    (folder / "quant.py").write_text("raise RuntimeError('not ours')")
    (folder / "targets.py").write_text("raise RuntimeError('not ours')")
    # A network in a folder models/, with a neighbour; and the same in a package.
    net = (folder / "nets" / "mine.py").read_text()
    block = "from torch.nn.functional import relu\ndef bent(x):\n    return relu(x) * 0.5\n"
    text = net.replace("self.head(self", "self.head(bent(self").replace("(x))", "(x)))", 1)
    for package, name in (("models", "net"), ("my_pkg", "__init__")):
        (folder / package).mkdir(exist_ok=True)
        (folder / package / "blocks.py").write_text(block)
        (folder / package / f"{name}.py").write_text("from .blocks import bent\n" + text)
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def configs(runs: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted(runs.rglob("config.json"))]


def test_every_section_has_a_file_and_a_command() -> None:
    assert len(FILES) == 9 and len(COMMANDS) == 7
    assert all(len(re.findall(r"^.*\S", text, re.M)) <= 32 for _, text in FILES)


def test_the_pages_commands(folder: Path) -> None:
    jobs = []
    for number, text in enumerate(COMMANDS):
        _, *words = shlex.split(text.replace("$CUTBIT", str(ROOT)))
        is_run = words[0] != "-m"
        jobs.append([*words, *QUICK, f"name=page/{number}"] if is_run else words[1:])
    done = python(folder, "-P", "-c", DRIVER, json.dumps(jobs))
    assert done.returncode == 0, done.stderr
    assert "stage1" in done.stdout  # of app.cuts
    runs = folder / "runs" / "page"
    network, _, method, source, parts, codec, swept = [
        configs(runs / str(n)) for n in range(len(jobs))
    ]
    assert re.fullmatch(r"mine\.py:MyNet@[0-9a-f]{12}", network[0]["model._target_"])
    assert network[0]["model.width"] == 8
    assert method[0]["strategy._target_"].startswith("tempered.py:Tempered@")
    assert method[0]["strategy.power"] == 0
    assert source[0]["data.name"] == "noise"
    assert source[0]["data.source"].startswith("noise.py@")
    assert parts[0]["data.partition"].startswith("sizes.py:power_law@")
    assert parts[0]["data.alpha"] == 0.8
    assert codec[0]["link.up"].startswith("bf16.py:BFloat16@")
    assert [c["model.width"] for c in swept] == [4, 8]
    # Of 60 samples 16 channels of 4×4 at 2 bytes and a label went up, and 3 times the model half.
    summary = json.loads(next((runs / "5").rglob("summary.json")).read_text())
    half = 4 * summary["client_params"]
    assert summary["total_bytes_up"] == 60 * (16 * 16 * 2 + 1) + 3 * half


@pytest.mark.parametrize("flags", [("-P",), ()])
def test_the_current_folder_comes_last(flags: tuple[str, ...], folder: Path) -> None:
    """However Python begins: with the current folder first, as for `-m app.cuts`, or without it."""
    code = "import app, data, models, quant, sys; print(models.__file__, sys.path[-1])"
    with hidden_app(folder, is_hidden=not flags):
        done = python(folder, *flags, "-c", code)
    assert done.returncode == 0, done.stderr
    models, last = done.stdout.split()
    assert models == str(ROOT / "models" / "__init__.py")
    assert last == str(folder)


@contextlib.contextmanager
def hidden_app(folder: Path, is_hidden: bool) -> Iterator[None]:
    """Without a package app of the user's own, which Python itself would find before ours."""
    names = ["app", "app_of_mine"]
    if is_hidden:
        (folder / names[0]).rename(folder / names[1])
    yield
    if is_hidden:
        (folder / names[1]).rename(folder / names[0])


def test_workers_do_not_mistake_the_users_packages_for_ours(folder: Path) -> None:
    """In Ray's workers, by file and by dotted path; the same network gives the same results."""
    names = ("models/net.py:MyNet", "my_pkg.MyNet")
    job = [*QUICK, "engine=ray", "engine.workers=1", "strategy=splitfed_v1", "name=ray"]
    done = python(folder, str(ROOT / "main.py"), "-m", *job, f"model._target_={','.join(names)}")
    assert done.returncode == 0, done.stderr
    first, second = (
        p.read_bytes() for p in sorted((folder / "runs" / "ray").glob("*/*/model.safetensors"))
    )
    assert first == second


# Names of code ------------------------------------------------------------------------------------


def test_halves_of_a_network_by_file_pickle_and_cut(folder: Path) -> None:
    target = str(folder / "models" / "net.py") + ":MyNet"
    model = build(target, {}, (1, 8, 8), 10, 0).eval()
    x = torch.randn(2, 1, 8, 8)
    for half in cut(model, "stage1", (1, 8, 8)):
        x = pickle.loads(pickle.dumps(half.eval()))(x)
    original = torch.randn(2, 1, 8, 8)
    client, server = cut(model, "stage1", (1, 8, 8))
    assert torch.equal(server.eval()(client.eval()(original)), model(original))
    assert type(model).__module__.startswith("files_")
    assert "models.net" not in sys.modules


def test_identity_is_name_and_content_and_not_the_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    relative = small("model._target_=nets/mine.py:MyNet")
    assert relative.network.target.startswith(f"{folder}/nets/mine.py:MyNet@")
    text = (folder / "nets" / "mine.py").read_text()
    (tmp_path / "mine.py").write_text(text)
    moved = small(f"model._target_={tmp_path}/mine.py:MyNet")
    assert moved.hash == relative.hash
    (tmp_path / "mine.py").write_text(text.replace("16", "24"))
    edited = small(f"model._target_={tmp_path}/mine.py:MyNet")
    assert edited.hash != relative.hash
    # An edited file is loaded anew in the same process.
    assert experiment.network(edited).stage1[0].out_channels == 24  # type: ignore[index, union-attr]
    assert experiment.network(relative).stage1[0].out_channels == 16  # type: ignore[index, union-attr]
    with pytest.raises(ValueError, match=r"model\._target_=.*has changed since the run began"):
        experiment.network(moved)
    assert relative.network.name == "mynet"
    assert small().identity["model._target_"] == "models.cnn.CNN"


def test_a_stored_run_finds_its_files_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    config = compose([*SMALL, "model._target_=nets/mine.py:MyNet"])
    (tmp_path / ".hydra").mkdir()
    stored = tmp_path / ".hydra" / "config.yaml"
    raw = asdict(config) | {"model": {"_target_": "nets/mine.py:MyNet"}}
    OmegaConf.save(OmegaConf.create(raw), stored)
    OmegaConf.save(
        OmegaConf.create({"hydra": {"runtime": {"cwd": str(folder)}}}),
        stored.with_name("hydra.yaml"),
    )
    (tmp_path / "config.json").write_text(json.dumps(dict(experiment.resolve(config).identity)))
    monkeypatch.chdir(tmp_path)
    assert from_stored(stored, trust=True).model == config.model
    other = json.dumps({"model._target_": "mine.py:MyNet@" + 12 * "0"})
    (tmp_path / "config.json").write_text(other)
    with pytest.raises(ValueError, match="has changed since the run began"):
        from_stored(stored, trust=True)
    with pytest.raises(ValueError, match=r"model\._target_=nets/mine\.py:MyNet: is no code of"):
        from_stored(stored)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nets/none.py:MyNet", "no such file: .*/nets/none.py; expected folder/file.py:Name"),
        ("nets/mine.py:YourNet", r"mine.py has no YourNet; expected a class of torch\.nn\.Module"),
        ("nets/mine.py", "the name in it is missing"),
        ("nets/mine.py:Tensor", r"is not a torch\.nn\.Module; expected a class of torch"),
        ("broken.py:MyNet", r"cannot be loaded: NameError: name 'nn' is not defined \(line 2\)"),
        ("my_pkg.YourNet", "my_pkg has no YourNet; expected"),
        ("models.net.MyNet", "models is CutBit's own package, your file is models/net.py:MyNet"),
        ("MyNet", "is neither a dotted path nor a file; expected"),
    ],
)
def test_a_network_that_is_not_there(
    target: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    (folder / "broken.py").write_text("import torch\nclass MyNet(nn.Module): ...\n")
    with pytest.raises(ValueError, match=message) as error:
        experiment.network(small(f"model._target_={target}"))
    assert str(error.value).startswith("model._target_=")
    assert target.split(":")[0] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "target", ["models.cnn.CNN", "my_pkg.Net", "/a b/nets/mine.py:MyNet@3fa9c1d2e5f6", "a.py@b.py"]
)
def test_targets_read_back(target: str) -> None:
    file = targets.FileTarget.of(target)
    assert (str(file) if file else target) == target


def test_a_file_whose_name_is_no_identifier(tmp_path: Path) -> None:
    (tmp_path / "my-net.v2.py").write_text("from .my_block import value\n")
    (tmp_path / "my_block.py").write_text("value = 7\n")
    assert targets.locate(f"{tmp_path}/my-net.v2.py:value", "key", "a number") == 7


# Codecs, partitioners, sources, presets -----------------------------------------------------------


def test_a_codec_packs_what_it_says(folder: Path) -> None:
    codec = make_codec(f"{folder}/codecs/bf16.py:BFloat16")
    x = torch.randn(3, 4, 5, 5)
    packet = codec.encode(x, None)
    assert packet.num_bytes == codec.num_bytes(x.shape) == 2 * x.numel()
    assert torch.equal(codec.decode(packet), codec.transmit(x, None)[0])
    assert torch.equal(codec.decode(Packet.from_bytes(packet.to_bytes())), codec.decode(packet))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("class C:\n    def encode(self): ...\n", "has no decode, num_bytes, transmit, support,"),
        ("from quant.dense import Fp32\nclass C(Fp32):\n    def __init__(self, bits): ...\n",
         "its constructor wants bits; a codec's gets nothing, or settings, the group link"),
        ("C = 3\n", "is not a class; expected fp32"),
    ],
)  # fmt: skip
def test_a_codec_that_lacks_something(body: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(body)
    with pytest.raises(ValueError, match=rf"link\.up={tmp_path}/mine\.py:C: {message}"):
        small("strategy=splitfed_v1", f"link.up={tmp_path}/mine.py:C")


def test_a_codec_gets_the_settings_of_the_link(tmp_path: Path) -> None:
    body = "from quant.sparse import TopK\nclass C(TopK):\n"
    body += "    def __init__(self, settings):\n        super().__init__(settings.k)\n"
    (tmp_path / "mine.py").write_text(body)
    settings = LinkSettings(up=f"{tmp_path}/mine.py:C", k=0.5)
    assert settings.codecs()[0].num_bytes((2, 10)) == make_codec("topk", settings).num_bytes(
        (2, 10)
    )
    assert LinkSettings(up=targets.pin(settings.up, "link.up")).up.startswith(settings.up)


def test_a_partitioner_is_cached_by_its_source(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    body = "import numpy as np\ndef mine(labels, num_clients):\n"
    path.write_text(body + "    return np.array_split(np.arange(len(labels)), num_clients)\n")
    first = experiment.division(small(f"data.partition={path}:mine"))
    assert [len(rows) for rows in first] == [40] * 6
    path.write_text(body + "    return [[i] for i in range(num_clients)]\n")
    assert [len(r) for r in experiment.division(small(f"data.partition={path}:mine"))] == [1] * 6


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[[0], [1]]", r"returns 2 parts; expected a list of clients\.total=3"),
        ("7", "returns int; expected a list"),
        ("[[0], [1], [10]]", "client 2 gets row 10; expected 0 to 9"),
        ("[[0], [-1], []]", "client 1 gets row -1; expected 0 to 9"),
        ("[[0], [1], [1]]", "row 1 is given more than once"),
        ("[[0.5], [1], [2]]", "client 0 gets float64; expected row numbers"),
    ],
)
def test_a_division_that_cannot_be(returned: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"def mine(labels):\n    return {returned}\n")
    with pytest.raises(ValueError, match=rf"^data\.partition={path}:mine: {message}"):
        partition(np.zeros(10, dtype=np.int64), f"{path}:mine", 3, 0)


def test_a_partitioner_with_a_parameter_that_nobody_gives(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def mine(labels, clients): ...\n")
    with pytest.raises(ValueError, match=r"its parameter clients is not given; .* labels, num_cl"):
        small(f"data.partition={tmp_path}/mine.py:mine")


def test_a_module_that_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def files(root): ...\n")
    with pytest.raises(ValueError, match=r"data\.source=.*mine\.py: has neither files and load"):
        small(f"data.source={tmp_path}/mine.py")


def test_groups_of_a_searchpath(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    conf = folder / "my_conf"
    for group in ("strategy", "experiment", "fleet"):
        (conf / group).mkdir(exist_ok=True)
    (conf / "strategy" / "mine.yaml").write_text("name: mine\n_target_: strategies.fedavg.FedAvg\n")
    text = "# @package _global_\ndefaults: [{override /strategy: mine}]\nrounds: 3\n"
    (conf / "experiment" / "mine.yaml").write_text(text)
    (conf / "fleet" / "mine.yaml").write_text(
        (ROOT / "conf" / "fleet" / "iot.yaml").read_text().replace("name: iot", "name: mine")
    )
    path = f"hydra.searchpath=[file://{conf}]"
    config = compose([*SMALL, path, "experiment=mine", "fleet=mine", "model=mine", "data=noise"])
    assert config.strategy["name"] == "mine" and config.fleet.name == "mine"
    assert (config.rounds, config.data.num_classes) == (2, 3)
    given = preset([path, "sweep=widths", "experiment=mine"], is_sweep=True)
    assert given == ["model.width=4,8"]
    jobs = expand([path, "data=noise,digits"], is_sweep=True)
    assert [small(*job).network.num_classes for job in jobs] == [3, 10]
    with pytest.raises(ValueError, match=r"sweep=none: takes .*widths"):
        Jobs().check([path, "sweep=none"], is_sweep=True)
