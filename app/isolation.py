"""What one client's code may leave behind in its process, and must not reach the next client.

Settings of the process are put back. What a client did to the network, the data or the arrays of
the round, which all clients of a process share, is noticed, so that these are made anew. Not
noticed are writes through ``.numpy()`` or ``.data`` to rows that are not looked at, and functions
of libraries that were replaced.

Around our own methods and networks none of this is done: it would take a tenth of a small client's
time, and that they leave nothing behind is tested.
"""

import _signal  # type: ignore[import-not-found]
import contextlib
import gc
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import get_bit_generator, set_bit_generator  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

from models.state import modules_of
from strategies.contract import ClientData

SIGNALS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGCHLD, signal.SIGPIPE,
)  # fmt: skip
ROWS = 4  # of a client's data that are compared

# The process ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """Something of the whole process.

    Attributes:
        read: returns it, as a value that later changes leave alone.
        write: sets it.
    """

    read: Callable[[], Any]
    write: Callable[[Any], None]


def _read_folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 — a string that compares fast
    except OSError:
        return None


def _write_folder(path: str | None) -> None:
    if path is not None:
        os.chdir(path)


def _read_environ() -> dict[bytes, bytes]:
    # As it is kept: to decode it takes longer than all other settings together.
    return dict(os.environ._data)  # type: ignore[attr-defined]


def _write_environ(values: Mapping[bytes, bytes]) -> None:
    for name in os.environb.keys() - values.keys():
        del os.environb[name]
    os.environb.update(values)


def _write_filters(filters: Any) -> None:
    warnings.resetwarnings()
    warnings.filters[:] = filters  # type: ignore[index]


def _write_path(path: list[str]) -> None:
    sys.path[:] = path


def _write_streams(streams: tuple[Any, Any]) -> None:
    sys.stdout, sys.stderr = streams


def _read_handlers() -> dict[int, Any]:
    # Not signal's own function, which takes most of its time to name what comes.
    return {number: _signal.getsignal(number) for number in SIGNALS}


def _write_handlers(handlers: Mapping[int, Any]) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in handlers.items():
        if handler is not None and _signal.getsignal(number) != handler:
            _signal.signal(number, handler)


def _write_collector(is_enabled: bool) -> None:
    (gc.enable if is_enabled else gc.disable)()


def _read_device() -> torch.device:
    return torch.empty(0).device  # a fraction of what torch.get_default_device() takes


def _write_device(device: torch.device) -> None:
    # Not "cpu" as such, which torch would then look up at every call.
    torch.set_default_device(None if device.type == "cpu" else device)


def _write_deterministic(given: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(given[0], warn_only=given[1])


def _read_autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")


def _write_autocast(given: tuple[bool, torch.dtype]) -> None:
    torch.set_autocast_enabled("cpu", given[0])
    torch.set_autocast_dtype("cpu", given[1])


def _read_cudnn() -> tuple[bool, ...]:
    read = torch._C  # as torch.backends.cudnn does, through more calls
    return (
        read._get_cudnn_enabled(),
        read._get_cudnn_benchmark(),
        read._get_cudnn_deterministic(),
    )


def _write_cudnn(given: tuple[bool, ...]) -> None:
    flags = torch.backends.cudnn
    flags.enabled, flags.benchmark, flags.deterministic = given


def _read_hooks() -> list[dict[Any, Any]]:
    return [hooks.copy() for hooks in _GLOBAL_HOOKS] if any(_GLOBAL_HOOKS) else _NO_HOOKS


def _write_hooks(given: list[dict[Any, Any]]) -> None:
    for hooks, values in zip(_GLOBAL_HOOKS, given, strict=True):
        hooks.clear()
        hooks.update(values)


# Hooks that torch calls for every module or optimizer of the process.
_GLOBAL_HOOKS: list[dict[Any, Any]] = [
    value
    for owner in (torch_module, torch_optimizer)
    for name, value in vars(owner).items()
    if name.startswith("_global_") and isinstance(value, dict)
]
_NO_HOOKS: list[dict[Any, Any]] = [{} for _ in _GLOBAL_HOOKS]

SETTINGS = (
    Setting(_read_folder, _write_folder),
    Setting(_read_environ, _write_environ),
    Setting(lambda: list(sys.path), _write_path),
    Setting(lambda: (sys.stdout, sys.stderr), _write_streams),
    Setting(sys.getrecursionlimit, sys.setrecursionlimit),
    Setting(gc.isenabled, _write_collector),
    Setting(lambda: list(warnings.filters), _write_filters),
    Setting(lambda: logging.root.manager.disable, logging.disable),
    Setting(_read_handlers, _write_handlers),
    Setting(np.geterr, lambda given: np.seterr(**given) and None),
    Setting(torch.get_num_threads, torch.set_num_threads),
    Setting(torch.get_default_dtype, torch.set_default_dtype),
    Setting(_read_device, _write_device),
    Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    Setting(
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        _write_deterministic,
    ),
    Setting(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),  # type: ignore[arg-type]
    Setting(_read_autocast, _write_autocast),
    Setting(_read_cudnn, _write_cudnn),
    Setting(
        torch._C._get_mkldnn_enabled,
        lambda given: torch.backends.mkldnn.set_flags(given) and None,
    ),
    Setting(_read_hooks, _write_hooks),
)


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Run a client's code with gradients on, and put back what it changes in its process.

    Args:
        seed: of Python's and numpy's global generators meanwhile, so that what they draw does not
            depend on which clients ran before.
    """
    before = _settings()
    state, generator = random.getstate(), get_bit_generator()
    random.seed(seed)
    set_bit_generator(_CLIENTS)
    np.random.seed(seed % 2**32)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        random.setstate(state)
        set_bit_generator(generator)
        if _settings() != before:
            _put_back(before)


def _settings() -> list[Any]:
    return [setting.read() for setting in SETTINGS]


def _put_back(before: list[Any]) -> None:
    for setting, value in zip(SETTINGS, before, strict=True):
        if setting.read() != value:
            with contextlib.suppress(OSError):  # the folder may be gone
                setting.write(value)


# What numpy's global functions draw from while a client trains: to put a generator back takes less
# than to put its state back. The two numbers that a normal distribution makes at once are given out
# one by one; one that is held back is dropped where generators change.
_CLIENTS = np.random.MT19937()


def drop_held_back() -> None:
    """Have what numpy draws in this process not depend on whether a client trains here."""
    set_bit_generator(get_bit_generator())


# Whose code ---------------------------------------------------------------------------------------

OURS = ("strategies", "models", "quant", "torch")  # packages


def is_ours(client: object, model: Any) -> bool:
    """Whether no code of somebody else's runs when ``client`` trains ``model``."""
    held = [one for whole in modules(model) for one in modules_of(whole)]
    return all(_package(one) in OURS for one in (client, model, *held)) and not any(
        "forward" in one.__dict__ or any(one.__dict__[name] for name in _HOOKS) for one in held
    )


def _package(one: object) -> str:
    return type(one).__module__.partition(".")[0]


# What clients share -----------------------------------------------------------------------------


def structure(model: Any) -> list[Any]:
    """Describe a network beyond its values: what loading a client's arrays does not put back.

    Args:
        model: what a client half's ``prepare`` returned: a module, or something that holds some.
    """
    found = list[Any]()
    for whole in modules(model):
        for one in modules_of(whole):
            own = one.__dict__
            found += (type(one), own.get("forward"))
            for name in _HOOKS:
                if own[name]:
                    found += own[name]
            for name, parameter in own["_parameters"].items():
                if parameter is not None:
                    found += (name, *_described(parameter))
            for name, buffer in own["_buffers"].items():
                if buffer is not None:
                    found += (name, buffer.shape, buffer.dtype)
    return found


def _described(parameter: nn.Parameter) -> tuple[Any, ...]:
    return (
        parameter.shape,
        parameter.dtype,
        parameter.requires_grad,
        parameter.is_inference(),
        _keys(parameter._backward_hooks),
        _keys(getattr(parameter, "_post_accumulate_grad_hooks", None)),
    )


def _keys(hooks: Mapping[int, Any] | None) -> tuple[int, ...]:
    return tuple(hooks) if hooks else ()


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def modules(value: Any, depth: int = 4) -> Iterator[nn.Module]:
    """The modules that something holds: itself, in containers, or in its attributes."""
    if isinstance(value, nn.Module):
        yield value
        return
    held: Iterable[Any] = ()
    if isinstance(value, Mapping):
        held = value.values()
    elif isinstance(value, tuple | list):
        held = value
    elif not isinstance(value, type):
        held = getattr(value, "__dict__", {}).values()
    for one in held if depth else ():
        yield from modules(one, depth - 1)


def versions(arrays: Mapping[str, Tensor]) -> list[int]:
    """Count torch's writes into each tensor."""
    return [tensor._version for tensor in arrays.values()]


def glance(data: ClientData) -> tuple[Any, ...]:
    """Describe a client's data so that most writes change it: torch's count, and some rows."""
    inputs = (data.x,) if isinstance(data.x, Tensor) else data.x
    tensors = (*inputs, data.y)
    counts = [tensor._version for tensor in (*tensors, data.rows)]
    rows = data.rows.numpy()[:: max(1, len(data.rows) // ROWS)]
    seen = list[bytes]()
    for tensor in tensors:
        if tensor.is_cpu:
            seen.append(tensor.numpy().take(rows, 0).tobytes())  # far faster than torch's own
        else:
            there = torch.from_numpy(rows).to(tensor.device)
            seen.append(tensor[there].cpu().numpy().tobytes())
    return counts, rows.tobytes(), seen
