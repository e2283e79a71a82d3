"""A run that keeps samples to choose its best round on: what decides, what is kept and said."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_same_arrays, assert_same_run, rounds, simulate, small
from safetensors.numpy import load_file
from torch import nn

from app import evaluation, experiment
from app.config.composition import compose
from app.evaluation import measure
from app.run_folder import is_finished
from tracking.jsonl import readable

# The rate is so high that the best round is not the last.
RUN = ("strategy=fedavg", "data.validation=0.25", "rounds=5", "train.lr=0.5", "checkpoint.keep=9")


def model_of(path: Path, *overrides: str) -> nn.Module:
    model = experiment.network(small(*overrides))
    model.load_state_dict({name: torch.from_numpy(a) for name, a in load_file(path).items()})
    return model


def accuracy(model: nn.Module, x: Any, y: torch.Tensor | None) -> float:
    assert y is not None
    return float((model.eval()(x).argmax(1) == y).float().mean())


def test_rounds_are_of_validation_and_the_test_set_is_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def counted(model: nn.Module, x: Any, y: torch.Tensor, *o: Any, **k: Any) -> dict[str, float]:
        looked.append(len(y))
        return measure(model, x, y, *o, **k)

    monkeypatch.setattr(evaluation, "measure", counted)
    summary, data = simulate(tmp_path, *RUN), experiment.dataset(small(*RUN))
    assert data.valid_y is not None
    assert (len(data.train_y), len(data.valid_y)) == (180, 60)  # of data.max_train=240
    rows = rounds(tmp_path)
    best = max(range(5), key=lambda i: rows[i]["accuracy"]) + 1
    assert looked == [60] * 5 + [len(data.test_y)] * (1 if best == 5 else 2)
    for number, row in enumerate(rows, 1):
        assert row["evaluated_on"] == "validation"
        model = model_of(tmp_path / f"checkpoint/{number:06d}/model.safetensors", *RUN)
        right = accuracy(model, data.valid_x, data.valid_y)
        assert row["accuracy"] == pytest.approx(right, abs=1e-6)
    assert (summary["evaluated_on"], summary["best_round"]) == ("validation", best)
    assert summary["best_validation_accuracy"] == rows[best - 1]["accuracy"]
    assert summary["final_validation_accuracy"] == rows[-1]["accuracy"]
    for which, file in (("best", "model_best"), ("final", "model")):
        of_test = accuracy(
            model_of(tmp_path / f"{file}.safetensors", *RUN), data.test_x, data.test_y
        )
        assert summary[f"{which}_accuracy"] == pytest.approx(of_test, abs=1e-6)


def test_the_best_model_is_that_of_its_round(tmp_path: Path) -> None:
    best = simulate(tmp_path, *RUN)["best_round"]
    assert 1 <= best < 5  # so that it is another than the last
    kept = load_file(tmp_path / "model_best.safetensors")
    assert_same_arrays(kept, load_file(tmp_path / f"checkpoint/{best:06d}/model.safetensors"))
    files = json.loads((tmp_path / "checksums.json").read_text())["files"]
    assert "model_best.safetensors" in files
    assert is_finished(tmp_path)
    (tmp_path / "model_best.safetensors").unlink()
    assert not is_finished(tmp_path)


@pytest.mark.parametrize(
    "chosen",
    [
        ("strategy=splitfed_v3", "evaluate.clients=3"),
        ("strategy=hierarchical", "strategy.outage=[2]"),
        ("strategy=deprune",),
        ("strategy=fedavg", "strategy.server_optimizer=fedadam"),
    ],
    ids=lambda chosen: chosen[0].partition("=")[2] + str(len(chosen)),
)
def test_continued_from_any_round_it_ends_alike(chosen: tuple[str, ...], tmp_path: Path) -> None:
    """Private halves, devices without network and a network's width are those of the best round."""
    chosen = (*chosen, "data.validation=0.25", "train.lr=0.3", "data.max_train=120")
    whole = simulate(tmp_path / "whole", *chosen, "rounds=3")
    simulate(tmp_path / "two", *chosen, "rounds=1" if "deprune" not in chosen[0] else "rounds=3")
    again = simulate(tmp_path / "two", *chosen, "rounds=3", "resume=true")
    assert_same_run(tmp_path / "whole", tmp_path / "two")
    files = [load_file(tmp_path / name / "model_best.safetensors") for name in ("whole", "two")]
    assert_same_arrays(*files)
    said = [
        {k: v for k, v in s.items() if k.startswith(("best_", "final_"))} for s in (whole, again)
    ]
    assert said[0] == said[1]
    assert whole["best_accuracy"] is not None


def test_private_halves_of_the_best_round_are_tested(tmp_path: Path) -> None:
    """A run that ends with its best round has the same halves as one that went on after it."""
    chosen = ("strategy=splitfed_v3", "data.validation=0.25", "train.lr=0.5", "data.max_train=120")
    long = simulate(tmp_path / "long", *chosen, "rounds=4")
    best = long["best_round"]
    assert best < 4
    short = simulate(tmp_path / "short", *chosen, f"rounds={best}")
    assert short["best_accuracy"] == short["final_accuracy"] == long["best_accuracy"]


def test_no_client_has_what_is_kept() -> None:
    plain, kept = small(), small("data.validation=0.25")
    data = experiment.dataset(kept)
    rows = torch.cat(experiment.division(kept))
    assert sorted(rows.tolist()) == list(range(len(data.train_y)))
    assert len(experiment.dataset(plain).train_y) == 240
    clients = [experiment.client_data(kept, client) for client in range(6)]
    assert sum(map(len, clients)) == 180


def test_patience_ends_the_run_by_validation(tmp_path: Path) -> None:
    simulate(tmp_path / "long", *RUN, "rounds=8")
    accuracies = [row["accuracy"] for row in rounds(tmp_path / "long")]
    summary = simulate(tmp_path / "short", *RUN, "rounds=8", "evaluate.patience=1")
    last = next(i for i in range(1, 8) if accuracies[i] <= max(accuracies[:i]))
    assert [row["accuracy"] for row in rounds(tmp_path / "short")] == accuracies[: last + 1]
    assert (summary["ended_by"], summary["best_round"]) == ("evaluate.patience", last)
    assert is_finished(tmp_path / "short", small(*RUN, "rounds=20", "evaluate.patience=1"))


def test_null_and_zero_are_the_same_experiment() -> None:
    plain = small()
    assert small("data.validation=0").hash == plain.hash
    assert small("data.validation=0.1").hash != plain.hash
    assert not {"data.validation", "evaluate.patience"} & plain.identity.keys()


def test_without_it_nothing_is_kept_or_said_of_it(tmp_path: Path) -> None:
    summary = simulate(tmp_path)
    assert not (tmp_path / "model_best.safetensors").exists()
    assert "evaluated_on" not in rounds(tmp_path)[0]
    assert summary["evaluated_on"] == "test"


def test_patience_takes_validation() -> None:
    for share in ("", "data.validation=0"):
        with pytest.raises(ValueError, match=r"evaluate.patience=3: takes data.validation beside"):
            compose(["evaluate.patience=3", *filter(None, [share])])
    with pytest.raises(ValueError, match=r"evaluate.patience=0: takes 1 or more"):
        compose(["evaluate.patience=0", "data.validation=0.1"])


def test_an_impossible_share_is_refused_before_the_run() -> None:
    with pytest.raises(ValueError, match=r"data.validation=0.001: is 0 of 240 training samples"):
        experiment.check(small("data.validation=0.001"))


def test_records_read_back_say_it(tmp_path: Path) -> None:
    simulate(tmp_path, *RUN, "rounds=1")
    rows, wrong = readable(tmp_path / "rounds.jsonl")
    assert not wrong and rows[0]["evaluated_on"] == "validation"
