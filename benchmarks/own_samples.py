"""A data source of nodes that have their own samples alone: ``samples.npz`` in data.root.

    data.source=benchmarks.own_samples data.partition=benchmarks.own_samples.by_owner

On a device the file holds that client's samples; on the server the test set, and one blank sample,
of nobody. For comparison `benchmarks.two_machines` has them all in one file, too.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data.dataset import Dataset

FILE = "samples.npz"


def files(root: Path) -> list[Path]:
    return [root / FILE]


def load(root: Path) -> Dataset:
    with np.load(root / FILE) as arrays:
        found = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return Dataset(
        train_x=found["train_x"],
        train_y=found["train_y"],
        test_x=found["test_x"],
        test_y=found["test_y"],
        num_classes=10,
        train_group=found["owner"],
    )


def by_owner(users: NDArray[np.int64], num_clients: int) -> Sequence[NDArray[np.int64]]:
    """The rows of each client; of those of others there are none here."""
    return [np.flatnonzero(users == client) for client in range(num_clients)]
