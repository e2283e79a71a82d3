"""A binarized client half in its bits, and the file that holds them.

    layer → pooling → batch norm → sign        becomes        (sum ≥ threshold) xor flipped

The sum of a layer whose input is ±1 is an integer in [−n, n]. What scale, batch norm and sign make
of each of them is looked up once, by running those very modules on all 2n + 1, so that no bit
differs from the network's own evaluation, whatever rounding does. The first layer sees reals: its
threshold is the least float for which the answer changes, found by bisection over all of them.
Batch norm keeps the order of its inputs or, where its weight is negative, reverses it (`flipped`);
so a maximum pooled before the threshold is an OR after it.

The first layer convolves floats: its sums, and rarely a bit, may depend in their last place on the
batch size that torch's kernels see. Bits are equal batch by batch.
"""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, fx, nn

from quant.binary import BinaryLayer, BinaryLinear, Sign
from quant.modules import evaluating
from quant.packed_half import Geometry, PackedHalf, PackedLayer, Pool

FORMAT = "cutbit-binary-1"


class _Tracer(fx.Tracer):
    """Binary layers and signs are one step each."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = super().is_leaf_module(m, module_qualified_name)
        return leaf or isinstance(m, BinaryLayer | Sign)


def pack_half(model: nn.Module) -> PackedHalf:
    """Pack what `quant.binary.binarize` made of a client half.

    Args:
        model: a chain of binary layers, each followed by batch norm, max-pooling and a sign in an
            order that `binarize` gives; the first sees real input. On the CPU, float32. Its
            evaluation mode counts, whatever mode it is in.

    Raises:
        ValueError: something in it does not fold into bits; says what.
    """
    modules = dict(model.named_modules())
    with evaluating(model):
        return _packed(_chain(model), modules)


def _chain(model: nn.Module) -> list[fx.Node]:
    """The operations between input and output, each the only user of the one before."""
    try:
        nodes = list(_Tracer().trace(model).nodes)
    except Exception as error:  # whatever somebody else's forward raises when given a proxy
        raise ValueError(f"pack_half takes a half that torch.fx can trace: {error}") from error
    for before, node in itertools.pairwise(nodes):
        if node.all_input_nodes != [before] or len(before.users) != 1:
            raise ValueError(f"{node}: pack_half takes a chain, without branches or sums")
    return nodes[1:-1]


def _packed(chain: Sequence[fx.Node], modules: dict[str, nn.Module]) -> PackedHalf:
    layers: list[PackedLayer] = []
    layer: BinaryLayer | None = None  # that has no sign yet
    geometry, norm = Geometry("", 0, 0), None
    flattens = False
    for node in chain:
        module = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, nn.Identity | nn.Dropout):
            continue
        if isinstance(module, BinaryLayer) and layer is None:
            layer, norm = module, None
            geometry = replace(_geometry(str(node.target), module), flattens=flattens)
            if geometry.is_real and layers:
                raise ValueError(f"{node.target}: its input is not ±1")
            flattens = False
        elif isinstance(module, nn.MaxPool1d | nn.MaxPool2d) and (layer or layers) and not flattens:
            pool = _pool(module, before_flip=layer is not None and norm is None)
            if layer is not None:
                geometry = replace(geometry, pools=(*geometry.pools, pool))
            else:
                last = layers[-1]
                pools = (*last.geometry.pools, pool)
                layers[-1] = replace(last, geometry=replace(last.geometry, pools=pools))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and layer is not None and not norm:
            if module.running_mean is None:
                raise ValueError(f"{node.target}: it has no running statistics")
            norm = module
        elif isinstance(module, Sign) and layer is not None:
            layers.append(_pack_layer(layer, norm, geometry))
            layer = None
        elif _is_flatten(node, module) and layer is None:
            flattens = True
        else:
            raise ValueError(f"{node}: pack_half cannot fold it into bits")
    if layer is not None or not layers:
        raise ValueError("the half does not end in a sign")
    return PackedHalf(tuple(layers), flattens)


def _is_flatten(node: fx.Node, module: nn.Module | None) -> bool:
    if isinstance(module, nn.Flatten):
        return module.start_dim == 1 and module.end_dim == -1
    return node.target in (torch.flatten, "flatten") and (node.args[1:], node.kwargs) in (
        ((1,), {}),
        ((), {"start_dim": 1}),
    )


def _geometry(name: str, layer: BinaryLayer) -> Geometry:
    if layer.weight.dtype != torch.float32:
        raise ValueError(f"{name}: pack_half takes float32, not {layer.weight.dtype}")
    channels, in_channels, *kernel = layer.weight.shape
    is_real = layer.input_quantizer is None
    strides = layer.weight_quantizer(layer.weight).stride() if is_real else ()
    input_eps = None if layer.input_norm is None else layer.input_norm.eps
    if isinstance(layer, BinaryLinear):
        return Geometry(
            name, channels, in_channels, is_real=is_real, input_eps=input_eps, strides=strides
        )
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    if layer.padding_mode != "zeros":
        raise ValueError(f"{name}: pack_half takes padding of zeros, not {layer.padding_mode}")
    # torch pads the odd one of "same" at the end.
    both = layer._reversed_padding_repeated_twice
    return Geometry(
        name,
        channels,
        layer.in_channels,
        kernel=tuple(kernel),
        stride=layer.stride,
        padding=tuple(zip(both[-2::-2], both[-1::-2], strict=True)),
        dilation=layer.dilation,
        groups=layer.groups,
        is_real=is_real,
        input_eps=input_eps,
        strides=strides,
    )


def _pool(pool: nn.MaxPool1d | nn.MaxPool2d, before_flip: bool) -> Pool:
    dims = 1 if isinstance(pool, nn.MaxPool1d) else 2

    def sizes(value: int | tuple[int, ...]) -> tuple[int, ...]:
        return (value,) * dims if isinstance(value, int) else tuple(value)

    if any(p and d > 1 for p, d in zip(sizes(pool.padding), sizes(pool.dilation), strict=True)):
        raise ValueError(
            "max pooling with padding and dilation: a window may lie in the padding and be empty"
        )
    return Pool(
        sizes(pool.kernel_size),
        sizes(pool.stride),
        sizes(pool.padding),
        sizes(pool.dilation),
        pool.ceil_mode,
        before_flip,
    )


@torch.no_grad()
def _pack_layer(layer: BinaryLayer, norm: nn.Module | None, geometry: Geometry) -> PackedLayer:
    """Find the thresholds of ``layer`` and pack its signs."""
    dims = len(geometry.kernel)

    def answer(sums: Tensor) -> Tensor:
        """(N, C') sums → whether the network's sign of them is +1."""
        values = layer.rescaled(sums.view(*sums.shape, *[1] * dims))
        return (values if norm is None else norm(values)).view(sums.shape) >= 0

    search = _real_thresholds if geometry.is_real else _integer_thresholds
    threshold, flipped = search(answer, geometry)
    bits = (layer.weight >= 0).numpy().reshape(-1)
    return PackedLayer(geometry, np.packbits(bits, bitorder="little"), threshold, flipped)


_Answer = Callable[[Tensor], Tensor]
_Thresholds = tuple[NDArray[Any], NDArray[np.bool_]]


def _integer_thresholds(answer: _Answer, geometry: Geometry) -> _Thresholds:
    """Ask for every sum there is."""
    count = geometry.fan_in
    sums = torch.arange(-count, count + 1, dtype=torch.float32)
    answers = answer(sums[:, None].repeat(1, geometry.channels)).numpy()  # (2n + 1, C')
    rising = answers[-1]
    reached = answers == rising
    assert (reached[1:] >= reached[:-1]).all(), geometry.name
    return np.argmax(reached, axis=0).astype(np.int32) - count, ~rising


def _real_thresholds(answer: _Answer, geometry: Geometry) -> _Thresholds:
    """Bisect the floats, in the order of their values, for where the answer becomes the last."""
    largest = _ordinal(torch.full((1, geometry.channels), torch.finfo(torch.float32).max))
    low, high = -largest, largest
    rising, falling = answer(_float(high)), answer(_float(low))
    low = torch.where(rising == falling, high, low)  # never changes
    while bool((high - low > 1).any()):
        middle = (low + high) >> 1
        reached = answer(_float(middle)) == rising
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    threshold = torch.where(rising == falling, -torch.inf, _float(high))
    return threshold[0].numpy(), ~rising[0].numpy()


def _ordinal(x: Tensor) -> Tensor:
    """Float32 → int64 in the same order, 0 for 0."""
    code = x.view(torch.int32).long()
    return torch.where(code >= 0, code, -(code & 0x7FFFFFFF))


def _float(ordinal: Tensor) -> Tensor:
    """Inverse of `_ordinal`."""
    return torch.where(ordinal >= 0, 1.0, -1.0) * ordinal.abs().int().view(torch.float32)


# The file ------------------------------------------------------------------------------------


def save_packed(half: PackedHalf, path: str | Path) -> None:
    """Write a safetensors file: per layer a weight, its thresholds and flips, 1 bit a weight.

    The geometry is JSON in the file's metadata.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for layer in half.layers:
        name, threshold = layer.geometry.name, layer.threshold
        if not layer.geometry.is_real and layer.geometry.fan_in < 2**15:
            threshold = threshold.astype(np.int16)
        tensors[f"{name}.weight"] = layer.weight
        tensors[f"{name}.threshold"] = threshold
        tensors[f"{name}.flipped"] = np.packbits(layer.flipped, bitorder="little")
    layers = [_without_defaults(layer.geometry) for layer in half.layers]
    about = json.dumps({"layers": layers, "flattens": half.flattens}, separators=(",", ":"))
    save_file(tensors, path, {FORMAT: about})


def load_packed(path: str | Path) -> PackedHalf:
    """Read what `save_packed` wrote.

    Raises:
        ValueError: the file cannot be read or is no packed half.
    """
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {})[FORMAT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        layers = []
        for geometry in map(_geometry_from, about["layers"]):
            weight, threshold, flipped = (
                tensors[f"{geometry.name}.{part}"] for part in ("weight", "threshold", "flipped")
            )
            if weight.size != math.ceil(math.prod(geometry.weight_shape) / 8):
                raise ValueError(f"{geometry.name} has {weight.size} bytes of weight")
            layers.append(
                PackedLayer(
                    geometry,
                    weight,
                    threshold if geometry.is_real else threshold.astype(np.int32),
                    np.unpackbits(flipped, count=geometry.channels, bitorder="little").astype(bool),
                )
            )
        return PackedHalf(tuple(layers), bool(about["flattens"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a packed binary half: {error}") from error


def _without_defaults(geometry: Geometry) -> dict[str, Any]:
    plain = asdict(Geometry("", 0, 0))
    about = {key: value for key, value in asdict(geometry).items() if value != plain[key]}
    if geometry.pools:
        about["pools"] = [astuple(pool) for pool in geometry.pools]
    return about


def _geometry_from(about: dict[str, Any]) -> Geometry:
    """Inverse of `_without_defaults`; JSON has made lists of tuples."""
    fields = {key: _tuples(value) for key, value in about.items()}
    return Geometry(**{**fields, "pools": tuple(Pool(*pool) for pool in fields.get("pools", ()))})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
