"""Evaluation of the global model on the held-out test set, by the server."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from app import device
from data.dataset import Dataset
from models.inputs import call
from models.objective import Classification, Objective

EVALUATION_BATCH = 64
HERE = torch.device(device.CPU)


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


def on_test_set(
    data: Dataset, objective: Objective | None = None, where: torch.device = HERE
) -> Callable[[nn.Module], dict[str, float]]:
    """Return what tests a network on the held-out test set, which is copied to a device once.

    Args:
        data: holds the test set.
        objective: what outputs are for; None for classes.
        where: the device.
    """
    chosen, x = objective or Classification(), data.test_x
    x = x.to(where) if isinstance(x, Tensor) else tuple(one.to(where) for one in x)
    y = data.test_y.to(where)

    def test(network: nn.Module) -> dict[str, float]:
        with device.placed(network, where):
            return measure(network, x, y, chosen)

    return test


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
