"""The IDX file format of MNIST and its relatives: four files, gzipped or not.

http://yann.lecun.com/exdb/mnist describes the format. Nothing is downloaded.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.dataset import Dataset

NUM_CLASSES = 10
MOST_DIMS = 4
MOST_DEFLATED = 1032  # bytes that one byte of gzip can stand for
FILES = {
    "train_x": "train-images-idx3-ubyte",
    "train_y": "train-labels-idx1-ubyte",
    "test_x": "t10k-images-idx3-ubyte",
    "test_y": "t10k-labels-idx1-ubyte",
}


def find_files(root: Path, title: str, folders: tuple[str, ...]) -> dict[str, Path]:
    """Return the path of each of the four files, from the first folder that has them all.

    Raises:
        FileNotFoundError: no folder has all four; says what was looked for, where, and how to
            get it.
    """
    candidates = [root / folder for folder in folders]
    if root.name in folders:
        candidates.append(root)
    for folder in candidates:
        found = {part: _either(folder / name) for part, name in FILES.items()}
        if all(found.values()):
            return {part: path for part, path in found.items() if path is not None}
    looked = ", ".join(str(folder) for folder in candidates)
    raise FileNotFoundError(
        f"data.root={root}: no {title} there; looked for {', '.join(FILES.values())} (or .gz) in "
        f"{looked}; put the four official IDX files into one of these folders, or point data.root "
        "or CUTBIT_DATA at the folder above them"
    )


def read_idx(path: Path) -> Tensor:
    """Read one IDX file of unsigned bytes, shape as its header says.

    Raises:
        ValueError: the file is no IDX file of unsigned bytes, or is shorter or longer than its
            header says.
    """
    is_zipped = path.suffix == ".gz"
    if not path.is_file():
        raise ValueError(f"{path}: is no file")
    most = path.stat().st_size * (MOST_DEFLATED if is_zipped else 1)
    try:
        with gzip.open(path, "rb") if is_zipped else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != b"\x00\x00\x08" or not 1 <= magic[3] <= MOST_DIMS:
                raise ValueError(f"{path}: no IDX file of unsigned bytes")
            sizes = file.read(4 * magic[3])
            shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4)]
            # Refused before room is made for it; the byte more is one too many.
            content = file.read(min(math.prod(shape), most) + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file: {error}") from error
    if len(sizes) != 4 * magic[3] or len(content) != math.prod(shape):
        held = f"more than {len(content) - 1}" if len(content) > math.prod(shape) else len(content)
        raise ValueError(f"{path}: holds {held} values where its header says {math.prod(shape)}")
    try:
        values = np.frombuffer(content, dtype=np.uint8).reshape(shape)
    except ValueError as error:  # a size of 0 beside absurd ones
        raise ValueError(f"{path}: holds no values in {shape}") from error
    return torch.from_numpy(values.copy())


def _either(path: Path) -> Path | None:
    """The file itself or its gzipped form, whichever exists."""
    zipped = path.with_name(path.name + ".gz")
    return path if path.is_file() else zipped if zipped.is_file() else None


def prepare(files: dict[str, Path], mean: float, std: float) -> Dataset:
    """Scale pixels to [0, 1] and standardise by the training set's mean and standard deviation."""
    raw = {part: read_idx(path) for part, path in files.items()}
    for part, values in raw.items():
        wanted = 3 if part.endswith("_x") else 1
        if values.dim() != wanted:
            raise ValueError(f"{files[part]}: has {values.dim()} dimensions, not {wanted}")
    for part in ("train", "test"):
        if len(raw[f"{part}_x"]) != len(raw[f"{part}_y"]):
            raise ValueError(
                f"{files[f'{part}_x']}: {len(raw[f'{part}_x'])} images but "
                f"{len(raw[f'{part}_y'])} labels in {files[f'{part}_y']}"
            )
    for part in ("train_y", "test_y"):
        if raw[part].numel() and int(raw[part].max()) >= NUM_CLASSES:
            raise ValueError(
                f"{files[part]}: has class {int(raw[part].max())}, there are {NUM_CLASSES}"
            )
    return Dataset(
        train_x=raw["train_x"].unsqueeze(1).float().div_(255).sub_(mean).div_(std),
        train_y=raw["train_y"].long(),
        test_x=raw["test_x"].unsqueeze(1).float().div_(255).sub_(mean).div_(std),
        test_y=raw["test_y"].long(),
        num_classes=NUM_CLASSES,
    )
