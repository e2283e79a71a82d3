"""Answers by confidence of a finished run."""

import json
from pathlib import Path

import pytest
from command_line import run as run_main
from conftest import cut_network
from safetensors.torch import load_file
from torch import nn

from app import experiment
from app.commands import export, ptq
from app.commands.confidence import Point
from app.commands.exits import ALWAYS, curve, figure, main
from app.config.composition import compose
from app.evaluation import test as accuracy_of
from app.run_folder import load_experiment
from strategies.hierarchical import Hierarchical, tiers_in


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exits") / "run"
    done = run_main(
        "strategy=hierarchical", "split.cut=stage2", "engine=serial",
        "clients.total=2", "rounds=1", "link.up=int8", "tracker.wandb.mode=disabled",
        f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_the_ends_are_the_runs_own_accuracies(run_folder: Path) -> None:
    row = json.loads((run_folder / "rounds.jsonl").read_text().splitlines()[-1])
    first, *_, last = curve(run_folder, [0.0, 0.5, 0.9], "phone_mid", "4g")
    assert (first.edge_share, last.edge_share) == (1.0, 0.0)
    assert first.accuracy == row["edge_accuracy"]
    # Of int8 each sample has a range of its own here, there a batch has.
    assert last.accuracy == pytest.approx(row["accuracy"], abs=0.02)
    assert (first.bytes, last.bytes) == (0.0, 32 * 2 * 2 + 8 + 1)  # int8 and a range; a class down
    assert first.seconds < last.seconds
    config = load_experiment(run_folder)
    method = experiment.strategy(config)
    experiment.prepare(config, method)
    tiers = tiers_in(cut_network(method), load_file(run_folder / "model.safetensors"))
    edge, data = (
        nn.Sequential(tiers.halves.device[0], tiers.exit),
        experiment.dataset(config),
    )
    assert accuracy_of(edge, data.test_x, data.test_y)[0] == first.accuracy


def test_command(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_folder), "--thresholds", "0.5", "--device", "raspberry_pi_4"]) == 0
    found = json.loads((run_folder / "exits.json").read_text())
    assert found["device"] == "raspberry_pi_4"
    assert [point["threshold"] for point in found["points"]] == [0.5, 2.0]
    assert "always" in capsys.readouterr().out
    page = (run_folder / "exits.html").read_text()
    assert "raspberry_pi_4" in page and "<script src" not in page


def test_the_figure_shows_the_points() -> None:
    points = [
        Point(0.0, 1.0, 0.5, 0.5, 0.0, 0.001),
        Point(0.9, 0.25, 0.75, 1.0, 30.0, 0.004),
        Point(1.0, 0.0, 0.7, None, 40.0, 0.005),
        Point(ALWAYS, 0.0, 0.7, None, 40.0, 0.005),
    ]
    drawn = figure(points, "<b>a run</b>")
    assert drawn.layout.title.text == "&lt;b&gt;a run&lt;/b&gt;"
    lines = {line.name: line for line in drawn.data}
    assert all(line.x == (0.0, 0.9, 1.0) for line in drawn.data)
    assert lines["all answers"].y == (50.0, 75.0, 70.0)
    assert lines["the device's own answers"].y == (50.0, 100.0, None)
    assert (lines["cloud alone"].y[0], lines["device alone"].y[0]) == (70.0, 50.0)
    assert lines["share"].y == (100.0, 25.0, 0.0)
    assert (lines["bytes"].y, lines["ms"].y) == ((0.0, 30.0, 40.0), (1.0, 4.0, 5.0))


def test_errors_are_one_line(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 1
    assert main([str(run_folder), "--device", "abacus"]) == 1
    assert main([str(run_folder), "--link", "pigeon"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert "no finished run there" in errors[0]
    assert "abacus" in errors[1] and "pigeon" in errors[2]


def test_other_commands_say_that_there_is_more_than_the_network(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(run_folder)]) == ptq.main([str(run_folder)]) == 1
    for error in capsys.readouterr().err.splitlines():
        assert f"{run_folder}: its method trains more than the network (exit.linear" in error


VGG = ("model=vgg16", "model.stem=cifar", "split.cut=features.33")


@pytest.mark.parametrize(("chosen", "shape"), [((), (64, 2, 2)), (VGG, (128, 2, 2))])
def test_the_preset_can_be_cut_where_it_says(
    chosen: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    config = experiment.resolve(compose(["experiment=hierarchical", *chosen]))
    method = experiment.strategy(config)
    assert isinstance(method, Hierarchical)
    method.prepare(experiment.network(config), config.network.input_shape)
    assert cut_network(method).device_costs()[0].output_shape == shape
