"""Metrics beside accuracy: what the outputs of a network are worth, by the names users give.

    classification  balanced_accuracy  mean recall over the classes that have samples
                    macro_f1           mean F1 over the classes that have samples or predictions
                    auroc              mean over classes of the area under the curve of one class
                                       against the rest, of those with samples on both sides
                    average_precision  the same of the area under precision and recall, of those
                                       with samples
                    top5_accuracy, cohen_kappa, matthews_corrcoef
                    calibration_error  Σ share of a bin · |accuracy - confidence|, 15 bins
    multilabel      macro_f1, auroc, average_precision: as above, over labels; micro_f1
    regression      mean_absolute_error, root_mean_squared_error; pearson_corrcoef,
                    spearman_corrcoef, explained_variance: means over the numbers
    tokens          balanced_accuracy, macro_f1, top5_accuracy: a token is a class

``per_class`` and ``confusion_matrix`` are of the end of a run. What a metric says is NaN where it
is not defined: of no samples, of one class alone, of labels that do not vary, of outputs that are
not finite; `Metrics.values` counts these.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.objective import Objective, Own

PER_CLASS, CONFUSION = "per_class", "confusion_matrix"
AT_END = (PER_CLASS, CONFUSION)
UNDEFINED = "metrics_undefined"
MOST_CLASSES = 1000  # of a confusion matrix
TOP = 5
NAMES: Mapping[str, Sequence[str]] = {
    "classification": (
        "balanced_accuracy", "macro_f1", "auroc", "average_precision", "top5_accuracy",
        "cohen_kappa", "matthews_corrcoef", "calibration_error", PER_CLASS, CONFUSION,
    ),
    "multilabel": ("macro_f1", "micro_f1", "auroc", "average_precision", PER_CLASS, CONFUSION),
    "regression": (
        "mean_absolute_error", "root_mean_squared_error", "pearson_corrcoef",
        "spearman_corrcoef", "explained_variance",
    ),
    "tokens": ("balanced_accuracy", "macro_f1", "top5_accuracy", PER_CLASS, CONFUSION),
}  # fmt: skip


def kind_of(objective: Objective) -> str:
    """The task whose metrics a task has: its own, or that of its labels."""
    return objective.kind.name if isinstance(objective, Own) else objective.name


def check(names: Sequence[str], kind: str, shown: str) -> None:
    """Refuse what is no metric of the task.

    Args:
        names: of evaluate.metrics.
        kind: of the task.
        shown: what messages call it.

    Raises:
        ValueError: names evaluate.metrics.
    """
    for name in names:
        if name not in NAMES[kind]:
            raise ValueError(f"evaluate.metrics=[{name}]: {shown} takes {', '.join(NAMES[kind])}")


# What a pass over the samples leaves behind, each with the samples on the first axis.
Kept = Mapping[str, Tensor]


@dataclass(frozen=True)
class Metrics:
    """Some metrics of a task.

    Attributes:
        kind: of the task.
        names: as in `NAMES`.
    """

    kind: str
    names: Sequence[str] = ()

    @property
    def is_detailed(self) -> bool:
        """Whether any is of the end of a run."""
        return any(name in AT_END for name in self.names)

    def kept(self, outputs: Tensor, labels: Tensor) -> Kept:
        """What a batch leaves behind: of tokens no outputs, which would be too many."""
        if self.kind != "tokens":
            return {"outputs": outputs.detach(), "labels": labels}
        flat, tokens = outputs.detach().flatten(0, 1), labels.flatten()
        return {"predicted": flat.argmax(1), "top": _in_top(flat, tokens), "labels": tokens}

    def values(self, kept: Sequence[Kept], num_classes: int) -> dict[str, float]:
        """Return the metrics by name, and how many of them are not defined and NaN.

        Args:
            kept: of all batches.
            num_classes: of classes, labels, numbers or tokens.
        """
        names = [name for name in self.names if name not in AT_END]
        if not names:
            return {}
        whole = _joined(kept)
        found = {name: _value(name, self.kind, whole, num_classes) for name in names}
        return found | {UNDEFINED: float(sum(map(math.isnan, found.values())))}

    def details(self, kept: Sequence[Kept], num_classes: int) -> dict[str, float]:
        """Return values per class as ``per_class/recall/3``, counts as ``confusion_matrix/3/5``.

        So that what averages or renames a test's values does so with these. Of several labels the
        matrix has a row for each: true and false negatives, false and true positives.
        """
        wanted = [name for name in AT_END if name in self.names]
        if not wanted:
            return {}
        whole = _joined(kept)
        found: dict[str, float] = {}
        if PER_CLASS in wanted:
            for name, column in _per_class(self.kind, whole, num_classes).items():
                for number, value in enumerate(column.tolist()):
                    found[f"{PER_CLASS}/{name}/{number}"] = float(value)
        if CONFUSION in wanted:
            for number, row in enumerate(_confusion(self.kind, whole, num_classes).tolist()):
                for other, count in enumerate(row):
                    found[f"{CONFUSION}/{number}/{other}"] = float(count)
        return found


def lacking(labels: Tensor, kind: str, num_classes: int) -> list[int]:
    """Classes, or labels, that no sample has or, of several labels, that all have."""
    if kind == "multilabel":
        counts = (labels > 0).sum(0)
        return ((counts == 0) | (counts == len(labels))).nonzero().flatten().tolist()
    if kind == "regression":
        return []
    counts = torch.bincount(labels.flatten(), minlength=num_classes)
    return (counts == 0).nonzero().flatten().tolist()


def _joined(kept: Sequence[Kept]) -> Kept:
    return {name: torch.cat([one[name] for one in kept]) for name in (kept[0] if kept else ())}


def _value(name: str, kind: str, kept: Kept, num_classes: int) -> float:
    """One metric; NaN where it is not defined."""
    if not kept or not len(kept["labels"]):
        return math.nan
    if kind == "regression":
        return _of_numbers(name, kept["outputs"].double(), kept["labels"].double())
    if name == "top5_accuracy":
        top = kept["top"] if "top" in kept else _in_top(kept["outputs"], kept["labels"])
        return float(top.double().mean())
    if name in ("balanced_accuracy", "macro_f1", "micro_f1"):
        true, support, predicted = _counts(kind, kept, num_classes)
        if name == "balanced_accuracy":
            return _mean(true / support)
        if name == "macro_f1":
            return _mean(2 * true / (support + predicted))
        return float(2 * true.sum() / (support + predicted).sum())
    return _of_scores(name, kind, kept, num_classes)


def _predicted(kept: Kept) -> Tensor:
    """(N,) classes."""
    return kept["predicted"] if "predicted" in kept else kept["outputs"].argmax(1)


def _in_top(outputs: Tensor, labels: Tensor) -> Tensor:
    """Whether the labels (N,) are among the largest outputs (N, C)."""
    return (outputs.topk(min(TOP, outputs.shape[1])).indices == labels[:, None]).any(1)


def _counts(kind: str, kept: Kept, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each class: samples that are rightly in it, that are in it, that are predicted to be."""
    labels = kept["labels"]
    if kind == "multilabel":
        said, there = kept["outputs"] > 0, labels > 0
        parts = [(said & there).sum(0), there.sum(0), said.sum(0)]
    else:
        said = _predicted(kept)
        drawn = (labels[said == labels], labels, said)
        parts = [torch.bincount(one, minlength=num_classes) for one in drawn]
    true, support, predicted = (part.double() for part in parts)
    return true, support, predicted


def _per_class(kind: str, kept: Kept, num_classes: int) -> dict[str, Tensor]:
    """Recall, precision, F1, area under the curve where there are scores, and samples of each."""
    true, support, predicted = _counts(kind, kept, num_classes)
    found = {
        "recall": true / support,
        "precision": true / predicted,
        "f1": 2 * true / (support + predicted),
        "support": support,
    }
    if kind != "tokens":
        found["auroc"] = _areas("auroc", kind, kept, num_classes)
    return found


def _confusion(kind: str, kept: Kept, num_classes: int) -> Tensor:
    """(C, C): samples by class and prediction; of labels (K, 4)."""
    true, support, predicted = _counts(kind, kept, num_classes)
    if kind == "multilabel":
        missed, wrong = support - true, predicted - true
        return torch.stack([len(kept["labels"]) - true - missed - wrong, missed, wrong, true], 1)
    places = kept["labels"] * num_classes + _predicted(kept)
    return torch.bincount(places, minlength=num_classes**2).view(num_classes, num_classes)


def _of_scores(name: str, kind: str, kept: Kept, num_classes: int) -> float:
    """What torchmetrics has; of areas the mean over the classes that have one."""
    if name in ("auroc", "average_precision"):
        return _mean(_areas(name, kind, kept, num_classes))
    from torchmetrics.functional import classification as torchmetrics

    if num_classes < 2:
        return math.nan
    labels, said = kept["labels"], _predicted(kept)
    if name == "cohen_kappa":
        return float(torchmetrics.multiclass_cohen_kappa(said, labels, num_classes))
    if name == "matthews_corrcoef":
        return float(torchmetrics.multiclass_matthews_corrcoef(said, labels, num_classes))
    assert name == "calibration_error"
    if not kept["outputs"].isfinite().all():
        return math.nan
    scores = kept["outputs"].double().softmax(1)
    return float(torchmetrics.multiclass_calibration_error(scores, labels, num_classes))


def _areas(name: str, kind: str, kept: Kept, num_classes: int) -> Tensor:
    """(C,) areas of each class against the rest, or of each label; NaN where there is none."""
    from torchmetrics.functional import classification as torchmetrics

    def area(scores: Tensor, there: Tensor) -> Tensor:
        if name == "auroc":
            return torchmetrics.binary_auroc(scores, there, validate_args=False)
        return torchmetrics.binary_average_precision(scores, there, validate_args=False)

    outputs, labels = kept["outputs"].double(), kept["labels"]
    found = torch.full((num_classes,), math.nan, dtype=torch.float64)
    if not outputs.isfinite().all():
        return found
    scores = outputs.sigmoid() if kind == "multilabel" else outputs.softmax(1)
    for number in range(num_classes):
        there = labels[:, number] > 0 if kind == "multilabel" else labels == number
        count = int(there.sum())
        if count and (count < len(labels) or name == "average_precision"):
            # An empty class has no area: torchmetrics would say 0, and average it.
            found[number] = float(area(scores[:, number], there.long()))
    return found


def _of_numbers(name: str, outputs: Tensor, labels: Tensor) -> float:
    """Of predicted numbers (N, K) and true ones."""
    error = outputs - labels
    if name == "mean_absolute_error":
        return float(error.abs().mean())
    if name == "root_mean_squared_error":
        return float(error.square().mean().sqrt())
    if name == "explained_variance":
        return _mean(1 - error.var(0, correction=0) / _spread(labels))
    ranked = name == "spearman_corrcoef"
    x, y = (_ranks(outputs), _ranks(labels)) if ranked else (outputs, labels)
    together = ((x - x.mean(0)) * (y - y.mean(0))).mean(0)
    return _mean(together / (_spread(x) * _spread(y)).sqrt())


def _spread(values: Tensor) -> Tensor:
    """(K,) variances of (N, K) numbers, NaN where they are all the same."""
    variance = values.var(0, correction=0)
    return torch.where((values == values[0]).all(0), math.nan, variance)


def _ranks(values: Tensor) -> Tensor:
    """Of each column the ranks from 1; equal values share the mean of theirs."""
    columns = []
    for column in values.unbind(1):
        _, place, count = column.unique(return_inverse=True, return_counts=True)
        last = count.cumsum(0)
        columns.append((last - (count - 1) / 2)[place])
    return torch.stack(columns, 1).double()


def _mean(values: Tensor) -> float:
    """Over what is defined."""
    return float(values.nanmean())
