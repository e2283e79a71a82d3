"""From which package of Python's standard library a piece of source comes: text of 8 classes.

The sources that this Python came with: no download. Words are runs of letters, in lower case, of
code, comments and docstrings alike; the name of the package itself is left out. A sample is 32
words in a row, (32,) int64; token 0 is any word but the 1,999 most frequent of the training set
(ties by the alphabet). The first four fifths of each file are for training, the rest for the test.
`train_group` is the file, for data.partition=natural.

Each class has as many samples as the smallest has, spread evenly over its own. What is read changes
with Python's version: 3.11.7 gives 8 × 512 and 8 × 130 samples of 142 files.
"""

import re
import sysconfig
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from data.dataset import Dataset

PACKAGES = (
    "asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml",
)  # fmt: skip
LENGTH = 32
VOCABULARY = 2000
_WORD = re.compile("[a-z]+")


def files(root: Path) -> list[Path]:
    """The packages' sources, by class and name.

    Raises:
        FileNotFoundError: this Python came without the source of a package.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for package in PACKAGES:
        own = sorted((library / package).rglob("*.py"))
        own = [path for path in own if "test" not in path.relative_to(library).parts]
        if not own:
            raise FileNotFoundError(f"data=stdlib_text: no sources in {library / package}")
        found += own
    return found


def load(root: Path) -> Dataset:
    """Return pieces of source as tokens (N, 32), and their packages.

    Args:
        root: not used, the text comes with Python.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    sides: dict[str, list[list[tuple[list[str], int]]]] = {
        side: [[] for _ in PACKAGES] for side in ("train", "test")
    }
    for number, path in enumerate(files(root)):
        package = path.relative_to(library).parts[0]
        words = _WORD.findall(path.read_text("utf-8", errors="replace").lower())
        words = [word for word in words if word != package]
        pieces = [words[i : i + LENGTH] for i in range(0, len(words) - LENGTH + 1, LENGTH)]
        num_train = len(pieces) * 4 // 5
        own = PACKAGES.index(package)
        sides["train"][own] += [(piece, number) for piece in pieces[:num_train]]
        sides["test"][own] += [(piece, number) for piece in pieces[num_train:]]
    counted = Counter(w for own in sides["train"] for piece, _ in own for w in piece)
    frequent = sorted(counted, key=lambda word: (-counted[word], word))[: VOCABULARY - 1]
    numbers = {word: index for index, word in enumerate(frequent, 1)}
    train, test = (_balanced(sides[side], numbers) for side in ("train", "test"))
    return Dataset(
        train_x=train[0],
        train_y=train[1],
        test_x=test[0],
        test_y=test[1],
        num_classes=len(PACKAGES),
        train_group=train[2],
    )


def _balanced(
    classes: list[list[tuple[list[str], int]]], numbers: dict[str, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (N, 32), classes (N,) and files (N,) of as many samples of each class."""
    least = min(len(own) for own in classes)
    kept = [own[i * len(own) // least] for own in classes for i in range(least)]
    tokens = [[numbers.get(word, 0) for word in piece] for piece, _ in kept]
    labels = torch.arange(len(classes)).repeat_interleave(least)
    return torch.tensor(tokens), labels, torch.tensor([number for _, number in kept])
