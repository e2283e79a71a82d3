"""In which precision a network computes: engine.precision.

    fp32   as it is written
    bf16   mixed, by `torch.autocast`: products and convolutions in bfloat16; parameters, their
           gradients, running statistics and losses in float32

One context holds for all of a client's training, its backward passes among them: autograd computes
each in the type that autocast chose for the forward pass. Autocast's cache of weights, which is
emptied where the outermost context ends, would outlive the optimizer's steps: it is off, and so in
contexts that a network has of its own. Within a whole network one bfloat16 tensor follows another;
across a cut float32 does (quant/link.py).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

FP32, BF16 = "fp32", "bf16"
PRECISIONS = (FP32, BF16)


def computing(precision: str, device: str) -> AbstractContextManager[object]:
    """Return the context in which networks compute so; without one in fp32.

    Args:
        precision: one of `PRECISIONS`.
        device: type of the device, such as ``cuda``.

    Raises:
        ValueError: it is none of them.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"engine.precision={precision}: takes {', '.join(PRECISIONS)}")
    if precision == FP32:
        return nullcontext()
    return torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False)


def in_fp32(x: Tensor) -> Tensor:
    """``x``, in float32 where it is bfloat16."""
    return x.float() if x.dtype is torch.bfloat16 else x


def all_in_fp32(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``loss`` as it computes in float32, whatever the network does."""

    def computed(outputs: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(outputs.device.type, enabled=False):
            return loss(in_fp32(outputs), labels)

    return computed
