"""About how much memory a job takes, and how many fit."""

import math
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from app.evaluation import EVALUATION_BATCH
from app.experiment import Experiment, dataset
from models.cost import Cost
from strategies.server.spool import IN_MEMORY
from strategies.server.workload import cost_at

PROCESS_BYTES = 512 * 2**20  # of one with torch, Flower and Ray, and of wandb's
MODELS = 12  # the global one, a client's, its answer, their sum, a checkpoint: measured


def job_bytes(chosen: Experiment, model: nn.Module) -> int:
    """Estimate what one process takes that runs a job and its clients.

    Args:
        chosen: the experiment; its data are loaded.
        model: the global one, as the method made it.
    """
    data = dataset(chosen)
    held = [*_tensors(data.train_x), *_tensors(data.test_x), data.train_y, data.test_y]
    share = chosen.data.held_out  # of the training samples, which the driver has once more
    again = share * _num_bytes([*_tensors(data.train_x), data.train_y])
    if data.valid_x is not None and data.valid_y is not None:
        held += [*_tensors(data.valid_x), data.valid_y]
    model_bytes = _num_bytes(model.state_dict().values())
    updates = min(IN_MEMORY, chosen.data.num_clients * model_bytes)  # more wait in a file
    return (
        PROCESS_BYTES
        + _num_bytes(held)
        + round(again)
        + MODELS * model_bytes
        + updates
        + _batch_bytes(chosen, model, model_bytes)
    )


def _batch_bytes(chosen: Experiment, model: nn.Module, model_bytes: int) -> int:
    """Of one step of training, or of one batch of evaluation, whichever is more."""
    try:
        found: Cost = cost_at(model, chosen.network.inputs)
    except (ValueError, RuntimeError, TypeError):  # a network that cannot be counted
        return 4 * model_bytes
    train = chosen.train
    largest = 4 * max((math.prod(layer.output_shape) for layer in found.layers), default=0)
    # Gradients of activations, which `models.cost` leaves out, are there for a layer at a time.
    training = found.peak_train_bytes(train.batch_size, train.optimizer_slots)
    return max(training + train.batch_size * 2 * largest, EVALUATION_BATCH * 3 * largest)


def fitting(num_cpus: Sequence[int], memory: Sequence[int], one: int) -> int:
    """How many jobs of ``one`` bytes each fit, one for a CPU; at least one.

    Args:
        num_cpus: of each machine.
        memory: of each machine, in bytes.
        one: of a job.
    """
    each = (min(cpus, size // one) for cpus, size in zip(num_cpus, memory, strict=True))
    return max(1, sum(each))


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(int(t.numel()) * t.element_size() for t in tensors)


def _tensors(x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (x,) if isinstance(x, Tensor) else x
