"""Evaluation of the global model on the held-out test set, by the server."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from data.dataset import Dataset

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class EvaluateSettings:
    """The group evaluate of the configuration."""

    every: int = field(
        default=1, metadata={"help": "rounds between evaluations; the last is always evaluated"}
    )
    clients: int = field(
        default=10,
        metadata={"help": "splitfed_v3, hierarchical: private client models that are tested"},
    )

    def __post_init__(self) -> None:
        for key in ("every", "clients"):
            if getattr(self, key) < 1:
                raise ValueError(f"evaluate.{key}={getattr(self, key)}: takes 1 or more")


def on_test_set(data: Dataset) -> Callable[[nn.Module], tuple[float, float]]:
    """Return what tests a network on the held-out test set."""
    return lambda network: test(network, data.test_x, data.test_y)


@torch.no_grad()
def test(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Share of right answers and mean cross-entropy of ``model`` on (N, …) inputs ``x``."""
    torch.set_num_threads(1)
    model.eval()
    correct, loss = 0, 0.0
    for inputs, labels in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
        logits = model(inputs)  # (B, classes)
        correct += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return correct / len(y), loss / len(y)
