"""Layers that compute with few bits: torch's own, with quantizers on their operands.

A quantized layer keeps its class's behaviour, its place and its parameter names, and gains children
whose names end in ``_quantizer``. Where a bit width is 32 that child does not exist.

`kind_for` says which class of here stands for a layer. A class derived from torch's stays what it
is: its own quantized class is derived from both when it is first met, where its ``forward`` is
torch's.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quant.functional import initial_step
from quant.quantizer import Quantizer

FULL_PRECISION = 32


@dataclass(frozen=True)
class Recipe:
    """What quantizers one layer gets.

    Attributes:
        weight_bits: bits of its weights, 32 for no quantizer.
        act_bits: bits of its other operands.
        learns: whether steps train.
        per_channel: one step per output channel of a weight.
        is_first: its input is the network's, whose step is calibrated and not learned, since nobody
            needs the gradient.
        is_unsigned: its input is never negative.
        inner: bits of weights and of other operands inside the network; None for the same. A layer
            of several products has them behind its first one, be it itself the network's first.
    """

    weight_bits: int
    act_bits: int
    learns: bool = True
    per_channel: bool = False
    is_first: bool = False
    is_unsigned: bool = False
    inner: tuple[int, int] | None = None

    def inside(self) -> "Recipe":
        """Return the recipe of what is behind a layer's first product."""
        weight_bits, act_bits = self.inner or (self.weight_bits, self.act_bits)
        return replace(
            self, weight_bits=weight_bits, act_bits=act_bits, is_first=False, is_unsigned=False
        )

    def of_weight(self, weight: Tensor | None, has_channels: bool = True) -> Quantizer | None:
        """Return the quantizer of a weight, its step set.

        Args:
            weight: None where its values are not known yet; then a batch sets the step.
            has_channels: whether the first axis is that of the output channels.
        """
        if self.weight_bits == FULL_PRECISION:
            return None
        per_channel = self.per_channel and has_channels and weight is not None
        quantizer = Quantizer(
            self.weight_bits,
            signed=True,
            learned=self.learns,
            num_channels=weight.shape[0] if per_channel and weight is not None else None,
            num_dims=weight.dim() if weight is not None else 0,
        )
        if weight is not None:
            step = initial_step(weight, quantizer.qp, quantizer.channel_axis)
            if not quantizer.initialise(step) and bool((weight == 0).all()):
                quantizer.initialise(
                    torch.full_like(quantizer.step, _usual_step(weight, quantizer))
                )
        return quantizer

    def of_input(self, is_unsigned: bool | None = None) -> Quantizer | None:
        """Return the quantizer of the layer's input; the first batch sets its step."""
        return self._of_activation(
            self.is_unsigned if is_unsigned is None else is_unsigned,
            self.learns and not self.is_first,
        )

    def of_inner(self, is_unsigned: bool = False) -> Quantizer | None:
        """Return the quantizer of an operand that the layer itself has made."""
        return self._of_activation(is_unsigned, self.learns)

    def _of_activation(self, is_unsigned: bool, learns: bool) -> Quantizer | None:
        if self.act_bits == FULL_PRECISION:
            return None
        return Quantizer(self.act_bits, not is_unsigned, learns, per_sample=True)


def _usual_step(weight: Tensor, quantizer: Quantizer) -> float:
    """The first step of a weight of this shape that begins as torch's layers do.

    They draw from ±1/√fan-in. Of zeros nothing can be told, and of what they are after an update
    only that it is small: weights that outgrow such a step are clipped, and get no gradient.
    """
    fan_in = max(1, weight.numel() // max(1, weight.shape[0]) if weight.dim() else 1)
    return 2 * (0.5 / math.sqrt(fan_in)) / math.sqrt(quantizer.qp)


def apply(quantizer: Quantizer | None, x: Tensor) -> Tensor:
    """``x``, quantized where there is a quantizer."""
    if quantizer is None:
        return x
    result: Tensor = quantizer(x)
    return result


class Quantized(nn.Module):
    """A layer that has been rewritten.

    Layers have ``equip``, which gives one whose class has just been set its quantizers.
    """

    def quantized_weights(self) -> dict[str, str]:
        """Name of each parameter of this module that is quantized → name of its quantizer."""
        return {}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy classes made by `derived` by what they were made from."""
        made = getattr(type(self), "_derived_from", None)
        if made is None:
            return super().__reduce_ex__(protocol)
        return _instance, made, self.__getstate__()  # type: ignore[no-untyped-call]


def derived(kind: type[Quantized], original: type[nn.Module]) -> type[Quantized]:
    """Return the class of layers of the class ``original`` that behave as ``kind`` says."""
    return _derived(kind, original)  # type: ignore[arg-type, no-any-return]


@functools.cache
def _derived(kind: Any, original: Any) -> Any:
    if original is kind.__bases__[-1]:
        return kind
    body: dict[str, Any] = {"_derived_from": (kind, original), "__module__": kind.__module__}
    wraps = getattr(kind, "wraps_forward", None)
    if wraps is not None:
        body["forward"] = wraps(original.forward)
    return type(f"Quant{original.__name__}", (kind, original), body)


def _instance(kind: type[Quantized], original: type[nn.Module]) -> Quantized:
    made = derived(kind, original)
    return made.__new__(made)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into evaluation, and each of its modules back to the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def quantizers(model: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """Each quantizer of ``model`` with its path."""
    for name, module in model.named_modules():
        if isinstance(module, Quantizer):
            yield name, module


# Layers of one weight -----------------------------------------------------------------------------


class Weighted(Quantized):
    """A layer of one weight: that and the input are quantized where a quantizer is."""

    weight: Tensor
    input_quantizer: Quantizer | None
    weight_quantizer: Quantizer | None
    has_channels = True
    READY = "weight_of_this_call"  # the weight of this call, where `quant.at_once` has quantized it

    def equip(self, recipe: Recipe) -> None:
        """One quantizer for the weight, or the value computed for it, and one for the input."""
        self.weight_quantizer = recipe.of_weight(effective_weight(self), self.has_channels)
        self.input_quantizer = recipe.of_input()

    def quantized_weights(self) -> dict[str, str]:
        """The weight, where it is a parameter."""
        is_quantized = self.weight_quantizer is not None and "weight" in self._parameters
        return {"weight": "weight_quantizer"} if is_quantized else {}

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight as they are multiplied."""
        return apply(self.input_quantizer, x), self.quantized_weight()

    def quantized_weight(self) -> Tensor:
        """The weight as it is multiplied."""
        ready: Tensor | None = self.__dict__.get(self.READY)
        return apply(self.weight_quantizer, self.weight) if ready is None else ready


@torch.no_grad()
def effective_weight(layer: nn.Module) -> Tensor:
    """The weight that a layer multiplies with, of a parametrized layer as well."""
    if "weight" in layer._parameters:
        return layer.weight  # type: ignore[return-value]
    # Some, such as the spectral norm, change their buffers when they are asked in training.
    with evaluating(layer):
        weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


class QuantConv1d(Weighted, nn.Conv1d):
    """Conv1d with quantized weight and input."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, L) → (B, C', L')."""
        x, weight = self.quantized(input)
        output: Tensor = self._conv_forward(x, weight, self.bias)
        return output


class QuantConv2d(Weighted, nn.Conv2d):
    """Conv2d with quantized weight and input."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W')."""
        x, weight = self.quantized(input)
        output: Tensor = self._conv_forward(x, weight, self.bias)
        return output


class QuantConv3d(Weighted, nn.Conv3d):
    """Conv3d with quantized weight and input."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, D, H, W) → (B, C', D', H', W')."""
        x, weight = self.quantized(input)
        output: Tensor = self._conv_forward(x, weight, self.bias)
        return output


class _Transposed(Weighted):
    """A transposed convolution. Its weight is (C, C' / groups, …): one step for all of it."""

    has_channels = False
    num_spatial: int
    convolve: Callable[..., Tensor]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, …) → (B, C', …)."""
        if self.padding_mode != "zeros":
            raise ValueError("only zeros padding is defined for transposed convolutions")
        padding = self._output_padding(  # type: ignore[operator]
            input, output_size, self.stride, self.padding, self.kernel_size, self.num_spatial,
            self.dilation,
        )  # fmt: skip
        x, weight = self.quantized(input)
        return type(self).convolve(
            x, weight, self.bias, self.stride, self.padding, padding, self.groups, self.dilation
        )


class QuantConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    """ConvTranspose1d with quantized weight and input."""

    num_spatial = 1
    convolve = staticmethod(F.conv_transpose1d)
    forward = _Transposed.forward


class QuantConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    """ConvTranspose2d with quantized weight and input."""

    num_spatial = 2
    convolve = staticmethod(F.conv_transpose2d)
    forward = _Transposed.forward


class QuantConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    """ConvTranspose3d with quantized weight and input."""

    num_spatial = 3
    convolve = staticmethod(F.conv_transpose3d)
    forward = _Transposed.forward


class QuantLinear(Weighted, nn.Linear):
    """Linear with quantized weight and input."""

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        x, weight = self.quantized(input)
        return F.linear(x, weight, self.bias)


class QuantEmbedding(Weighted, nn.Embedding):
    """Embedding with a quantized table; one step for all of it, since any row may come."""

    has_channels = False

    def equip(self, recipe: Recipe) -> None:
        """A quantizer for the table; whole numbers need none."""
        super().equip(recipe)
        self.input_quantizer = None

    def forward(self, input: Tensor) -> Tensor:
        """(…) → (…, D)."""
        return F.embedding(
            input,
            self.quantized_weight(),
            self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq,
        )
