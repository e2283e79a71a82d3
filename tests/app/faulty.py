"""A method whose clients fail on demand, for the tests of what happens then.

`strategy._target_=tests.app.faulty.Faulty`. The file that the environment variable FAULTS names
says who fails, because the strategy's own settings are checked: a line is ``<partition> <kind>``,
for all rounds, or ``<round>/<partition> <kind>``. `Without` leaves these clients out instead.
"""

import ctypes
import gc
import itertools
import logging
import os
import random
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from fleet.clock import Rule
from strategies.contract import ClientData, ServerHalf, Task, Update
from strategies.fedavg import FedAvg, FedAvgClient
from strategies.server.method import (
    Chosen,
    Drawing,
    Exchange,
    Network,
    Prepared,
    Result,
    Schedule,
    ServerState,
)

Given = tuple[nn.Module, Mapping[str, Tensor], ClientData, Task]


def fault_of(partition: int, server_round: int) -> str | None:
    """Which kind of fault this client has in this round."""
    lines = Path(os.environ["FAULTS"]).read_text().splitlines()
    faults = dict(line.split() for line in lines)
    return faults.get(f"{server_round}/{partition}", faults.get(str(partition)))


# Before it trains ---------------------------------------------------------------------------------


class Broken(BaseException):
    """No Exception."""


class Unprintable(ValueError):  # noqa: N818
    def __str__(self) -> str:
        raise SystemExit("not even this")


def raising(error: BaseException) -> Callable[[], NoReturn]:
    def act() -> NoReturn:
        raise error

    return act


def endless() -> int:
    return 1 + endless()


def spin() -> None:
    while True:
        pass


def hold_on() -> None:
    while True:
        try:
            time.sleep(600)
        except BaseException:
            continue


STOPS: dict[str, Callable[[], object]] = {
    "raise": raising(ArithmeticError("this phone is broken")),
    "exit": raising(SystemExit("this phone is leaving")),
    "interrupt": raising(KeyboardInterrupt("not from the keyboard")),
    "base": raising(Broken("no Exception")),
    "generator-exit": raising(GeneratorExit()),
    "memory": raising(MemoryError("no room")),
    "unprintable": raising(Unprintable()),
    "long-text": raising(ValueError("x" * 1_000_000)),
    "recursion": endless,
}
HANGS: dict[str, Callable[[], object]] = {"hang": lambda: time.sleep(600), "spin": spin}
DEATHS: dict[str, Callable[[], object]] = {
    "die": lambda: os._exit(1),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "hold-on": hold_on,
    "hang-in-c": lambda: deque(itertools.repeat(0), maxlen=0),  # looks at no signal
}


# What it answers ----------------------------------------------------------------------------------


def first(update: Update, kind: Callable[[Tensor], bool] = torch.is_floating_point) -> str:
    return next(name for name, tensor in update.arrays.items() if kind(tensor) and tensor.dim() > 1)


def with_array(update: Update, name: str, array: Any) -> Update:
    return replace(update, arrays={**update.arrays, name: array})


def poisoned(value: float, buffer: bool = False) -> Callable[[Update], Update]:
    """One entry of a weight, or of a running variance, is ``value``."""

    def act(update: Update) -> Update:
        name = next(n for n in update.arrays if n.endswith("running_var" if buffer else "weight"))
        array = update.arrays[name].clone()
        array.view(-1)[-1] = value
        return with_array(update, name, array)

    return act


def cast(dtype: torch.dtype) -> Callable[[Update], Update]:
    def act(update: Update) -> Update:
        name = first(update)
        return with_array(update, name, update.arrays[name].to(dtype))

    return act


def without_one(update: Update) -> Update:
    name = first(update)
    return replace(update, arrays={n: t for n, t in update.arrays.items() if n != name})


def flattened(update: Update) -> Update:
    name = first(update)
    return with_array(update, name, update.arrays[name].flatten())


ANSWERS: dict[str, Callable[[Update], Any]] = {
    "nan-weight": poisoned(float("nan")),
    "inf-weight": poisoned(float("inf")),
    "minus-inf-weight": poisoned(-float("inf")),
    "huge-weight": poisoned(3e38),
    "large-weight": poisoned(-1e20),
    "nan-buffer": poisoned(float("nan"), buffer=True),
    "inf-buffer": poisoned(float("inf"), buffer=True),
    "huge-buffer": poisoned(3e38, buffer=True),
    "float64": cast(torch.float64),
    "float16": cast(torch.float16),
    "int32": cast(torch.int32),
    "complex": cast(torch.complex64),
    "no-array": lambda u: replace(u, arrays={}),
    "missing-array": without_one,
    "extra-array": lambda u: with_array(u, "stranger", torch.zeros(3)),
    "flat-array": flattened,
    "text-array": lambda u: with_array(u, first(u), "text"),
    "no-samples": lambda u: replace(u, num_examples=0),
    "negative-samples": lambda u: replace(u, num_examples=-5),
    "absurd-samples": lambda u: replace(u, num_examples=10**12),
    "nan-loss": lambda u: replace(u, loss=float("nan")),
    "inf-loss": lambda u: replace(u, loss=float("inf")),
    "text-loss": lambda u: replace(u, loss="low"),
    "negative-bytes": lambda u: replace(u, bytes_up=-1),
    "nan-metric": lambda u: replace(u, metrics={"own": float("nan")}),
    "text-metric": lambda u: replace(u, metrics={"own": "good"}),
    "nothing": lambda u: None,
}


# What it leaves behind before it raises -----------------------------------------------------------

KEPT: list[object] = []


def gradients_off(model: nn.Module, *_: object) -> None:
    torch.set_grad_enabled(False)


def inference_on(model: nn.Module, *_: object) -> None:
    mode = torch.inference_mode()
    mode.__enter__()
    KEPT.append(mode)


def modes_on(model: nn.Module, *_: object) -> None:
    torch.autocast("cpu", torch.bfloat16).__enter__()
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(2)
    torch.autograd.set_detect_anomaly(True)


def process_changed(model: nn.Module, *_: object) -> None:
    os.chdir("/")
    os.environ["OMP_NUM_THREADS"] = "7"
    os.environ.pop("FAULTS")
    sys.path.clear()
    sys.setrecursionlimit(200)
    warnings.simplefilter("error")
    np.seterr(all="raise")
    gc.disable()
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def alarm_off(model: nn.Module, *_: object) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)


def hooks_left(model: nn.Module, *_: object) -> None:
    for one in model.modules():
        one.register_forward_hook(lambda module, given, found: found * 2)
    next(model.parameters()).register_hook(lambda gradient: gradient * 0)


def global_hooks_left(model: nn.Module, *_: object) -> None:
    nn.modules.module.register_module_forward_hook(lambda module, given, found: found * 2)


def frozen(model: nn.Module, *_: object) -> None:
    model.requires_grad_(False)
    model.eval()


def rebuilt(model: nn.Module, *_: object) -> None:
    model.register_buffer("stranger", torch.zeros(3))
    for one in model.modules():
        if isinstance(one, nn.Linear):
            one.weight = nn.Parameter(one.weight.double(), requires_grad=False)


def forward_replaced(model: nn.Module, *_: object) -> None:
    model.forward = lambda x: x.flatten(1)[:, :10]  # type: ignore[method-assign]


def data_written(model: nn.Module, arrays: Mapping[str, Tensor], data: ClientData, _: Task) -> None:
    data.x.mul_(0)
    data.y.zero_()


def data_written_by_numpy(
    model: nn.Module, arrays: Mapping[str, Tensor], data: ClientData, _: Task
) -> None:
    data.x.numpy()[:] = 7


def rows_written(model: nn.Module, arrays: Mapping[str, Tensor], data: ClientData, _: Task) -> None:
    data.rows.zero_()


def arrays_written(
    model: nn.Module, arrays: Mapping[str, Tensor], data: ClientData, _: Task
) -> None:
    for tensor in arrays.values():
        tensor.zero_()


def settings_written(
    model: nn.Module, arrays: Mapping[str, Tensor], data: ClientData, task: Task
) -> None:
    task.settings["train.lr"] = 100.0  # type: ignore[index]
    task.settings["train.epochs"] = 0  # type: ignore[index]


LEAKS: dict[str, Callable[..., None]] = {
    "gradients-off": gradients_off,
    "inference-on": inference_on,
    "modes-on": modes_on,
    "process-changed": process_changed,
    "alarm-off": alarm_off,
    "hooks-left": hooks_left,
    "global-hooks-left": global_hooks_left,
    "frozen": frozen,
    "rebuilt": rebuilt,
    "forward-replaced": forward_replaced,
    "data-written": data_written,
    "data-written-by-numpy": data_written_by_numpy,
    "rows-written": rows_written,
    "arrays-written": arrays_written,
    "settings-written": settings_written,
}


# The method ---------------------------------------------------------------------------------------


class FaultyClient(FedAvgClient):
    """FedAvg's, unless the file that FAULTS names says otherwise."""

    def train(
        self,
        model: nn.Module,
        arrays: Mapping[str, Tensor],
        data: ClientData,
        task: Task,
        server: ServerHalf | None,
    ) -> Update:
        partition = task.streams.partition
        fault = fault_of(partition, task.streams.server_round)
        if fault == "die-once":
            marker = Path(os.environ["FAULTS"]).with_suffix(f".{partition}")
            if not marker.exists():
                marker.touch()
                os._exit(1)
        if act := (STOPS | HANGS | DEATHS).get(fault or ""):
            act()
        if leak := LEAKS.get(fault or ""):
            super().train(model, arrays, data, task, server)
            leak(model, arrays, data, task)
            raise ArithmeticError(f"left behind: {fault}")
        update = super().train(model, arrays, data, task, server)
        return ANSWERS[fault](update) if fault in ANSWERS else update


class Faulty(FedAvg):
    """Server half: FedAvg's."""

    client = FaultyClient()


class Leaving(FedAvg):
    """A method that ends its process, as it thinks."""

    def start(self, *_: Any, **__: Any) -> NoReturn:
        sys.exit("this job is leaving")


@dataclass(frozen=True)
class LeavingOut:
    """A schedule that leaves out some of a round's clients, after the draw of the order."""

    of: Schedule
    is_left_out: Callable[[int, int], bool]  # partition, round

    @property
    def rule(self) -> Rule:
        return self.of.rule

    def choose(self, drawing: Drawing, network: Prepared | None, state: ServerState) -> Chosen:
        return self.of.choose(drawing, network, state)

    def order(self, chosen: Sequence[int], seed: int, server_round: int) -> list[int]:
        found = self.of.order(chosen, seed, server_round)
        return [p for p in found if not self.is_left_out(p, server_round)]

    def run(
        self, state: ServerState, network: Network | None, chosen: Chosen, exchange: Exchange
    ) -> tuple[ServerState, list[Result]]:
        return self.of.run(state, network, chosen, exchange)


class Without(FedAvg):
    """FedAvg without those who would have a fault."""

    @wraps(FedAvg.__init__)
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        schedule = LeavingOut(self.method.schedule, lambda p, r: fault_of(p, r) is not None)
        self.method = replace(self.method, schedule=schedule)
