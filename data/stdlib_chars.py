"""The next character of Python's own documentation: English prose and code, task=tokens.

The text of the topics that ``help()`` shows (pydoc_data/topics.py), which comes with Python: no
download. Tokens are 96: 0 is the end of a line, 1 to 95 are the printable characters of ASCII; any
other is taken for ``?``. A sample is 64 characters in a row, (64,) int64, its labels are the
characters that follow each of them, (64,) int64. The first four fifths of each topic are for
training, the rest for the test. `train_group` is the topic, for data.partition=natural.

What is read changes with Python's version: 3.11.7 has 79 topics, 5,743 and 1,480 samples.
"""

import ast
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

from data.dataset import Dataset

LENGTH = 64
NUM_TOKENS = 96
_FIRST, _LAST = 32, 126  # of the printable characters


def files(root: Path) -> list[Path]:
    """The one file.

    Raises:
        FileNotFoundError: this Python came without it.
    """
    path = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
    if not path.is_file():
        raise FileNotFoundError(
            f"data=stdlib_chars: this Python came without the topics of help(): {path}"
        )
    return [path]


def load(root: Path) -> Dataset:
    """Return rows of characters (N, 64), and those that follow each (N, 64).

    Args:
        root: not used, the text comes with Python.
    """
    train, test, group = list[Tensor](), list[Tensor](), list[int]()
    for number, text in enumerate(topics(files(root)[0])):
        rows = windows(tokens(text))
        num_train = len(rows) * 4 // 5
        train.append(rows[:num_train])
        test.append(rows[num_train:])
        group += [number] * num_train
    both = [torch.cat(rows) for rows in (train, test)]
    return Dataset(
        train_x=both[0][:, :-1].contiguous(),
        train_y=both[0][:, 1:].contiguous(),
        test_x=both[1][:, :-1].contiguous(),
        test_y=both[1][:, 1:].contiguous(),
        num_classes=NUM_TOKENS,
        train_group=torch.tensor(group),
    )


def topics(path: Path) -> list[str]:
    """Texts of the topics in the order of their names; the file is read, not run."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "topics":
            found: dict[str, str] = ast.literal_eval(node.value)
            return [found[name] for name in sorted(found)]
    raise ValueError(f"data=stdlib_chars: {path} has no topics")


def tokens(text: str) -> Tensor:
    """(L,) int64 tokens of a text of L characters."""
    codes = [
        0
        if character == "\n"
        else (ord(character) if _FIRST <= ord(character) <= _LAST else ord("?")) - _FIRST + 1
        for character in text
    ]
    return torch.tensor(codes, dtype=torch.int64)


def windows(text: Tensor) -> Tensor:
    """(N, 65) rows that each share one character with the next; the rest is left out."""
    if len(text) <= LENGTH:
        return text.new_empty((0, LENGTH + 1))
    return text.unfold(0, LENGTH + 1, LENGTH)
