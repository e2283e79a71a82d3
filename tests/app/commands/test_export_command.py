"""The export of finished runs, by the command that people type."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import run as run_main
from omegaconf import OmegaConf

from app.commands import export_network as module
from app.commands import ptq
from app.commands.export import Export, export, main
from app.commands.export_half import PACKED_HALF
from app.commands.export_network import ONNX, PACKED
from quant.binary_export import load_packed as load_packed_half
from quant.export import read
from quant.layers import QuantSpec


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep: 0 is fedavg, 1 is oqfl at 4 bits."""
    folder = tmp_path_factory.mktemp("export") / "runs"
    done = run_main(
        "-m", "strategy=fedavg,oqfl", "engine=serial",
        "clients.total=4", "rounds=2", "data.max_train=480", "tracker.wandb.mode=disabled",
        f"hydra.sweep.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A copy of the quantized run, to be changed."""
    return Path(shutil.copytree(runs / "1", tmp_path / "run"))


def test_the_packed_file_is_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "weights at 4 bits" in printed.out
    assert str(run / PACKED) in printed.out
    accuracy = json.loads((run / "summary.json").read_text())["final_accuracy"]
    assert printed.out.count(f"{accuracy:.4f}") == 2
    assert read(run / PACKED)[0].spec == QuantSpec(4, 4)
    assert not (run / ONNX).exists()
    assert not list(run.glob(".export-*"))
    assert main([str(run)]) == 1
    assert capsys.readouterr().err.endswith(
        f"{PACKED}: is there already; --overwrite replaces it\n"
    )
    assert main([str(run), "--overwrite"]) == 0


def test_onnx_has_the_runs_accuracy(runs: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    exported = export(runs / "1", tmp_path / "new" / "folder", with_onnx=True)
    assert isinstance(exported, Export)
    assert exported.accuracy("run") == exported.summary_accuracy
    assert [form.num_changed for form in exported.forms.values()] == [0, 0, 0]
    assert (tmp_path / "new" / "folder" / ONNX).stat().st_size == exported.forms["onnx"].num_bytes


def test_a_run_without_quantizers_is_float32(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(runs / "0"), "--out", str(tmp_path)]) == 0
    assert "no quantizers: nothing to pack" in capsys.readouterr().out
    assert read(tmp_path / PACKED)[0].shapes == {}


def test_a_users_own_network(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_net.py").write_text("from models.cnn import CNN as Net\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = run / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("models.cnn.CNN", "own_net.Net"))
    export(run, tmp_path / "out", trust=True)
    assert read(tmp_path / "out" / PACKED)[0].network.target == "own_net.Net"


def test_a_run_that_began_with_weights_is_built_without_them(
    runs: Path, run: Path, tmp_path: Path
) -> None:
    """As a network of its options alone, also where the weights have gone since."""
    before = shutil.copy(runs / "0" / "model.safetensors", tmp_path / "before.safetensors")
    config = run / ".hydra" / "config.yaml"
    stored = OmegaConf.load(config)
    OmegaConf.update(stored, "model.weights", str(before), force_add=True)
    OmegaConf.update(stored, "model.replace_head", True, force_add=True)
    OmegaConf.save(stored, config)
    export(run, tmp_path / "there")
    Path(before).unlink()
    export(run, tmp_path / "gone")
    there, gone = (read(tmp_path / name / PACKED)[0].network for name in ("there", "gone"))
    assert there == gone
    assert not {"weights", "replace_head", "weights_content"} & there.options.keys()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no finished run there, .hydra/config.yaml is missing"),
        (lambda run: (run / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda run: (run / "summary.json").unlink(), "summary.json is missing"),
        (lambda run: (run / "summary.json").write_text("{}"), "it states no final_accuracy"),
        (
            lambda run: (run / "model.safetensors").write_bytes(b"12345678"),
            "is damaged",
        ),
        (
            lambda run: shutil.copy(run.parent / "fedavg.safetensors", run / "model.safetensors"),
            "not the model of this run's configuration",
        ),
    ],
)
def test_what_is_no_finished_run_is_one_line(
    run: Path, runs: Path, spoil: Callable[[Path], object], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copy(runs / "0" / "model.safetensors", run.parent / "fedavg.safetensors")
    spoil(run)
    assert main([str(run), "--out", str(run.parent / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {run}")
    assert message in error
    assert error.count("\n") == 1
    assert not (run.parent / "out").exists()


def test_a_file_that_differs_is_an_error_and_not_kept(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = module.load_packed

    def changed(*arguments: object) -> torch.nn.Module:
        model = load(*arguments)  # type: ignore[arg-type]
        with torch.no_grad():
            next(model.parameters()).neg_()
        return model

    monkeypatch.setattr(module, "load_packed", changed)
    assert main([str(run)]) == 1
    assert "the packed file does not give the run's outputs" in capsys.readouterr().err
    assert not (run / PACKED).exists()


def test_another_accuracy_of_onnx_is_an_error_and_nothing_is_kept(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.commands.export.check_packages", lambda: None)
    monkeypatch.setattr(module, "save_onnx", lambda model, path, shape: path.touch())
    monkeypatch.setattr(module, "load_onnx", lambda path: lambda x: torch.zeros(len(x), 10))
    assert main([str(run), "--onnx"]) == 1
    assert "more than 0.1 points apart" in capsys.readouterr().err
    assert not (run / PACKED).exists()
    assert not (run / ONNX).exists()


def test_another_accuracy_than_the_summarys_is_said(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "summary.json").write_text('{"final_accuracy": 0.123}')
    assert main([str(run)]) == 0
    assert "note: summary.json states accuracy 0.1230" in capsys.readouterr().err


@pytest.fixture(scope="module")
def split_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep: 0 is splitfed_v1 with a lossy link, 1 is splitfed_v3."""
    folder = tmp_path_factory.mktemp("export") / "split"
    done = run_main(
        "-m", "strategy=splitfed_v1,splitfed_v3", "link.up=sign",
        "link.down=int8", "engine=serial", "clients.total=2", "rounds=2", "data.max_train=240",
        "tracker.wandb.mode=disabled", f"hydra.sweep.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_a_summary_through_a_lossy_link_is_said_to_be_one(
    split_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(split_runs / "0", tmp_path / "run"))
    (run / "summary.json").write_text('{"final_accuracy": 0.123}')
    assert main([str(run)]) == 0
    assert capsys.readouterr().err.startswith(
        "note: summary.json states accuracy 0.1230 through link.up=sign; the model alone has 0."
    )


def test_halves_that_clients_keep_are_no_network(
    split_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(split_runs / "1"), "--out", str(tmp_path / "out")]) == 1
    assert ptq.main([str(split_runs / "1")]) == 1
    for error in capsys.readouterr().err.splitlines():
        assert "strategy=splitfed_v3: each client has a half of its own" in error
    assert not (tmp_path / "out").exists()


def test_missing_packages_stop_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([str(tmp_path), "--onnx"]) == 1
    assert "pip install onnx onnxruntime onnxscript" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "--onnx" in capsys.readouterr().out


def test_a_binarized_half_is_exported_in_its_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    done = run_main(
        "strategy=binarized_split", "split.cut=stage2", "rounds=1",
        "engine=serial", "clients.total=2", "data.max_train=80", "tracker.wandb.mode=disabled",
        f"hydra.run.dir={run}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert main([str(run)]) == 0
    printed = capsys.readouterr().out
    assert "none differs" in printed and "32.00" in printed
    loaded = load_packed_half(run / PACKED_HALF)
    assert loaded.weight_bytes() * 8 == sum(layer.geometry.num_weights for layer in loaded.layers)
    assert main([str(run)]) == 1
    assert "is there already; --overwrite replaces it" in capsys.readouterr().err
    assert main([str(run), "--overwrite", "--onnx"]) == 1
    assert "ONNX has no form for weights of one bit" in capsys.readouterr().err
    (run / "model.safetensors").write_bytes(b"none")
    assert main([str(run), "--overwrite"]) == 1
    assert "model.safetensors: is damaged" in capsys.readouterr().err
