"""What is read of a finished run: damage and other networks are one line each."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import simulate
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from app import server
from app.commands import exits, ptq
from app.config.composition import compose
from app.run_folder import MODEL, fill, load_experiment, load_weights


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / ".hydra").mkdir()
    config = compose(["strategy=hierarchical", "rounds=3"])
    OmegaConf.save(OmegaConf.structured(config), tmp_path / ".hydra" / "config.yaml")
    save_file(nn.Linear(2, 3).state_dict(), tmp_path / MODEL)
    (tmp_path / "summary.json").write_text("{}")
    return tmp_path


def test_configuration_and_weights_are_read(run: Path) -> None:
    assert load_experiment(run).rounds == 3
    model = fill(nn.Linear(2, 3), load_weights(run), run)
    assert not model.training
    assert load_weights(run)["bias"].equal(model.bias)


def test_a_missing_part_is_no_finished_run(run: Path) -> None:
    for name in ("summary.json", MODEL, ".hydra/config.yaml"):  # the summary says that it is whole
        (run / name).unlink()
        with pytest.raises(ValueError, match=rf"no finished run there, {name} is missing"):
            load_experiment(run)


def test_a_model_that_is_cut_off_as_it_is_written_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(arrays: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(server, "save_arrays", full)
    with pytest.raises(OSError, match="no space left"):
        simulate(tmp_path, "rounds=1", "clients.total=1")
    assert not (tmp_path / MODEL).exists()
    assert not (tmp_path / "summary.json").exists()


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
