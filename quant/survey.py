"""What of a network can be quantized: its layers and calls in the order in which they run.

Read from a trace (`models.trace`), which also tells which operands are never negative. A module
that cannot be traced is looked into: its layers are found, in the order in which they are written
down and with signed inputs, what its own forward multiplies is not.
"""

import contextlib
import copy
import functools
import logging
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from models.inputs import remembered
from models.trace import Trace, changes_in_place, op_name, preserved_randomness, trace
from quant.attention import QuantMultiheadAttention
from quant.calls import Call, Operand, kind_of, operands
from quant.modules import (
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantEmbedding,
    Quantized,
    QuantLinear,
)
from quant.recurrent import (
    QuantGRU,
    QuantGRUCell,
    QuantLSTM,
    QuantLSTMCell,
    QuantRNN,
    QuantRNNCell,
)

KINDS: dict[type[nn.Module], type[Quantized]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Conv3d: QuantConv3d,
    nn.ConvTranspose1d: QuantConvTranspose1d,
    nn.ConvTranspose2d: QuantConvTranspose2d,
    nn.ConvTranspose3d: QuantConvTranspose3d,
    nn.Linear: QuantLinear,
    nn.Embedding: QuantEmbedding,
    nn.MultiheadAttention: QuantMultiheadAttention,
    nn.LSTM: QuantLSTM,
    nn.GRU: QuantGRU,
    nn.RNN: QuantRNN,
    nn.LSTMCell: QuantLSTMCell,
    nn.GRUCell: QuantGRUCell,
    nn.RNNCell: QuantRNNCell,
}

log = logging.getLogger(__name__)


def kind_for(layer: nn.Module) -> type[Quantized] | None:
    """The class that stands for ``layer``, or None where there is none.

    A class derived from torch's counts as torch's where it has the same forward.
    """
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return None  # it writes into its table
    for base, kind in KINDS.items():
        if isinstance(layer, base) and type(layer).forward is base.forward:
            return None if "forward" in vars(layer) else kind
    return None


@dataclass
class Survey:
    """What was found.

    Attributes:
        order: layers (path, −1) and calls (path, index) in the order of their first run.
        unsigned: layers → whether their input is never negative, whenever they run.
        calls: modules → what one run of their forward multiplies.
    """

    order: list[tuple[str, int]] = field(default_factory=list)
    unsigned: dict[str, bool] = field(default_factory=dict)
    calls: dict[str, list[Call]] = field(default_factory=dict)

    def add_layer(self, path: str, is_unsigned: bool) -> None:
        """Note that the layer at ``path`` runs."""
        if path not in self.unsigned:
            self.order.append((path, -1))
        self.unsigned[path] = self.unsigned.get(path, True) and is_unsigned

    def drop_calls(self, path: str) -> None:
        """Leave what the forward at ``path`` multiplies as it is."""
        del self.calls[path]
        self.order = [item for item in self.order if item[0] != path]


def survey(model: nn.Module) -> Survey:
    """Look at ``model``, which stays as it is.

    In training, and where that leaves layers out or finds calls, in evaluation as well. What a
    forward multiplies differently from one of its runs to the next is left as it is, with a word.
    """
    look = _Look(model, training=True)
    traced, found = look.at(""), look.found
    layers = {name for name, module in model.named_modules() if kind_for(module)}
    if traced and (found.calls or layers - found.unsigned.keys()):
        other = _Look(model, training=False)
        other.at("")
        _merge(found, other.found)
    return found


class _Look:
    """One look at a network, in one mode.

    Args:
        model: the network.
        training: the mode.
    """

    def __init__(self, model: nn.Module, training: bool) -> None:
        self.found = Survey()
        self._model = model
        self._training = training

    def at(self, path: str) -> bool:
        """Find what is in the module at ``path``; whether it could be traced."""
        module = self._model.get_submodule(path)
        if kind_for(module):
            self.found.add_layer(path, is_unsigned=False)
            self._inside(path)
            return False
        try:
            traced = trace(module, self._training, self._inputs.get(path) if path else None)
        except ValueError as error:
            if not path:
                log.warning(
                    "torch.fx cannot trace the network: all inputs get signed quantizers, and what "
                    "its own forward multiplies stays in fp32: %s", error,
                )  # fmt: skip
            self._inside(path)
            return False
        self._read(traced, path)
        return True

    def _inside(self, path: str) -> None:
        for name, _ in self._model.get_submodule(path).named_children():
            self.at(_joined(path, name))

    @functools.cached_property
    def _inputs(self) -> dict[str, Tensor]:
        """What each module takes that takes one tensor, where an example of the network is known.

        Control flow on sizes can be followed with it (`models.trace`).
        """
        spec = remembered(self._model)
        if spec is None:
            return {}
        shadow, inputs = copy.deepcopy(self._model).eval(), dict[str, Tensor]()

        def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if len(args) == 1 and isinstance(args[0], Tensor) and not kwargs:
                inputs.setdefault(name, args[0])

        for name, module in shadow.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                module.register_forward_pre_hook(
                    lambda _, args, kwargs, name=name: note(name, args, kwargs), with_kwargs=True
                )
        with torch.no_grad(), preserved_randomness(), contextlib.suppress(Exception):
            shadow(spec.example())  # a network that cannot run says so elsewhere
        return inputs

    def _read(self, traced: Trace, path: str) -> None:
        """Read the trace of the module at ``path``."""
        found, non_negative = self.found, set[fx.Node]()
        runs: dict[str, dict[str, list[Call]]] = {}  # module → each of its runs → its calls
        for node in traced.graph.nodes:
            if node.op == "call_module":
                inner = traced.root.get_submodule(str(node.target))
                place = _joined(path, str(node.target))
                if kind_for(inner):
                    x = next(iter((*node.args, *node.kwargs.values())), None)
                    found.add_layer(place, x in non_negative and not inner._forward_pre_hooks)
                    self._inside(place)
                elif any(True for _ in inner.children()) or not _is_torchs(inner):
                    self.at(place)
            elif node.op in ("call_function", "call_method") and (kind := kind_of(op_name(node))):
                values = operands(kind, node.args, node.kwargs)
                if all(isinstance(value, fx.Node) for value in values):
                    key, owner = _owner(node, path)
                    call = Call(
                        kind, tuple(self._operand(v, owner, path, non_negative) for v in values)
                    )
                    calls = runs.setdefault(owner, {}).setdefault(key, [])
                    calls.append(call)
                    if len(runs[owner]) == 1:
                        found.order.append((owner, len(calls) - 1))
            _track_sign(node, traced, non_negative)
        for owner, of_runs in runs.items():
            first, *others = of_runs.values()
            found.calls[owner] = first
            for other in others:
                _merge_calls(found, owner, other)

    def _operand(self, node: fx.Node, owner: str, path: str, non_negative: set[fx.Node]) -> Operand:
        place, _, name = _joined(path, str(node.target)).rpartition(".")
        is_own = node.op == "get_attr" and place == owner
        is_parameter = is_own and name in self._model.get_submodule(owner)._parameters
        return Operand(
            parameter=name if is_parameter else "",
            is_weight=not node.meta["pinned"],
            is_unsigned=node in non_negative,
        )


def _owner(node: fx.Node, path: str) -> tuple[str, str]:
    """The run of a module whose forward made ``node``, and the module's path."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", path
    key = list(stack)[-1]
    return key, _joined(path, stack[key][0])


def _merge_calls(found: Survey, owner: str, other: list[Call]) -> None:
    """Keep what holds for both runs of a forward."""
    before = found.calls.get(owner)
    if before is None:
        return
    if [call.kind for call in before] != [call.kind for call in other]:
        log.warning(
            "%s: its forward does not multiply the same each time; left in fp32", owner or "network"
        )
        found.drop_calls(owner)
        return
    found.calls[owner] = [
        Call(a.kind, tuple(map(_both, a.operands, b.operands)))
        for a, b in zip(before, other, strict=True)
    ]


def _both(a: Operand, b: Operand) -> Operand:
    return Operand(
        parameter=a.parameter if a.parameter == b.parameter else "",
        is_weight=a.is_weight and b.is_weight,
        is_unsigned=a.is_unsigned and b.is_unsigned,
    )


def _merge(found: Survey, other: Survey) -> None:
    """Add to ``found`` what runs in evaluation."""
    dropped = {owner for owner, _ in found.order} | found.calls.keys()
    for owner, calls in other.calls.items():
        if owner in found.calls:
            _merge_calls(found, owner, calls)
        elif owner not in dropped:
            found.calls[owner] = calls
    known = set(found.order)
    for path, index in other.order:
        is_new = (path, index) not in known
        if index < 0:
            found.add_layer(path, other.unsigned[path])
        elif is_new and path in found.calls and not any(p == path for p, _ in known):
            found.order.append((path, index))


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


# Which values are never negative ------------------------------------------------------------------

_NON_NEGATIVE = (
    nn.ReLU, nn.ReLU6, nn.Softmax, nn.Sigmoid, nn.Hardsigmoid, F.relu, F.relu6, F.softmax,
    F.sigmoid, F.hardsigmoid, torch.relu, torch.softmax, torch.sigmoid, torch.abs, torch.square,
    "relu", "relu_", "softmax", "sigmoid", "abs", "square",
)  # fmt: skip
_PASS_ON = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Identity,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_max_pool1d, F.adaptive_max_pool2d,
    F.dropout, F.dropout1d, F.dropout2d, torch.flatten, torch.mean, "flatten", "view", "reshape",
    "mean", "amax", "squeeze", "unsqueeze", "transpose", "permute", "contiguous",
)  # fmt: skip
_SUMS = (torch.add, operator.add, operator.iadd, "add", "add_")
_PRODUCTS = (torch.mul, operator.mul, operator.imul, "mul", "mul_")


def _track_sign(node: fx.Node, traced: Trace, non_negative: set[fx.Node]) -> None:
    """Note whether the result of ``node`` is never negative; forget what it overwrites."""

    def is_known(value: object) -> bool:
        if isinstance(value, fx.Node):
            return value in non_negative
        return isinstance(value, int | float) and value >= 0

    module = traced.root.get_submodule(str(node.target)) if node.op == "call_module" else None
    what = type(module) if module is not None else node.target
    first = node.args[0] if node.args else None
    is_one = what in _NON_NEGATIVE or (what in _PASS_ON and first in non_negative)
    if what in _SUMS or what in _PRODUCTS:
        is_one = all(map(is_known, (*node.args, *node.kwargs.values())))
    elif what is torch.cat and isinstance(first, tuple | list):
        is_one = all(map(is_known, first))
    is_written = changes_in_place(node, traced.root) or "out" in node.kwargs
    is_written = is_written or (getattr(what, "__name__", "").startswith("i") and what in (
        operator.iadd, operator.imul, operator.isub, operator.itruediv,
    ))  # fmt: skip
    if is_written and not is_one:
        non_negative.clear()  # views share memory: no telling what else has changed
    if is_one:
        non_negative.add(node)
