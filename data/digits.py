"""Optical recognition of handwritten digits: 1,797 grey images of 8×8, part of scikit-learn.

Alpaydin and Kaynak, 1998, UCI Machine Learning Repository; the test part of it, as scikit-learn
ships it. No download and no files. The split into 80 % training and 20 % test is stratified and
fixed, whatever the experiment's seed, so that accuracies of different seeds are comparable.
"""

from pathlib import Path

import torch

from data.dataset import Dataset


def files(root: Path) -> list[Path]:
    """None: the data come with scikit-learn."""
    return []


def load(root: Path) -> Dataset:
    """Return digits as (N, 1, 8, 8) float32, standardised by the training pixels' mean and spread.

    Args:
        root: not used, the data come with scikit-learn.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    train, test = (
        torch.tensor(part, dtype=torch.float32).reshape(-1, 1, 8, 8) for part in (train_x, test_x)
    )
    mean, spread = train.mean(), train.std()
    return Dataset(
        train_x=(train - mean) / spread,
        train_y=torch.tensor(train_y, dtype=torch.int64),
        test_x=(test - mean) / spread,
        test_y=torch.tensor(test_y, dtype=torch.int64),
        num_classes=10,
    )
