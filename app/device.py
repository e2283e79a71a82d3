"""Where networks and samples are while clients train and the server tests: engine.device, and the
precision that they compute in there: engine.precision.

What is drawn is drawn on the CPU and copied, but for dropout, which draws where it runs. So one
device gives the same results twice; another device gives others, as its sums are rounded otherwise.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from app.isolation import modules
from data.dataset import Inputs
from models.precision import FP32, computing
from strategies.contract import Update

AUTO, CPU, CUDA, MPS = "auto", "cpu", "cuda", "mps"
ACCEPTED = "auto, cpu, cuda, cuda:1, mps"


@dataclass(frozen=True)
class Where:
    """Where networks compute, and how.

    Attributes:
        device: that they are moved to.
        precision: one of `models.precision.PRECISIONS`.
        threads: that run batches of a test on a CPU, a batch each; what comes of them is the same.
    """

    device: torch.device
    precision: str = FP32
    threads: int = 1

    def computing(self) -> AbstractContextManager[object]:
        """Return the context in which they do."""
        return computing(self.precision, self.device.type)


def is_name(name: str) -> bool:
    """Whether engine.device takes this name, be the device there or not."""
    return re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", name) is not None


def find(name: str) -> torch.device:
    """Return the device of this process that engine.device names: auto is cuda where there is one.

    A GPU is set to compute in fp32 and the same way twice, as far as torch can.

    Raises:
        ValueError: this machine has no such device; names the key.
    """
    cuda = torch.cuda.device_count() if torch.backends.cuda.is_built() else 0
    if name == AUTO:
        name = CUDA if cuda else CPU
    device = torch.device(name)
    there = {CPU: True, CUDA: (device.index or 0) < cuda, MPS: torch.backends.mps.is_available()}
    if not there[device.type]:
        have = [CPU, *(f"{CUDA}:{index}" for index in range(cuda)), *([MPS] if there[MPS] else [])]
        raise ValueError(
            f"engine.device={name}: is not on this machine (torch {torch.__version__}), which has "
            f"{', '.join(have)}"
        )
    if device.type == CUDA:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.allow_tf32 = False
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def place(model: Any, device: torch.device) -> Any:
    """Move the modules that something holds, and return it."""
    if device.type != CPU:
        for module in modules(model):
            module.to(device)
    return model


def moved(inputs: Inputs, device: torch.device) -> Inputs:
    """Return samples' inputs on a device."""
    return inputs.to(device) if isinstance(inputs, Tensor) else tuple(x.to(device) for x in inputs)


@contextlib.contextmanager
def placed(model: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Move a module that is on the CPU for a while."""
    place(model, device)
    try:
        yield model
    finally:
        if device.type != CPU:
            model.cpu()


def on_host(update: Update) -> Update:
    """Return an update whose arrays are on the CPU."""
    if all(tensor.is_cpu for tensor in update.arrays.values()):
        return update
    return replace(update, arrays={n: tensor.cpu() for n, tensor in update.arrays.items()})
