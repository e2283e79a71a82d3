"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747): 70,000 grey clothes of 28×28.

The official IDX files are looked for in torchvision's folder and in plain ones.
"""

from pathlib import Path

from data.dataset import Dataset
from data.idx import find_files, prepare

FOLDERS = ("FashionMNIST/raw", "fashion-mnist", "fashion_mnist")
MEAN, STD = 0.2860, 0.3530  # of the training pixels in [0, 1]


def files(root: Path) -> list[Path]:
    """Return the four files; raises FileNotFoundError where they are not."""
    return list(find_files(root, "Fashion-MNIST", FOLDERS).values())


def load(root: Path) -> Dataset:
    """Return 60,000 + 10,000 samples of (1, 28, 28) float32, standardised."""
    return prepare(find_files(root, "Fashion-MNIST", FOLDERS), MEAN, STD)
