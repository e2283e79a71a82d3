"""A network run over many batches by several threads, with what one thread would give, in order.

Threads, as all that a worker's process would have to be sent is here, and torch computes outside
Python's lock. Each batch is computed by one thread as it would be alone, so that the bits are those
of one. That is not so of a network that keeps something from batch to batch, or draws random
numbers, which nobody can tell by looking at a user's code. So one with any other module than
torch's and those of models/ and quant/ runs in this thread alone; as does one whose second batch
changes anything, after the first has filled what is filled once.
"""

import copy
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

LEAST = 8  # batches of each thread: for fewer, threads take longer to start
AHEAD = 2  # batches of each thread that may wait to be handed out
ROOT = Path(__file__).resolve().parents[1]
KNOWN = (Path(torch.__file__).parent, ROOT / "models", ROOT / "quant")

R = TypeVar("R")
Run = Callable[[nn.Module, slice], R]


def in_order(
    run: Run[R], model: nn.Module, batches: Sequence[slice], threads: int = 1
) -> Iterator[R]:
    """Yield ``run(model, rows)`` of each batch.

    Args:
        run: what is made of some rows; called in any of the threads.
        model: the network; other threads get copies that share its parameters and buffers.
        batches: the rows of each.
        threads: how many at most.
    """
    threads = min(threads, len(batches) // LEAST)
    if threads < 2 or not all(map(_is_known, model.modules())):
        yield from (run(model, rows) for rows in batches)
        return
    first, second, *rest = batches
    yield run(model, first)
    before = _state(model)
    found = run(model, second)
    is_alike = _are_same(before, _state(model))
    yield found
    yield from _spread(run, model, rest, threads) if is_alike else (run(model, r) for r in rest)


def _spread(run: Run[R], model: nn.Module, batches: Sequence[slice], threads: int) -> Iterator[R]:
    shared = {id(tensor): tensor for tensor in _tensors(model)}
    networks = SimpleQueue[nn.Module]()
    for _ in range(threads):
        networks.put(copy.deepcopy(model, dict(shared)))

    def one(rows: slice) -> R:
        network = networks.get()
        try:
            return run(network, rows)
        finally:
            networks.put(network)

    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    waiting = deque[Future[R]]()
    try:
        for rows in batches:
            waiting.append(pool.submit(one, rows))
            if len(waiting) > AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _is_known(module: nn.Module) -> bool:
    """Whether a module runs code of torch's or ours alone."""
    own = sys.modules.get(type(module).__module__)
    file = Path(getattr(own, "__file__", None) or "/")
    has_hooks = bool(module._forward_hooks or module._forward_pre_hooks)
    is_replaced = "forward" in vars(module) or isinstance(module, GraphModule)
    return any(map(file.is_relative_to, KNOWN)) and not has_hooks and not is_replaced


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


def _state(model: nn.Module) -> list[Any]:
    """What a network that keeps nothing, and draws nothing, leaves as it is when it runs."""
    kept = [value for module in model.modules() for value in vars(module).values()]
    versions = [one._version for one in _tensors(model) if not one.is_inference()]
    return [kept, versions, torch.get_rng_state(), random.getstate(), np.random.get_state()]


def _are_same(before: list[Any], after: list[Any]) -> bool:
    kept, versions, torchs, pythons, numpys = before
    return (
        len(kept) == len(after[0])
        and all(one is other for one, other in zip(kept, after[0], strict=True))
        and versions == after[1]
        and torch.equal(torchs, after[2])
        and pythons == after[3]
        and all(np.array_equal(one, other) for one, other in zip(numpys, after[4], strict=True))
    )
