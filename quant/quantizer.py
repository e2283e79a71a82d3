"""One quantizer with a learned step, as a module: LSQ (quant/functional.py has the formulas)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from models.precision import in_fp32
from quant.functional import MIN_STEP, bounds, codes, fake_quantize, initial_step, lsq


class Quantizer(nn.Module):
    """One LSQ quantizer: `step`, and a flag that says whether it has been set.

    Args:
        bits: 2 to 8.
        signed: whether codes go below zero.
        learned: `step` is a parameter that trains (no weight decay, see `is_step`); else a buffer.
        num_channels: steps, one per output channel of a weight; None for one step.
        num_dims: dimensions of the tensor, for broadcasting per-channel steps.
        per_sample: True for activations: the first axis does not count in N, the number of values
            that share the step in the gradient's scale 1/√(N·qp).
    """

    is_quantizer = True  # one step of a trace, without a name of its own (models.trace)
    step: Tensor
    initialised: Tensor

    def __init__(
        self,
        bits: int,
        signed: bool,
        learned: bool = True,
        num_channels: int | None = None,
        num_dims: int = 4,
        per_sample: bool = False,
    ) -> None:
        super().__init__()
        self.bits = bits
        self.signed = signed
        self.per_sample = per_sample
        self.channel_axis = None if num_channels is None else 0
        self.qn, self.qp = bounds(bits, signed)
        shape = () if num_channels is None else (num_channels, *[1] * (num_dims - 1))
        step = torch.ones(shape)
        if learned:
            self.step = nn.Parameter(step)
        else:
            self.register_buffer("step", step)
        self.register_buffer("initialised", torch.tensor(False))
        self._read: tuple[Tensor, int, bool] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Quantize ``x``; an unset step is set from ``x`` in training, else ``x`` passes."""
        x = in_fp32(x)  # a step is a number between those of bfloat16
        if not self.is_set:
            is_set = self.training and self.initialise(initial_step(x, self.qp, self.channel_axis))
            if not is_set:
                return x
        if not self.step.requires_grad:
            # A buffer, or a frozen parameter: the weights still need straight-through gradients.
            return lsq(x, self.step.detach(), self.qn, self.qp, 1.0)
        if self.training:
            self.step.data.clamp_(min=MIN_STEP)
        return lsq(x, self.step, self.qn, self.qp, self.scale(x))

    def scale(self, x: Tensor) -> float:
        """Factor on the gradient of the step that quantizes ``x``: 1/√(N·qp)."""
        shared = math.prod(x.shape[1:]) if self.per_sample else x.numel() // self.step.numel()
        return 1 / math.sqrt(max(shared, 1) * self.qp)

    @property
    def is_set(self) -> bool:
        """Whether the step has been set; the flag is read anew only after it was written to."""
        flag = self._buffers["initialised"]
        assert flag is not None
        if flag.is_inference():  # which count no writes
            return bool(flag)
        if self._read is None or self._read[0] is not flag or self._read[1] != flag._version:
            self._read = (flag, flag._version, bool(flag))
        return self._read[2]

    def __getstate__(self) -> dict[str, Any]:
        """Without what was read: a copy's flag counts its own writes."""
        return {**self.__dict__, "_read": None}

    @torch.no_grad()
    def initialise(self, step: Tensor) -> bool:
        """Set the step, unless ``step`` is 0 everywhere (zeros say nothing) or not finite."""
        if not bool(step.max() > 0) or not bool(step.isfinite().all()):
            return False
        # A channel that is all zeros takes the mean of the others.
        self.step.copy_(torch.where(step > 0, step, step[step > 0].mean()).clamp(min=MIN_STEP))
        self.initialised.fill_(True)
        return True

    @torch.no_grad()
    def codes(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Integer codes of ``x``, int64; stochastically rounded where ``noise`` is given."""
        return codes(x, self.step, self.qn, self.qp, noise)

    @torch.no_grad()
    def fake_quantize(self, x: Tensor) -> Tensor:
        """``x`` on the grid, without gradients."""
        return fake_quantize(x, self.step, self.qn, self.qp)

    def extra_repr(self) -> str:
        """Show bits and sign in the model's printout."""
        return f"bits={self.bits}, signed={self.signed}"


def is_step(name: str) -> bool:
    """Whether a parameter or buffer of a quantized model, by its name, is a quantizer's step."""
    return name.endswith("_quantizer.step")


def initialised_flag(step_name: str) -> str:
    """Name of the buffer that says whether the step of that name has been set."""
    return step_name.removesuffix("step") + "initialised"
