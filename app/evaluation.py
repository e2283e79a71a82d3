"""Evaluation of the global model on the held-out test set, by the server."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, MetricRecord
from torch import nn

from data.dataset import Dataset
from strategies import messages
from strategies.server.loop import FederatedStrategy

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class EvaluateSettings:
    """The group evaluate of the configuration."""

    every: int = field(
        default=1, metadata={"help": "rounds between evaluations; the last is always evaluated"}
    )
    clients: int = field(
        default=10, metadata={"help": "splitfed_v3: how many clients' own halves are tested"}
    )

    def __post_init__(self) -> None:
        for key in ("every", "clients"):
            if getattr(self, key) < 1:
                raise ValueError(f"evaluate.{key}={getattr(self, key)}: takes 1 or more")


def evaluate(data: Dataset, strategy: FederatedStrategy, arrays: ArrayRecord) -> MetricRecord:
    """Accuracy, mean cross-entropy and the method's own of ``arrays`` on the held-out test set."""
    state = messages.to_tensors(arrays)
    metrics = strategy.evaluate(state, lambda network: test(network, data.test_x, data.test_y))
    return MetricRecord(dict(metrics))


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
