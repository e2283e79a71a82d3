"""Autograd on both sides of a cut, so that it does what it does in the whole network, bit for bit.

    z = client(x)
    received, gradients = receive(z)
    loss(server(received), y).backward()
    answer(z, gradients).backward()

Where a tensor has several uses, autograd adds up their gradients: in place if nothing else holds
the first of them, else into a new tensor, which may get other strides; and sums over tensors with
other strides differ in their last bits. ``received.grad`` and ``z.backward(gradient)`` would both
hold a gradient (and copy it). Here it waits in a list, and whoever takes it from there lets go.
"""

from typing import Any

import torch
from torch import Tensor


class _Receive(torch.autograd.Function):
    """The identity, whose gradient goes into a list and no further."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, gradients: list[Tensor]) -> Tensor:
        ctx.gradients = gradients
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        ctx.gradients.append(grads[0])
        return None, None


class _Answer(torch.autograd.Function):
    """A zero, whose gradient with regard to ``z`` is taken out of a list."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, gradients: list[Tensor]) -> Tensor:
        ctx.gradients = gradients
        return z.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.gradients.pop(), None


def receive(values: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the values as what a part is given, and where their gradient will be."""
    gradients: list[Tensor] = []
    received: Tensor = _Receive.apply(  # type: ignore[no-untyped-call]
        values.detach().requires_grad_(), gradients
    )
    return received, gradients


def answer(z: Tensor, gradients: list[Tensor]) -> Tensor:
    """Return a scalar 0 whose backward pass is that of ``z``, whose gradient it takes from a list.

    Args:
        z: what a part gave.
        gradients: holds the gradient of ``z``, as the only one that does.
    """
    zero: Tensor = _Answer.apply(z, gradients)  # type: ignore[no-untyped-call]
    return zero
