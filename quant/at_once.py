"""All weights of a network quantized in one operation, before the layers ask for them.

A quantizer on a small weight costs more in calls, from Python and back from autograd, than in
arithmetic: with ten of them a third of a training step of LeNet-5. Here the calls are made once for
the network. Every value, and every gradient, is that of the layers' own quantizers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from models.state import modules_of
from quant.functional import MIN_STEP, clipped, of_step
from quant.modules import Weighted
from quant.quantizer import Quantizer


def at_once(model: nn.Module) -> Callable[..., Any]:
    """Return ``model`` as a function that quantizes its weights at once when it is called.

    Those with one learned step, which is set; other layers' own quantizers do what they did. It is
    good for as long as nobody sets a step, so for one training.

    Args:
        model: what `quantize` returned, or a part of it, in training mode.
    """
    layers, quantizers = [], []
    for layer in modules_of(model):
        if isinstance(layer, Weighted) and layer.quantized_weights():
            quantizer = layer.weight_quantizer
            assert quantizer is not None
            if _is_plain(quantizer):
                layers.append(layer)
                quantizers.append(quantizer)
    if not layers:
        return model
    weights, steps = [layer.weight for layer in layers], [one.step for one in quantizers]
    values = [step.data for step in steps]
    grid = [(one.qn, one.qp, one.scale(w)) for one, w in zip(quantizers, weights, strict=True)]

    def call(*inputs: Any) -> Any:
        torch._foreach_clamp_min_(values, MIN_STEP)
        quantized = _AtOnce.apply(grid, *weights, *steps)  # type: ignore[no-untyped-call]
        try:
            for layer, weight in zip(layers, quantized, strict=True):
                layer.__dict__[Weighted.READY] = weight
            return model(*inputs)
        finally:
            for layer in layers:
                layer.__dict__.pop(Weighted.READY, None)

    return call


def _is_plain(quantizer: Quantizer) -> bool:
    is_learned = isinstance(quantizer.step, nn.Parameter) and quantizer.step.requires_grad
    return is_learned and quantizer.step.numel() == 1 and quantizer.is_set


class _AtOnce(torch.autograd.Function):
    """LSQ of many weights, each with its step; one that nobody used gets no gradient."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, grid: Sequence[tuple[int, int, float]], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        weights, steps = tensors[: len(grid)], tensors[len(grid) :]
        quantized = torch._foreach_div(weights, steps)
        torch._foreach_clamp_min_(quantized, [low for low, _, _ in grid])
        torch._foreach_clamp_max_(quantized, [high for _, high, _ in grid])
        torch._foreach_round_(quantized)
        torch._foreach_mul_(quantized, steps)
        ctx.save_for_backward(*tensors, *quantized)
        ctx.grid = grid  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        return tuple(quantized)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor | None) -> tuple[Any, ...]:
        grid = ctx.grid  # type: ignore[attr-defined]
        saved, count = ctx.saved_tensors, len(grid)  # type: ignore[attr-defined]
        weights, steps, quantized = (saved[i * count : (i + 1) * count] for i in range(3))
        of_weights: list[Tensor | None] = [None] * count
        of_steps: list[Tensor | None] = [None] * count
        for i, grad in enumerate(grads):
            if grad is not None:
                low, high, scale = grid[i]
                w, step = weights[i], steps[i]
                of_weights[i] = grad_w = clipped(grad, w, step, low, high)
                of_steps[i] = of_step(grad, grad_w, w, quantized[i], step, scale)
        return None, *of_weights, *of_steps
