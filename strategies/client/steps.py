"""How quantizers' steps train: by the optimizer of the weights, but no update changes one by much.

    s ← s · clip(1 − Δ/s, 1/c, c)       Δ is the optimizer's; of SGD it is η/(1−β)·∂L/∂s, where the
                                        weights have the rate η and the momentum β

The gradient of a step says where to go, not how far: relative to the step it can be hundreds of
times as large as usual, in the first batches or on a client with few classes. Momentum carries such
a step on, for as long as momentum lasts, to where all weights of a layer round to 0 and nothing
comes back. Without momentum a step is positive by construction and none runs away; the rate is
what momentum would make of it in the long run. A smaller c leaves behind the steps of what grows
quickly, such as weights that began with zeros. docs/LOG.md has figures, and what else was tried.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

MOST_CHANGE = 1.1  # c
MOST_MOMENTUM = 0.99  # that the rate makes up for


def step_group(optimizer: str, lr: float, momentum: float) -> dict[str, float]:
    """Options of steps' group of parameters: no weight decay, and of ``sgd`` no momentum."""
    if optimizer != "sgd":
        return {"weight_decay": 0.0}
    rate = lr / (1 - min(momentum, MOST_MOMENTUM))
    return {"weight_decay": 0.0, "momentum": 0.0, "nesterov": False, "lr": rate}


def begin_momentum(optimizer: torch.optim.SGD) -> None:
    """Let every parameter begin with a momentum of zeros, which changes no update.

    torch's fused SGD takes a missing buffer to mean the first update of all, so that a parameter
    without a gradient in the first batch (a layer that was skipped by chance, the step of a weight
    that was all zeros) would end it in the second.
    """
    for group in optimizer.param_groups:
        if group["momentum"]:
            for parameter in group["params"]:
                buffer = torch.zeros_like(parameter, requires_grad=False)
                optimizer.state[parameter]["momentum_buffer"] = buffer


def bound_steps(optimizer: torch.optim.Optimizer, steps: Sequence[Tensor]) -> None:
    """Let no update of ``optimizer`` change one of ``steps`` by more than the factor c."""
    values = [step.data for step in steps]
    before = [value.clone() for value in values]

    def remember(*_: object) -> None:
        torch._foreach_copy_(before, values)

    def bound(*_: object) -> None:
        torch._foreach_mul_(before, 1 / MOST_CHANGE)
        torch._foreach_clamp_min_(values, before)
        torch._foreach_mul_(before, MOST_CHANGE**2)
        torch._foreach_clamp_max_(values, before)

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(bound)
