"""Rewrite a model so that it multiplies numbers of few bits.

`quant.survey` finds what there is to rewrite, `quant.modules`, `quant.attention`,
`quant.recurrent` and `quant.calls` are what it is rewritten to. A rewritten layer keeps its place
and its parameter names and gains quantizers as children. Where a bit width is 32 there are none, so
that a model rewritten at 32 bits is the model itself.
"""

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quant.calls import WithCalls
from quant.functional import minmax_step
from quant.modules import FULL_PRECISION as FULL_PRECISION
from quant.modules import Quantized, Recipe, Weighted, derived, evaluating, quantizers
from quant.quantizer import Quantizer
from quant.survey import kind_for, survey

BIT_WIDTHS = (2, 3, 4, 5, 6, 7, 8, FULL_PRECISION)


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


def quantize(model: nn.Module, spec: QuantSpec) -> nn.Module:
    """Return a copy of ``model`` whose products have operands of few bits, by ``spec``.

    Rewritten are, under the same names, torch's convolutions of all kinds, linear layers,
    embeddings, attention, recurrent layers and cells, and classes derived from them that keep
    their forward (a parametrized weight is quantized in its effective value); and the modules
    whose own forward multiplies by one of torch's functions (`quant.calls`), where the network can
    be traced. What is left in full precision `models.cost` counts.

    The step of a weight is set from the weight here, that of an input by the first training batch.
    The first layer's input, which nobody needs a gradient of, has its step calibrated by that batch
    and not learned. An input is unsigned where it is never negative, as behind a ReLU or a softmax
    (pooling, flattening, dropout, sums and concatenation pass that on), else signed; a model that
    cannot be traced has signed inputs throughout.

    Args:
        model: the network; left as it is.
        spec: bit widths and kind of quantizers.

    Raises:
        ValueError: the model has no such layer, or is quantized already.
    """
    model = copy.deepcopy(model)
    if any(True for _ in quantizers(model)):
        raise ValueError("the model is quantized already")
    if spec.is_identity:
        return model
    found = survey(model)
    if not found.order:
        raise ValueError("the model has no layer that multiplies, nothing to quantize")
    edges = {found.order[0], found.order[-1]}

    def recipe(path: str, index: int = -1) -> Recipe:
        item = (path, index)
        weight_bits, act_bits = (
            spec.edge_bits if item in edges and inner != FULL_PRECISION else inner
            for inner in (spec.weight_bits, spec.act_bits)
        )
        return Recipe(
            weight_bits,
            act_bits,
            learns=spec.learn_step,
            per_channel=spec.per_channel,
            is_first=item == found.order[0],
            is_unsigned=found.unsigned.get(path, False),
            inner=(spec.weight_bits, spec.act_bits),
        )

    for path in found.unsigned:
        layer = model.get_submodule(path)
        kind = kind_for(layer)
        assert kind is not None
        layer.__class__ = derived(kind, type(layer))
        layer.equip(recipe(path))  # type: ignore[operator]
    for path, calls in found.calls.items():
        module = model.get_submodule(path)
        module.__class__ = derived(WithCalls, type(module))
        recipes = [recipe(path, index) for index in range(len(calls))]
        module.equip_calls(calls, recipes)  # type: ignore[operator]
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            # Else evaluation takes a fast path that reads the weights as they are.
            module.activation_relu_or_gelu = 0
    return model


def without_quantizers(model: nn.Module, kept: Collection[str]) -> nn.Module:
    """Take all quantizers out of ``model``, in place, but those at the paths ``kept``."""
    for path, _ in list(quantizers(model)):
        if path not in kept:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, None)
    return model


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, Weighted]]:
    """Each layer of one weight that has a quantizer, with its name."""
    for name, module in model.named_modules():
        if isinstance(module, Weighted) and any(True for _ in quantizers(module)):
            yield name, module


def weight_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """The quantizer of each quantized weight, by the weight's name in ``state_dict``."""
    return {
        weight: model.get_submodule(path)  # type: ignore[misc]
        for weight, path in weight_quantizer_paths(model).items()
    }


def weight_quantizer_paths(model: nn.Module) -> dict[str, str]:
    """Name of each quantized weight in ``state_dict`` → path of its quantizer.

    Without those that two quantizers read, or that have two names: no codes stand for them.
    """
    paths: dict[str, str] = {}
    readers = Counter[int]()
    ids: dict[str, int] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for _, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            readers[id(parameter)] += 1
        if isinstance(module, Quantized):
            for name, child in module.quantized_weights().items():
                full = f"{prefix}.{name}".removeprefix(".")
                paths[full] = f"{prefix}.{child}".removeprefix(".")
                ids[full] = id(module._parameters[name])
    return {name: path for name, path in paths.items() if readers[ids[name]] == 1}


@torch.no_grad()
def calibrate_minmax(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set every step of a quantized ``model`` by post-training min-max calibration, in place.

    The largest |x| that reaches a quantizer in the unquantized network, over ``batches``, becomes
    the largest code; of a weight the largest |w|, with steps per channel in each channel.

    Args:
        model: what `quantize` returned, holding trained weights.
        batches: inputs of the network, (B, …) each.
    """
    found = [quantizer for _, quantizer in quantizers(model)]
    largest: dict[int, Tensor] = {}
    were_set = [bool(quantizer.initialised) for quantizer in found]
    hooks = []
    for quantizer in found:
        quantizer.initialised.fill_(False)  # in evaluation it lets values pass

        def observe(quantizer: nn.Module, args: tuple[Tensor, ...]) -> None:
            assert isinstance(quantizer, Quantizer)
            step = minmax_step(args[0], quantizer.qp, quantizer.channel_axis)
            key = id(quantizer)
            largest[key] = torch.maximum(largest.get(key, step), step)

        hooks.append(quantizer.register_forward_pre_hook(observe))
    try:
        with evaluating(model):
            for batch in batches:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for quantizer, was_set in zip(found, were_set, strict=True):
            quantizer.initialised.fill_(was_set)
    for quantizer in found:
        if id(quantizer) in largest:
            quantizer.initialise(largest[id(quantizer)])
