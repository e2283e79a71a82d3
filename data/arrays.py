"""A user's own arrays: one .npz file, as numpy.savez or savez_compressed writes it.

    train_x     (N, C, H, W) images, (N, C, L) signals or (N, F) features; or (N, T) integers:
                tokens from 0; or train_x0, train_x1, … where a network takes several inputs
    train_y     (N,) integers, 0 to classes − 1
                (N, K) bool, or uint8 of 0 and 1: task=multilabel
                (N,) or (N, K) floating point: task=regression
                (N, T) other integers: task=tokens
    test_x      as train_x, of the same sample shape
    test_y      as train_y
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
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
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
SIDES = ("train", "test")
_NAME = re.compile(r"(train|test)_(x\d*|y)|train_user")
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
        names = _check_headers(path, headers)
        with np.load(path, allow_pickle=False) as arrays:
            labels = [_labels(path, name, arrays[name]) for name in ("train_y", "test_y")]
            vocab_size = None
            if len(names) == 1 and headers["train_x"][1].kind in "iu" and is_tokens(headers):
                sides = [arrays[f"{side}_x"] for side in SIDES]
                vocab_size = 1 + max(int(x.max()) for x in sides)
        shapes = tuple(headers[f"train_{name}"][0][1:] for name in names)
        num_classes = count(labels)
        if labels[0].ndim == 1 and num_classes > sum(len(y) for y in labels):
            raise ValueError(
                f"data.path={path}: {num_classes - 1} is the largest class of "
                f"{sum(len(y) for y in labels)} samples: classes count from 0"
            )
        shape = shapes[0] if names == ["x"] else shapes
        return Description(shape, num_classes, content(path), vocab_size=vocab_size)


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
        headers = read_headers(path)
        names = _check_headers(path, headers)
        with np.load(path, allow_pickle=False) as arrays:
            pairs = [
                tokens(path, *(arrays[f"{side}_{name}"] for side in SIDES))
                if is_tokens(headers, name)
                else inputs(path, *(arrays[f"{side}_{name}"] for side in SIDES), input_name=name)
                for name in names
            ]
            train_x, test_x = pairs[0] if names == ["x"] else zip(*pairs, strict=True)
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


def count(labels: Sequence[NDArray[Any]]) -> int:
    """Return how many classes, tokens, labels or numbers there are."""
    first = labels[0]
    if first.dtype.kind == "f" or first.dtype == np.uint8:
        return int(first.shape[1])
    return 1 + max(int(y.max()) for y in labels)


def is_tokens(
    headers: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], name: str = "x"
) -> bool:
    """Whether an input is tokens: rows of integers."""
    shape, dtype = headers[f"train_{name}"]
    return len(shape) == 2 and dtype.kind in "iu" and dtype != np.uint8


def tokens(path: str, train: NDArray[Any], test: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Return both sides as int64.

    Raises:
        ValueError: one is below 0.
    """
    for name, x in (("train_x", train), ("test_x", test)):
        if x.min() < 0:
            raise ValueError(f"data.path={path}: {name} has token {x.min()}: takes 0 or more")
    return torch.from_numpy(train.astype(np.int64)), torch.from_numpy(test.astype(np.int64))


def inputs(
    path: str, train: NDArray[Any], test: NDArray[Any], *, input_name: str = "x"
) -> tuple[Tensor, Tensor]:
    """Return both sides as float32, ``uint8`` scaled and standardised by the training side.

    Raises:
        ValueError: a value is not finite.
    """
    sides = [to_float(train), to_float(test)]
    for side, x in zip(SIDES, sides, strict=True):
        name = f"{side}_{input_name}"
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
    more = sorted(n.removesuffix(".npy") for n in members if re.fullmatch(r"\w+_x\d+\.npy", n))
    taken = [members.get(f"{name}.npy") for name in (*REQUIRED, *OPTIONAL, *more)]
    sums = [None if member is None else (member.CRC, member.file_size) for member in taken]
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16]


def read_headers(path: str) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and type of each array of a .npz file, by its name."""
    headers = {}
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            array = name.removesuffix(".npy")
            if array == name or not _NAME.fullmatch(array):
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


def _check_headers(
    path: str, headers: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
) -> list[str]:
    """Refuse arrays that are missing, or of a type or shape that is not taken.

    Returns:
        ``["x"]``, or ``["x0", "x1", …]`` of several inputs.
    """
    where = f"data.path={path}"
    names = _input_names(headers)
    required = [f"{side}_{name}" for side in SIDES for name in (*names, "y")]
    missing = [name for name in required if name not in headers]
    if missing:
        needs = REQUIRED if names == ["x"] else required
        raise ValueError(f"{where}: {', '.join(missing)} missing; needs {', '.join(needs)}")
    for name, (_, dtype) in headers.items():
        kinds = {"y": "biuf", "user": "iuU"}.get(name.partition("_")[2])
        if kinds and dtype.kind not in kinds:
            takes = "integers, bool or floating point" if "f" in kinds else "integers or strings"
            raise ValueError(f"{where}: {name} is {dtype}: takes {takes}")
    for name in names:
        _check_input(where, name, headers)
    for name in ("train_y", "test_y", "train_user"):
        like = f"{name.partition('_')[0]}_{names[0]}"
        if name not in headers:
            continue
        shape, samples = headers[name][0], headers[like][0][0]
        is_row = len(shape) == 2 and name != "train_user" and shape[1] > 0
        if shape[:1] != (samples,) or not (len(shape) == 1 or is_row):
            raise ValueError(f"{where}: {name} is {shape} for {samples} samples of {like}")
    for name in names[1:]:
        for side in SIDES:
            of_first, own = headers[f"{side}_{names[0]}"][0][0], headers[f"{side}_{name}"][0][0]
            if of_first != own:
                raise ValueError(f"{where}: {side}_{name} has {own} samples, not {of_first}")
    (train, train_type), (test, test_type) = (headers[f"{side}_y"] for side in SIDES)
    if train[1:] != test[1:] or _label_kind(train, train_type) != _label_kind(test, test_type):
        raise ValueError(
            f"{where}: train_y is {train} of {train_type} and test_y {test} of {test_type}: takes "
            "the same of both"
        )
    return names


def _input_names(headers: Mapping[str, Any]) -> list[str]:
    """``x``, or as many of ``x0``, ``x1``, … as there are in a row."""
    if "train_x" in headers or "train_x0" not in headers:
        return ["x"]
    number = 0
    while f"train_x{number}" in headers:
        number += 1
    return [f"x{index}" for index in range(number)]


def _check_input(
    where: str, own: str, headers: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
) -> None:
    """Refuse an input of a type or shape that is not taken."""
    train_name, test_name = f"train_{own}", f"test_{own}"
    for name in (train_name, test_name):
        shape, dtype = headers[name]
        is_row_of_tokens = len(shape) == 2 and dtype.kind in "iu" and own == "x"
        if dtype.name not in INPUT_TYPES and not is_row_of_tokens:
            raise ValueError(
                f"{where}: {name} is {dtype}: takes {', '.join(INPUT_TYPES)}; tokens are (N, T) "
                "integers"
            )
        if len(shape) not in (2, 3, 4) or 0 in shape:
            raise ValueError(
                f"{where}: {name} is {shape}: takes (N, C, H, W), (N, C, L) or (N, F), none of "
                "them 0"
            )
        if dtype == np.uint8 and (len(shape) != 4 or shape[1] > 4 >= shape[3]):
            raise ValueError(
                f"{where}: {name} is {shape} of uint8: takes images (N, C, H, W), channels second"
            )
    (train, train_type), (test, test_type) = headers[train_name], headers[test_name]
    if train[1:] != test[1:]:
        raise ValueError(
            f"{where}: {train_name} has samples of {train[1:]}, {test_name} of {test[1:]}"
        )
    if (train_type == np.uint8) != (test_type == np.uint8):
        raise ValueError(
            f"{where}: {train_name} is {train_type} and {test_name} {test_type}: uint8 is scaled, "
            "floating point is not"
        )
    if (train_type.kind == "f") != (test_type.kind == "f"):
        raise ValueError(f"{where}: {train_name} is {train_type} and {test_name} {test_type}")


def _label_kind(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    """What labels of a shape and type are: real, binary, or whole numbers."""
    if dtype.kind == "f":
        return "real"
    return "binary" if dtype.kind == "b" or (dtype == np.uint8 and len(shape) == 2) else "whole"


def _labels(path: str, name: str, labels: NDArray[Any]) -> NDArray[Any]:
    """Return classes or tokens as int64, labels as uint8, real numbers as (N, K) float32."""
    kind = _label_kind(labels.shape, labels.dtype)
    if kind == "real":
        if not np.isfinite(labels).all():
            raise ValueError(f"data.path={path}: {name} has values that are not finite")
        return labels.reshape(len(labels), -1).astype(np.float32)
    if kind == "binary":
        if labels.ndim != 2 or labels.max() > 1:
            raise ValueError(
                f"data.path={path}: {name} is {labels.shape} of {labels.dtype} up to "
                f"{int(labels.max())}: labels are (N, K) of 0 and 1"
            )
        return labels.astype(np.uint8)
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
