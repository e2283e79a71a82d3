"""FedProx (Li et al. 2020, arXiv 1812.06127): clients stay near the model they were sent.

A client minimises F(w) + μ/2·‖w − w⁰‖², where w⁰ is the model as it came. The term's gradient,
μ·(w − w⁰), is added to what backward() left, so the reported loss is F alone.

Quantizers' steps are left out, as they are of weight decay: a step has no value to stay near before
a client's first batch has initialised it, and must follow the client's own activations after that.
"""

import math

import torch
from torch import nn

from quant.quantizer import is_step


def check_mu(mu: object) -> None:
    """Refuse what cannot be μ.

    Raises:
        ValueError: names the key.
    """
    is_number = isinstance(mu, int | float) and not isinstance(mu, bool)
    if not is_number or not 0 <= mu < math.inf:  # type: ignore[operator]
        raise ValueError(f"strategy.proximal_mu={mu}: takes 0 or more, and finite")


class Proximal:
    """The proximal term of one client and round.

    Args:
        model: as it was loaded from the server; w⁰ is copied from it.
        mu: μ.
    """

    def __init__(self, model: nn.Module, mu: float) -> None:
        self.mu = mu
        self.parameters = [
            p for name, p in model.named_parameters() if p.requires_grad and not is_step(name)
        ]
        self.start = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add μ·(w − w⁰) to the gradients; what has none has not moved either."""
        pairs = zip(self.parameters, self.start, strict=True)
        moving = [(p, start) for p, start in pairs if p.grad is not None]
        if not moving:
            return
        parameters, starts = map(list, zip(*moving, strict=True))
        moved = torch._foreach_sub(parameters, starts)
        torch._foreach_add_([p.grad for p in parameters], moved, alpha=self.mu)
