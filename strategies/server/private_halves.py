"""Device parts that clients keep as their own between rounds.

In the simulation they lie in the server's state under ``partition/name``, and so in checkpoints:
that is not traffic. Which clients keep theirs is the method's to say (`method.Private`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from strategies.server.method import Arrays, Network, Result, ServerState


def half_of(state: ServerState, owner: int | str, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return those of the arrays ``names`` that ``owner`` keeps; empty if it keeps nothing."""
    keys = {name: f"{owner}/{name}" for name in names}
    return {name: state.extra[key] for name, key in keys.items() if key in state.extra}


def keep_halves(
    state: ServerState, network: Network, results: Sequence[Result], owners: Collection[int]
) -> ServerState:
    """Return the state after a round's clients came back.

    Args:
        state: of the server.
        network: of the round.
        results: with updates or errors; who failed keeps what it had.
        owners: who keeps the device part that it came back with; the others keep nothing any more.
    """
    extra = dict(state.extra)
    for result in results:
        if result.update is None:
            continue
        for name in device_names(network, result.partition):
            key = f"{result.partition}/{name}"
            if result.partition in owners:
                extra[key] = result.arrays[name]
            else:
                extra.pop(key, None)
    return replace(state, extra=extra)


def device_names(network: Network, partition: int) -> frozenset[str]:
    """Names of the arrays of a client's device part, of a network that is cut."""
    names = network.on_device(partition)
    assert names is not None, "a network that is cut says what is on the device"
    return names


def replaced(arrays: Mapping[str, Tensor], own: Arrays) -> dict[str, Tensor]:
    """Return the global model's ``arrays`` with an owner's in their place."""
    return {**arrays, **{name: torch.from_numpy(array) for name, array in own.items()}}
