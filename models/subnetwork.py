"""A part of a network: a pruned deep copy that runs one stretch of the traced operations.

A ``torch.fx.GraphModule`` would be shorter and wrong for this: it drops unused state, turns
non-persistent buffers persistent, shares parameters with the model it came from, and fixes train
and eval when it is made.
"""

import copy
import importlib
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from models.crossing import answer, receive
from models.inputs import forget, remember, remembered
from models.trace import (
    IN_PLACE,
    Trace,
    first_line,
    named_state,
    preserved_randomness,
    state_names,
    state_of,
)

CHECK_STEPS = 2
CHECK_LR = 0.01


@dataclass(frozen=True)
class Code:
    """A forward's source and what it refers to, in a form that pickles.

    Attributes:
        source: defines ``forward(self, x)``.
        modules: global name → Python module's name.
        objects: global name → function or class, pickled by reference.
    """

    source: str
    modules: dict[str, str]
    objects: dict[str, Any]

    @staticmethod
    def of(graph: fx.Graph) -> "Code":
        """The code of ``graph``, whose targets are paths from ``self``."""
        for node in graph.nodes:
            node.meta.pop("is_wrapped", None)  # else the source begins with calls of fx.wrap
            if node.target in IN_PLACE:  # `a += b` in the source would rebind the name of a number
                node.args = (IN_PLACE[node.target], *node.args)
                node.target = in_place
        code = graph.python_code("self")
        namespace: dict[str, Any] = {}
        exec(compile(code.src, "<part>", "exec"), namespace)
        used = namespace["forward"].__code__.co_names
        found = {name: value for name, value in code.globals.items() if name in used}
        modules = {n: v.__name__ for n, v in found.items() if isinstance(v, ModuleType)}
        return Code(code.src, modules, {n: v for n, v in found.items() if n not in modules})

    def compile(self) -> Callable[[nn.Module, Any], Any]:
        """The forward as a function of a module and its input."""
        namespace = {name: importlib.import_module(path) for name, path in self.modules.items()}
        namespace.update(self.objects)
        exec(compile(self.source, "<part>", "exec"), namespace)
        return namespace["forward"]  # type: ignore[return-value]


def in_place(name: str, left: Any, right: Any) -> Any:
    """What ``left`` is after ``left += right``, where ``name`` is ``add``."""
    return getattr(operator, f"i{name}")(left, right)


class Part(nn.Module):
    """One stretch of a network, with the names of the whole network's parameters and buffers.

    Made by `models.split.cut`. Pickles, deep-copies and moves between devices and dtypes like any
    module, and follows its own train/eval mode. The mode of functions such as
    ``F.dropout(x, training=self.training)`` is that of the part, not of the submodule in whose
    forward they were written.

    Args:
        pruned: a copy of the network that keeps only this part's modules and state; it is used up.
        train_code: the forward in training mode.
        eval_code: the forward in evaluation mode.
        frozen: paths of modules that stay in evaluation mode, as the network's own ``train`` wants.

    Shapes: whatever crosses the cut before it → whatever crosses the cut after it.
    """

    def __init__(
        self,
        pruned: nn.Module,
        train_code: Code,
        eval_code: Code,
        frozen: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.__dict__.update(vars(pruned))
        forget(self)
        self._part_code = {True: train_code, False: eval_code}
        self._part_frozen = frozen
        self._part_forward = _compiled(self._part_code)

    def forward(self, x: Any) -> Any:
        """Run the code of the current mode."""
        return self._part_forward[self.training](self, x)

    def train(self, mode: bool = True) -> "Part":
        """Change the mode, but for modules that the network's own ``train`` keeps out of it."""
        super().train(mode)
        for name, module in self.named_modules():
            if name in self._part_frozen:
                module.training = False
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_part_forward"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._part_forward = _compiled(self._part_code)


def build_parts(
    model: nn.Module, stretches: Sequence[tuple[Trace, Sequence[tuple[fx.Node, fx.Node]]]]
) -> list[Part]:
    """Cut ``model`` at the given nodes.

    State that no operation uses belongs to the second part, the server's.

    Args:
        model: the network; left as it is.
        stretches: its traces in training and in evaluation, each with its cuts: the node whose
            result crosses, and the last node before the cut.

    Raises:
        ValueError: a parameter or buffer is used in different parts.
    """
    num_parts = len(stretches[0][1]) + 1
    owners: dict[str, int] = {}
    called: list[set[str]] = [set() for _ in range(num_parts)]
    parents: list[set[str]] = [set() for _ in range(num_parts)]
    codes: list[list[Code]] = [[] for _ in range(num_parts)]
    for trace, cuts in stretches:
        names = state_names(trace.root)
        for part, (graph, nodes) in enumerate(_stretches(trace.graph, cuts)):
            codes[part].append(Code.of(graph))
            for node in nodes:
                if node.op == "call_module":
                    called[part].add(str(node.target))
                elif node.op == "get_attr":
                    parents[part].add(str(node.target).rpartition(".")[0])
                for name in sorted(names[key] for key in state_of(node, trace.root) & names.keys()):
                    if owners.setdefault(name, part) != part:
                        raise ValueError(f"{name} is used on both sides of a cut")
    training = stretches[0][0].root
    frozen = frozenset(name for name, m in training.named_modules() if name and not m.training)
    parts = [
        Part(
            _pruned(model, part, owners, called[part], parents[part]),
            train_code=codes[part][0],
            eval_code=codes[part][1],
            frozen=frozen,
        )
        for part in range(num_parts)
    ]
    if spec := remembered(model):
        remember(parts[0], spec)  # it has the network's input
    return parts


def check_parts(model: nn.Module, parts: Sequence[Part], example: Tensor) -> None:
    """Train and evaluate copies of the parts and of the whole on ``example``.

    On the CPU and one thread, where sums do not depend on chance.

    Raises:
        ValueError: outputs, gradients or buffers differ in any bit, or either cannot run.
    """
    whole = copy.deepcopy(model).cpu()
    copies = [copy.deepcopy(part).cpu() for part in parts]
    x = example.detach().cpu()
    with preserved_randomness(), _one_thread(), torch.enable_grad():
        for training in [True] * CHECK_STEPS + [False]:
            with preserved_randomness():
                try:
                    expected = _run([whole.train(training)], x)
                except Exception as error:
                    raise ValueError(
                        f"the model cannot take the example: {first_line(error)}"
                    ) from error
            try:
                actual = _run([part.train(training) for part in copies], x)
            except Exception as error:
                raise ValueError(f"the parts cannot run: {first_line(error)}") from error
            different = next((n for n in expected if not _same(expected[n], actual.get(n))), None)
            if different is not None:
                mode = "training" if training else "evaluation"
                raise ValueError(f"cut and uncut differ in {mode}: the {different}")


def _stretches(
    graph: fx.Graph, cuts: Sequence[tuple[fx.Node, fx.Node]]
) -> Iterator[tuple[fx.Graph, list[fx.Node]]]:
    """Each part's own graph, and the nodes it was copied from."""
    nodes = list(graph.nodes)
    start = next(node for node in nodes if node.op == "placeholder")
    low = -1
    begins = [start, *(node for node, _ in cuts)]
    for begin, (end, last) in zip(begins, [*cuts, (nodes[-1], nodes[-1])], strict=True):
        high = nodes.index(last)
        needed = {
            node
            for node in nodes[low + 1 : high + 1]
            if node.meta["pinned"] and node.op != "placeholder"
        }
        for node in reversed(nodes[: high + 1]):  # what depends on no input may come from before
            if not node.meta["pinned"] and any(user in needed for user in node.users):
                needed.add(node)
        part = fx.Graph()
        copies = {begin: part.placeholder(begin.name)}
        wanted = [node for node in nodes if node in needed]
        for node in wanted:
            copies[node] = part.node_copy(node, copies.__getitem__)
        if end.op != "output":
            part.output(copies[end])
        yield part, wanted
        low = high


def _pruned(
    model: nn.Module, part: int, owners: dict[str, int], called: set[str], parents: set[str]
) -> nn.Module:
    """A deep copy with the state of one part, the modules it calls, and all their parents."""
    pruned = copy.deepcopy(model)
    names = state_names(pruned)
    kept_state = {
        name for name, tensor in named_state(pruned) if owners.get(names[id(tensor)], 1) == part
    }
    whole = {id(m) for path in called for m in pruned.get_submodule(path).modules()}
    shells = {id(pruned.get_submodule(path)) for path in parents}
    _prune(pruned, "", kept_state, whole, shells)
    return pruned


def _prune(
    module: nn.Module, prefix: str, kept_state: set[str], whole: set[int], shells: set[int]
) -> bool:
    """Drop what is not kept; whether anything is left."""
    for state in (module._parameters, module._buffers):
        for name in [name for name in state if prefix + name not in kept_state]:
            del state[name]
            module._non_persistent_buffers_set.discard(name)
    for name, child in list(module._modules.items()):
        if child is None or id(child) in whole:
            continue
        if isinstance(child, torch.jit.ScriptModule):  # has no parts
            if not any(state.startswith(f"{prefix}{name}.") for state in kept_state):
                del module._modules[name]
            continue
        if not _prune(child, f"{prefix}{name}.", kept_state, whole, shells):
            del module._modules[name]
    left = module._parameters or module._buffers or module._modules or id(module) in shells
    return bool(left)


def _compiled(code: dict[bool, Code]) -> dict[bool, Callable[[nn.Module, Any], Any]]:
    return {mode: code_of_mode.compile() for mode, code_of_mode in code.items()}


def _run(parts: Sequence[nn.Module], x: Tensor) -> dict[str, Tensor | None]:
    """A split step in training, a forward in evaluation: outputs, gradients, buffers by name."""
    seen: dict[str, Tensor | None] = {}
    sent: list[tuple[Tensor, list[Tensor]]] = []
    z: Any = x.clone()
    for part in parts[:-1]:
        z = part(z)
        received, gradients = receive(z)
        sent.append((z, gradients))
        z = received
    outputs = [leaf for leaf in pytree.tree_leaves(parts[-1](z)) if isinstance(leaf, Tensor)]
    seen.update((f"output {index}", output.detach()) for index, output in enumerate(outputs))
    parameters = {name: p for part in parts for name, p in part.named_parameters()}
    if parts[0].training:
        loss = _loss(outputs)
        if loss.requires_grad:
            loss.backward()
        for z, gradients in reversed(sent):
            if z.requires_grad and gradients:
                answer(z, gradients).backward()
        for name, parameter in parameters.items():
            seen[f"gradient of {name}"] = parameter.grad
            if parameter.grad is not None:
                with torch.no_grad():
                    parameter.sub_(parameter.grad, alpha=CHECK_LR)
                parameter.grad = None
    seen.update((f"buffer {name}", b.clone()) for part in parts for name, b in part.named_buffers())
    return seen


def _loss(outputs: Sequence[Tensor]) -> Tensor:
    """A scalar whose gradient differs from one output value to the next."""
    total = torch.zeros((), device="cpu")
    for output in outputs:
        if output.requires_grad:
            weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device="cpu")
            total = total + (output.flatten() * weight).sum()
    return total


def _same(expected: Tensor | None, actual: Tensor | None) -> bool:
    """Whether both are missing, or equal in shape, type and every bit."""
    if expected is None or actual is None:
        return expected is actual
    return (
        expected.dtype == actual.dtype
        and expected.shape == actual.shape
        and torch.equal(_bits(expected), _bits(actual))
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums depend on the number of threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
