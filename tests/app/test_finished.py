"""What is read of a finished run: damage and other networks are one line each."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from app import exits, ptq
from app.config import compose
from app.finished import MODEL, fill, load_config, load_weights


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / ".hydra").mkdir()
    config = compose(["strategy=hierarchical", "rounds=3"])
    OmegaConf.save(OmegaConf.structured(config), tmp_path / ".hydra" / "config.yaml")
    save_file(nn.Linear(2, 3).state_dict(), tmp_path / MODEL)
    return tmp_path


def test_configuration_and_weights_are_read(run: Path) -> None:
    assert load_config(run).rounds == 3
    model = fill(nn.Linear(2, 3), load_weights(run), run)
    assert not model.training
    assert load_weights(run)["bias"].equal(model.bias)


def test_a_missing_part_is_no_finished_run(run: Path) -> None:
    shutil.rmtree(run / ".hydra")
    with pytest.raises(ValueError, match=r"no finished run there, \.hydra/config\.yaml is missing"):
        load_config(run)


def test_another_network_is_named(run: Path) -> None:
    with pytest.raises(ValueError, match=r"model.safetensors: not the model .* weight is \(3, 2\)"):
        fill(nn.Linear(4, 3), load_weights(run), run)


@pytest.mark.parametrize("read", [ptq.main, exits.main], ids=["ptq", "exits"])
def test_a_cut_off_file_is_one_line(
    run: Path, read: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    (run / MODEL).write_bytes((run / MODEL).read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        load_weights(run)
    assert read([str(run)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {run / MODEL}: is damaged") and error.count("\n") == 1
