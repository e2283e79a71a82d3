"""In which order the values of a network lie in memory.

Convolutions run fastest in channels_last: two thirds to nine tenths of the time of a training step
on a CPU (benchmarks/quant.py). Where the processor has AVX2 and no AVX-512, torch 2.13 writes past
its memory in the weight gradient of a 1×1 convolution with a stride over fewer than 8 channels in
channels_last (oneDNN; the process ends, or its numbers are wrong). A network with such a layer, as
in the shortcuts of a narrow ResNet, keeps torch's own order, on every processor: results do not
depend on which.
"""

import functools
import logging

import torch
from torch import Tensor, nn

FEWEST = 8  # input channels that this layer must have

log = logging.getLogger(__name__)


def overflowing(model: nn.Module) -> list[str]:
    """Names of the layers whose weight gradient is unsafe in channels_last."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.in_channels < FEWEST
        and all(size == 1 for size in module.kernel_size)
        and any(step > 1 for step in module.stride)
    ]


def in_best_format(model: nn.Module) -> nn.Module:
    """Put the weights of ``model`` into channels_last, in place, where that is safe."""
    unsafe = overflowing(model)
    if unsafe:
        say_once(
            f"{type(model).__name__} keeps torch's memory format: the gradient of {unsafe[0]}, a "
            f"1×1 convolution with a stride over fewer than {FEWEST} channels, is not safe in "
            "channels_last"
        )

    def converted(tensor: Tensor) -> Tensor:  # `model.to` would do it, and refuse five dimensions
        if tensor.dim() != 4:
            return tensor
        if unsafe:  # also of what lies in both orders, which kernels see by its strides
            return torch.empty_like(tensor, memory_format=torch.contiguous_format).copy_(tensor)
        return tensor.to(memory_format=torch.channels_last)

    model._apply(converted)
    return model


@functools.cache
def say_once(text: str) -> None:
    """Log what a process says once."""
    log.info(text)
