"""Halves that clients keep as their own: how they lie in a checkpoint, and in a message."""

from collections.abc import Mapping

import torch
from torch import Tensor

from strategies.server.checkpoint import Arrays


def flattened(halves: Mapping[str, Arrays] | Mapping[int, Arrays]) -> Arrays:
    """Return the arrays of all owners, called ``owner/name``."""
    return {
        f"{owner}/{name}": array for owner, half in halves.items() for name, array in half.items()
    }


def by_owner(state: Arrays) -> dict[str, Arrays]:
    """Inverse of `flattened`; owners that were numbers are digits."""
    halves: dict[str, Arrays] = {}
    for key, array in state.items():
        owner, _, name = key.partition("/")
        halves.setdefault(owner, {})[name] = array
    return halves


def replaced(arrays: Mapping[str, Tensor], own: Arrays) -> dict[str, Tensor]:
    """Return the global model's ``arrays`` with an owner's in their place."""
    return {**arrays, **{name: torch.from_numpy(array) for name, array in own.items()}}
