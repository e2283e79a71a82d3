"""What a network costs: parameters, operations and memory, from the shape of its input alone.

Operations are counted by torch.utils.flop_counter while the network runs on the meta device, where
tensors have shapes but no values. A multiply-add counts as **two** operations. Convolutions and
matrix products are counted; normalisation, activations, pooling and quantizers are not (a few
per cent of a ResNet). The backward pass of a layer costs once more the forward pass for the
gradient of its weight and once more for that of its input; a first layer has no use for the
latter. torch 2.13's formula counts the weight gradient of a grouped convolution `groups` times too
often; it is replaced here.

Bit operations (BOPs): multiply-adds × bits of one operand × bits of the other, summed over all
products, in layers or not (Baskin et al. 2018, arXiv 1804.10969, without its accumulator term);
32 × 32 where nothing is quantized. Which operand has how many bits is seen while the network runs:
what comes out of a quantizer is followed to the product. The OQFL paper (APNOMS 2020) compares bit
widths by "FPROPS", for which no formula was at hand; bit operations are our reading of it.

Memory of a training step is what autograd keeps for the backward pass, each storage counted once
and in full, plus weights, gradients and optimizer state. Scratch space of kernels and the
gradients of activations are not in it.
"""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from models.eager import DispatchMode, prepare_counting
from models.structure import storage_of, structure_of
from models.trace import drawn_states, preserved_randomness

FULL_PRECISION_BITS = 32
_BATCHES = (2, 3)
"""Sizes of the two batches that are run: what differs between them is the cost of a sample. A batch
of one would not pass batch norm where a map is one pixel."""


@dataclass(frozen=True)
class LayerCost:
    """One product: that of a layer, or one that a module's own forward computes.

    Attributes:
        name: path of the layer, or of the module and the kind of product (``block.bmm``).
        params: numbers in the layer's weight and bias, or in the parameter that is multiplied.
        macs: multiply-adds of the forward pass per sample.
        weight_bits: bits of the weight, or of the second operand; 32 without a quantizer.
        input_bits: bits of the input, or of the first operand.
        output_shape: of one sample.
        has_weight: whether one operand is a parameter, or computed from parameters alone by a
            quantizer.
    """

    name: str
    params: int
    macs: int
    weight_bits: int
    input_bits: int
    output_shape: tuple[int, ...]
    has_weight: bool = True

    @property
    def is_quantized(self) -> bool:
        """Whether both operands have few bits."""
        return max(self.weight_bits, self.input_bits) < FULL_PRECISION_BITS

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
        layers: one row for each product, in order.
        num_weights: numbers in its parameters but for the steps of quantizers.
        weight_bits_total: bits of all these together, in the quantized weights' own bits.
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
    num_weights: int
    weight_bits_total: int
    input_bytes: int = 0
    output_bytes: int = 0

    @property
    def macs(self) -> int:
        """Multiply-adds of the forward pass per sample."""
        return sum(layer.macs for layer in self.layers)

    @property
    def quantized_share(self) -> float:
        """Share of the multiply-adds both of whose operands have fewer than 32 bits."""
        quantized = sum(layer.macs for layer in self.layers if layer.is_quantized)
        return quantized / self.macs if self.macs else 0.0

    @property
    def mean_weight_bits(self) -> float:
        """Bits that a number of its parameters has, as stored, on average."""
        if not self.num_weights:
            return float(FULL_PRECISION_BITS)
        return self.weight_bits_total / self.num_weights

    @property
    def mean_act_bits(self) -> float:
        """Bits of the operands that are no weights, on average over the multiply-adds."""
        if not self.macs:
            return float(FULL_PRECISION_BITS)
        bits = (
            layer.macs
            * (layer.input_bits if layer.has_weight else (layer.input_bits + layer.weight_bits) / 2)
            for layer in self.layers
        )
        return sum(bits) / self.macs

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
        num_weights=total("num_weights"),
        weight_bits_total=total("weight_bits_total"),
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
    that needs values to run (control flow on them) runs on zeros on the CPU instead. Where a
    forward passes over blocks by chance, the network is run in evaluation mode, in which all run.
    A network of the same `Structure` is counted once in a process, unless its values were needed.

    Args:
        model: a model, or a half of one. It may have quantizers: children that say
            ``is_quantizer``, or are called ``weight_quantizer`` and ``input_quantizer``, with an
            int ``bits``.
        input_shape: shape of one sample, such as (3, 32, 32).
        input_grad: whether the backward pass reaches the input, as in a server's half.
        dtype: of the input; a type of real numbers stands for the parameters' own.

    Raises:
        ValueError: the output is no tensor.
    """
    structure = structure_of(model)
    key = (structure, input_shape, input_grad, dtype)
    if structure is not None and (known := _KNOWN.get(key)):
        return known
    runs, has_values = _run_batches(model, input_shape, input_grad, dtype)
    found = _of_runs(model, runs)
    if structure is not None and not has_values:
        if len(_KNOWN) >= _MOST_KNOWN:
            del _KNOWN[next(iter(_KNOWN))]
        _KNOWN[key] = found
    return found


_KNOWN: dict[tuple[Any, ...], Cost] = {}
"""What has been counted in this process: the jobs of a sweep have few networks between them."""
_MOST_KNOWN = 500


def _of_runs(model: nn.Module, runs: Sequence["_Run"]) -> Cost:
    """Return the cost of a model of which two batches were run."""
    tensors = _tensors(model)
    (small, large), (few, many) = runs, _BATCHES
    activation_bytes = (large.saved_bytes - small.saved_bytes) // (many - few)
    layers = _per_sample(small.layers, large.layers)
    return Cost(
        params=sum(p.numel() for p in model.parameters()),
        model_bytes=sum(_num_bytes(t) for t in tensors),
        packed_bytes=sum(_num_bytes(t) for t in tensors) - _packing_saves(model),
        gradient_bytes=sum(_num_bytes(p) for p in model.parameters() if p.requires_grad),
        flops_forward=(large.flops_forward - small.flops_forward) // (many - few),
        flops_backward=(large.flops_backward - small.flops_backward) // (many - few),
        bops=sum(layer.bops for layer in layers),
        activation_bytes=activation_bytes,
        fixed_activation_bytes=max(0, small.saved_bytes - few * activation_bytes),
        output_shape=small.output_shape,
        layers=layers,
        num_weights=sum(p.numel() for p in _weights(model)),
        weight_bits_total=_weight_bits_total(model),
        input_bytes=(large.input_bytes - small.input_bytes) // (many - few),
        output_bytes=(large.output_bytes - small.output_bytes) // (many - few),
    )


def _per_sample(
    small: tuple[LayerCost, ...], large: tuple[LayerCost, ...]
) -> tuple[LayerCost, ...]:
    """Rows of one sample from those of two batches, without products of weights alone."""
    few, many = _BATCHES
    if len(small) != len(large):  # a forward that counts its samples
        return tuple(replace(row, macs=row.macs // few) for row in small)
    rows = (
        replace(a, macs=(b.macs - a.macs) // (many - few))
        for a, b in zip(small, large, strict=True)
    )
    return tuple(row for row in rows if row.macs)


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

    def __init__(self, device: torch.device, learns: bool, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.initialised = True
        self.step = nn.Parameter(torch.ones((), device=device), requires_grad=learns)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.step


def _run_batches(
    model: nn.Module, input_shape: tuple[int, ...], input_grad: bool, dtype: torch.dtype
) -> tuple[list[_Run], bool]:
    """Run two batches, and say whether that took the model's values."""

    def on(device: str, training: bool = True) -> list[_Run]:
        copied = _on_meta(model) if device == "meta" else copy.deepcopy(model).cpu()
        shadow = _without_quantizers(copied).train(training)
        return [_run(shadow, input_shape, n, input_grad, dtype, device) for n in _BATCHES]

    prepare_counting()
    with preserved_randomness():
        torch.manual_seed(0)
        before = drawn_states()
        try:
            found, device = on("meta"), "meta"
            by_chance = drawn_states() != before
        except Exception:  # whatever somebody else's forward raises without values; if it raises
            # with them too, that error is the one to show
            found, device = on("cpu"), "cpu"
            torch.manual_seed(1)
            by_chance = drawn_states() != before or on("cpu") != found
        if by_chance:
            found = on(device, training=False)
        if device == "meta" and any(type(module) is nn.LSTM for module in model.modules()):
            # On the CPU a fused kernel keeps four times what the operations do that it stands for.
            found = [
                replace(run, saved_bytes=real.saved_bytes)
                for run, real in zip(found, on("cpu"), strict=True)
            ]
    return found, device == "cpu"


def _run(
    model: nn.Module,
    input_shape: tuple[int, ...],
    batch_size: int,
    input_grad: bool,
    dtype: torch.dtype,
    device: str,
) -> _Run:
    """Do one step of ``model``, whose tensors are on ``device``."""
    if dtype.is_floating_point:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), dtype)
    x = torch.zeros(batch_size, *input_shape, dtype=dtype, device=device)
    x.requires_grad_(input_grad)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.enable_grad():
        products = _Products(model)
        with (
            products,
            FlopCounterMode(display=False, custom_mapping=_FORMULAS) as forward,
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
        layers=tuple(products.rows),
    )


# Products and the bits of their operands ----------------------------------------------------------

_aten = torch.ops.aten
# Operation → positions of its operands, the input first.
_OPERANDS = {
    _aten.mm: (0, 1),
    _aten.mv: (0, 1),
    _aten.dot: (0, 1),
    _aten.addmv: (1, 2),
    _aten.bmm: (0, 1),
    _aten.addmm: (1, 2),
    _aten.baddbmm: (1, 2),
    _aten.convolution: (0, 1),
    _aten._convolution: (0, 1),
}
# Operations that copy values.
_COPIES = {
    _aten.clone, _aten._to_copy, _aten.cat, _aten.stack, _aten.constant_pad_nd, _aten.repeat,
    _aten.reflection_pad1d, _aten.reflection_pad2d, _aten.replication_pad1d,
    _aten.replication_pad2d, _aten.index_select, _aten.index, _aten.gather, _aten.embedding,
    _aten.roll, _aten.flip,
}  # fmt: skip


@dataclass(frozen=True)
class _Operand:
    """What is known of a tensor's values: their bits, and numbers of the parameter they are."""

    bits: int = FULL_PRECISION_BITS
    params: int = 0


class _Products(DispatchMode):
    """Writes down a row for each product of a whole batch while a model runs.

    Args:
        model: with stand-ins for its quantizers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[LayerCost] = []
        self._known = {storage_of(p): _Operand(params=p.numel()) for p in model.parameters()}
        self._alive: list[Tensor] = []  # a storage's identity is good for as long as it lives
        self._stack: list[tuple[str, nn.Module]] = []
        self._names = {id(module): name for name, module in model.named_modules()}
        self._modules = list(model.modules())
        counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
        self._formulas = counter.flop_registry

    def __enter__(self) -> "_Products":
        self._hooks = []
        for module in self._modules:
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks
            self._hooks.append(module.register_forward_pre_hook(self._enter))
            self._hooks.append(module.register_forward_hook(self._leave, always_call=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func.overloadpacket
        if packet in _COPIES:
            operands = [self._of(x) for x in pytree.tree_leaves(args) if isinstance(x, Tensor)]
            if isinstance(result, Tensor) and any(o.bits < FULL_PRECISION_BITS for o in operands):
                self._note(result, max(operands, key=lambda operand: operand.bits))
        elif packet in self._formulas and (
            flops := self._formulas[packet](*args, **kwargs, out_val=result)
        ):
            self._add(packet, args, result, flops // 2)
        return result

    def _add(self, packet: Any, args: tuple[Any, ...], result: Any, macs: int) -> None:
        name, module = self._stack[-1] if self._stack else ("", None)
        is_layer = isinstance(module, _ConvNd | nn.Linear)
        first, second = (
            (self._of(args[position]) for position in _OPERANDS[packet])
            if packet in _OPERANDS
            else (_Operand(), _Operand())
        )
        params = second.params or first.params
        if isinstance(module, _ConvNd | nn.Linear):
            own = (module._parameters.get("weight"), module._parameters.get("bias"))
            params = sum(t.numel() for t in own if t is not None) or params
        output = next(leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor))
        self.rows.append(
            LayerCost(
                name=name if is_layer else f"{name}.{packet.__name__}".removeprefix("."),
                params=params,
                macs=macs,
                weight_bits=self._bits(second, module, "weight_quantizer"),
                input_bits=self._bits(first, module, "input_quantizer"),
                output_shape=tuple(output.shape[1:]),
                has_weight=is_layer or params > 0,
            )
        )

    def _bits(self, operand: _Operand, module: nn.Module | None, quantizer: str) -> int:
        """What came out of a quantizer, or what the layer says of itself: binary layers know that
        their input is ±1 without a quantizer."""
        if operand.bits < FULL_PRECISION_BITS:
            return operand.bits
        return getattr(getattr(module, quantizer, None), "bits", FULL_PRECISION_BITS)

    def _of(self, tensor: Tensor) -> _Operand:
        return self._known.get(storage_of(tensor), _Operand())

    def _note(self, tensor: Tensor, operand: _Operand) -> None:
        self._alive.append(tensor)
        self._known[storage_of(tensor)] = operand

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._stack.append((self._names[id(module)], module))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._stack or self._stack[-1][1] is not module:
            return  # an error is on its way out
        self._stack.pop()
        if isinstance(module, _StandIn) and isinstance(output, Tensor):
            self._note(output, replace(self._of(args[0]), bits=module.bits))
        elif isinstance(module, _ConvNd | nn.Linear) and self.rows and isinstance(output, Tensor):
            name = self._names[id(module)]
            if self.rows[-1].name == name:  # torch multiplies matrices, whatever the layer takes
                self.rows[-1] = replace(self.rows[-1], output_shape=tuple(output.shape[1:]))


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


def _mv_flops(matrix: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _addmv_flops(_added: torch.Size, matrix: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _trilinear_flops(
    first: torch.Size,
    second: torch.Size,
    third: torch.Size,
    expand1: list[int],
    expand2: list[int],
    expand3: list[int],
    *_: Any,
    **__: Any,
) -> int:
    """``nn.Bilinear``: one multiply-add for each value of the cube that all three span."""

    def expanded(shape: torch.Size, axes: list[int]) -> list[int]:
        sizes = list(shape)
        for axis in sorted(axes):
            sizes.insert(axis, 1)
        return sizes

    shapes = zip(
        expanded(first, expand1), expanded(second, expand2), expanded(third, expand3), strict=True
    )
    return 2 * math.prod(map(max, shapes))


# What torch counts otherwise, or not at all.
_FORMULAS = {
    torch.ops.aten.convolution_backward: _conv_backward_flops,
    torch.ops.aten.mv: _mv_flops,
    torch.ops.aten.dot: _mv_flops,
    torch.ops.aten.addmv: _addmv_flops,
    torch.ops.aten._trilinear: _trilinear_flops,
}

# Copies without values and without quantizers -------------------------------------------------

_QUANTIZERS = ("weight_quantizer", "input_quantizer")


def _quantizers(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Each quantizer with the module that it is a child of, and its name there."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            says_so = getattr(child, "is_quantizer", False) or name in _QUANTIZERS
            if says_so and hasattr(child, "bits"):
                yield module, name, child


def _weight_bits(model: nn.Module) -> dict[int, int]:
    """Identity of each parameter that is quantized → its bits."""
    bits = {}
    for module, name, quantizer in _quantizers(model):
        own = {"weight": "weight_quantizer"}
        if hasattr(module, "quantized_weights"):
            own = module.quantized_weights()  # type: ignore[operator]
        for weight, child in own.items():
            parameter = module._parameters.get(weight)
            if child == name and parameter is not None:
                bits[id(parameter)] = int(quantizer.bits)  # type: ignore[arg-type]
    return bits


def _weights(model: nn.Module) -> list[nn.Parameter]:
    """Parameters, but for those of quantizers."""
    steps = {id(p) for _, _, quantizer in _quantizers(model) for p in quantizer.parameters()}
    return [p for p in model.parameters() if id(p) not in steps]


def _weight_bits_total(model: nn.Module) -> int:
    bits = _weight_bits(model)
    return sum(p.numel() * bits.get(id(p), FULL_PRECISION_BITS) for p in _weights(model))


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
    """``model``, in place, with stand-ins for its quantizers."""
    for module, name, quantizer in _quantizers(model):
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        learns = any(p.requires_grad for p in quantizer.parameters())
        stand_in = _StandIn(device, learns, int(quantizer.bits))  # type: ignore[arg-type]
        setattr(module, name, stand_in)
    return model


# Bytes -----------------------------------------------------------------------------------------


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return [*model.parameters(), *model.buffers()]


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _packing_saves(model: nn.Module) -> int:
    """Bytes by which quantized weights are smaller in their bits, whole bytes per weight."""
    bits = _weight_bits(model)
    return sum(
        _num_bytes(p) - math.ceil(p.numel() * bits[id(p)] / 8)
        for p in model.parameters()
        if id(p) in bits
    )


def _storage_bytes(tensors: list[Tensor], without: list[Tensor]) -> int:
    """Bytes of the storages of ``tensors``, each once, except those that ``without`` has too."""
    own = {storage_of(t) for t in without}
    sizes = {storage_of(t): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for storage, size in sizes.items() if storage not in own)
