"""Where a network can be cut: its operations in order, what is alive after each, and names.

Which tensors are alive, which state lies on which side and which operations overwrite their input
is read from the traces. Shapes, types and overwriting through views are seen by running the network
on an example, where there is one.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from models.eager import prepare_counting
from models.trace import (
    Trace,
    changes_in_place,
    first_line,
    op_name,
    preserved_randomness,
    state_names,
    state_of,
    trace,
)

# What asks a tensor for a number instead of making a tensor.
_NUMBERS = {"size", "dim", "numel", "stride", "item", "tolist", "ndimension", "nelement"}
_NUMBERS |= {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "itemsize", "nbytes"}


@dataclass(frozen=True)
class Place:
    """An operation of a network, and whether one can cut after it.

    Attributes:
        node: the operation in the trace of one mode.
        last: the last operation before the cut: ``node`` itself, or one whose result is not used.
        names: the name of ``node``, then its aliases.
        position: index of ``node`` in the execution.
        shape: of its result, without the batch; () where no example was run.
        refusal: why one cannot cut here; empty where one can.
    """

    node: fx.Node
    last: fx.Node
    names: tuple[str, ...]
    position: int
    shape: tuple[int, ...]
    refusal: str

    def is_within(self, module: str) -> bool:
        """Whether the operation is one of those that the module of that path makes."""
        target = str(self.node.target) if self.node.op == "call_module" else ""
        return any(f"{path}.".startswith(f"{module}.") for path in (target, *self.names) if path)


@dataclass(frozen=True)
class Survey:
    """The places of a network.

    Attributes:
        model: the network.
        training: its trace in training.
        evaluation: its trace in evaluation.
        places: those of its execution in training, refused where evaluation does not allow them.
        counterparts: name in training → the same place in evaluation.
    """

    model: nn.Module
    training: Trace
    evaluation: Trace
    places: list[Place]
    counterparts: dict[str, Place]

    @staticmethod
    def of(model: nn.Module, example: Tensor | None) -> "Survey":
        """Trace ``model``, run it on ``example`` if there is one, and look at every operation.

        Raises:
            ValueError: it cannot be copied, traced or run; says where and why.
        """
        training, evaluation = trace(model, True, example), trace(model, False, example)
        there = _places(evaluation, example)
        by_name = {name: place for place in there for name in place.names}
        by_node = {place.node: place for place in there}

        def counterpart(name: str) -> Place | None:
            base, plus, operations = name.partition("+")
            if name in by_name or base not in evaluation.passes:
                return by_name.get(name)
            before = by_node.get(evaluation.passes[base])  # base does something in training only
            return by_name.get(before.names[0] + plus + operations) if before else None

        places, counterparts = [], {}
        for place in _places(training, example):
            other = counterpart(place.names[0])
            refusal = place.refusal or (other.refusal if other else "it exists in training only")
            places.append(replace(place, refusal=refusal))
            if other:
                counterparts[place.names[0]] = other
        return Survey(model, training, evaluation, places, counterparts)

    @property
    def valid(self) -> list[Place]:
        """The cut points."""
        return [place for place in self.places if not place.refusal]

    @property
    def kept_whole(self) -> dict[str, str]:
        """Path of each submodule that is one step, in either mode → why."""
        return {**self.evaluation.kept_whole, **self.training.kept_whole}

    def without_cuts(self) -> str:
        """Say that there are no cut points, and why."""
        reasons = [f"{path!r} is kept whole: {why}" for path, why in self.kept_whole.items()]
        crossing = [p for p in self.places if "would cross" in p.refusal] or self.places[-1:]
        fewest = min(crossing, key=lambda place: len(place.refusal), default=None)
        if fewest and not reasons:
            reasons = [f"after {fewest.names[0]!r}: {fewest.refusal}"]
        text = f"{type(self.model).__name__} has no cut points"
        return f"{text}; {'; '.join(reasons)}" if reasons else text

    def find(self, at: str) -> Place:
        """The cut point called ``at``.

        Raises:
            ValueError: there is none; says why and what to take instead.
        """
        for place in self.places:
            if at in place.names:
                if place.refusal:
                    raise self._error(at, place.refusal, place.position)
                return place
        for path, reason in self.kept_whole.items():
            if at.startswith(f"{path}."):
                refusal = f"it lies inside {path!r}, which is kept whole: {reason}"
                raise self._error(at, refusal, self._last_position(path))
        calls = [place for place in self.places if _calls(place.node, at)]
        if len(calls) > 1:
            named = ", ".join(place.names[0] for place in calls if not place.refusal)
            refusal = (
                f"it is called {len(calls)} times; cut points among its calls: {named or 'none'}"
            )
            raise self._error(at, refusal, calls[-1].position)
        if at and at in dict(self.model.named_modules()):
            refusal = "it is not a step of the network's forward that ends in one tensor of its own"
            raise self._error(at, refusal, self._last_position(at))
        names = [name for place in self.valid for name in place.names]
        nearest = ", ".join(difflib.get_close_matches(at, names, n=3, cutoff=0.0)) or "none"
        name = type(self.model).__name__
        raise ValueError(f"{name} has no cut point {at!r}; the nearest names are {nearest}")

    def _error(self, at: str, refusal: str, position: int | None) -> ValueError:
        message = f"{type(self.model).__name__} cannot be cut at {at!r}: {refusal}"
        if position is None:
            return ValueError(message)
        before = [place.names[0] for place in self.valid if place.position < position][-1:]
        after = [place.names[0] for place in self.valid if place.position > position][:1]
        nearest = [f"{name!r} before it" for name in before]
        nearest += [f"{name!r} after it" for name in after]
        return ValueError(f"{message}; nearest cut points: {' and '.join(nearest) or 'none'}")

    def _last_position(self, path: str) -> int | None:
        """Where the last operation of the module at ``path`` is."""
        inside = [
            place.position
            for place in self.places
            if any(f"{name}.".startswith(f"{path}.") for name in place.names)
        ]
        return max(inside, default=None)


@dataclass(frozen=True)
class _Value:
    """What running the network showed of an operation's result."""

    shape: tuple[int, ...]
    is_float_tensor: bool
    has_batch: bool
    overwritten: bool


class _Runner(fx.Interpreter):
    """Runs a trace and notes something after each operation."""

    def __init__(self, traced: Trace, note: Callable[[fx.Node, Any], None]) -> None:
        super().__init__(traced.root, graph=traced.graph)
        self.extra_traceback = False
        self._note = note

    def run_node(self, n: fx.Node) -> Any:
        """Run one operation."""
        result = super().run_node(n)
        self._note(n, result)
        return result


def run_noting(traced: Trace, example: Tensor, note: Callable[[fx.Node, Any], None]) -> None:
    """Run a trace on ``example``, and note something of what each operation gives.

    Raises:
        ValueError: it cannot run.
    """
    try:
        with torch.no_grad(), preserved_randomness():
            _Runner(traced, note).run(example.clone())
    except Exception as error:
        raise ValueError(
            f"the model cannot take an example of {tuple(example.shape)}: {first_line(error)}"
        ) from error


def _measured(traced: Trace, example: Tensor) -> dict[fx.Node, _Value]:
    """Run ``traced`` on ``example``; its root's buffers are used up."""
    seen: list[tuple[fx.Node, Any, int]] = []

    def note(node: fx.Node, value: Any) -> None:
        seen.append((node, value, value._version if isinstance(value, Tensor) else 0))

    run_noting(traced, example, note)
    values = {}
    for node, value, version in seen:
        if isinstance(value, Tensor):  # views share the count of overwrites with their base
            shape = tuple(value.shape)
            has_batch = shape[:1] == tuple(example.shape[:1])
            values[node] = _Value(
                shape[1:], value.is_floating_point(), has_batch, value._version != version
            )
        else:
            values[node] = _Value((), False, False, False)
    return values


def flops_until(traced: Trace, example: Tensor) -> dict[fx.Node, int]:
    """FLOPs from the start of the network to the end of each operation, for the whole batch."""
    prepare_counting()
    flops: dict[fx.Node, int] = {}
    with FlopCounterMode(display=False) as counter:
        run_noting(traced, example, lambda node, _: flops.update({node: counter.get_total_flops()}))
    return flops


def _places(traced: Trace, example: Tensor | None) -> list[Place]:
    """Every operation that depends on the input, with what speaks against cutting after it."""
    nodes = list(traced.graph.nodes)
    names = _names(traced)
    values = {} if example is None else _measured(traced, example)
    position = {node: index for index, node in enumerate(nodes)}
    last_use = {node: max(map(position.__getitem__, node.users), default=-1) for node in nodes}
    spans = _state_spans(traced, position)
    first_parameter = min(
        (spans[name][0] for name, _ in traced.root.named_parameters() if name in spans),
        default=len(nodes),
    )
    alive: list[fx.Node] = []
    alive_after: dict[fx.Node, list[fx.Node]] = {}
    last_before: dict[fx.Node, int] = {}  # the first moment at which a node alone is alive
    for index, node in enumerate(nodes):
        alive = [n for n in [*alive, node] if n.meta["pinned"] and last_use[n] > index]
        alive_after[node] = alive
        if len(alive) == 1:
            last_before.setdefault(alive[0], index)
    places = []
    for position_of_node, node in enumerate(nodes):
        if not node.meta["pinned"] or node.op in ("placeholder", "output"):
            continue
        index = last_before.get(node, position_of_node)
        alive = alive_after[nodes[index]]
        shared = [name for name, (first, last) in spans.items() if first <= index < last]
        value = values.get(node)
        if last_use[node] == len(nodes) - 1 and all(user.op == "output" for user in node.users):
            refusal = "it is the network's output, nothing would be left for the server"
        elif node not in alive:
            refusal = "its result is not used"
        elif len(alive) > 1:
            crossing = ", ".join(names[n][0] for n in alive)
            refusal = f"{len(alive)} values would cross: {crossing}"
        elif _is_quantizer(node, traced.root):
            refusal = "it quantizes an operand of what comes next"
        elif _is_number(node) or (value and not value.is_float_tensor):
            refusal = "the tensor that crosses is not of floating point"
        elif overwriter := _overwriter(node, traced.root):
            refusal = f"{names[overwriter][0]} overwrites it in place"
        elif value and value.overwritten:
            refusal = "it is overwritten in place later"
        elif value and not value.has_batch:
            refusal = "the first dimension of what crosses is not the batch"
        elif shared:
            refusal = f"{shared[0]} is used on both sides"
        elif index < first_parameter:
            refusal = "there is no parameter before it, nothing for the client to train"
        else:
            refusal = ""
        shape = value.shape if value else ()
        places.append(Place(node, nodes[index], names[node], position_of_node, shape, refusal))
    return places


def _names(traced: Trace) -> dict[fx.Node, tuple[str, ...]]:
    """Each node's name and aliases, the name of the outermost module first."""
    calls: dict[str, int] = {}
    for paths in traced.ends.values():
        for path in paths:
            calls[path] = calls.get(path, 0) + 1
    names: dict[fx.Node, tuple[str, ...]] = {}
    base, operations = "input", list[str]()
    for node in traced.graph.nodes:
        paths = [path for path in reversed(traced.ends.get(node, [])) if calls[path] == 1]
        if paths:
            base, operations = paths[0], []
            names[node] = tuple(paths)
        elif node.op == "placeholder":
            names[node] = ("input",)
        elif not node.meta["pinned"] or node.op == "output":
            names[node] = (node.name,)
        elif _is_quantizer(node, traced.root) or _is_number(node):
            names[node] = ("+".join([base, *operations]) + f".{op_name(node)}",)
        else:
            operations.append(op_name(node))
            names[node] = ("+".join([base, *operations]),)
    return names


def _is_quantizer(node: fx.Node, root: nn.Module) -> bool:
    """Whether ``node`` is a quantizer that stands by itself, not inside a layer."""
    if node.op != "call_module":
        return False
    return bool(getattr(root.get_submodule(str(node.target)), "is_quantizer", False))


def _is_number(node: fx.Node) -> bool:
    """Whether ``node`` is a size or such, or computed from sizes alone."""
    if node.op == "call_method":
        return node.target in _NUMBERS
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _NUMBERS
    if str(getattr(node.target, "__module__", "")).startswith("torch"):
        return False
    inputs = node.all_input_nodes
    return bool(inputs) and all(_is_number(previous) for previous in inputs)


def _overwriter(node: fx.Node, root: nn.Module) -> fx.Node | None:
    """The operation that is known to overwrite the result of ``node`` directly."""
    for user in node.users:
        if user.args and user.args[0] is node and changes_in_place(user, root):
            return user
    return None


def _state_spans(traced: Trace, position: dict[fx.Node, int]) -> dict[str, tuple[int, int]]:
    """Name of each parameter, buffer and self-changing module → its first and last use."""
    names = state_names(traced.root)
    reads: dict[fx.Node, set[str]] = {}
    spans: dict[str, tuple[int, int]] = {}
    for node in traced.graph.nodes:
        read = {names[key] for key in state_of(node, traced.root) & names.keys()}
        if node.op == "call_module" and node.target in traced.changing:
            read.add(str(node.target))
        for previous in node.all_input_nodes:
            if not previous.meta["pinned"]:
                read |= reads[previous]
        reads[node] = read
        if node.meta["pinned"]:
            for name in read:
                spans[name] = (spans.get(name, (position[node],))[0], position[node])
    order = [*names.values(), *sorted(traced.changing)]
    return {name: spans[name] for name in dict.fromkeys(order) if name in spans}


def _calls(node: fx.Node, path: str) -> bool:
    return node.op == "call_module" and node.target == path
