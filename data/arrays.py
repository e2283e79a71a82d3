"""A user's own arrays: one .npz file, as numpy.savez or savez_compressed writes it.

    train_x     (N, C, H, W) images or (N, C, L) signals
    train_y     (N,) integers, 0 to classes − 1
    test_x      (M, C, H, W) or (M, C, L), of the same sample shape
    test_y      (M,) integers
    train_user  (N,) integers or strings, optional: whose each sample is, for data.partition=natural

``uint8`` are images as a camera has them: they are scaled to [0, 1], and each channel standardised
by mean and standard deviation of the training images. Floating point is taken as it is, as float32.
Other arrays in the file are left alone. Nothing is unpickled.

Sizes and classes come from the headers and the labels; inputs are read when they are needed. The
content is named by the checksums that the file's directory keeps of each array (CRC-32), so that
neither a look at it nor a copy of the file costs a pass over the data.
"""

import hashlib
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.dataset import Dataset, Description

REQUIRED = ("train_x", "train_y", "test_x", "test_y")
OPTIONAL = ("train_user",)
INPUT_TYPES = ("uint8", "float16", "float32", "float64")
CHUNK = 4096  # samples converted at a time
MOST_DEFLATED = 1032  # bytes that one byte of a zip file can stand for


def describe(path: str) -> Description:
    """Return shape, number of classes and content of the file, without reading the inputs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no .npz file, or an array is missing, of a wrong type or of a wrong shape;
            names data.path and the array.
    """
    with _reading(path):
        headers = read_headers(path)
        _check_headers(path, headers)
        with np.load(path, allow_pickle=False) as arrays:
            labels = [_labels(path, name, arrays[name]) for name in ("train_y", "test_y")]
        shape, _ = headers["train_x"]
        num_classes = 1 + max(int(y.max()) for y in labels)
        if num_classes > sum(len(y) for y in labels):
            raise ValueError(
                f"data.path={path}: {num_classes - 1} is the largest class of "
                f"{sum(len(y) for y in labels)} samples: classes count from 0"
            )
        return Description(shape[1:], num_classes, content(path))


def load(path: str, shape: tuple[int, ...], num_classes: int) -> Dataset:
    """Return the arrays as a data set; train_group numbers the users in sorted order.

    Args:
        path: the .npz file.
        shape: of one sample, as `describe` found it.
        num_classes: at least what `describe` found.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `describe`, or an input is not finite, or the file is damaged.
    """
    with _reading(path):
        _check_headers(path, read_headers(path))
        with np.load(path, allow_pickle=False) as arrays:
            train_x, test_x = inputs(path, arrays["train_x"], arrays["test_x"])
            train_y, test_y = (_labels(path, name, arrays[name]) for name in ("train_y", "test_y"))
            user = arrays.get("train_user")
        return Dataset(
            train_x=train_x,
            train_y=torch.from_numpy(train_y),
            test_x=test_x,
            test_y=torch.from_numpy(test_y),
            num_classes=num_classes,
            train_group=None if user is None else number_users(user),
        )


def inputs(path: str, train: NDArray[Any], test: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Return both sides as float32, ``uint8`` scaled and standardised by the training side.

    Raises:
        ValueError: a value is not finite.
    """
    sides = [to_float(train), to_float(test)]
    for name, x in zip(("train_x", "test_x"), sides, strict=True):
        if not all(bool(torch.isfinite(part).all()) for part in x.split(CHUNK)):
            raise ValueError(f"data.path={path}: {name} has values that are not finite")
    if train.dtype == np.uint8:
        mean, spread = channel_statistics(sides[0])
        for x in sides:
            x.sub_(mean).div_(spread)
    return sides[0], sides[1]


def to_float(values: NDArray[Any]) -> Tensor:
    """Return float32; bytes are scaled to [0, 1]."""
    x = torch.empty(values.shape, dtype=torch.float32)
    for start in range(0, len(values), CHUNK):  # no second copy of everything in float64
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            part = values[start : start + CHUNK].astype(np.float32)
        x[start : start + CHUNK] = torch.from_numpy(part)
    return x.div_(255) if values.dtype == np.uint8 else x


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of (N, C, H, W), both (C, 1, 1).

    A channel that never changes has deviation 1, so that standardising it gives zeros.
    """
    count = x.numel() // x.shape[1]
    sums = [part.double().sum((0, 2, 3)) for part in x.split(CHUNK)]
    mean = (torch.stack(sums).sum(0) / count).reshape(-1, 1, 1)
    squares = [(part.double() - mean).square().sum((0, 2, 3)) for part in x.split(CHUNK)]
    spread = (torch.stack(squares).sum(0) / count).sqrt().reshape(-1, 1, 1)
    return mean.float(), torch.where(spread > 0, spread, 1.0).float()


def number_users(users: NDArray[Any]) -> Tensor:
    """Return (N,) int64: each user's place in sorted order."""
    return torch.from_numpy(np.unique(users, return_inverse=True)[1].astype(np.int64))


def content(path: str) -> str:
    """Return 16 hex digits that change when a value, shape or type of an array changes."""
    with zipfile.ZipFile(path) as file:
        members = {member.filename: member for member in file.infolist()}
    taken = [members.get(f"{name}.npy") for name in (*REQUIRED, *OPTIONAL)]
    sums = [None if member is None else (member.CRC, member.file_size) for member in taken]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16]


def read_headers(path: str) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and type of each array of a .npz file, by its name."""
    headers = {}
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            array = name.removesuffix(".npy")
            if array == name or array not in (*REQUIRED, *OPTIONAL):
                continue
            with file.open(name) as member:
                version = np.lib.format.read_magic(member)
                # Later versions differ in field names alone, which arrays taken here have none of.
                read = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    read = np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
                _check_size(array, file.getinfo(name), member.tell(), shape, dtype)
                headers[array] = (shape, dtype)
    return headers


def _check_size(
    array: str, member: zipfile.ZipInfo, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    """Refuse an array whose header says more than its file can hold, before room is made for it.

    Raises:
        ValueError: names the array.
    """
    if dtype.hasobject:  # refused by its type
        return
    said, there = math.prod(shape) * dtype.itemsize, member.file_size - start
    if min(shape, default=0) < 0 or said != there or there > MOST_DEFLATED * member.compress_size:
        raise ValueError(
            f"{array} is {brief(shape)} of {dtype.itemsize} bytes each by its header and has "
            f"{there} bytes, {member.compress_size} as stored"
        )


def _check_headers(path: str, headers: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> None:
    """Refuse arrays that are missing, or of a type or shape that is not taken."""
    where = f"data.path={path}"
    missing = [name for name in REQUIRED if name not in headers]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing; needs {', '.join(REQUIRED)}")
    for name, (_, dtype) in headers.items():
        kinds = {"y": "iu", "user": "iuU"}.get(name.partition("_")[2])
        if name in ("train_x", "test_x") and dtype.name not in INPUT_TYPES:
            raise ValueError(f"{where}: {name} is {dtype}: takes {', '.join(INPUT_TYPES)}")
        if name in (*REQUIRED, *OPTIONAL) and kinds and dtype.kind not in kinds:
            takes = "integers" if kinds == "iu" else "integers or strings"
            raise ValueError(f"{where}: {name} is {dtype}: takes {takes}")
    for name in ("train_x", "test_x"):
        shape, dtype = headers[name]
        if len(shape) not in (3, 4) or 0 in shape:
            raise ValueError(
                f"{where}: {name} is {shape}: takes (N, C, H, W) or (N, C, L), none of them 0"
            )
        if dtype == np.uint8 and (len(shape) != 4 or shape[1] > 4 >= shape[3]):
            raise ValueError(
                f"{where}: {name} is {shape} of uint8: takes images (N, C, H, W), channels second"
            )
    if headers["train_x"][0][1:] != headers["test_x"][0][1:]:
        raise ValueError(
            f"{where}: train_x has samples of {headers['train_x'][0][1:]}, test_x of "
            f"{headers['test_x'][0][1:]}"
        )
    if (headers["train_x"][1] == np.uint8) != (headers["test_x"][1] == np.uint8):
        raise ValueError(
            f"{where}: train_x is {headers['train_x'][1]} and test_x {headers['test_x'][1]}: uint8 "
            "is scaled, floating point is not"
        )
    for name in ("train_y", "test_y", "train_user"):
        like = f"{name.partition('_')[0]}_x"
        if name in headers and headers[name][0] != headers[like][0][:1]:
            raise ValueError(
                f"{where}: {name} is {headers[name][0]} for {headers[like][0][0]} samples of {like}"
            )


def _labels(path: str, name: str, labels: NDArray[Any]) -> NDArray[np.int64]:
    if labels.min() < 0:
        raise ValueError(f"data.path={path}: {name} has class {labels.min()}: takes 0 or more")
    return labels.astype(np.int64)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn what numpy and zipfile raise into one line that names the file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"data.path={path}: no such file")
    try:
        yield
    except Exception as error:  # a broken file can raise anything
        if str(error).startswith("data.path="):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"data.path={path}: no readable .npz file: {reason}") from error
