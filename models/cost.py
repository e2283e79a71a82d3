"""What a network costs: parameters, operations and memory, from the shape of its input alone.

Operations are counted by torch.utils.flop_counter while the network runs on the meta device, where
tensors have shapes but no values. A multiply-add counts as **two** operations. Convolutions and
matrix products are counted; normalisation, activations, pooling and quantizers are not (a few
per cent of a ResNet). The backward pass of a layer costs once more the forward pass for the
gradient of its weight and once more for that of its input; a first layer has no use for the
latter. torch 2.13's formula counts the weight gradient of a grouped convolution `groups` times too
often; it is replaced here.

Bit operations (BOPs): multiply-adds × bits of the weight × bits of the input, summed over layers
(Baskin et al. 2018, arXiv 1804.10969, without its accumulator term); 32 × 32 for a layer that is
not quantized. The OQFL paper (APNOMS 2020) compares bit widths by "FPROPS", for which no formula
was at hand; bit operations are our reading of it.

Memory of a training step is what autograd keeps for the backward pass, each storage counted once
and in full, plus weights, gradients and optimizer state. Scratch space of kernels and the
gradients of activations are not in it.
"""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

FULL_PRECISION_BITS = 32
_BATCHES = (2, 3)
"""Sizes of the two batches that are run: what differs between them is the cost of a sample. A batch
of one would not pass batch norm where a map is one pixel."""


@dataclass(frozen=True)
class LayerCost:
    """One call of a convolution or linear layer.

    Attributes:
        name: the layer's path in the model.
        params: numbers in its weight and bias.
        macs: multiply-adds of the forward pass per sample.
        weight_bits: bits of the weight, 32 where it has no quantizer.
        input_bits: bits of the input, 32 where it has no quantizer.
        output_shape: of one sample.
    """

    name: str
    params: int
    macs: int
    weight_bits: int
    input_bits: int
    output_shape: tuple[int, ...]

    @property
    def bops(self) -> int:
        """Bit operations of the forward pass per sample."""
        return self.macs * self.weight_bits * self.input_bits


@dataclass(frozen=True)
class Cost:
    """What a model costs at one input shape.

    Attributes:
        params: numbers in its parameters.
        model_bytes: bytes of its parameters and buffers while it trains.
        packed_bytes: the same, with each quantized weight stored in its bits.
        gradient_bytes: bytes of one gradient of each parameter that trains.
        flops_forward: operations of the forward pass per sample.
        flops_backward: operations of the backward pass per sample.
        bops: bit operations of the forward pass per sample.
        activation_bytes: bytes kept for the backward pass per sample, the input included.
        fixed_activation_bytes: bytes kept for the backward pass whatever the batch size: batch
            statistics, quantized copies of weights.
        output_shape: of one sample.
        layers: one row for each call of a convolution or linear layer, in order.
        input_bytes: bytes of its input that it keeps, per sample; 0 where it needs none.
        output_bytes: the same of its output, such as a ReLU's.
    """

    params: int
    model_bytes: int
    packed_bytes: int
    gradient_bytes: int
    flops_forward: int
    flops_backward: int
    bops: int
    activation_bytes: int
    fixed_activation_bytes: int
    output_shape: tuple[int, ...]
    layers: tuple[LayerCost, ...]
    input_bytes: int = 0
    output_bytes: int = 0

    def peak_train_bytes(self, batch_size: int, optimizer_slots: int = 0) -> int:
        """Most bytes a training step holds at once.

        Args:
            batch_size: samples in the batch.
            optimizer_slots: tensors the optimizer keeps for each parameter: 0 for plain SGD, 1
                with momentum, 2 for Adam.

        Returns:
            weights + (1 + optimizer_slots) × gradients + what the backward pass needs, in bytes.
        """
        if batch_size < 1 or optimizer_slots < 0:
            raise ValueError(
                f"takes a positive batch size and optimizer slots ≥ 0, "
                f"got {batch_size} and {optimizer_slots}"
            )
        activations = self.fixed_activation_bytes + batch_size * self.activation_bytes
        return self.model_bytes + (1 + optimizer_slots) * self.gradient_bytes + activations


def joined(parts: Sequence[Cost]) -> Cost:
    """What parts that follow each other cost together.

    What one keeps as its output and the next as its input is kept once.

    Raises:
        ValueError: there are none.
    """
    if not parts:
        raise ValueError("takes one part or more")

    def total(name: str) -> int:
        return sum(getattr(part, name) for part in parts)

    twice = sum(min(a.output_bytes, b.input_bytes) for a, b in itertools.pairwise(parts))
    return Cost(
        params=total("params"),
        model_bytes=total("model_bytes"),
        packed_bytes=total("packed_bytes"),
        gradient_bytes=total("gradient_bytes"),
        flops_forward=total("flops_forward"),
        flops_backward=total("flops_backward"),
        bops=total("bops"),
        activation_bytes=total("activation_bytes") - twice,
        fixed_activation_bytes=total("fixed_activation_bytes"),
        output_shape=parts[-1].output_shape,
        layers=tuple(layer for part in parts for layer in part.layers),
        input_bytes=parts[0].input_bytes,
        output_bytes=parts[-1].output_bytes,
    )


def cost(
    model: nn.Module,
    input_shape: tuple[int, ...],
    input_grad: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Cost:
    """Count what ``model`` costs for samples of ``input_shape``; ``model`` stays as it is.

    Two passes of a copy in training mode on the meta device, about 0.2 s for a ResNet-18; a model
    that needs values to run (control flow on them) runs on zeros on the CPU instead.

    Args:
        model: a model, or a half of one. Its layers may have children ``weight_quantizer`` and
            ``input_quantizer`` with an int ``bits``.
        input_shape: shape of one sample, such as (3, 32, 32).
        input_grad: whether the backward pass reaches the input, as in a server's half.
        dtype: of the input; a type of real numbers stands for the parameters' own.

    Raises:
        ValueError: the output is no tensor.
    """
    tensors = _tensors(model)
    runs = _run_batches(model, input_shape, input_grad, dtype)
    (small, large), (few, many) = runs, _BATCHES
    activation_bytes = (large.saved_bytes - small.saved_bytes) // (many - few)
    return Cost(
        params=sum(p.numel() for p in model.parameters()),
        model_bytes=sum(_num_bytes(t) for t in tensors),
        packed_bytes=sum(_num_bytes(t) for t in tensors) - _packing_saves(model),
        gradient_bytes=sum(_num_bytes(p) for p in model.parameters() if p.requires_grad),
        flops_forward=(large.flops_forward - small.flops_forward) // (many - few),
        flops_backward=(large.flops_backward - small.flops_backward) // (many - few),
        bops=sum(layer.bops for layer in small.layers),
        activation_bytes=activation_bytes,
        fixed_activation_bytes=max(0, small.saved_bytes - few * activation_bytes),
        output_shape=small.output_shape,
        layers=small.layers,
        input_bytes=(large.input_bytes - small.input_bytes) // (many - few),
        output_bytes=(large.output_bytes - small.output_bytes) // (many - few),
    )


@dataclass(frozen=True)
class _Run:
    """What one forward and backward pass of a whole batch took."""

    flops_forward: int
    flops_backward: int
    saved_bytes: int
    input_bytes: int
    output_bytes: int
    output_shape: tuple[int, ...]
    layers: tuple[LayerCost, ...]


class _StandIn(nn.Module):
    """In a quantizer's place: makes and keeps as many bytes, without a need for values.

    Like a quantizer it gives a new tensor, and where it learns it keeps its input, too.
    """

    def __init__(self, device: torch.device, learns: bool) -> None:
        super().__init__()
        self.step = nn.Parameter(torch.ones((), device=device), requires_grad=learns)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.step


def _run_batches(
    model: nn.Module, input_shape: tuple[int, ...], input_grad: bool, dtype: torch.dtype
) -> list[_Run]:
    bits = _bits(model)
    try:
        shadow = _without_quantizers(_on_meta(model))
        return [_run(shadow, bits, input_shape, n, input_grad, dtype, "meta") for n in _BATCHES]
    except Exception:  # whatever somebody else's forward raises without values; if it raises with
        # them too, that error is the one to show
        shadow = _without_quantizers(copy.deepcopy(model).cpu())
        with torch.random.fork_rng(devices=[]):
            return [_run(shadow, bits, input_shape, n, input_grad, dtype, "cpu") for n in _BATCHES]


def _run(
    model: nn.Module,
    bits: dict[str, tuple[int, int]],
    input_shape: tuple[int, ...],
    batch_size: int,
    input_grad: bool,
    dtype: torch.dtype,
    device: str,
) -> _Run:
    """Train one step of ``model``, whose tensors are on ``device``."""
    model.train()
    if dtype.is_floating_point:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), dtype)
    x = torch.zeros(batch_size, *input_shape, dtype=dtype, device=device)
    x.requires_grad_(input_grad)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.enable_grad():
        with (
            _recorded_layers(model, bits, batch_size) as layers,
            FlopCounterMode(display=False) as forward,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            output = model(x)
        if not isinstance(output, Tensor):
            raise ValueError(f"the model gives a {type(output).__name__}, not a tensor")
        own = _tensors(model)
        saved_bytes = _storage_bytes(saved, own)
        input_bytes = saved_bytes - _storage_bytes(saved, [*own, x])
        output_bytes = saved_bytes - _storage_bytes(saved, [*own, output])
        with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as backward:
            if output.requires_grad:
                output.backward(torch.ones_like(output))
    return _Run(
        flops_forward=forward.get_total_flops(),
        flops_backward=backward.get_total_flops(),
        saved_bytes=saved_bytes,
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        output_shape=tuple(output.shape[1:]),
        layers=tuple(layers),
    )


@contextmanager
def _recorded_layers(
    model: nn.Module, bits: dict[str, tuple[int, int]], batch_size: int
) -> Iterator[list[LayerCost]]:
    """Collect a row for each call of a convolution or linear layer of ``model``."""
    rows: list[LayerCost] = []

    def record(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        # Each output value sums over a filter; transposed, each input value spreads over one.
        values = inputs[0] if isinstance(layer, _ConvTransposeNd) else output
        weight_bits, input_bits = bits[name]
        own = (layer.weight, layer.bias)
        rows.append(
            LayerCost(
                name=name,
                params=sum(t.numel() for t in own if isinstance(t, Tensor)),
                macs=values.numel() // batch_size * math.prod(weight.shape[1:]),
                weight_bits=weight_bits,
                input_bits=input_bits,
                output_shape=tuple(output.shape[1:]),
            )
        )

    handles = [
        layer.register_forward_hook(
            lambda layer, inputs, output, name=name: record(name, layer, inputs, output)
        )
        for name, layer in model.named_modules()
        if isinstance(layer, _ConvNd | nn.Linear)
    ]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def _conv_backward_flops(
    grad_output: torch.Size,
    x: torch.Size,
    weight: torch.Size,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: list[bool],
    **_: Any,
) -> int:
    """Two per multiply-add of the forward pass, once for each of input and weight gradients.

    ``weight`` is (C_out, C_in / groups, …), transposed (C_in, C_out / groups, …).
    """
    values = math.prod(x if transposed else grad_output)
    return 2 * values * math.prod(weight[1:]) * sum(output_mask[:2])


_FORMULAS = {torch.ops.aten.convolution_backward: _conv_backward_flops}

# Copies without values and without quantizers -------------------------------------------------

_QUANTIZERS = ("weight_quantizer", "input_quantizer")


def _bits(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Bits of weight and input of every module, by its name."""

    def bits(module: nn.Module, quantizer: str) -> int:
        return getattr(getattr(module, quantizer, None), "bits", FULL_PRECISION_BITS)

    return {
        name: (bits(module, _QUANTIZERS[0]), bits(module, _QUANTIZERS[1]))
        for name, module in model.named_modules()
    }


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose parameters and buffers have shapes only; nothing is copied."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _without_quantizers(model: nn.Module) -> nn.Module:
    """``model``, in place, with stand-ins for its layers' quantizers."""
    for module in list(model.modules()):
        for name in _QUANTIZERS:
            quantizer = getattr(module, name, None)
            if isinstance(quantizer, nn.Module):
                weight = getattr(module, "weight", None)
                device = weight.device if isinstance(weight, Tensor) else torch.device("cpu")
                learns = any(p.requires_grad for p in quantizer.parameters())
                setattr(module, name, _StandIn(device, learns))
    return model


# Bytes -----------------------------------------------------------------------------------------


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return [*model.parameters(), *model.buffers()]


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _packing_saves(model: nn.Module) -> int:
    """Bytes by which quantized weights are smaller in their bits, whole bytes per weight."""
    saved: dict[int, int] = {}
    bits = _bits(model)
    for name, module in model.named_modules():
        weight, weight_bits = getattr(module, "weight", None), bits[name][0]
        if isinstance(weight, Tensor) and weight_bits != FULL_PRECISION_BITS:
            saved[id(weight)] = _num_bytes(weight) - math.ceil(weight.numel() * weight_bits / 8)
    return sum(saved.values())


def _storage_bytes(tensors: list[Tensor], without: list[Tensor]) -> int:
    """Bytes of the storages of ``tensors``, each once, except those that ``without`` has too."""
    own = {_storage(t) for t in without}
    sizes = {_storage(t): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for storage, size in sizes.items() if storage not in own)


def _storage(tensor: Tensor) -> int:
    """The identity of a tensor's memory while it lives; there is no address on the meta device."""
    return int(StorageWeakRef(tensor.untyped_storage()).cdata)
