"""Products that a module's own forward computes: ``F.linear``, ``a @ b``, attention, and so on.

`WithCalls` runs the module's forward as it is, under a mode that sees each call of torch's
functions, and quantizes the operands of those that multiply. The calls of one run are counted; each
has quantizers of its own, children of the module. What layers inside the module call is theirs.
"""

import functools
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quant.modules import Quantized, Recipe, apply
from quant.quantizer import Quantizer

# Name of a function → its two operands, as positions and keywords.
Operands = tuple[tuple[int, str], ...]
_LEFT, _RIGHT = (0, "input"), (1, "weight")
FUNCTIONS: dict[str, Operands] = {
    **dict.fromkeys(
        ["linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
         "conv_transpose3d"],
        (_LEFT, _RIGHT),
    ),
    **dict.fromkeys(["matmul", "__matmul__"], (_LEFT, (1, "other"))),
    **dict.fromkeys(["bmm", "mm"], (_LEFT, (1, "mat2"))),
    "addmm": ((1, "mat1"), (2, "mat2")),
    "baddbmm": ((1, "batch1"), (2, "batch2")),
    "einsum": ((1, ""), (2, "")),
    "embedding": (_RIGHT,),
    "scaled_dot_product_attention": ((0, "query"), (1, "key"), (2, "value")),
}  # fmt: skip
ATTENTION = "scaled_dot_product_attention"
_ALIASES = {"__matmul__": "matmul"}


def kind_of(name: str) -> str:
    """The function that ``name`` is another name of, or empty where it does not multiply."""
    return _ALIASES.get(name, name) if name in FUNCTIONS else ""


def operands(kind: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The operands of a call; None for one that is not there."""
    return [
        args[position] if position < len(args) else kwargs.get(keyword)
        for position, keyword in FUNCTIONS[kind]
    ]


@dataclass(frozen=True)
class Operand:
    """What is known of an operand.

    Attributes:
        parameter: its name, where it is a parameter of the module whose forward makes the call.
        is_weight: it depends on parameters alone.
        is_unsigned: it is never negative.
    """

    parameter: str = ""
    is_weight: bool = False
    is_unsigned: bool = False


@dataclass(frozen=True)
class Call:
    """A call of a function that multiplies.

    Attributes:
        kind: the function's name.
        operands: in its order.
    """

    kind: str
    operands: tuple[Operand, ...]


class WithCalls(Quantized):
    """A module whose own forward multiplies."""

    _kinds: list[str]
    _children_of: list[list[str]]
    _parameters_of: dict[str, str]

    def equip_calls(self, calls: list[Call], recipes: list[Recipe]) -> None:
        """Give each call of the forward its quantizers.

        Args:
            calls: in the order in which one run of the forward makes them.
            recipes: one for each.
        """
        self._kinds, self._children_of, self._parameters_of = [], [], {}
        for index, (call, recipe) in enumerate(zip(calls, recipes, strict=True)):
            names = []
            for number, operand in enumerate(call.operands):
                name = f"{call.kind}{index}_{number}_quantizer"
                self.add_module(name, self._made(operand, recipe))
                names.append(name)
                if operand.parameter and self._modules[name] is not None:
                    self._parameters_of[operand.parameter] = name
            if call.kind == ATTENTION:
                names.append(f"{call.kind}{index}_weights_quantizer")
                self.add_module(names[-1], recipe.inside().of_inner(is_unsigned=True))
            self._kinds.append(call.kind)
            self._children_of.append(names)

    def quantized_weights(self) -> dict[str, str]:
        """The parameters that are multiplied as they are."""
        return dict(self._parameters_of)

    @staticmethod
    def wraps_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return what runs ``forward`` with quantized operands."""

        @functools.wraps(forward)  # torch.fx reads the signature
        def quantized(self: "WithCalls", *args: Any, **kwargs: Any) -> Any:
            with _Calls(self):
                return forward(self, *args, **kwargs)

        return quantized

    def _made(self, operand: Operand, recipe: Recipe) -> Quantizer | None:
        if not operand.is_weight:
            return recipe.of_input(operand.is_unsigned)
        # Which axis is that of the output channels depends on the function: one step for all.
        weight = self._parameters[operand.parameter] if operand.parameter else None
        return recipe.of_weight(weight, has_channels=False)


class _Calls(TorchFunctionMode):
    """One run of a module's forward."""

    def __init__(self, module: WithCalls) -> None:
        super().__init__()
        self._module = module
        self._index = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        kind = kind_of(getattr(func, "__name__", ""))
        if not kind or not self._is_own(sys._getframe(1)) or not _multiplies(kind, args, kwargs):
            return func(*args, **kwargs)
        module, index = self._module, self._index
        self._index += 1
        if index >= len(module._kinds) or module._kinds[index] != kind:
            raise RuntimeError(
                f"{type(module).__name__}: its forward calls {kind} where another call was found "
                "when it was quantized"
            )
        chosen = [module._modules[name] for name in module._children_of[index]]
        if kind == ATTENTION:
            return _attention(chosen, *args, **kwargs)
        changed, named = list(args), dict(kwargs)
        for (position, keyword), quantizer in zip(FUNCTIONS[kind], chosen, strict=True):
            if position < len(changed):
                changed[position] = apply(quantizer, changed[position])  # type: ignore[arg-type]
            else:
                named[keyword] = apply(quantizer, named[keyword])  # type: ignore[arg-type]
        return func(*changed, **named)

    def _is_own(self, frame: FrameType | None) -> bool:
        """Whether the module's own forward makes the call, and not that of a layer inside it."""
        while frame is not None:
            if frame.f_code is _CALL_MODULE:
                return frame.f_locals["self"] is self._module
            if frame.f_code is _RUN_FORWARD and frame.f_locals["self"] is self._module:
                return True
            frame = frame.f_back
        return False


_CALL_MODULE = nn.Module._call_impl.__code__
_RUN_FORWARD = WithCalls.wraps_forward(nn.Identity.forward).__code__


def _multiplies(kind: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether all operands are there; einsum may have one or three, or a list of them."""
    if kind == "einsum" and len(args) != 3:
        return False
    return all(operand is not None for operand in operands(kind, args, kwargs))


def _attention(
    quantizers: list[Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's scaled_dot_product_attention, as its documentation writes it, quantized."""
    for_query, for_key, for_value, for_weights = quantizers
    if enable_gqa:
        groups = query.size(-3) // key.size(-3)
        key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
    factor = query.size(-1) ** -0.5 if scale is None else scale
    # Transposed first: onnxruntime 1.31 fails at a transpose between DequantizeLinear and MatMul.
    scores = apply(for_query, query) @ apply(for_key, key.transpose(-2, -1)) * factor
    if is_causal:
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if is_bool else scores + attn_mask
    weights = F.dropout(F.softmax(scores, dim=-1), dropout_p)
    return apply(for_weights, weights) @ apply(for_value, value)
