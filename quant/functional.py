"""Uniform quantization with a learned step: LSQ (Esser et al. 2020, arXiv 1902.08153).

    v̂ = round(clip(v / s, qn, qp)) · s                      s is `step`, qn ≤ 0 < qp are `bounds`
    ∂v̂/∂v = 1 inside the clip range, 0 outside             straight-through
    ∂v̂/∂s = round(v/s) − v/s inside, qn or qp outside, times `scale` = 1/√(N·qp)

The backward pass is written with hardtanh's and two sums of products, three passes over the data
instead of the textbook form's seven; the two agree everywhere but exactly at the clip bounds, where
both gradients are those of the outside here.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

MIN_STEP = 1e-8

_hardtanh_backward = torch.ops.aten.hardtanh_backward.default


def bounds(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest integer code: −2^(b−1), 2^(b−1)−1 if signed, else 0, 2^b−1."""
    if signed:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def initial_step(x: Tensor, qp: int, channel_axis: int | None = None) -> Tensor:
    """LSQ's first step 2·mean|x|/√qp, one value, or one per channel shaped for broadcasting."""
    return 2 * _reduce(x.detach().abs(), channel_axis, "mean") / math.sqrt(qp)


def minmax_step(x: Tensor, qp: int, channel_axis: int | None = None) -> Tensor:
    """Post-training quantization's step: the largest |x| becomes the largest code."""
    return _reduce(x.detach().abs(), channel_axis, "amax") / qp


def codes(x: Tensor, step: Tensor, qn: int, qp: int, noise: Tensor | None = None) -> Tensor:
    """Integer codes of ``x`` as int64, nearest, or stochastically rounded where ``noise`` is given.

    Args:
        x: any shape, float.
        step: one value, or shaped to broadcast against ``x``.
        qn: smallest code.
        qp: largest code.
        noise: like ``x``, uniform in [0, 1); the result is unbiased inside the clip range.
    """
    scaled = (x / step).clamp_(qn, qp)
    if noise is None:
        return scaled.round_().long()
    below = scaled.floor()  # not floor(scaled + noise): that sum rounds up at the top
    return (below + (noise < scaled - below)).long()


def fake_quantize(x: Tensor, step: Tensor, qn: int, qp: int) -> Tensor:
    """Round ``x`` to the grid ``step · {qn … qp}``, without gradients."""
    return (x / step).clamp_(qn, qp).round_().mul_(step)


def lsq(x: Tensor, step: Tensor, qn: int, qp: int, scale: float) -> Tensor:
    """Quantize ``x`` with a step that gets a gradient.

    Args:
        x: any shape, float.
        step: one positive value, or one per channel shaped to broadcast against ``x``.
        qn: smallest code.
        qp: largest code.
        scale: factor on the step's gradient, 1/√(N·qp).

    Returns:
        v̂, like ``x``.
    """
    apply = _PerTensor.apply if step.numel() == 1 else _PerChannel.apply
    quantized: Tensor = apply(x, step, qn, qp, scale)  # type: ignore[no-untyped-call]
    return quantized


class _PerTensor(torch.autograd.Function):
    """One step for the whole tensor: keeps x and v̂, which the next layer keeps anyway."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, step: Tensor, qn: int, qp: int, scale: float
    ) -> Tensor:
        quantized = (x / step).clamp_(qn, qp).round_().mul_(step)
        ctx.save_for_backward(x, quantized, step)
        ctx.constants = (qn, qp, scale)  # type: ignore[attr-defined]
        return quantized

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, quantized, step = ctx.saved_tensors  # type: ignore[attr-defined]
        qn, qp, scale = ctx.constants  # type: ignore[attr-defined]
        grad_x = clipped(grad, x, step, qn, qp)
        if not ctx.needs_input_grad[1]:  # type: ignore[attr-defined]
            return grad_x, None, None, None, None
        return grad_x, of_step(grad, grad_x, x, quantized, step, scale), None, None, None


def clipped(grad: Tensor, x: Tensor, step: Tensor, qn: int, qp: int) -> Tensor:
    """Gradient of ``x`` quantized with one step: ``grad`` inside the clip range, 0 outside."""
    if not x.is_cpu:  # where reading a number would wait for the device
        return grad * ((x > qn * step) & (x < qp * step))
    s = float(step)
    grad_x: Tensor = _hardtanh_backward(grad, x, qn * s, qp * s)
    return grad_x


def of_step(
    grad: Tensor, grad_x: Tensor, x: Tensor, quantized: Tensor, step: Tensor, scale: float
) -> Tensor:
    """Gradient of the one step with which ``x`` was quantized, of what `clipped` returned.

    v̂ is round(v/s)·s inside and qn·s or qp·s outside, so that s·∂v̂/∂s is v̂ − v inside and v̂
    outside: summed over all values g·v̂, less g·v inside, which is ∂L/∂v · v.
    """
    total = _dot(grad, quantized), _dot(grad_x, x)
    if not x.is_cpu:
        return ((total[0] - total[1]) * scale / step).reshape(step.shape)
    return torch.full_like(step, (float(total[0]) - float(total[1])) * scale / float(step))


class _PerChannel(torch.autograd.Function):
    """One step per channel: works on x / s, because hardtanh's bounds are single numbers."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, step: Tensor, qn: int, qp: int, scale: float
    ) -> Tensor:
        # Written into tensors like x: broadcasting alone would lose its memory format.
        scaled = torch.div(x, step, out=torch.empty_like(x))
        rounded = scaled.clamp(qn, qp).round_()
        ctx.save_for_backward(scaled, rounded, step)
        ctx.constants = (qn, qp, scale)  # type: ignore[attr-defined]
        return torch.mul(rounded, step, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled, rounded, step = ctx.saved_tensors  # type: ignore[attr-defined]
        qn, qp, scale = ctx.constants  # type: ignore[attr-defined]
        grad_x = _hardtanh_backward(grad, scaled, qn, qp)
        if not ctx.needs_input_grad[1]:  # type: ignore[attr-defined]
            return grad_x, None, None, None, None
        residual = rounded - _hardtanh_backward(scaled, scaled, qn, qp)
        grad_step = (grad * residual).sum_to_size(step.shape).mul_(scale)
        return grad_x, grad_step, None, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products, without copying tensors that lie in the same order in memory."""
    if a.stride() == b.stride() and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


def _reduce(x: Tensor, channel_axis: int | None, how: str) -> Tensor:
    if channel_axis is None:
        return x.mean() if how == "mean" else x.amax()
    axes = [axis for axis in range(x.dim()) if axis != channel_axis]
    if not axes:  # which torch would read as all of them
        return x
    return x.mean(axes, keepdim=True) if how == "mean" else x.amax(axes, keepdim=True)
