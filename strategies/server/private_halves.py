"""Device parts that clients keep as their own between rounds.

In the simulation they lie in the server's state under ``partition/name``, and so in checkpoints:
that is not traffic. Which clients keep theirs is the method's to say (`method.Private`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from strategies.server.method import Arrays, Network, Result, ServerState


def half_of(state: ServerState, owner: int | str) -> dict[str, NDArray[Any]]:
    """Return what ``owner`` keeps; empty if it keeps nothing."""
    return state.kept(f"{owner}/")


def keep_half(state: ServerState, network: Network, result: Result) -> ServerState:
    """Return the state with the device part that a client came back with as its own."""
    names = device_names(network, result.partition)
    half = {name: array for name, array in result.arrays.items() if name in names}
    return state.keeping(f"{result.partition}/", half)


def forget_half(state: ServerState, owner: int) -> ServerState:
    """Return the state in which ``owner`` keeps nothing."""
    return state.keeping(f"{owner}/", {})


def device_names(network: Network, partition: int) -> frozenset[str]:
    """Names of the arrays of a client's device part, of a network that is cut."""
    names = network.on_device(partition)
    assert names is not None, "a network that is cut says what is on the device"
    return names


def replaced(arrays: Mapping[str, Tensor], own: Arrays) -> dict[str, Tensor]:
    """Return the global model's ``arrays`` with an owner's in their place."""
    return {**arrays, **{name: torch.from_numpy(array) for name, array in own.items()}}
