"""CIFAR-10: 60,000 colour images of 32×32 in ten classes, from the official python batches.

Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images;
https://www.cs.toronto.edu/~kriz/cifar.html. Read from the folder ``cifar-10-batches-py`` or from
``cifar-10-python.tar.gz`` under ``root``. Nothing is downloaded or unpacked to disk.

The batches are pickles, and a pickle can run any code. These are read by an unpickler that knows
only what it takes to rebuild a numpy array and refuses everything else.
"""

import io
import pickle
import re
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.dataset import Dataset

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCH = "test_batch"
BATCHES = (*TRAIN_BATCHES, TEST_BATCH)
NUM_CLASSES = 10
SHAPE = (3, 32, 32)

# Mean and standard deviation of each channel over all pixels of the 50,000 training images, scaled
# to [0, 1]. (The widely copied 0.2023, 0.1994, 0.2010 is the mean of the images' own deviations.)
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

# Of values, arrays and the two globals below, in all protocols; docs of pickletools have the names.
_OPCODES = b"\x80\x95.0N\x88\x89KMJ\x8a\x8bILFGSTUVX\x8c\x8dCB\x8e()t\x85\x86\x87]lae}dsu"
_OPCODES += b"pqrghj\x94c\x93Rb2"

ALLOWED_GLOBALS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),  # written by numpy 1
    ("numpy._core.multiarray", "_reconstruct"),  # written by numpy 2
}


_Unpickler: Any = pickle._Unpickler  # type: ignore[attr-defined,unused-ignore]


class ArrayUnpickler(_Unpickler):  # type: ignore[misc]
    """Unpickle containers, numbers, text, bytes and numpy arrays; refuse every other global.

    The one in Python: that in C makes room for as many places as a pickle of six bytes names. There
    are no sets, no objects, and no keys but text: hashing tuples of tuples can take for ever.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return the global, if it is one that rebuilds arrays."""
        if (module, name) not in ALLOWED_GLOBALS:
            raise ValueError(f"refused the global {module}.{name}, only numpy arrays are read")
        return {"_reconstruct": _reconstruct, "dtype": _dtype, "ndarray": _ARRAY}[name]

    def load_setitem(self) -> None:
        """Set a key that is text."""
        self._check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        """Set keys that are text."""
        self._check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        """Make a dictionary of keys that are text."""
        self._check_keys(self.stack[::2])
        super().load_dict()

    @staticmethod
    def _check_keys(keys: list[Any]) -> None:
        if not all(isinstance(key, str | bytes) for key in keys):
            raise ValueError("refused a key that is no text")

    dispatch = {
        code: load for code, load in _Unpickler.dispatch.items() if bytes([code]) in _OPCODES
    } | {ord("s"): load_setitem, ord("u"): load_setitems, ord("d"): load_dict}


def load(root: Path) -> Dataset:
    """Return CIFAR-10: 50,000 + 10,000 images of (3, 32, 32) float32, standardised per channel.

    Raises:
        FileNotFoundError: neither the folder nor the archive is under ``root``.
        ValueError: a batch is damaged, or holds something other than images and labels.
    """
    batches = read_batches(root)
    train = [batches[name] for name in TRAIN_BATCHES]
    test_images, test_labels = batches[TEST_BATCH]
    return Dataset(
        train_x=standardise(np.concatenate([images for images, _ in train])),
        train_y=torch.from_numpy(np.concatenate([labels for _, labels in train])),
        test_x=standardise(test_images),
        test_y=torch.from_numpy(test_labels),
        num_classes=NUM_CLASSES,
    )


def read_batches(root: Path) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Return images (N, 3, 32, 32) and labels (N,) of the six batches, by their name.

    Raises:
        FileNotFoundError: the batches are not there; says what was looked for, where, and how to
            get it.
        ValueError: a batch or the archive is damaged.
    """
    found = files(root)
    if found == [root / ARCHIVE]:
        return _read_archive(found[0])
    return {path.name: parse_batch(path.read_bytes(), str(path)) for path in found}


def files(root: Path) -> list[Path]:
    """Return the six batches, or the archive that holds them.

    Raises:
        FileNotFoundError: they are not there; says what was looked for, where, and how to get it.
    """
    folders = [root / FOLDER, *([root] if root.name == FOLDER else [])]
    archive = root / ARCHIVE
    for folder in folders:
        if all((folder / name).is_file() for name in BATCHES):
            return [folder / name for name in BATCHES]
    if archive.is_file():
        return [archive]
    looked = ", ".join(str(path) for path in (*folders, archive))
    raise FileNotFoundError(
        f"data.root={root}: no CIFAR-10 there; looked for {', '.join(BATCHES)} in {looked}; get "
        "the python version from "
        "https://www.cs.toronto.edu/~kriz/cifar.html, or point data.root or CUTBIT_DATA at the "
        "folder above them"
    )


def parse_batch(content: bytes, source: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the images (N, 3, 32, 32) and labels (N,) of one pickled batch.

    Args:
        content: the pickle, a dictionary of ``data``, (N, 3072) uint8, and ``labels``, N integers.
        source: where it comes from, for messages.

    Raises:
        ValueError: it is damaged, names a global that is refused, or holds something else.
    """
    try:
        batch = ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{source}: no CIFAR-10 batch: {reason}") from error
    data, labels = _field(batch, "data"), _field(batch, "labels")
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2):
        raise ValueError(f"{source}: no CIFAR-10 batch: its data are no table of bytes")
    if not (isinstance(labels, list) and all(type(label) is int for label in labels)):
        raise ValueError(f"{source}: no CIFAR-10 batch: its labels are no list of integers")
    if data.shape != (len(labels), 3 * 32 * 32):
        raise ValueError(
            f"{source}: no CIFAR-10 batch: data of shape {data.shape} for {len(labels)} labels"
        )
    if not all(0 <= label < NUM_CLASSES for label in labels):
        raise ValueError(f"{source}: no CIFAR-10 batch: a label is not in 0 to {NUM_CLASSES - 1}")
    return data.reshape(-1, *SHAPE), np.array(labels, dtype=np.int64)


def standardise(images: NDArray[np.uint8]) -> torch.Tensor:
    """Scale (N, 3, 32, 32) bytes to [0, 1], less the channel's mean, by its standard deviation."""
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    return torch.from_numpy(images).float().div_(255).sub_(mean).div_(std)


def _read_archive(path: Path) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Read the six batches from the official archive, one pass over it."""
    wanted = {f"{FOLDER}/{name}": name for name in BATCHES}
    batches = {}
    try:
        # Not as a stream, "r|gz": that takes an archive cut off within a header for whole.
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = wanted.get(member.name.removeprefix("./"))
                file = archive.extractfile(member) if name and member.isfile() else None
                if name and file:
                    batches[name] = parse_batch(file.read(), f"{path}:{member.name}")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: damaged archive: {error}") from error
    missing = [name for name in BATCHES if name not in batches]
    if missing:
        raise ValueError(f"{path}: the archive lacks {', '.join(missing)}")
    return batches


def _reconstruct(cls: Any, shape: Any, code: Any) -> Any:
    """The empty array that a pickled array starts from; its content follows and is checked."""
    if cls is not _ARRAY or tuple(shape) != (0,):
        raise ValueError("refused an array that does not start empty")
    return np.empty(0, dtype=np.uint8)


_ARRAY = object()
"""Stands for numpy.ndarray, which itself would make an array of any size when called."""


def _dtype(code: Any, *flags: Any) -> Any:
    """A type of plain numbers."""
    text = code.decode() if isinstance(code, bytes) else str(code)
    if re.fullmatch(r"[iufb]\d", text) is None:
        raise ValueError("refused an array that is not of plain numbers")
    return np.dtype(text)


def _field(batch: Any, name: str) -> Any:
    """A field of the batch under its key as Python 2 (bytes) or Python 3 (str) wrote it."""
    if not isinstance(batch, dict):
        return None
    return batch.get(name.encode(), batch.get(name))
