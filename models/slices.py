"""Networks with fewer channels: which channels of a network's layers belong together, from a trace.

Every channel that a layer puts out has a number of its own. Numbers are followed through the traced
operations: activations, pooling and norms keep them, flattening repeats them, concatenation puts
them beside each other, and a sum or product of two values says that their channels are the same.
What a share of a network holds is then a set of numbers, and a layer's weight has a row for each of
its own, and a column for each that comes in.

    ⌈share · C⌉   of the C channels of a layer, the first ones
    in blocks     ⌈share · C/G⌉ of each of G blocks where a group normalisation or a convolution in
                  G groups takes them, so that a channel stays in its group

What a network takes and puts out stays whole, and so does what an operation takes that is not
followed (attention, reshapes, modules that cannot be traced): `Channels.whole` names these layers.
"""

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from models.cut_points import run_noting
from models.inputs import remembered
from models.memory_format import in_best_format, overflowing
from models.trace import op_name, trace

Ids = NDArray[np.int64]
# Indices along each axis of a tensor; None for all along that axis, no axes for all of it.
Kept = tuple[NDArray[np.intp] | None, ...]

_SAME = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Mish, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_SAME_CALLS = {
    "relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "hardswish", "sigmoid", "tanh",
    "dropout", "contiguous", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "interpolate", "clone",
}  # fmt: skip
_PAIRS = {"add", "add_", "sub", "sub_", "mul", "mul_", "truediv", "div"}
_READS = {"size", "getattr", "dim", "must_be"}


@dataclass(frozen=True)
class Layout:
    """The channels of a value: their numbers, and on which axis they lie."""

    ids: Ids
    axis: int


@dataclass
class Source:
    """Channels that one layer made, by the number of the first.

    Attributes:
        blocks: how many they are divided into.
        is_whole: whether all are always kept.
    """

    path: str
    first: int
    count: int
    blocks: int = 1
    is_whole: bool = False


@dataclass
class Layer:
    """A module with weights: the channels it takes and those that it puts out; None for all."""

    taken: Ids | None = None
    made: Ids | None = None


@dataclass(frozen=True, eq=False)
class Channels:
    """What belongs together in a network; `of` finds it.

    Attributes:
        model: the network.
        layers: modules with weights whose channels are followed, by their paths.
        sources: what layers made.
        together: of each channel the number of the one that decides for it.
    """

    model: nn.Module
    layers: Mapping[str, Layer]
    sources: Sequence[Source]
    together: Ids

    @staticmethod
    def of(model: nn.Module, example: Tensor | None = None) -> "Channels":
        """Trace ``model``, which stays as it is.

        Args:
            model: the network.
            example: inputs (B, …); None takes what the network was built for.

        Raises:
            ValueError: it cannot be traced, or nothing is known of its inputs, or no layer of it
                can have fewer channels.
        """
        spec = remembered(model)
        if example is None and spec is not None:
            example = spec.example()
        if example is None:
            raise ValueError("submodel.share: the network's input is not known")
        found = _Look(model, example).channels()
        if all(source.is_whole for source in found.sources):
            raise ValueError("submodel.share: no layer of the network can have fewer channels")
        return found

    def whole(self) -> list[str]:
        """Layers all of whose channels are always kept, but for the last."""
        return [source.path for source in self.sources if source.is_whole and source.path][:-1]

    def can_narrow(self, layers: Collection[str] | None = None) -> bool:
        """Whether any of these layers can have fewer channels; None asks of all."""
        return any(
            not source.is_whole and (layers is None or source.path in layers)
            for source in self.sources
        )

    def kept(self, share: float, layers: Collection[str] | None = None) -> NDArray[np.bool_]:
        """Which channels a share of the network holds; ``layers`` as in `sliced`."""
        own = np.ones(len(self.together), bool)
        for source in self.sources:
            if not source.is_whole and (layers is None or source.path in layers):
                size = source.count // source.blocks
                place = np.arange(source.count) % size
                kept = place < math.ceil(round(share * size, 9))
                own[source.first : source.first + source.count] = kept
        return own[self.together]

    def sliced(
        self, share: float, layers: Collection[str] | None = None
    ) -> tuple[nn.Module, dict[str, Kept]]:
        """Return a copy with a share of each layer's channels, and what of each array that is.

        Args:
            share: in (0, 1].
            layers: those that make fewer channels; None for all. The others make all of theirs, but
                for such as are added to these layers' or multiplied by them.

        Raises:
            ValueError: the network cannot run so; names submodel.share.
        """
        small, found = copy.deepcopy(self.model), dict[str, Kept]()
        if share == 1:
            return small, found
        kept = self.kept(share, layers)
        for path, layer in self.layers.items():
            taken, made = _positions(layer.taken, kept), _positions(layer.made, kept)
            if taken is None and made is None:
                continue
            module = small.get_submodule(path)
            for name, axes in _slice(module, taken, made, path, share).items():
                found[f"{path}.{name}"] = axes
        if overflowing(small):
            in_best_format(small)
        return small, found


def within(held: Mapping[str, Kept], kept: Mapping[str, Kept]) -> dict[str, Kept]:
    """Return where what a smaller slice keeps of each array lies in what a larger one holds."""
    return {
        name: tuple(
            axis if axis is None or own is None else np.searchsorted(own, axis)
            for own, axis in zip(held.get(name, (None,) * len(axes)), axes, strict=True)
        )
        for name, axes in kept.items()
    }


def part_of(tensor: Tensor, kept: Kept) -> Tensor:
    """Return what is kept of a tensor, differentiably."""
    for dim, axis in enumerate(kept):
        if axis is not None:
            tensor = tensor.index_select(dim, torch.from_numpy(axis).to(tensor.device))
    return tensor


def _positions(ids: Ids | None, kept: NDArray[np.bool_]) -> NDArray[np.intp] | None:
    """Where the kept ones of these channels are; None where all are kept."""
    if ids is None or kept[ids].all():
        return None
    return np.flatnonzero(kept[ids])


def _slice(
    module: nn.Module,
    taken: NDArray[np.intp] | None,
    made: NDArray[np.intp] | None,
    path: str,
    share: float,
) -> dict[str, Kept]:
    """Take channels out of a layer, in place; return what was kept of each of its arrays."""
    found: dict[str, Kept] = {}

    def keep(name: str, *axes: NDArray[np.intp] | None) -> None:
        tensor = getattr(module, name, None)
        if tensor is None or all(axis is None for axis in axes):
            return
        whole = (*axes, *[None] * (tensor.dim() - len(axes)))
        part = part_of(tensor.detach(), whole)
        part = torch.empty_like(part, memory_format=_format(tensor)).copy_(part)
        if isinstance(tensor, nn.Parameter):
            part = nn.Parameter(part, requires_grad=tensor.requires_grad)
        setattr(module, name, part)
        found[name] = whole

    if isinstance(module, _ConvNd):
        columns = taken
        if module.groups > 1 and taken is not None:
            size = module.in_channels // module.groups
            rows = taken.reshape(-1) // size
            counts = np.bincount(rows, minlength=module.groups)
            if size == 1:
                columns, module.groups = None, len(taken)
            elif len(set(counts.tolist())) == 1:
                columns = taken[rows == 0]
            else:
                raise ValueError(
                    f"submodel.share={share:g}: {path} has {module.groups} groups, which would "
                    "keep different numbers of channels"
                )
        keep("weight", made, columns)
        keep("bias", made)
        module.in_channels = module.in_channels if taken is None else len(taken)
        module.out_channels = module.weight.shape[0]
    elif isinstance(module, nn.Linear):
        keep("weight", made, taken)
        keep("bias", made)
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        keep("weight", None, made)
        module.embedding_dim = module.weight.shape[1]
    else:
        for name in ("weight", "bias", "running_mean", "running_var"):
            keep(name, taken)
        assert taken is not None
        if isinstance(module, nn.GroupNorm):
            size = module.num_channels // module.num_groups
            counts = np.bincount(taken // size, minlength=module.num_groups)
            if len(set(counts.tolist())) != 1:
                raise ValueError(
                    f"submodel.share={share:g}: {path} has {module.num_groups} groups, which would "
                    "keep different numbers of channels"
                )
            module.num_channels = len(taken)
        elif isinstance(module, nn.LayerNorm):
            module.normalized_shape = (len(taken),)
        elif isinstance(module, nn.PReLU):
            module.num_parameters = len(taken)
        elif isinstance(module, _BatchNorm):
            module.num_features = len(taken)
    return found


def _format(tensor: Tensor) -> torch.memory_format:
    """In which order a tensor's values lie, which kernels go by."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(tensor.dim(), torch.contiguous_format)
    # By strides, as both may hold of a kernel of one value.
    is_last = tensor.stride() == torch.empty_like(tensor, memory_format=last).stride()
    return last if is_last else torch.contiguous_format


@dataclass
class _Look:
    """One look at a network.

    Attributes:
        model: the network.
        example: inputs.
    """

    model: nn.Module
    example: Tensor
    layers: dict[str, Layer] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    blocks: list[tuple[Ids, int]] = field(default_factory=list)
    fixed: list[Ids] = field(default_factory=list)
    layouts: dict[fx.Node, Layout] = field(default_factory=dict)
    shapes: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)

    def channels(self) -> Channels:
        """Follow all operations."""
        traced = trace(self.model, training=True, example=self.example)

        def note(node: fx.Node, value: Any) -> None:
            if isinstance(value, Tensor):
                self.shapes[node] = tuple(value.shape)

        try:
            run_noting(traced, self.example, note)
        except ValueError as error:
            raise ValueError(f"submodel.share: {error}") from error
        tied = _tied(self.model)
        for node in traced.graph.nodes:
            module = (
                traced.root.get_submodule(str(node.target)) if node.op == "call_module" else None
            )
            is_tied = module is not None and node.target in tied
            if node.op == "output" or is_tied or not self._follow(node, module):
                self._fix(node)
        together = np.array([self._root(number) for number in range(len(self.parents))], np.int64)
        self._decide(together)
        return Channels(self.model, self.layers, self.sources, together)

    def _decide(self, together: Ids) -> None:
        """Note in sources what stays whole, and what is divided into blocks."""
        firsts = np.array([source.first for source in self.sources])

        def source_of(ids: Ids) -> Iterator[Source]:
            for index in np.unique(np.searchsorted(firsts, together[ids], side="right") - 1):
                yield self.sources[int(index)]

        for ids in self.fixed:
            for source in source_of(ids):
                source.is_whole = True
        for ids, blocks in self.blocks:
            own = list(source_of(ids))
            # Each of its channels as often as the others, and in order, as a layer makes them.
            times, rest = divmod(len(ids), own[0].count)
            in_order = own[0].first + np.repeat(np.arange(own[0].count), max(1, times))
            if not rest and own[0].count % blocks == 0 and np.array_equal(together[ids], in_order):
                own[0].blocks = math.lcm(own[0].blocks, blocks)

    def _root(self, number: int) -> int:
        while self.parents[number] != number:
            self.parents[number] = self.parents[self.parents[number]]
            number = self.parents[number]
        return number

    def _unite(self, one: Ids, other: Ids) -> None:
        """Say that these are the same channels; the lowest number decides."""
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            a, b = self._root(a), self._root(b)
            self.parents[max(a, b)] = min(a, b)

    def _new(self, path: str, count: int, blocks: int = 1) -> Ids:
        first = len(self.parents)
        self.parents += range(first, first + count)
        self.sources.append(Source(path, first, count, blocks))
        return np.arange(first, first + count)

    def _fix(self, node: fx.Node) -> None:
        """Keep what ``node`` takes whole; of what it gives nothing is known."""
        for given in node.all_input_nodes:
            if given in self.layouts:
                self.fixed.append(self.layouts[given].ids)

    def _follow(self, node: fx.Node, module: nn.Module | None) -> bool:
        """Note what ``node`` does with channels; False where that is not known."""
        if node.op in ("placeholder", "get_attr"):
            return True  # whole: nothing is known of them
        given = node.args[0] if node.args else None
        layout = self.layouts.get(given) if isinstance(given, fx.Node) else None
        if module is not None:
            return self._module(node, module, layout)
        name = op_name(node)
        if name in _READS:
            return not self._is_channel_size(node, layout)
        if name in _PAIRS:
            return self._pair(node)
        if name == "cat":
            return self._cat(node)
        if layout is None:
            return not any(one in self.layouts for one in node.all_input_nodes)
        if name == "flatten":
            start = node.kwargs.get("start_dim", node.args[1] if len(node.args) > 1 else 0)
            return bool(start == 1) and self._flat(node, given, layout)
        if name in ("view", "reshape"):
            return bool(node.args[-1] == -1) and self._flat(node, given, layout)
        if name == "mean":
            return self._mean(node, given, layout)
        if name == "getitem":
            return self._index(node, layout)
        if name in _SAME_CALLS and len(node.all_input_nodes) == 1:
            return self._same(node, layout)
        return False

    def _is_channel_size(self, node: fx.Node, layout: Layout | None) -> bool:
        """Whether a forward asks how many channels there are, and so may count on them."""
        if layout is None or op_name(node) in ("dim", "getattr", "must_be"):
            return (
                op_name(node) == "getattr" and layout is not None and bool(node.args[1] == "shape")
            )
        return len(node.args) < 2 or bool(node.args[1] == layout.axis)

    def _same(self, node: fx.Node, layout: Layout) -> bool:
        shape = self.shapes.get(node, ())
        if len(shape) <= layout.axis or shape[layout.axis] != len(layout.ids):
            return False
        self.layouts[node] = layout
        return True

    def _flat(self, node: fx.Node, given: Any, layout: Layout) -> bool:
        """(B, C, …) → (B, C·…): each channel is repeated."""
        times = math.prod(self.shapes[given][2:])
        if layout.axis != 1 or self.shapes[node][1:] != (len(layout.ids) * times,):
            return False
        self.layouts[node] = Layout(np.repeat(layout.ids, times), 1)
        return True

    def _index(self, node: fx.Node, layout: Layout) -> bool:
        """New axes behind the channels, as for a gate (B, C) on a map (B, C, H, W)."""
        index: Any = node.args[1]
        index = index if isinstance(index, tuple) else (index,)
        own, rest = index[: layout.axis + 1], index[layout.axis + 1 :]
        is_plain = all(one == slice(None) for one in own) and len(own) == layout.axis + 1
        return (
            is_plain and not any(isinstance(one, int) for one in rest) and self._same(node, layout)
        )

    def _mean(self, node: fx.Node, given: Any, layout: Layout) -> bool:
        dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        dims = dims if isinstance(dims, tuple | list) else [dims]
        rank = len(self.shapes[given])
        if any(not isinstance(dim, int) or dim % rank == layout.axis for dim in dims):
            return False
        keeps = len(self.shapes[node]) == rank
        before = 0 if keeps else sum(dim % rank < layout.axis for dim in dims)
        self.layouts[node] = Layout(layout.ids, layout.axis - before)
        return True

    def _pair(self, node: fx.Node) -> bool:
        """Two values whose channels are the same; a number beside a value changes nothing."""
        nodes = [one for one in node.args if isinstance(one, fx.Node) and one in self.shapes]
        layouts = [self.layouts.get(one) for one in nodes]
        known = [layout for layout in layouts if layout is not None]
        if not known:
            return True
        first = known[0]
        if len(known) != len(nodes) or any(
            (len(one.ids), one.axis) != (len(first.ids), first.axis) for one in known
        ):
            return False
        for other in known[1:]:
            self._unite(first.ids, other.ids)
        return self._same(node, first)

    def _cat(self, node: fx.Node) -> bool:
        values: Any = node.args[0]
        if not isinstance(values, tuple | list):
            return False
        dim: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        parts: list[Ids] = []
        known = [self.layouts[one] for one in values if one in self.layouts]
        if not known:
            return True
        if dim != known[0].axis:
            return False
        for value in values:
            layout = self.layouts.get(value)
            if layout is None:  # the input itself, say
                ids = self._new("", self.shapes[value][dim])
                self.fixed.append(ids)
            elif layout.axis != dim:
                return False
            else:
                ids = layout.ids
            parts.append(ids)
        self.layouts[node] = Layout(np.concatenate(parts), dim)
        return True

    def _module(self, node: fx.Node, module: nn.Module, layout: Layout | None) -> bool:
        path = str(node.target)
        if len(node.all_input_nodes) != 1 or "weight" in getattr(module, "parametrizations", ()):
            return False
        if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd):
            return self._convolution(node, module, path, layout)
        if isinstance(module, nn.Linear):
            rank = len(self.shapes[node])
            if layout is not None and layout.axis != rank - 1:
                return False
            self._layer(node, path, layout, module.out_features, rank - 1)
            return True
        if isinstance(module, nn.Embedding) and module.max_norm is None:
            self._layer(node, path, None, module.embedding_dim, len(self.shapes[node]) - 1)
            return True
        if layout is None:
            return True
        if isinstance(module, nn.Flatten):
            return bool(module.start_dim == 1) and self._flat(node, node.args[0], layout)
        is_last = layout.axis == len(self.shapes[node]) - 1
        if isinstance(module, nn.LayerNorm) and not (
            is_last and module.normalized_shape == (len(layout.ids),)
        ):
            return False
        if isinstance(module, nn.GroupNorm):
            self.blocks.append((layout.ids, module.num_groups))
        is_norm = isinstance(module, _BatchNorm | nn.GroupNorm) and layout.axis == 1
        is_prelu = isinstance(module, nn.PReLU) and module.num_parameters > 1 and layout.axis == 1
        if is_norm or is_prelu or isinstance(module, nn.LayerNorm):
            self._takes(path, layout.ids)
            return self._same(node, layout)
        return isinstance(module, (*_SAME, nn.PReLU)) and self._same(node, layout)

    def _convolution(
        self, node: fx.Node, module: _ConvNd, path: str, layout: Layout | None
    ) -> bool:
        if layout is not None and layout.axis != 1:
            return False
        if module.groups > 1 and layout is None:
            return True  # of what comes in nothing is known: it stays whole
        if module.groups > 1 and module.groups == module.in_channels:
            assert layout is not None
            ids = np.repeat(layout.ids, module.out_channels // module.groups)
            self._takes(path, layout.ids)
            self.layers[path].made = ids
            self.layouts[node] = Layout(ids, 1)
            return True
        if module.groups > 1:
            assert layout is not None
            self.blocks.append((layout.ids, module.groups))
        self._layer(node, path, layout, module.out_channels, 1, module.groups)
        return True

    def _layer(
        self,
        node: fx.Node,
        path: str,
        layout: Layout | None,
        count: int,
        axis: int,
        blocks: int = 1,
    ) -> None:
        """A layer that makes new channels; called twice, it makes the same ones."""
        self._takes(path, None if layout is None else layout.ids)
        layer = self.layers[path]
        if layer.made is None:
            layer.made = self._new(path, count, blocks)
        self.layouts[node] = Layout(layer.made, axis)

    def _takes(self, path: str, ids: Ids | None) -> None:
        layer = self.layers.setdefault(path, Layer())
        if layer.taken is not None and ids is not None:
            self._unite(layer.taken, ids)
        elif layer.made is not None and (layer.taken is None) != (ids is None):
            self.fixed.append(ids if ids is not None else layer.taken)  # type: ignore[arg-type]
        layer.taken = ids if layer.taken is None else layer.taken


def _tied(model: nn.Module) -> set[str]:
    """Paths of modules that share a parameter with another one."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(path)
    return {path for paths in owners.values() if len(paths) > 1 for path in paths}
