"""Post-training quantization of a finished run."""

import json
from pathlib import Path

import pytest
from command_line import run as run_main

from app.commands.ptq import accuracies, main


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ptq") / "run"
    done = run_main(
        "strategy=fedavg", "engine=serial", "clients.total=4",
        "rounds=4", "tracker.wandb.mode=disabled", f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_32_bits_are_the_model_and_8_are_close(run_folder: Path) -> None:
    final = json.loads((run_folder / "summary.json").read_text())["final_accuracy"]
    found = accuracies(run_folder, [2, 8, 32])
    assert found[32] == final
    assert abs(found[8] - final) < 0.02
    assert found[2] < final - 0.1  # without learning, two bits do not keep the accuracy


def test_command_writes_the_table(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_folder), "--bits", "4", "8", "--per-channel"]) == 0
    assert set(json.loads((run_folder / "ptq.json").read_text())) == {"4", "8"}
    assert "4 bits" in capsys.readouterr().out


def test_no_run_and_wrong_bits_are_one_line(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no finished run there" in capsys.readouterr().err
    assert main([str(run_folder), "--bits", "9"]) == 1
    assert "takes 2 to 8, or 32" in capsys.readouterr().err
