"""Evaluation of the global model by the server: on the test set, or on samples kept for it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from data.dataset import Dataset
from models.inputs import call
from models.objective import Classification, Objective

EVALUATION_BATCH = 64


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
    patience: int | None = field(
        default=None,
        metadata={
            "help": "with data.validation: end after this many rounds without a better one; null: "
            "never"
        },
    )

    def __post_init__(self) -> None:
        for key in ("every", "clients", "patience"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ValueError(f"evaluate.{key}={value}: takes 1 or more")


def on_test_set(
    data: Dataset, objective: Objective | None = None
) -> Callable[[nn.Module], dict[str, float]]:
    """Return what tests a network on the held-out test set; without a task, for classes."""
    chosen = objective or Classification()
    return lambda network: measure(network, data.test_x, data.test_y, chosen)


def in_rounds(data: Dataset, objective: Objective) -> Callable[[nn.Module], dict[str, float]]:
    """Return what tests a network after a round: on the samples that were kept for it, if any."""
    x, y = data.valid_x, data.valid_y
    if x is None or y is None:
        return on_test_set(data, objective)
    return lambda network: measure(network, x, y, objective)


def test(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Share of right answers and mean cross-entropy of ``model`` on (N, …) inputs ``x``."""
    found = measure(model, x, y, Classification())
    return found["accuracy"], found["loss"]


@torch.no_grad()
def measure(
    model: nn.Module,
    x: Tensor | tuple[Tensor, ...],
    y: Tensor,
    objective: Objective,
    batch: int = EVALUATION_BATCH,
) -> dict[str, float]:
    """Accuracy, loss and what the task adds, of ``model`` on a test set.

    Args:
        model: the network; put into evaluation.
        x: (N, …) inputs; a tuple where the network takes several.
        y: (N, …) labels.
        objective: what its outputs are for.
        batch: how many samples at once; larger ones are slower (benchmarks/evaluation.py).
    """
    torch.set_num_threads(1)
    model.eval()
    sums: Counter[str] = Counter()
    for start in range(0, len(y), batch):
        rows = slice(start, start + batch)
        inputs = x[rows] if isinstance(x, Tensor) else tuple(one[rows] for one in x)
        sums.update(objective.sums(call(model, inputs), y[rows]))
    return objective.metrics(sums, y)
