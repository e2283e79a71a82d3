"""Rewrite a model so that its convolutions and linear layers compute with few bits.

A rewritten layer keeps its class's behaviour, its place and its parameter names, and gains up to
two children: `weight_quantizer` and `input_quantizer`. Where a bit width is 32 that child does not
exist, so a model rewritten at 32 bits is the model itself.
"""

import copy
import logging
import operator
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from quant.functional import initial_step, minmax_step
from quant.quantizer import Quantizer

FULL_PRECISION = 32
BIT_WIDTHS = (2, 3, 4, 5, 6, 7, 8, FULL_PRECISION)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuantSpec:
    """What `quantize` does to a model.

    Attributes:
        weight_bits: bits of the weights, 2 to 8, or 32 for no quantizer.
        act_bits: bits of the input of each layer, 2 to 8, or 32.
        edge_bits: bits of the first and the last layer; not used where the others have 32.
        learn_step: whether steps train with the weights; else they stay as initialised.
        per_channel: one step per output channel of a weight instead of one per weight.
    """

    weight_bits: int = 4
    act_bits: int = 4
    edge_bits: int = 8
    learn_step: bool = True
    per_channel: bool = False

    def __post_init__(self) -> None:
        for name in ("weight_bits", "act_bits", "edge_bits"):
            if getattr(self, name) not in BIT_WIDTHS:
                raise ValueError(f"quant.{name}={getattr(self, name)}: takes 2 to 8, or 32")

    @property
    def is_identity(self) -> bool:
        """True where nothing would be quantized."""
        return self.weight_bits == self.act_bits == FULL_PRECISION


class _Quantized(nn.Module):
    """What the rewritten layers share: their weight and input, quantized where a quantizer is."""

    weight: Tensor
    input_quantizer: Quantizer | None
    weight_quantizer: Quantizer | None

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        weight = self.weight
        if self.weight_quantizer is not None:
            weight = self.weight_quantizer(weight)
        return x, weight


class QuantConv1d(_Quantized, nn.Conv1d):
    """Conv1d with quantized weight and input."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) → (B, C', L')."""
        x, weight = self.quantized(x)
        output: Tensor = self._conv_forward(x, weight, self.bias)
        return output


class QuantConv2d(_Quantized, nn.Conv2d):
    """Conv2d with quantized weight and input."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W')."""
        x, weight = self.quantized(x)
        output: Tensor = self._conv_forward(x, weight, self.bias)
        return output


class QuantLinear(_Quantized, nn.Linear):
    """Linear with quantized weight and input."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        x, weight = self.quantized(x)
        return F.linear(x, weight, self.bias)


_REWRITTEN: dict[type[nn.Module], type[_Quantized]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Linear: QuantLinear,
}


def quantize(model: nn.Module, spec: QuantSpec, only: Collection[str] | None = None) -> nn.Module:
    """Return a copy of ``model`` whose convolutions and linear layers are quantized by ``spec``.

    Layers of exactly the types Conv1d, Conv2d and Linear are rewritten under the same names; those
    inside torch.nn's own composites, such as transformer layers, stay as they are. The step of a
    weight is set from the weight here; the step of an input is set by the first training batch. The
    first layer's input, which nobody needs a gradient of, has its step calibrated by that batch and
    not learned. An input is unsigned where a ReLU or ReLU6 comes before the layer (pooling,
    flattening, dropout and concatenation pass it on), else signed; a model that torch.fx cannot
    trace has signed inputs throughout.

    Args:
        model: the network; left as it is.
        spec: bit widths and kind of quantizers.
        only: names of the layers that may be rewritten; None for all. First and last layer are
            still those of the whole network.

    Raises:
        ValueError: the model has no such layer, or is quantized already.
    """
    model = copy.deepcopy(model)
    if any(isinstance(module, Quantizer) for module in model.modules()):
        raise ValueError("the model is quantized already")
    if spec.is_identity:
        return model
    inputs = _layers_in_order(model)
    if not inputs:
        raise ValueError("the model has no Conv1d, Conv2d or Linear layer to quantize")
    names = list(inputs)
    for name, is_unsigned in inputs.items():
        if only is not None and name not in only:
            continue
        is_edge = name in (names[0], names[-1])
        _rewrite(model.get_submodule(name), spec, is_edge, is_unsigned, is_first=name == names[0])
    return model


def _rewrite(
    layer: nn.Module, spec: QuantSpec, is_edge: bool, is_unsigned: bool, is_first: bool
) -> None:
    """Turn ``layer`` into its quantized class and give it its quantizers."""
    weight = layer.weight
    assert isinstance(weight, Tensor)

    def bits(inner: int) -> int:
        return spec.edge_bits if is_edge and inner != FULL_PRECISION else inner

    layer.__class__ = _REWRITTEN[type(layer)]
    layer.weight_quantizer = None  # type: ignore[assignment]
    layer.input_quantizer = None  # type: ignore[assignment]
    if bits(spec.weight_bits) != FULL_PRECISION:
        quantizer = Quantizer(
            bits(spec.weight_bits),
            signed=True,
            learned=spec.learn_step,
            num_channels=weight.shape[0] if spec.per_channel else None,
            num_dims=weight.dim(),
        )
        quantizer.initialise(initial_step(weight, quantizer.qp, quantizer.channel_axis))
        layer.weight_quantizer = quantizer
    if bits(spec.act_bits) != FULL_PRECISION:
        layer.input_quantizer = Quantizer(
            bits(spec.act_bits),
            signed=not is_unsigned,
            learned=spec.learn_step and not is_first,
            per_sample=True,
        )


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, _Quantized]]:
    """Each rewritten layer with its name."""
    for name, module in model.named_modules():
        if isinstance(module, _Quantized):
            yield name, module


def weight_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """The quantizer of each quantized weight, by the weight's name in ``state_dict``."""
    return {
        f"{name}.weight".removeprefix("."): layer.weight_quantizer
        for name, layer in quantized_layers(model)
        if layer.weight_quantizer is not None
    }


@torch.no_grad()
def calibrate_minmax(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set every step of a quantized ``model`` by post-training min-max calibration, in place.

    Weights: the largest |w| becomes the largest code. Inputs: the largest |x| that the unquantized
    network sees over ``batches`` does.

    Args:
        model: what `quantize` returned, holding trained weights.
        batches: inputs of the network, (B, …) each.
    """
    layers = [layer for _, layer in quantized_layers(model)]
    largest: dict[int, Tensor] = {}
    hooks = []
    kept = [(layer, layer.input_quantizer, layer.weight_quantizer) for layer in layers]
    for index, layer in enumerate(layers):
        layer.input_quantizer = layer.weight_quantizer = None

        def observe(
            _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], index: int = index
        ) -> None:
            peak = (args or tuple(kwargs.values()))[0].abs().amax()
            largest[index] = torch.maximum(largest.get(index, peak), peak)

        hooks.append(layer.register_forward_pre_hook(observe, with_kwargs=True))
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        for batch in batches:
            model(batch)
    finally:
        for module in training:
            module.training = True
        for hook in hooks:
            hook.remove()
        for layer, input_quantizer, weight_quantizer in kept:
            layer.input_quantizer, layer.weight_quantizer = input_quantizer, weight_quantizer
    for index, (layer, input_quantizer, weight_quantizer) in enumerate(kept):
        if input_quantizer is not None and index in largest:
            input_quantizer.initialise(minmax_step(largest[index], input_quantizer.qp))
        if weight_quantizer is not None:
            step = minmax_step(layer.weight, weight_quantizer.qp, weight_quantizer.channel_axis)
            weight_quantizer.initialise(step)


# Which layers see only values ≥ 0 ------------------------------------------------------------

_NON_NEGATIVE = (nn.ReLU, nn.ReLU6, F.relu, F.relu6, torch.relu, "relu", "relu_")
_PASS_ON = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Identity,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_max_pool1d, F.adaptive_max_pool2d,
    F.dropout, F.dropout1d, F.dropout2d, torch.flatten, torch.mean, "flatten", "view", "reshape",
    "mean", "amax", "squeeze", "unsqueeze", "transpose", "permute", "contiguous",
)  # fmt: skip
_PASS_ON_ALL = (torch.cat, torch.add, operator.add, operator.iadd)


def _layers_in_order(model: nn.Module) -> dict[str, bool]:
    """Names of the layers to rewrite in execution order, and whether their input is ≥ 0."""
    if type(model) in _REWRITTEN:
        return {"": False}
    try:
        # A copy: tracing runs forward, which may count its calls or keep what it computes.
        with torch.random.fork_rng(devices=[]):
            graph = fx.Tracer().trace(copy.deepcopy(model))
    except Exception as error:  # whatever somebody else's forward raises when given a proxy
        log.warning("signed quantizers throughout: torch.fx cannot trace the model: %s", error)
        return {n: False for n, module in model.named_modules() if type(module) in _REWRITTEN}
    modules = dict(model.named_modules())
    non_negative: set[fx.Node] = set()
    layers: dict[str, bool] = {}
    for node in graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        what = type(module) if module is not None else node.target
        parents = node.all_input_nodes
        if (
            what in _NON_NEGATIVE
            or (what in _PASS_ON and parents[0] in non_negative)  # other parents are sizes
            or (what in _PASS_ON_ALL and all(parent in non_negative for parent in parents))
        ):
            non_negative.add(node)
        elif node.op == "call_method" and str(node.target).endswith("_"):
            non_negative -= set(parents[:1])  # changed in place into who knows what
        if module is not None and type(module) in _REWRITTEN:
            # A layer called twice is unsigned only if it is so both times.
            is_unsigned = parents[0] in non_negative
            layers[str(node.target)] = layers.get(str(node.target), True) and is_unsigned
    return layers
