"""Evaluation of the global model by the server: on the test set, or on samples kept for it."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from app import device, processors
from app.device import Where
from app.in_order import in_order
from data.dataset import Dataset, Inputs, rows_of
from models.inputs import call
from models.metrics import Kept, Metrics
from models.objective import Classification, Objective
from models.precision import in_fp32

EVALUATION_BATCH = 64
HERE = Where(torch.device(device.CPU))
ON = ("server", "clients", "both")
ACCURACY = Metrics("classification")  # and the loss, of whatever task

Tested = Callable[[nn.Module], dict[str, float]]


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
    metrics: list[str] = field(
        default_factory=list,
        metadata={"help": "beside accuracy: [macro_f1,auroc,per_class], … (docs/EVALUATION.md)"},
    )
    on: str = field(
        default="server",
        metadata={
            "help": "server, clients (on samples that each of them holds out), both "
            "(docs/EVALUATION.md)"
        },
    )
    held_out: float = field(
        default=0.2,
        metadata={
            "help": "evaluate.on=clients, both: share of its samples that a client holds out"
        },
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
        if self.on not in ON:
            raise ValueError(f"evaluate.on={self.on}: takes {', '.join(ON)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"evaluate.held_out={self.held_out}: takes a share in (0, 1)")


def on_test_set(
    data: Dataset,
    objective: Objective | None = None,
    metrics: Metrics = ACCURACY,
    detailed: bool = False,
    where: Where = HERE,
) -> Tested:
    """Return what tests a network on the held-out test set; without a task, for classes."""
    chosen, x, y = objective or Classification(), data.test_x, data.test_y
    return partial(
        measure, x=x, y=y, objective=chosen, metrics=metrics, detailed=detailed, where=where
    )


def in_rounds(
    data: Dataset, objective: Objective, metrics: Metrics = ACCURACY, where: Where = HERE
) -> Tested:
    """Return what tests a network after a round: on the samples that were kept for it, if any."""
    x, y = data.valid_x, data.valid_y
    if x is None or y is None:
        return on_test_set(data, objective, metrics, where=where)
    return partial(measure, x=x, y=y, objective=objective, metrics=metrics, where=where)


def test(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Share of right answers and mean cross-entropy of ``model`` on (N, …) inputs ``x``."""
    found = measure(model, x, y, Classification())
    return found["accuracy"], found["loss"]


def passes(
    model: nn.Module,
    x: Inputs,
    count: int,
    batch: int = EVALUATION_BATCH,
    where: Where = HERE,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of each batch of ``count`` samples with their outputs, in evaluation.

    The network runs ``where`` it is told; inputs and outputs are on the CPU, outputs in float32.
    """

    def run(network: nn.Module, rows: slice) -> Tensor:
        inputs = device.moved(rows_of(x, rows), where.device)
        with torch.no_grad(), where.computing():
            outputs = call(network, inputs)
        return in_fp32(outputs.cpu()) if isinstance(outputs, Tensor) else outputs

    processors.use_one()
    model.eval()
    batches = [slice(start, min(start + batch, count)) for start in range(0, count, batch)]
    with device.placed(model, where.device):
        yield from zip(batches, in_order(run, model, batches, where.threads), strict=True)


@torch.no_grad()
def measure(
    model: nn.Module,
    x: Inputs,
    y: Tensor,
    objective: Objective,
    batch: int = EVALUATION_BATCH,
    metrics: Metrics = ACCURACY,
    detailed: bool = False,
    where: Where = HERE,
) -> dict[str, float]:
    """Accuracy, loss and what the task adds, of ``model`` on a test set.

    Args:
        model: the network; put into evaluation.
        x: (N, …) inputs; a tuple where the network takes several.
        y: (N, …) labels.
        objective: what its outputs are for.
        batch: how many samples at once; larger ones are slower (benchmarks/evaluation.py).
        metrics: what else to say.
        detailed: whether also what is of the end of a run.
        where: the network is to run, and in which precision.
    """
    sums: Counter[str] = Counter()
    kept: list[Kept] = []
    size = 0
    for rows, outputs in passes(model, x, len(y), batch, where):
        sums.update(objective.sums(outputs, y[rows]))
        if metrics.names:
            kept.append(metrics.kept(outputs, y[rows]))
            size = outputs.shape[-1]
    found = objective.metrics(sums, y) | metrics.values(kept, size)
    return found | metrics.details(kept, size) if detailed else found
