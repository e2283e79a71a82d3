"""evaluate.metrics of whole runs: in records, summary, metrics.json, reports; what is refused."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, assert_same_run, rounds, simulate, small
from safetensors.numpy import load_file
from sklearn import metrics as sklearn

from app import experiment
from app.config.composition import compose
from app.one_job import copy_results
from app.run_folder import is_finished
from tracking.report import write_report

RUN = ("strategy=fedavg", "train.lr=0.1")
ALL = "evaluate.metrics=[balanced_accuracy,macro_f1,auroc,per_class,confusion_matrix]"


def metrics_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def predicted(folder: Path, file: str = "model") -> tuple[Any, Any]:
    """Labels and predictions of the test set."""
    model = experiment.network(small(*RUN)).eval()
    arrays = load_file(folder / f"{file}.safetensors")
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    data = experiment.dataset(small(*RUN))
    return data.test_y.numpy(), model(data.test_x).argmax(1).numpy()


def test_records_summary_and_file(tmp_path: Path) -> None:
    summary = simulate(tmp_path / "with", *RUN, ALL)
    simulate(tmp_path / "without", *RUN)
    rows = rounds(tmp_path / "with")
    added = {"balanced_accuracy", "macro_f1", "auroc", "metrics_undefined"}
    assert all(row.keys() - added == rounds(tmp_path / "without")[0].keys() for row in rows)
    for row, plain in zip(rows, rounds(tmp_path / "without"), strict=True):
        assert {k: v for k, v in row.items() if k not in added} == plain
    y, said = predicted(tmp_path / "with")
    balanced = sklearn.balanced_accuracy_score(y, said)
    assert rows[-1]["balanced_accuracy"] == summary["final_balanced_accuracy"]
    assert summary["final_balanced_accuracy"] == pytest.approx(balanced)
    assert summary["final_macro_f1"] == pytest.approx(sklearn.f1_score(y, said, average="macro"))
    found = metrics_of(tmp_path / "with")
    assert found["evaluated_on"] == "test" and found["final"]["round"] == 2
    assert found["final"]["confusion_matrix"] == sklearn.confusion_matrix(y, said).tolist()
    recall = sklearn.recall_score(y, said, average=None)
    assert found["final"]["per_class"]["recall"] == pytest.approx(recall.tolist())
    assert found["final"]["auroc"] == rows[-1]["auroc"]
    assert summary["per_class"] == found["final"]["per_class"]
    assert "metrics.json" in (tmp_path / "with" / "checksums.json").read_text()
    assert not (tmp_path / "without" / "metrics.json").exists()


def test_with_validation_the_file_is_of_the_test_set_for_both_models(tmp_path: Path) -> None:
    chosen = ("data.validation=0.25", "train.lr=0.5", "rounds=5")
    summary = simulate(tmp_path, *RUN, *chosen, ALL)
    found = metrics_of(tmp_path)
    assert summary["best_round"] < 5
    for which, file in (("final", "model"), ("best", "model_best")):
        y, said = predicted(tmp_path, file)
        matrix = sklearn.confusion_matrix(y, said, labels=range(10)).tolist()
        assert found[which]["confusion_matrix"] == matrix
        balanced = sklearn.balanced_accuracy_score(y, said)
        assert summary[f"{which}_balanced_accuracy"] == pytest.approx(balanced)
    assert found["best"]["round"] == summary["best_round"]


def test_halves_of_ones_own_are_averaged_and_both_exits_are_said(tmp_path: Path) -> None:
    v3 = simulate(tmp_path / "v3", "strategy=splitfed_v3", "evaluate.clients=2", ALL)
    found = metrics_of(tmp_path / "v3")["final"]
    assert sum(map(sum, found["confusion_matrix"])) == sum(found["per_class"]["support"]) == 360
    # The mean over halves: of the share that is right, as accuracy is.
    right = sum(found["confusion_matrix"][i][i] for i in range(10)) / 360
    assert right == pytest.approx(v3["final_accuracy"])
    tiers = simulate(tmp_path / "tiers", "strategy=hierarchical", ALL)
    found = metrics_of(tmp_path / "tiers")["final"]
    for prefix in ("", "edge_"):
        matrix = found[f"{prefix}confusion_matrix"]
        right = sum(matrix[i][i] for i in range(10)) / 360
        assert right == pytest.approx(tiers[f"final_{prefix}accuracy"])
    assert "final_edge_macro_f1" in tiers and len(found["edge_per_class"]["recall"]) == 10


OTHERS = {
    "data=diabetes task=regression model=mlp": "[mean_absolute_error,spearman_corrcoef]",
    "experiment=chars data.max_test=20": "[macro_f1,top5_accuracy]",
}


@pytest.mark.parametrize("chosen", OTHERS)
def test_other_tasks(chosen: str, tmp_path: Path) -> None:
    few = ["rounds=1", "clients.total=2", "data.max_train=40", "clients.per_round=2"]
    names = OTHERS[chosen]
    summary = simulate(tmp_path, *chosen.split(), *few, f"evaluate.metrics={names}")
    for name in names.strip("[]").split(","):
        assert summary[f"final_{name}"] is not None
    assert not (tmp_path / "metrics.json").exists()  # nothing in them is per class


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate.metrics=[auc]"], "evaluate.metrics=[auc]: task=classification takes balanced_"),
        (["evaluate.metrics=[auroc]", "data=diabetes", "task=regression", "model=mlp"],
         "evaluate.metrics=[auroc]: task=regression takes mean_absolute_error, root_"),
    ],
)  # fmt: skip
def test_what_is_not_of_the_task_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        compose(overrides)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_task_of_ones_own_has_the_metrics_of_its_labels(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from torch.nn.functional import cross_entropy\n"
        "class Mine:\n"
        "    loss = staticmethod(cross_entropy)\n"
        "    def accuracy(self, outputs, labels):\n"
        "        return (outputs.argmax(1) == labels).float().mean()\n"
    )
    task = f"task._target_={file}:Mine"
    summary = simulate(tmp_path / "run", *RUN, task, "evaluate.metrics=[macro_f1]", "rounds=1")
    assert 0 <= summary["final_macro_f1"] <= 1
    with pytest.raises(ValueError, match=r"evaluate.metrics=\[r2\]: task._target_=.*Mine takes"):
        experiment.check(small(*RUN, task, "evaluate.metrics=[r2]"))


def test_the_order_and_doubles_do_not_make_another_experiment() -> None:
    one, other = "[auroc,macro_f1]", "[macro_f1,auroc,auroc]"
    hashes = [small(f"evaluate.metrics={names}").hash for names in (one, other, "[]")]
    assert hashes[0] == hashes[1] != hashes[2] == small().hash


def test_a_class_without_test_samples_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        summary = simulate(tmp_path, *RUN, ALL, "data.max_test=8")
    labels = experiment.dataset(small(*RUN, "data.max_test=8")).test_y
    left = [number for number in range(10) if number not in labels]
    assert 2 <= len(left) < 9
    said = [r.getMessage() for r in caplog.records if "evaluate.metrics" in r.getMessage()]
    assert len(said) == 1 and f"{len(left)} of 10 classes ({left[0]}, {left[1]}" in said[0]
    assert summary["final_auroc"] is not None and summary["final_metrics_undefined"] == 0
    recall = metrics_of(tmp_path)["final"]["per_class"]["recall"]
    assert [number for number in range(10) if recall[number] is None] == left


def test_one_class_alone_is_null_and_counted(tmp_path: Path) -> None:
    summary = simulate(tmp_path, *RUN, ALL, "data.max_test=1")
    assert summary["final_auroc"] is None and summary["final_metrics_undefined"] == 1
    assert rounds(tmp_path)[0]["auroc"] is None
    assert "NaN" not in (tmp_path / "metrics.json").read_text()


def test_reports_have_them(tmp_path: Path) -> None:
    simulate(tmp_path / "0", *RUN, ALL)
    write_report([tmp_path], tmp_path)
    (row,) = csv.DictReader((tmp_path / "summary.csv").open())
    summary = json.loads((tmp_path / "0" / "summary.json").read_text())
    assert float(row["final_macro_f1"]) == summary["final_macro_f1"]
    assert "per_class" not in row
    page = (tmp_path / "report.html").read_text()
    assert '"final_macro_f1":' in page and '"macro_f1":' in page


def test_a_copied_run_is_whole(tmp_path: Path) -> None:
    before = simulate(tmp_path / "0", *RUN, ALL, "data.validation=0.25")
    (tmp_path / "1").mkdir()
    copy_results(tmp_path / "0", tmp_path / "1", 0.1)
    copied = json.loads((tmp_path / "1" / "summary.json").read_text())
    assert is_finished(tmp_path / "1") and metrics_of(tmp_path / "1") == metrics_of(tmp_path / "0")
    assert copied["final_accuracy"] == before["final_accuracy"]  # of the test set
    assert copied["rounds_to_target"] is not None
    assert_same_run(tmp_path / "0", tmp_path / "1")


def test_every_metric_is_in_the_documentation() -> None:
    from models.metrics import NAMES

    page = (ROOT / "docs" / "EVALUATION.md").read_text()
    for names in NAMES.values():
        for name in names:
            assert f"`{name}`" in page or f" {name}" in page, name
