"""Progression of diabetes in a year: 10 features of 442 patients, task=regression.

Efron et al. 2004, Least Angle Regression; part of scikit-learn: no download. Features and the one
number to be found are standardised by mean and standard deviation of the training set, which is
80 % of the patients, drawn once, whatever the experiment's seed.
"""

from pathlib import Path

import torch

from data.dataset import Dataset


def files(root: Path) -> list[Path]:
    """None: the data come with scikit-learn."""
    return []


def load(root: Path) -> Dataset:
    """Return features (N, 10) and progression (N, 1), float32.

    Args:
        root: not used, the data come with scikit-learn.
    """
    from sklearn.datasets import load_diabetes
    from sklearn.model_selection import train_test_split

    found = load_diabetes(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(*found, test_size=0.2, random_state=0)
    sides = []
    for train, test in ((train_x, test_x), (train_y[:, None], test_y[:, None])):
        mean, spread = train.mean(0), train.std(0)
        sides += [
            torch.tensor((part - mean) / spread, dtype=torch.float32) for part in (train, test)
        ]
    return Dataset(sides[0], sides[2], sides[1], sides[3], num_classes=1)
