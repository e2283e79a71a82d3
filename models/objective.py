"""What the outputs of a network are for: the loss that trains it, and what "accuracy" is.

    task            labels                outputs      accuracy, and what is reported beside it
    classification  (B,) classes          (B, C)       share whose largest output is right
    multilabel      (B, K) 0 or 1         (B, K)       share of labels right at probability 0.5;
                                                       exact_match: share of samples all right
    regression      (B, K) real numbers   (B, K)       R², where it is below 0: 0; r2 as it is; mse
    tokens          (B, T) tokens         (B, T, V)    share of tokens right; perplexity

Outputs are logits, but for regression. R² is 1 - Σ(y - ŷ)²/Σ(y - ȳ)², with ȳ the mean of each
of the K numbers over the test set; perplexity is exp(mean cross-entropy of a token).

A task of the user's own has ``loss(outputs, labels)``, a scalar, the mean over the batch, and
``accuracy(outputs, labels)``, a share of the batch; its ``kind`` is the task above whose labels
and outputs it has, by default ``classification``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.precision import all_in_fp32, in_fp32
from targets import locate, shown

Loss = Callable[..., Tensor]
UNSIGNED = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}  # by their bytes
OWN = "a class without arguments whose objects have loss(outputs, labels) and accuracy(…)"


def label_bytes(num_classes: int) -> int:
    """Bytes of one class in the smallest unsigned type."""
    return 1 if num_classes <= 2**8 else 2 if num_classes <= 2**16 else 4


def label_dtype(num_classes: int) -> torch.dtype:
    """The smallest unsigned type that holds ``num_classes`` classes."""
    return UNSIGNED[label_bytes(num_classes)]


class Objective(Protocol):
    """A task, as training and evaluation take it. ``num_classes`` is the size of its last axis."""

    name: ClassVar[str]

    @property
    def loss(self) -> Loss:
        """Mean loss of outputs and labels (B, …): a scalar."""

    def output_shape(self, num_classes: int, input_shape: Sequence[Any]) -> tuple[int, ...]:
        """Shape of a network's output for one sample."""

    def label_dtype(self, num_classes: int) -> torch.dtype:
        """Type of the labels as they cross a cut."""

    def label_bytes(self, output_shape: Sequence[int]) -> int:
        """Bytes of one sample's labels as they cross a cut."""

    def refusal(self, labels: Tensor, num_classes: int) -> str:
        """Why ``labels`` (N, …) are not the task's; empty where they are."""

    def sums(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """What a batch of the test adds to ``loss`` and to what `metrics` takes."""

    def metrics(self, sums: Mapping[str, float], labels: Tensor) -> dict[str, float]:
        """Accuracy, loss and more, given the sums over the test set and all of its labels."""


@dataclass(frozen=True)
class Classification:
    """One of C classes."""

    name: ClassVar[str] = "classification"
    losses: ClassVar[Mapping[str, Loss]] = {
        "cross_entropy": F.cross_entropy,
        "multi_margin": F.multi_margin_loss,
    }
    loss: Loss = field(default_factory=lambda: F.cross_entropy)

    def output_shape(self, num_classes: int, input_shape: Sequence[Any]) -> tuple[int, ...]:
        """(C,)."""
        return (num_classes,)

    def label_dtype(self, num_classes: int) -> torch.dtype:
        """The smallest unsigned type."""
        return label_dtype(num_classes)

    def label_bytes(self, output_shape: Sequence[int]) -> int:
        """Of one class."""
        return label_bytes(output_shape[-1])

    def refusal(self, labels: Tensor, num_classes: int) -> str:
        """They are (N,) integers."""
        return "" if labels.dim() == 1 and labels.dtype == torch.int64 else "(N,) classes"

    def sums(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Loss, and right answers."""
        return {
            "right": int((outputs.argmax(1) == labels).sum()),
            "loss": float(self.loss(outputs, labels, reduction="sum")),
        }

    def metrics(self, sums: Mapping[str, float], labels: Tensor) -> dict[str, float]:
        """Means over the samples."""
        count = len(labels)
        return {"accuracy": sums["right"] / count, "loss": sums["loss"] / count}


def binary_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean over samples and labels, of logits (B, K) and labels (B, K) of any type."""
    return F.binary_cross_entropy_with_logits(outputs, labels.to(outputs.dtype))


def soft_margin(outputs: Tensor, labels: Tensor) -> Tensor:
    """`torch.nn.functional.multilabel_soft_margin_loss`, of labels of any type."""
    outputs = in_fp32(outputs)  # autocast leaves the other losses in float32, and this one not
    return F.multilabel_soft_margin_loss(outputs, labels.to(outputs.dtype))


@dataclass(frozen=True)
class Multilabel:
    """Any of K labels."""

    name: ClassVar[str] = "multilabel"
    losses: ClassVar[Mapping[str, Loss]] = {
        "binary_cross_entropy": binary_cross_entropy,
        "soft_margin": soft_margin,
    }
    loss: Loss = binary_cross_entropy

    def output_shape(self, num_classes: int, input_shape: Sequence[Any]) -> tuple[int, ...]:
        """(K,)."""
        return (num_classes,)

    def label_dtype(self, num_classes: int) -> torch.dtype:
        """A byte each."""
        return torch.uint8

    def label_bytes(self, output_shape: Sequence[int]) -> int:
        """A byte each."""
        return math.prod(output_shape)

    def refusal(self, labels: Tensor, num_classes: int) -> str:
        """They are (N, K) of 0 and 1."""
        fits = labels.dim() == 2 and labels.shape[1] == num_classes
        is_binary = fits and labels.dtype == torch.uint8 and int(labels.max()) <= 1
        return "" if is_binary else f"(N, {num_classes}) of 0 and 1, as uint8"

    def sums(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Loss, right labels, and samples that are right throughout."""
        right = (outputs > 0) == (labels > 0)
        return {
            "right": int(right.sum()) / labels.shape[1],
            "exact": int(right.all(1).sum()),
            "loss": float(self.loss(outputs, labels)) * len(labels),
        }

    def metrics(self, sums: Mapping[str, float], labels: Tensor) -> dict[str, float]:
        """Means over the samples."""
        count = len(labels)
        return {
            "accuracy": sums["right"] / count,
            "loss": sums["loss"] / count,
            "exact_match": sums["exact"] / count,
        }


@dataclass(frozen=True)
class Regression:
    """K real numbers."""

    name: ClassVar[str] = "regression"
    losses: ClassVar[Mapping[str, Loss]] = {
        "mse": F.mse_loss,
        "l1": F.l1_loss,
        "huber": F.huber_loss,
    }
    loss: Loss = F.mse_loss

    def output_shape(self, num_classes: int, input_shape: Sequence[Any]) -> tuple[int, ...]:
        """(K,)."""
        return (num_classes,)

    def label_dtype(self, num_classes: int) -> torch.dtype:
        """As they are."""
        return torch.float32

    def label_bytes(self, output_shape: Sequence[int]) -> int:
        """Four bytes each."""
        return 4 * math.prod(output_shape)

    def refusal(self, labels: Tensor, num_classes: int) -> str:
        """They are (N, K) real numbers."""
        fits = labels.dim() == 2 and labels.shape[1] == num_classes
        return "" if fits and labels.is_floating_point() else f"(N, {num_classes}) real numbers"

    def sums(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Loss, and squared error."""
        error = (outputs - labels).double().square().sum()
        mean = float(self.loss(outputs, labels))
        return {"squared": float(error), "loss": mean * len(labels)}

    def metrics(self, sums: Mapping[str, float], labels: Tensor) -> dict[str, float]:
        """R² and mean squared error; of constant labels R² is 1 where they are met, else 0."""
        values = labels.double()
        spread = float((values - values.mean(0)).square().sum())
        squared = sums["squared"]
        r2 = 1 - squared / spread if spread else float(squared == 0)
        return {
            "accuracy": max(0.0, r2),
            "loss": sums["loss"] / len(labels),
            "mse": squared / labels.numel(),
            "r2": r2,
        }


def token_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean over samples and places, of logits (B, T, V) and tokens (B, T)."""
    return F.cross_entropy(outputs.flatten(0, 1), labels.flatten())


@dataclass(frozen=True)
class Tokens:
    """A token of V at each of T places; all places count."""

    name: ClassVar[str] = "tokens"
    losses: ClassVar[Mapping[str, Loss]] = {"cross_entropy": token_cross_entropy}
    loss: Loss = token_cross_entropy

    def output_shape(self, num_classes: int, input_shape: Sequence[Any]) -> tuple[int, ...]:
        """(T, V)."""
        return (int(input_shape[0]), num_classes)

    def label_dtype(self, num_classes: int) -> torch.dtype:
        """The smallest unsigned type."""
        return label_dtype(num_classes)

    def label_bytes(self, output_shape: Sequence[int]) -> int:
        """Of T tokens."""
        places, tokens = output_shape[0], output_shape[-1]
        return places * label_bytes(tokens)

    def refusal(self, labels: Tensor, num_classes: int) -> str:
        """They are (N, T) integers."""
        return "" if labels.dim() == 2 and labels.dtype == torch.int64 else "(N, T) tokens"

    def sums(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Loss and right answers, as shares of a sample's places."""
        right = int((outputs.argmax(-1) == labels).sum())
        mean = float(self.loss(outputs, labels))
        return {"right": right / labels.shape[1], "loss": mean * len(labels)}

    def metrics(self, sums: Mapping[str, float], labels: Tensor) -> dict[str, float]:
        """Means over the samples, and perplexity."""
        count = len(labels)
        loss = sums["loss"] / count
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return {"accuracy": sums["right"] / count, "loss": loss, "perplexity": perplexity}


Kind = Classification | Multilabel | Regression | Tokens
KINDS: Mapping[str, type[Kind]] = {
    kind.name: kind for kind in (Classification, Multilabel, Regression, Tokens)
}


@dataclass(frozen=True)
class Own:
    """A task of the user's own, with the labels and outputs of one of ours.

    Attributes:
        own: the user's object.
        kind: whose labels and outputs it has.
    """

    own: Any
    kind: Kind
    name: ClassVar[str] = "own"

    @property
    def loss(self) -> Loss:
        """The user's, in float32."""
        return all_in_fp32(self.own.loss)

    def output_shape(self, num_classes: int, input_shape: Sequence[Any]) -> tuple[int, ...]:
        """As its kind's."""
        return self.kind.output_shape(num_classes, input_shape)

    def label_dtype(self, num_classes: int) -> torch.dtype:
        """As its kind's."""
        return self.kind.label_dtype(num_classes)

    def label_bytes(self, output_shape: Sequence[int]) -> int:
        """As its kind's."""
        return self.kind.label_bytes(output_shape)

    def refusal(self, labels: Tensor, num_classes: int) -> str:
        """As its kind's."""
        return self.kind.refusal(labels, num_classes)

    def sums(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """The user's loss and accuracy, times the samples."""
        count = len(labels)
        return {
            "right": float(self.own.accuracy(outputs, labels)) * count,
            "loss": float(self.own.loss(outputs, labels)) * count,
        }

    def metrics(self, sums: Mapping[str, float], labels: Tensor) -> dict[str, float]:
        """Means over the samples."""
        count = len(labels)
        return {"accuracy": sums["right"] / count, "loss": sums["loss"] / count}


@dataclass(frozen=True)
class TaskSettings:
    """The group task of the configuration: what the network's outputs are for."""

    name: str = field(
        default=Classification.name,
        metadata={"help": "classification, multilabel, regression, tokens (docs/TASKS.md)"},
    )
    loss: str | None = field(
        default=None,
        metadata={
            "help": "null: the first of classification: cross_entropy, multi_margin; multilabel: "
            "binary_cross_entropy, soft_margin; regression: mse, l1, huber; tokens: cross_entropy"
        },
    )
    _target_: str | None = field(
        default=None,
        metadata={"help": "a task of your own instead: tasks/mine.py:MyTask (docs/TASKS.md)"},
    )

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise ValueError(f"task.name={self.name}: takes {', '.join(KINDS)}")
        losses = KINDS[self.name].losses
        if self.loss is not None and self._target_:
            raise ValueError(f"task.loss={self.loss}: task._target_ has a loss of its own")
        if self.loss is not None and self.loss not in losses:
            takes = ", ".join(losses)
            raise ValueError(f"task.loss={self.loss}: task={self.name} takes {takes}")

    @property
    def loss_name(self) -> str:
        """Of the loss, the default among them."""
        return self.loss or next(iter(KINDS[self.name].losses))

    @property
    def shown(self) -> str:
        """What messages call it."""
        return f"task._target_={shown(self._target_)}" if self._target_ else f"task={self.name}"

    def objective(self) -> Objective:
        """Return the task.

        Raises:
            ValueError: the user's own cannot be used; names task._target_.
        """
        if self._target_:
            return _own(self._target_)
        kind = KINDS[self.name]
        return kind() if self.loss is None else kind(kind.losses[self.loss])


def _own(target: str) -> Own:
    key = f"task._target_={shown(target)}"
    made = locate(target, "task._target_", OWN)
    try:
        made = made() if isinstance(made, type) else made
    except Exception as error:  # somebody else's constructor
        raise ValueError(f"{key}: cannot be made without arguments: {error}") from error
    lacking = [name for name in ("loss", "accuracy") if not callable(getattr(made, name, None))]
    if lacking:
        raise ValueError(f"{key}: has no {' and no '.join(lacking)}; expected {OWN}")
    kind = getattr(made, "kind", Classification.name)
    if kind not in KINDS:
        raise ValueError(f"{key}: kind={kind}: takes {', '.join(KINDS)}")
    return Own(made, KINDS[kind]())


def kind_of_labels(labels: Tensor) -> str:
    """The task whose labels (N, …) these may be, by their type and shape; empty for none."""
    if labels.is_floating_point():
        return Regression.name if labels.dim() == 2 else ""
    if labels.dtype == torch.uint8:
        return Multilabel.name if labels.dim() == 2 else ""
    return {1: Classification.name, 2: Tokens.name}.get(labels.dim(), "")
