"""Metrics against scikit-learn and scipy, by hand on the smallest inputs, and where none is."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn
from torch import Tensor

from models.metrics import NAMES, UNDEFINED, Metrics, check, lacking


def values(
    kind: str, outputs: Tensor, labels: Tensor, size: int, batch: int = 7
) -> dict[str, float]:
    """All metrics of a task, from batches."""
    metrics = Metrics(kind, NAMES[kind])
    kept = [
        metrics.kept(o, y) for o, y in zip(outputs.split(batch), labels.split(batch), strict=True)
    ]
    return metrics.values(kept, size) | metrics.details(kept, size)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(high: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
def test_classification_is_scikit_learns(seed: int) -> None:
    labels = integers(6, 60, seed=seed) % 5  # class 0 twice as often
    outputs = drawn(60, 5, seed=seed) + torch.nn.functional.one_hot(labels, 5)
    outputs = (outputs * 4).round() / 4  # ties among the scores
    found = values("classification", outputs, labels, 5)
    y, said = labels.numpy(), outputs.argmax(1).numpy()
    scores = outputs.double().softmax(1).numpy()
    areas = [sklearn.roc_auc_score(y == c, scores[:, c]) for c in range(5)]
    expected = {
        "balanced_accuracy": sklearn.balanced_accuracy_score(y, said),
        "macro_f1": sklearn.f1_score(y, said, average="macro"),
        "auroc": np.mean(areas),
        "average_precision": np.mean(
            [sklearn.average_precision_score(y == c, scores[:, c]) for c in range(5)]
        ),
        "top5_accuracy": 1.0,
        "cohen_kappa": sklearn.cohen_kappa_score(y, said),
        "matthews_corrcoef": sklearn.matthews_corrcoef(y, said),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    recall, precision = (
        score(y, said, average=None, zero_division=0)
        for score in (sklearn.recall_score, sklearn.precision_score)
    )
    for c in range(5):
        assert found[f"per_class/recall/{c}"] == pytest.approx(recall[c])
        assert found[f"per_class/precision/{c}"] == pytest.approx(precision[c])
        assert found[f"per_class/auroc/{c}"] == pytest.approx(areas[c], abs=1e-6)
        assert found[f"per_class/support/{c}"] == (y == c).sum()
    matrix = sklearn.confusion_matrix(y, said)
    assert all(
        found[f"confusion_matrix/{i}/{j}"] == matrix[i, j] for i in range(5) for j in range(5)
    )
    assert found[UNDEFINED] == 0


def test_calibration_by_hand() -> None:
    """Two samples at 0.75 of which one is right, two at 0.95 that both are: 0.5·0.25 + 0.5·0.05."""
    sure = torch.tensor([0.75, 0.75, 0.95, 0.95], dtype=torch.float64)
    outputs = torch.stack([sure.log(), (1 - sure).log()], 1)
    labels = torch.tensor([0, 1, 0, 0])
    found = values("classification", outputs, labels, 2)
    assert found["calibration_error"] == pytest.approx(0.5 * 0.25 + 0.5 * 0.05)


def test_top5() -> None:
    outputs = torch.arange(8.0).repeat(4, 1)  # classes 3 to 7 are the largest
    labels = torch.tensor([2, 3, 7, 0])
    assert values("classification", outputs, labels, 8)["top5_accuracy"] == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_multilabel_is_scikit_learns(seed: int) -> None:
    labels = (drawn(50, 4, seed=seed) > 0.5).to(torch.uint8)
    outputs = drawn(50, 4, seed=seed + 9) + labels
    found = values("multilabel", outputs, labels, 4)
    y, said, scores = labels.numpy(), (outputs > 0).numpy(), outputs.double().sigmoid().numpy()
    expected = {
        "macro_f1": sklearn.f1_score(y, said, average="macro"),
        "micro_f1": sklearn.f1_score(y, said, average="micro"),
        "auroc": sklearn.roc_auc_score(y, scores),
        "average_precision": sklearn.average_precision_score(y, scores),
        UNDEFINED: 0.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    matrices = sklearn.multilabel_confusion_matrix(y, said).reshape(4, 4)
    mine = [[found[f"confusion_matrix/{i}/{j}"] for j in range(4)] for i in range(4)]
    true_negative, false_positive, false_negative, true_positive = matrices.T
    assert (
        mine == np.stack([true_negative, false_negative, false_positive, true_positive], 1)
    ).all()


@pytest.mark.parametrize("seed", range(3))
def test_regression_is_scipys(seed: int) -> None:
    labels = (drawn(40, 2, seed=seed) * 3).round()  # ties
    outputs = labels + (drawn(40, 2, seed=seed + 5) * 2).round()
    found = values("regression", outputs, labels, 2)
    y, said = labels.numpy(), outputs.numpy()
    expected = {
        "mean_absolute_error": sklearn.mean_absolute_error(y, said),
        "root_mean_squared_error": math.sqrt(sklearn.mean_squared_error(y, said)),
        "pearson_corrcoef": np.mean([stats.pearsonr(said[:, k], y[:, k])[0] for k in range(2)]),
        "spearman_corrcoef": np.mean([stats.spearmanr(said[:, k], y[:, k])[0] for k in range(2)]),
        "explained_variance": sklearn.explained_variance_score(y, said),
        UNDEFINED: 0.0,
    }
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_token_is_a_class() -> None:
    labels, outputs = integers(7, 12, 9), drawn(12, 9, 7)
    found = values("tokens", outputs, labels, 7)
    flat = values("classification", outputs.flatten(0, 1), labels.flatten(), 7)
    for name, value in found.items():
        assert value == pytest.approx(flat[name]), name
    assert "per_class/recall/6" in found and "per_class/auroc/6" not in found


def undefined(found: dict[str, float]) -> set[str]:
    return {name for name, value in found.items() if math.isnan(value) and "/" not in name}


def test_a_class_without_samples_is_left_out() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    outputs = torch.tensor([[2.0, 1, 0], [0, 1, 0], [0, 3, 1], [1, 2, 0]])
    found = values("classification", outputs, labels, 3)
    assert found["balanced_accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    scores = outputs.double().softmax(1).numpy()
    areas = [sklearn.roc_auc_score(labels == c, scores[:, c]) for c in (0, 1)]
    assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert not undefined(found)
    assert math.isnan(found["per_class/recall/2"]) and found["per_class/support/2"] == 0
    assert math.isnan(found["per_class/auroc/2"])
    assert lacking(labels, "classification", 3) == [2]


def test_a_class_that_is_only_predicted_counts_in_f1_as_in_scikit_learn() -> None:
    labels, outputs = torch.tensor([0, 0, 1]), torch.eye(3)
    found = values("classification", outputs, labels, 3)
    expected = sklearn.f1_score(labels, outputs.argmax(1), average="macro")
    assert found["macro_f1"] == pytest.approx(expected)


def test_one_class_and_one_sample() -> None:
    for labels in (torch.tensor([1]), torch.tensor([1, 1, 1])):
        found = values("classification", drawn(len(labels), 3), labels, 3)
        assert undefined(found) <= {"auroc", "cohen_kappa"} and "auroc" in undefined(found)
        assert found[UNDEFINED] == len(undefined(found))
    found = values("classification", drawn(4, 1), torch.zeros(4).long(), 1)
    assert {"cohen_kappa", "matthews_corrcoef", "calibration_error"} <= undefined(found)


def test_labels_that_all_or_none_have() -> None:
    labels = torch.tensor([[1, 0, 1], [1, 0, 0]], dtype=torch.uint8)
    outputs = torch.tensor([[1.0, -1, 1], [1, -1, -1]])
    found = values("multilabel", outputs, labels, 3)
    assert found["auroc"] == found["macro_f1"] == 1  # of labels 2, and of 0 and 2
    assert found["average_precision"] == 1
    assert lacking(labels, "multilabel", 3) == [0, 1]
    nobody = values("multilabel", -torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.uint8), 2)
    assert undefined(nobody) == {"macro_f1", "micro_f1", "auroc", "average_precision"}
    assert nobody[UNDEFINED] == 4


def test_numbers_that_do_not_vary() -> None:
    labels = torch.tensor([[0.1, 1.0], [0.1, 2.0], [0.1, 4.0]])
    outputs = torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]])
    found = values("regression", outputs, labels, 2)
    assert found["spearman_corrcoef"] == 1  # of the second number alone
    assert found["pearson_corrcoef"] == pytest.approx(stats.pearsonr([1, 2, 3], [1, 2, 4])[0])
    assert found[UNDEFINED] == 0
    one = values("regression", outputs[:1], labels[:1], 2)
    assert undefined(one) == {"pearson_corrcoef", "spearman_corrcoef", "explained_variance"}
    assert one[UNDEFINED] == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_said(bad: float) -> None:
    outputs, labels = drawn(20, 3), integers(3, 20)
    outputs[3, 1] = bad
    found = values("classification", outputs, labels, 3)
    assert undefined(found) == {"auroc", "average_precision", "calibration_error"}
    assert found[UNDEFINED] == 3


def test_nothing_is_counted_where_nothing_was_asked() -> None:
    metrics = Metrics("classification")
    kept = [metrics.kept(drawn(3, 2), integers(2, 3))]
    assert metrics.values(kept, 2) == metrics.details(kept, 2) == {}
    assert Metrics("classification", ["per_class"]).values(kept, 2) == {}
    assert Metrics("classification", ["auroc"]).values([], 0)[UNDEFINED] == 1


@pytest.mark.parametrize(
    ("names", "kind"), [(["accuracy"], "classification"), (["auroc"], "regression"),
                        (["per_class"], "regression"), (["micro_f1"], "tokens"),
                        (["macro_f1", "auc"], "multilabel")],
)  # fmt: skip
def test_another_tasks_metrics_are_refused(names: Sequence[str], kind: str) -> None:
    takes = ", ".join(NAMES[kind])
    with pytest.raises(ValueError) as error:
        check(names, kind, f"task={kind}")
    assert str(error.value) == f"evaluate.metrics=[{names[-1]}]: task={kind} takes {takes}"
