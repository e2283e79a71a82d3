"""Trace a network with torch.fx, and keep whole whatever fx would get wrong without saying so.

fx runs a forward once on stand-ins and writes down what happens to them. Some things it cannot
follow and says so (control flow on values). Others it follows wrongly in silence: the backward of
a custom ``autograd.Function`` is lost, ``no_grad`` and ``autocast`` blocks vanish,
``torch.rand(3)`` becomes a constant, ``self.n += 1`` happens once, at tracing time. Here a
submodule in which either kind is found becomes one opaque step of the graph, which runs the
submodule itself; in the network's own forward it is an error.

``x += y`` and ``x[i] = y`` overwrite x under all its names, and do so in the graph; a tensor made
in the forward (``torch.zeros``) and overwritten there is not computed on both sides of a cut.

Given an example, control flow on sizes and types is followed, where they are the same for a larger
batch: the graph then checks them each time it runs. Without one such a submodule is kept whole.

Tracing works on a deep copy and leaves every random state as it was. While it runs, torch.fx and
the guards patch ``nn.Module``: let no other thread run a network meanwhile.
"""

import copy
import inspect
import math
import operator
import random
import re
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._functorch.utils
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from models.inputs import remembered

_CONTAINERS = (
    nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Transformer, nn.TransformerEncoder,
    nn.TransformerDecoder,
)  # fmt: skip
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# Operations named like this may draw random numbers: they keep their place in the order.
_RANDOM = re.compile(r"rand|dropout|bernoulli|normal|uniform|multinomial|poisson|rrelu|gumbel")
# Methods that read a value out of a tensor.
_READS = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "equal", "allclose"}
# Methods that multiply.
_PRODUCTS = ("matmul", "bmm", "mm", "addmm", "baddbmm")
_HERE = (str(Path(torch.__file__).parent), __file__)
IN_PLACE = {
    getattr(operator, f"i{name}"): name
    for name in (
        "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor",
        "lshift", "rshift",
    )
}  # fmt: skip
"""``x += y`` and its kin → the name of what they compute."""


class UntraceableError(Exception):
    """Something in a forward that a graph would not repeat faithfully."""


class StateChangeError(UntraceableError):
    """A forward that changes attributes of its module."""


@dataclass(frozen=True)
class Trace:
    """What a model does in one mode.

    Attributes:
        root: the traced copy; the graph's targets are paths in it.
        graph: its operations in execution order. ``node.meta["pinned"]`` is False for what depends
            on parameters and constants alone and may be computed on either side of a cut.
        ends: the modules whose final output a node is, innermost first.
        passes: path of each module that returns an input as it is → the node it returns.
        kept_whole: path of each opaque submodule → why.
        changing: those of them that change their own attributes.
    """

    root: nn.Module
    graph: fx.Graph
    ends: dict[fx.Node, list[str]]
    passes: dict[str, fx.Node]
    kept_whole: dict[str, str]
    changing: frozenset[str]


def trace(model: nn.Module, training: bool, example: Tensor | None = None) -> Trace:
    """Trace a deep copy of ``model`` in training or evaluation mode.

    Args:
        model: the network; left as it is.
        training: the mode.
        example: inputs (B, ...), whose sizes control flow may ask for; None takes what the model
            was built for, if that is known (`models.inputs.remember`).

    Raises:
        ValueError: the model cannot be copied or traced; says where and why.
    """
    name = type(model).__name__
    if _is_compiled(model):
        raise ValueError(f"{name} is compiled by torch.jit: take the network that was compiled")
    if _has_hooks(model):
        raise ValueError(f"{name} has hooks, which a part would not run: put them on a submodule")
    try:
        root = copy.deepcopy(model).train(training)
    except Exception as error:
        raise ValueError(f"{name} cannot be copied: {first_line(error)}") from error
    spec = remembered(model)
    if example is None and spec is not None:
        example = spec.example()
    tracer = _Tracer(None if example is None else _Values(root, example))
    try:
        with preserved_randomness(), _guards(tracer, root), torch.enable_grad():
            before = _Fingerprint.of(root)
            graph = tracer.trace(root)
            before.refuse_changes(root)
    except Exception as error:
        raise ValueError(
            f"{name} cannot be traced: {_reason(error)}; if that part is moved into a submodule, "
            "the submodule is kept whole"
        ) from error
    return Trace(
        root, graph, tracer.ends, tracer.passes, tracer.kept_whole, frozenset(tracer.changing)
    )


def op_name(node: fx.Node) -> str:
    """Name of the operation of ``node``: ``relu``, ``flatten``, the last part of a path."""
    if isinstance(node.target, str):
        return node.target.rpartition(".")[2]
    if node.target in IN_PLACE:
        return IN_PLACE[node.target]
    return str(getattr(node.target, "__name__", node.name))


def changes_in_place(node: fx.Node, root: nn.Module) -> bool:
    """Whether ``node`` is known to overwrite its first argument."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    if node.target in IN_PLACE or node.target is operator.setitem:
        return True
    name = op_name(node)
    if name.endswith("_") and not name.startswith("__"):
        return True
    return bool(node.kwargs.get("inplace", _positional(node, "inplace")))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def state_names(root: nn.Module) -> dict[int, str]:
    """Identity of each parameter and buffer → its first name."""
    names: dict[int, str] = {}
    for name, tensor in named_state(root):
        names.setdefault(id(tensor), name)
    return names


def state_of(node: fx.Node, root: nn.Module) -> set[int]:
    """Identities of the parameters and buffers that ``node`` itself reads or writes."""
    if node.op == "call_module":
        return {id(tensor) for _, tensor in named_state(root.get_submodule(str(node.target)))}
    if node.op == "get_attr":
        path, _, name = str(node.target).rpartition(".")
        value = getattr(root.get_submodule(path), name)
        if isinstance(value, nn.Module):
            return {id(tensor) for _, tensor in named_state(value)}
        return {id(value)}
    return set()


def named_state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers under all their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def seed_all(seed: int) -> None:
    """Seed torch's, Python's and NumPy's global random numbers."""
    torch.manual_seed(seed)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)


@contextmanager
def preserved_randomness() -> Iterator[None]:
    """Put back torch's, Python's and NumPy's random states on the way out."""
    python_state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(numpy_state)


def _in_place(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The method of a stand-in that puts ``function`` into the graph."""

    def method(self: fx.Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


class _Overwriting:
    """Lets a stand-in be overwritten, where fx's own would make a new one of it."""

    for _function, _name in IN_PLACE.items():
        locals()[f"__i{_name}__"] = _in_place(_function)
    tracer: Any
    __array_ufunc__ = None  # numpy's functions would call methods that numbers do not have

    def __len__(self) -> int:
        length: int = self.tracer.length(self)
        return length

    def __index__(self) -> int:
        return operator.index(self.tracer.concrete(self))

    def __int__(self) -> int:
        return int(self.tracer.concrete(self))

    def __float__(self) -> float:
        return float(self.tracer.concrete(self))

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __getattr__(self, name: str) -> "_Attribute":
        return _Attribute(self, name)  # type: ignore[arg-type]

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "root", "attr", "_node"):
            raise UntraceableError(f"assigns .{name} of a tensor")
        super().__setattr__(name, value)


class _Proxy(_Overwriting, fx.Proxy):
    """The stand-in for a result."""


class _Attribute(_Overwriting, fx.proxy.Attribute):
    """The stand-in for an attribute of one, or for its method."""


def drawn_states() -> tuple[Any, Any]:
    """Python's and NumPy's random states, to compare: whether somebody has drawn meanwhile."""
    numpy = sys.modules.get("numpy")
    state = numpy.random.get_state() if numpy else None
    return random.getstate(), state and (state[0], state[1].tolist(), *state[2:])


class _Tracer(fx.Tracer):
    """Follows modules down to torch's own layers, and backs out of those it cannot follow."""

    proxy_buffer_attributes = True  # else arithmetic on buffers is done once, while tracing

    def __init__(self, values: "_Values | None") -> None:
        einops = sys.modules.get("einops")  # its functions take no stand-ins
        wrapped: Any = (math, einops) if einops else (math,)
        super().__init__(autowrap_modules=wrapped)
        self.values = values
        self.ends: dict[fx.Node, list[str]] = {}
        self.passes: dict[str, fx.Node] = {}
        self.kept_whole: dict[str, str] = {}
        self.changing: set[str] = set()
        self._nodes: list[fx.Node] = []
        self._proxies: dict[str, fx.Proxy] = {}
        self._names: dict[int, tuple[str, Tensor]] = {}  # by id, of tensors that live meanwhile

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any
    ) -> Any:
        """Put ``a @ b`` and ``a.matmul(b)`` down as the call of a function of torch's.

        A `TorchFunctionMode` sees those alone, where no tensors are multiplied but stand-ins.
        """
        if target is operator.matmul:
            return torch.matmul(*args)
        if kind == "call_method" and target in _PRODUCTS:
            return getattr(torch, target)(*args, **kwargs)
        return super().create_proxy(kind, target, args, kwargs, *rest, **named)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Torch's layers, classes derived from them, and modules with hooks are one step each.

        So are what torch.jit has compiled, and quantizers, which say so.
        """
        return (
            getattr(m, "is_quantizer", False)
            or _has_hooks(m)
            or _is_compiled(m)
            or any(
                base.__module__.startswith(("torch.nn", "torch.ao.nn")) and base not in _CONTAINERS
                for base in type(m).__mro__
            )
        )

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Leave optional arguments of the model's forward at their defaults."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        if len(args) < 2 or args[1].node.target.startswith("*"):
            raise UntraceableError("forward must name its input, not take *args alone")
        for position, arg in enumerate(args[2:], start=2):
            name, default = str(arg.node.target), arg.node.args
            if not default and not name.startswith("*"):
                raise UntraceableError(f"forward takes a second input, {name}")
            args[position] = default[0] if default else {} if name.startswith("**") else ()
            self.graph.erase_node(arg.node)
        return function, args

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """The stand-in for the result of ``node``."""
        return _Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Follow control flow on sizes."""
        return bool(self.concrete(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Go through something whose length is known."""
        return iter([obj[index] for index in range(self.length(obj))])  # type: ignore[index]

    def concrete(self, obj: fx.Proxy) -> Any:
        """The number that ``obj`` stands for; the graph will check it.

        Raises:
            UntraceableError: it is no number, or depends on values or on the size of the batch.
        """
        if self.values is None:
            raise UntraceableError("control flow on what comes in")
        value = self.values.number(obj.node, self._nodes)
        self.create_proxy("call_function", must_be, (obj, value), {})
        return value

    def length(self, obj: fx.Proxy) -> int:
        """The length of what ``obj`` stands for.

        Raises:
            UntraceableError: it has none, or it depends on the size of the batch.
        """
        if self.values is None:
            raise UntraceableError("control flow on the length of what comes in")
        length = self.values.length(obj.node, self._nodes)
        if self.values.is_tensor(obj.node):
            size = self.create_proxy("call_method", "size", (obj, 0), {})
            self.create_proxy("call_function", must_be, (size, length), {})
        return length

    def create_node(
        self,
        kind: str,
        target: Any,
        args: Any,
        kwargs: Any,
        name: str | None = None,
        type_expr: Any = None,
    ) -> fx.Node:
        """Note the order of nodes and which are pinned to it; refuse what a graph cannot hold."""
        if kind not in ("placeholder", "get_attr", "output") and not torch.is_grad_enabled():
            raise UntraceableError(
                "runs without gradients (no_grad, or inside a custom autograd function)"
            )
        node = super().create_node(kind, target, args, kwargs, name)  # no annotations in the code
        node.meta["order"] = len(self._nodes)
        self._nodes.append(node)
        node.meta["pinned"] = (
            kind in ("placeholder", "call_module", "output")
            or any(previous.meta["pinned"] for previous in node.all_input_nodes)
            or (kind != "get_attr" and _RANDOM.search(op_name(node)) is not None)
        )
        written = [node.kwargs.get("out")]
        if node.args and changes_in_place(node, self.root):
            written.append(node.args[0])
        for value in written:
            if isinstance(value, fx.Node) and not value.meta["pinned"]:
                self._pin(value, op_name(node))
                node.meta["pinned"] = True
        return node

    def _pin(self, node: fx.Node, by: str) -> None:
        """Have ``node``, which is overwritten, and what shares its memory computed once only."""
        family, new = {node}, [node]
        while new:
            member = new.pop()
            if member.op == "get_attr":
                raise StateChangeError(f"{by} overwrites a parameter, buffer or constant")
            near = {n for n in (*member.all_input_nodes, *member.users) if not n.meta["pinned"]}
            new.extend(near - family)
            family |= near
        for member in family:
            member.meta["pinned"] = True

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Give parameters and buffers stand-ins; remember these, to clean them when backing out.

        As torch.fx does, which looks through all of them each time.
        """
        self._proxies = parameter_proxy_cache
        if not isinstance(attr_val, Tensor):
            return attr_val
        if not self._names:
            named = (*self.root.named_buffers(), *self.root.named_parameters())
            self._names = {id(tensor): (name, tensor) for name, tensor in named}
        name, _ = self._names.get(id(attr_val), ("", None))
        if name and name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name] if name else attr_val

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Follow ``m``, or make it one opaque step where that fails or would be unfaithful."""
        if m not in (self.submodule_paths or {}):
            return forward(*args, **kwargs)  # made inside a forward, such as nn.ReLU()(x)
        path = self.path_of_module(m)
        inner = any(name != "parametrizations" for name, _ in m.named_children())
        is_leaf = self.is_leaf_module(m, path)
        if is_leaf and inner:
            self.kept_whole[path] = (
                "it has hooks" if _has_hooks(m)
                else "it is compiled by torch.jit" if _is_compiled(m)
                else "it is a layer of torch's"
            )  # fmt: skip
        start, depth = len(self._nodes), len(self.module_stack)
        grad_enabled = torch.is_grad_enabled()
        before = None if is_leaf else _Fingerprint.of(m)
        try:
            result = super().call_module(m, forward, args, kwargs)
            if before is not None:
                before.refuse_changes(m)
        except Exception as error:
            if before is None:
                raise
            torch.set_grad_enabled(grad_enabled)
            before.restore_randomness()
            self._back_out(path, start, depth)
            self.kept_whole[path] = _reason(error)
            if isinstance(error, StateChangeError):
                self.changing.add(path)
            result = self.create_proxy("call_module", path, args, kwargs)
        if isinstance(result, fx.Proxy) and not getattr(m, "is_quantizer", False):
            if result.node.meta["order"] >= start:
                self.ends.setdefault(result.node, []).append(path)
            else:
                self.passes[path] = result.node
        return result

    def _back_out(self, path: str, start: int, depth: int) -> None:
        """Undo what following the module at ``path`` has left in the graph."""
        while len(self.module_stack) > depth:
            self.module_stack.popitem(last=True)
        for node in reversed(self._nodes[start:]):
            self.graph.erase_node(node)
            self.ends.pop(node, None)
        erased = set(self._nodes[start:])
        del self._nodes[start:]
        if self.values is not None:
            self.values.forget(erased)
        for name in [name for name, proxy in self._proxies.items() if proxy.node in erased]:
            del self._proxies[name]
        for inner in [n for n, _ in self.root.get_submodule(path).named_modules(prefix=path) if n]:
            self.kept_whole.pop(inner, None)
            self.passes.pop(inner, None)
            self.changing.discard(inner)


def must_be(value: Any, expected: Any) -> None:
    """Refuse sizes for which a graph was not made.

    Raises:
        ValueError: they differ.
    """
    if value != expected:
        raise ValueError(
            f"the sizes are not those that the network was traced with: {value}, not {expected}"
        )


# What is said of a tensor without looking at its values; not its device, on which it may move.
_SIZES = {"size", "shape", "dim", "ndim", "ndimension", "numel", "nelement", "dtype", "itemsize"}
_SIZES |= {"is_floating_point", "is_complex", "is_sparse", "is_nested", "is_quantized", "layout"}
# What gives sizes that depend on values.
_COUNTS = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount"}


class _Values:
    """What the operations of a graph give for two batches of unequal size.

    Args:
        root: the network, of which a copy is run.
        example: one batch; the other has a sample more.
    """

    def __init__(self, root: nn.Module, example: Tensor) -> None:
        self._root: nn.Module | None = None
        self._original = root
        self._inputs = (example, torch.cat([example, example[:1]]))
        self._known: dict[fx.Node, tuple[Any, Any]] = {}
        self._counted: set[fx.Node] = set()  # what has sizes that depend on values
        self.running = False

    def number(self, node: fx.Node, nodes: Sequence[fx.Node]) -> Any:
        """What is no tensor and the same for both, as far as it came about through sizes."""
        self._run(nodes)
        one, other = self._of(node)
        self._refuse_values(node)
        if one != other:
            raise UntraceableError("control flow on the size of the batch")
        return one

    def length(self, node: fx.Node, nodes: Sequence[fx.Node]) -> int:
        """The length that is the same for both."""
        self._run(nodes)
        one, other = (len(value) for value in self._of(node))
        if node in self._counted:
            raise UntraceableError("a loop over what depends on the values of a tensor")
        if one != other:
            raise UntraceableError("a loop over the batch")
        return one

    def is_tensor(self, node: fx.Node) -> bool:
        """Whether ``node``, which was asked for before, gives a tensor."""
        return isinstance(self._known[node][0], Tensor)

    def forget(self, nodes: Iterable[fx.Node]) -> None:
        """``nodes`` are gone."""
        for node in nodes:
            self._known.pop(node, None)
            self._counted.discard(node)

    def _of(self, node: fx.Node) -> tuple[Any, Any]:
        if node not in self._known:
            raise UntraceableError("control flow on what could not be computed for an example")
        return self._known[node]

    def _refuse_values(self, node: fx.Node) -> None:
        one = self._of(node)[0]
        if isinstance(one, Tensor):
            raise UntraceableError("control flow on the values of a tensor")
        whole_shape = node.target is operator.getitem  # of which this node takes what it needs
        for previous in node.all_input_nodes:
            a, b = self._of(previous)
            if isinstance(a, Tensor):
                name = node.args[1] if node.target is getattr else op_name(node)
                if name in ("device", "is_cuda", "get_device"):
                    raise UntraceableError("control flow on the device of a tensor")
                if name not in _SIZES or previous in self._counted:
                    raise UntraceableError("control flow on the values of a tensor")
            else:
                self._refuse_values(previous)
                if a != b and not whole_shape:
                    raise UntraceableError("control flow on the size of the batch")

    def _run(self, nodes: Sequence[fx.Node]) -> None:
        """Compute what is not known yet."""
        self.running = True
        try:
            with torch.no_grad(), preserved_randomness():
                if self._root is None:
                    self._root = copy.deepcopy(self._original)
                for node in nodes:
                    if node not in self._known:
                        self._known[node] = (self._result(node, 0), self._result(node, 1))
                        if self._counts(node):
                            self._counted.add(node)
        except UntraceableError:
            raise
        except Exception as error:
            reason = f"control flow on what an example does not tell: {first_line(error)}"
            raise UntraceableError(reason) from error
        finally:
            self.running = False

    def _counts(self, node: fx.Node) -> bool:
        if any(previous in self._counted for previous in node.all_input_nodes):
            return True
        if node.target is operator.getitem:
            index = pytree.tree_leaves(node.args[1])
            values = [self._known[i][0] if isinstance(i, fx.Node) else i for i in index]
            return any(isinstance(v, Tensor) and v.dtype == torch.bool for v in values)
        name = op_name(node)
        return name in _COUNTS or (name == "where" and len(node.args) == 1)

    def _result(self, node: fx.Node, which: int) -> Any:
        if node.op == "placeholder":
            return self._inputs[which].clone()
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self._root)
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs), lambda previous: self._known[previous][which]
        )
        if node.op == "call_module":
            assert self._root is not None
            return self._root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


class _Recorder(TorchFunctionMode):
    """Puts into the graph what torch computes from no input: random numbers and constants."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        result = func(*args, **kwargs)
        if self._tracer.values is not None and self._tracer.values.running:
            return result
        if isinstance(result, fx.Proxy):
            return result
        if name in _READS:
            raise UntraceableError(
                f"{name} reads the value of a tensor that is not a parameter or buffer"
            )
        if not isinstance(result, Tensor) or name == "__get__":
            return result
        return self._tracer.create_proxy("call_function", func, args, kwargs)


# Functions that take sizes, but no stand-ins for them.
_FACTORIES = ("arange", "empty", "eye", "finfo", "full", "linspace", "normal", "ones", "rand",
              "randint", "randn", "randperm", "tensor", "zeros")  # fmt: skip


def _following(function: Any, tracer: _Tracer) -> Callable[..., Any]:
    """``function``, put into the graph where it is given stand-ins."""

    def followed(*args: Any, **kwargs: Any) -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        if not any(isinstance(leaf, fx.Proxy) for leaf in leaves):
            return function(*args, **kwargs)
        if function is torch.finfo:
            return function(tracer.concrete(args[0]))
        return tracer.create_proxy("call_function", function, args, kwargs)

    return followed


@contextmanager
def _guards(tracer: _Tracer, root: nn.Module) -> Iterator[None]:
    """Make what fx would silently get wrong raise, for the modules of ``root``."""
    own = {id(module) for module in root.modules()}
    set_attribute = nn.Module.__setattr__
    enter_autocast = torch.autocast.__enter__
    unwrap = torch._functorch.utils.unwrap_dead_wrappers

    def refuse_assignment(module: nn.Module, name: str, value: Any) -> None:
        if id(module) not in own:
            set_attribute(module, name, value)
        elif name.startswith("_tensor_constant"):
            raise UntraceableError(
                "uses a tensor that is not a parameter, buffer or attribute of the model"
            )
        else:
            raise StateChangeError(f"forward assigns self.{name}")

    def refuse_autocast(block: torch.autocast) -> Any:
        if tracer.values is not None and tracer.values.running:
            return enter_autocast(block)  # type: ignore[no-untyped-call]
        raise UntraceableError("has an autocast block")

    def refuse_function(args: tuple[Any, ...]) -> tuple[Any, ...]:
        if any(isinstance(arg, fx.Proxy) for arg in args):
            raise UntraceableError("uses a custom autograd function")
        return unwrap(args)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]

    with ExitStack() as undo:
        for owner, name, guard, original in (
            (nn.Module, "__setattr__", refuse_assignment, set_attribute),
            (torch.autocast, "__enter__", refuse_autocast, enter_autocast),
            # Every Function.apply passes here, also one bound to a name before.
            (torch._functorch.utils, "unwrap_dead_wrappers", refuse_function, unwrap),
        ):
            setattr(owner, name, guard)
            undo.callback(setattr, owner, name, original)
        for name in _FACTORIES:
            original = getattr(torch, name)
            setattr(torch, name, _following(original, tracer))
            undo.callback(setattr, torch, name, original)
        undo.enter_context(_Recorder(tracer))
        yield


_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class _Fingerprint:
    """What `__setattr__` does not see: the items of a module's containers, and random states."""

    containers: dict[str, tuple[int, ...]]
    python_state: Any
    numpy_state: Any

    @staticmethod
    def of(module: nn.Module) -> "_Fingerprint":
        containers = {
            name: tuple(map(id, value.values() if isinstance(value, dict) else value))
            for name, value in vars(module).items()
            if isinstance(value, (list, dict, set, deque)) and name not in _MODULE_ATTRIBUTES
        }
        return _Fingerprint(containers, *drawn_states())

    def refuse_changes(self, module: nn.Module) -> None:
        """Raise if ``module``'s containers or the random states have changed since."""
        now = _Fingerprint.of(module)
        for name, items in now.containers.items():
            if self.containers.get(name) != items:
                raise StateChangeError(f"forward changes self.{name}")
        if (self.python_state, self.numpy_state) != (now.python_state, now.numpy_state):
            raise UntraceableError("forward draws from Python's or NumPy's random numbers")

    def restore_randomness(self) -> None:
        """Put the random states back."""
        random.setstate(self.python_state)
        if self.numpy_state:
            sys.modules["numpy"].random.set_state(self.numpy_state)


def _is_compiled(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, hooks, None) for hooks in _HOOKS)


def _positional(node: fx.Node, name: str) -> Any:
    """The argument ``name`` of a function's node, or None where it has none."""
    if not node.args or not inspect.isroutine(node.target):
        return None
    try:
        return inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments.get(name)
    except (TypeError, ValueError):  # builtins without a signature
        return None


def _reason(error: BaseException) -> str:
    """Why, and the line of the user's code at which it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_HERE)]
    what = first_line(error)
    if isinstance(error, LookupError):  # whose message is the key alone
        what = f"{type(error).__name__}: {what}"
    if not own:
        return what
    where = f"{Path(own[-1].filename).name}, line {own[-1].lineno}"
    code = f": `{own[-1].line}`" if own[-1].line else ""
    return f"{what} ({where}{code})"
