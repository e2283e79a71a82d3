"""torch without its compiler, which it would load though nothing is compiled.

Parts of torch are wrapped so that torch.compile passes over them: optimizers, dispatch modes, and
what says of an operation which shape comes out (its kernel on the meta device). When first called
the wrappers import torch._dynamo and some 300 modules more, a fifth of the processor time of a
short run, in every process. What is here calls what they wrap.
"""

import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch._C._autograd import _profiler_enabled
from torch._compile import _disable_dynamo
from torch.optim import optimizer as optimizer_of_torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import _FlopCounterMode


def _step(kind: type[torch.optim.Optimizer]) -> Callable[..., Any]:
    """Return an optimizer's step without the wrapper that torch puts around all steps.

    It is there where it does something: with hooks, and for the profiler, to which it tells a name.
    """
    bare = torch.no_grad()(inspect.unwrap(kind.step))
    wrapped = torch.optim.Optimizer.profile_hook_step(bare)

    @functools.wraps(bare)
    def step(self: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> Any:
        hooks = (
            self._optimizer_step_pre_hooks,
            self._optimizer_step_post_hooks,
            optimizer_of_torch._global_optimizer_pre_hooks,
            optimizer_of_torch._global_optimizer_post_hooks,
        )
        if any(hooks) or _profiler_enabled():
            return wrapped(self, closure)
        return bare(self, closure)

    step.hooked = True  # type: ignore[attr-defined]  # or torch would wrap it
    return step


class _Eager(torch.optim.Optimizer):
    """What torch wraps of every optimizer."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        if not set_to_none or _profiler_enabled():
            _zero_grad(self, set_to_none)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


_zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class SGD(_Eager, torch.optim.SGD):
    """torch.optim.SGD."""

    step = _step(torch.optim.SGD)


class Adam(_Eager, torch.optim.Adam):
    """torch.optim.Adam."""

    step = _step(torch.optim.Adam)


class AdamW(_Eager, torch.optim.AdamW):
    """torch.optim.AdamW."""

    step = _step(torch.optim.AdamW)


class DispatchMode(TorchDispatchMode):
    """A mode whose subclasses torch does not wrap."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


@functools.cache
def prepare_counting() -> None:
    """Have kernels on the meta device, and torch's counter of operations, run without wrappers.

    To be called before a network runs there.
    """
    tables = torch._decomp.global_decomposition_table.values()
    found: list[Any] = [_FlopCounterMode.__torch_dispatch__]
    found += [kernel for table in tables for kernel in table.values()]
    found += [v for m in (torch._refs, torch._refs.nn.functional) for v in vars(m).values()]
    seen = set[int]()
    while found:
        function = found.pop()
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        inner = list(inspect.getclosurevars(function).nonlocals.values())
        found += inner
        if function.__code__ is _WRAPPER:
            (called,) = (one for one in inner if isinstance(one, FunctionType))
            called.__dict__.setdefault("__dynamo_disable", called)  # there it looks what to call


def _nothing() -> None: ...


_WRAPPER = _disable_dynamo(_nothing).__code__
