"""MNIST (LeCun et al. 1998, doi 10.1109/5.726791): 70,000 grey digits of 28×28.

The official IDX files are looked for in torchvision's folder and in plain ones.
"""

from pathlib import Path

from data.dataset import Dataset
from data.idx import find_files, prepare

FOLDERS = ("MNIST/raw", "mnist")
MEAN, STD = 0.1307, 0.3081  # of the training pixels in [0, 1]


def files(root: Path) -> list[Path]:
    """Return the four files; raises FileNotFoundError where they are not."""
    return list(find_files(root, "MNIST", FOLDERS).values())


def load(root: Path) -> Dataset:
    """Return 60,000 + 10,000 samples of (1, 28, 28) float32, standardised."""
    return prepare(find_files(root, "MNIST", FOLDERS), MEAN, STD)
