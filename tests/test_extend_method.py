"""The example of a method in docs/EXTEND.md: it runs as it stands, from a folder of the user's."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, assert_same_run, rounds, simulate, small
from safetensors.numpy import load_file

from app import experiment

TEXT = (ROOT / "docs" / "EXTEND.md").read_text()
PAGE = TEXT.partition("## A method\n")[2].partition("\n## ")[0]
FILES = re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)```", PAGE, re.M | re.S)
COMMANDS = re.findall(r"```bash\n(.*?)\n```", PAGE, re.S)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_command(folder: Path) -> None:
    (command,) = COMMANDS
    _, *words = shlex.split(command.replace("$CUTBIT", str(ROOT)))
    done = subprocess.run(
        [sys.executable, *words, *SMALL, "name=own"],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = json.loads(next((folder / "runs").rglob("config.json")).read_text())
    assert config["strategy.power"] == 0 and "strategy.average" not in config
    assert config["strategy._target_"].startswith("tempered.py:Tempered@")
    summary = json.loads(next((folder / "runs").rglob("summary.json")).read_text())
    assert summary["strategy"] == "tempered" and summary["rounds"] == 2


def test_it_does_what_it_says(folder: Path) -> None:
    """At power 1 it is FedAvg; at 0 it is not, where clients are unequal."""
    unequal = ("data.partition=dirichlet", "data.alpha=0.3")
    own = ("strategy._target_=methods/tempered.py:Tempered", *unequal)
    simulate(folder / "fedavg", "strategy=fedavg", *unequal)
    simulate(folder / "one", *own, "strategy.power=1")
    simulate(folder / "zero", *own, "strategy.power=0")
    assert_same_run(folder / "fedavg", folder / "one")
    arrays = [load_file(folder / run / "model.safetensors") for run in ("one", "zero")]
    assert any((arrays[0][name] != array).any() for name, array in arrays[1].items())
    assert [row["num_clients"] for row in rounds(folder / "zero")] == [6, 6]


def test_its_constructor_gets_what_rounds_are_told(folder: Path) -> None:
    """Though its ``**rounds`` has no annotation."""
    chosen = small("strategy._target_=methods/tempered.py:Tempered", "seed=7", "train.lr=0.03")
    told = experiment.strategy(chosen).rounds
    assert (told.seed, told.train.lr, told.num_clients) == (7, 0.03, 6)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("strategy.power=2", r"^strategy\.power=2: expected a number in \[0, 1\]$"),
        ("strategy.pover=1", r"strategy\.pover"),
        ("strategy.average=median", r"strategy\.average"),
    ],
)
def test_wrong_settings_name_the_key(folder: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small("strategy._target_=methods/tempered.py:Tempered", override)
