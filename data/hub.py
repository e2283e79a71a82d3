"""Any data set that Hugging Face's datasets can load: from the Hub, or a local folder.

``data.path`` is a name on the Hub, such as ``ylecun/mnist``, or a folder of files that datasets
understands: parquet, csv, json lines, or images in folders named by their class. A folder that
exists wins over a name. https://huggingface.co/docs/datasets/loading.

Inputs are a column of images (8 bits; scaled and standardised as in `data.arrays`), of arrays
(C, H, W) or (C, L), or of lists of numbers, which become (1, L); arrays and lists are taken as they
are. Columns of one number each, as a csv has them, are features: (F,), each standardised by mean
and standard deviation of the training rows. Labels are classes; a column of text, whose values in
alphabetical order become the classes and keep their names; one column of real numbers, or several,
for task=regression; or several columns of 0 and 1, for task=multilabel. A value that is missing is
refused with its row and column. Where the Hub cannot be reached, what datasets has in its own cache
(HF_HOME) is used. No code of a data set is run.
"""

import functools
import hashlib
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data import folders
from data.arrays import count, inputs, number_users
from data.dataset import Dataset, Description

if TYPE_CHECKING:
    import datasets
    from PIL.Image import Image

TIMEOUT_S = 5
CHUNK = 1000  # rows converted at a time
LONGEST_REASON = 300

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """``data.options``; a column that is None is found by its type, where only one has it.

    Attributes:
        subset: name of a configuration, where the data set has several.
        revision: commit, tag or branch on the Hub; None takes the newest.
        train_split: name or slice, such as ``train[:80%]``.
        test_split: the same, for the test set.
        image: column of the inputs.
        features: columns of one number each, instead of ``image``; None takes, where no column
            holds inputs, all but label and user.
        label: column of the classes, or of real numbers; or a list of columns. None takes the one
            of classes, else the one that is called so.
        user: column of whose a sample is, for data.partition=natural; None where there are none.
        resize: bring every image to data.shape, which must be stated.
    """

    subset: str | None = None
    revision: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    image: str | None = None
    features: Sequence[str] | None = None
    label: str | Sequence[str] | None = None
    user: str | None = None
    resize: bool = False

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name == "resize":
                if not isinstance(value, bool):
                    raise ValueError(f"data.options.resize={value}: takes true or false")
            elif option.name in ("features", "label") and isinstance(value, list | tuple):
                if not value or not all(isinstance(name, str) for name in value):
                    raise ValueError(f"data.options.{option.name}={value}: takes names of columns")
            elif option.name == "features" and value is not None:
                raise ValueError(f"data.options.features={value}: takes a list of columns")
            elif not (isinstance(value, str) or (value is None and option.default is None)):
                raise ValueError(f"data.options.{option.name}={value}: takes a name")


def describe(path: str, **options: Any) -> Description:
    """Return shape, number of classes and content; fetches the data where they are not there yet.

    Raises:
        ValueError: it cannot be loaded, or a column is missing or of no use; one line that names
            the key.
    """
    chosen = Options(**options)
    with _reading(path):
        train, test = open_splits(path, chosen)
        image, label = columns(path, train, chosen)
        if isinstance(image, str):
            shape = () if chosen.resize else to_array(path, train[0][image], None).shape
        else:
            shape = (len(image),)
        labels, names = labels_of(path, (train, test), label)
        stated = getattr(train.features[label[0]], "num_classes", 0)
        return Description(shape, max(count(labels), stated), content(path, chosen), names)


def load(path: str, shape: tuple[int, ...], num_classes: int, **options: Any) -> Dataset:
    """Return the data set with inputs of ``shape``; train_group numbers the users in sorted order.

    Raises:
        ValueError: as `describe`, or an input has another shape.
    """
    chosen = Options(**options)
    with _reading(path):
        splits = open_splits(path, chosen)
        image, label = columns(path, splits[0], chosen)
        resize = shape if chosen.resize else None
        if isinstance(image, str):
            train_x, test_x = inputs(
                path, *(input_array(path, split, image, shape, resize) for split in splits)
            )
        else:
            train_x, test_x = standardised(*(feature_array(path, s, image) for s in splits))
        train_y, test_y = (torch.from_numpy(y) for y in labels_of(path, splits, label)[0])
        users = None if chosen.user is None else np.asarray(splits[0][chosen.user][:])
        if users is not None and users.dtype.kind not in "iuU":
            raise ValueError(
                f"data.options.user={chosen.user}: data.path={path} has {users.dtype} there; takes "
                "integers or strings, one for each sample"
            )
        return Dataset(
            train_x=train_x,
            train_y=train_y,
            test_x=test_x,
            test_y=test_y,
            num_classes=num_classes,
            train_group=None if users is None else number_users(users),
        )


def open_splits(path: str, chosen: Options) -> tuple["datasets.Dataset", "datasets.Dataset"]:
    """Return training and test split, memory-mapped by datasets, with at least one row each."""
    digest = folder_digest(Path(path)) if Path(path).is_dir() else ""
    builder = _builder(path, chosen.subset, chosen.revision, digest)
    found = []
    for key in ("train_split", "test_split"):
        name = getattr(chosen, key)
        try:
            found.append(builder.as_dataset(name))
        except ValueError as error:  # an unknown split, or a slice that is empty or no slice
            there = ", ".join(builder.info.splits or [])
            raise ValueError(
                f"data.options.{key}={name}: data.path={path} has {there}, or slices of them such "
                "as train[80%:]"
            ) from error
    if builder.name == "imagefolder" and chosen.label is None:
        _refuse_without_classes(path, found)
    return found[0], found[1]


def _refuse_without_classes(path: str, splits: Sequence["datasets.Dataset"]) -> None:
    """Refuse images of which datasets has found no classes.

    Raises:
        ValueError: says how they have to lie.
    """
    for split in splits:
        if not {"image"} <= set(split.column_names) <= {"image", "label"}:
            return  # described by a file of metadata
        labels = split.data.column("label") if "label" in split.column_names else None
        if labels is None or labels.null_count == len(labels):
            raise ValueError(
                f"data.path={path}: its images do not lie in folders of classes; takes "
                "train/<class>/ and test/<class>/ of two classes or more, or a metadata.csv whose "
                "column data.options.label names"
            )


def columns(
    path: str, train: "datasets.Dataset", chosen: Options
) -> tuple[str | list[str], list[str]]:
    """Return the column of inputs, or those of features, and those of labels.

    Raises:
        ValueError: there is none or more than one, or no column of the name; lists what there is.
    """
    import datasets

    kinds = {
        "image": (datasets.Image, datasets.Array2D, datasets.Array3D),
        "label": (datasets.ClassLabel,),
    }
    there = ", ".join(train.column_names)
    for key in ("image", "features", "label", "user"):
        given = getattr(chosen, key)
        for name in [given] if isinstance(given, str) else given or []:
            if name not in train.column_names:
                raise ValueError(f"data.options.{key}={name}: data.path={path} has columns {there}")
    if chosen.image is not None and chosen.features is not None:
        raise ValueError(f"data.options.features={list(chosen.features)}: takes null with image")

    def only(key: str) -> str | None:
        types = kinds[key]
        fitting = [name for name, kind in train.features.items() if isinstance(kind, types)]
        return fitting[0] if len(fitting) == 1 else None

    def unsaid(key: str) -> ValueError:
        return ValueError(
            f"data.options.{key}: data.path={path} does not say which column it is; name one of "
            f"{there}"
        )

    is_row = all(isinstance(kind, datasets.Value | datasets.ClassLabel)
                 for kind in train.features.values())  # fmt: skip
    found: str | list[str] | None = chosen.image or list(chosen.features or []) or only("image")
    if found is None and not is_row:
        raise unsaid("image")
    label = chosen.label or only("label")
    if label is None and is_row and "label" in train.column_names:
        label = "label"
    if label is None:
        raise unsaid("label")
    labels = [label] if isinstance(label, str) else list(label)
    if found is None:
        found = [name for name in train.column_names if name not in (*labels, chosen.user)]
    if not found:
        raise unsaid("features")
    for name in found if isinstance(found, list) else []:
        kind = getattr(train.features[name], "dtype", "none")
        if not kind.startswith(("bool", "int", "uint", "float", "double")):
            raise ValueError(
                f"data.options.features: data.path={path} has {kind} in column {name}: takes "
                "numbers; data.options.features names the columns to take"
            )
    return found, labels


def feature_array(path: str, split: "datasets.Dataset", names: Sequence[str]) -> NDArray[Any]:
    """Return (N, F) float64 features of a split.

    Raises:
        ValueError: a column is no numbers, or a value is missing; names column and row.
    """
    return np.stack([_numbers(path, split, name, "features") for name in names], axis=1)


def _numbers(path: str, split: "datasets.Dataset", name: str, key: str) -> NDArray[Any]:
    """Return (N,) numbers of a column."""
    _refuse_missing(path, split, name)
    values = np.asarray(split[name][:])
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"data.options.{key}: data.path={path} has {values.dtype} in column {name}: takes "
            "numbers; data.options.features names the columns to take"
        )
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(
            f"data.path={path}: {split.split} row {row + 1} has {values[row]} in column {name}"
        )
    return values


def _refuse_missing(path: str, split: "datasets.Dataset", name: str) -> None:
    column = split.data.column(name)
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise ValueError(
            f"data.path={path}: {split.split} row {row + 1} has no value in column {name}; "
            f"{column.null_count} of its {len(column)} are missing"
        )


def standardised(train: NDArray[Any], test: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """(N, F) and (M, F) by mean and standard deviation of the first; constants become zeros."""
    mean, spread = train.mean(0), train.std(0)
    spread[spread == 0] = 1.0
    both = [torch.from_numpy(((x - mean) / spread).astype(np.float32)) for x in (train, test)]
    return both[0], both[1]


def labels_of(
    path: str, splits: Sequence["datasets.Dataset"], names: Sequence[str]
) -> tuple[list[NDArray[Any]], tuple[str, ...]]:
    """Return the labels of each split, and the names of the classes, where they have names.

    Raises:
        ValueError: a value is missing, or is no label; names the column.
    """
    first, kind = names[0], splits[0].features[names[0]]
    if len(names) == 1 and getattr(kind, "dtype", "") in ("string", "large_string"):
        for split in splits:
            _refuse_missing(path, split, first)
        texts = [list(split[first][:]) for split in splits]
        known = sorted({text for side in texts for text in side})
        number = {text: index for index, text in enumerate(known)}
        classes = [np.array([number[text] for text in side], dtype=np.int64) for side in texts]
        return list(classes), tuple(known)
    is_real = getattr(kind, "dtype", "").startswith(("float", "double"))
    if len(names) == 1 and not is_real:
        stated = getattr(kind, "names", None) or ()
        return [label_array(path, split, first) for split in splits], tuple(stated)
    columns = [[_numbers(path, s, name, "label") for name in names] for s in splits]
    both = [np.stack(own, axis=1) for own in columns]
    if len(names) > 1 and all(np.isin(y, (0, 1)).all() for y in both):
        return [y.astype(np.uint8) for y in both], ()
    return [y.astype(np.float32) for y in both], ()


def label_array(path: str, split: "datasets.Dataset", column: str) -> NDArray[np.int64]:
    """Return (N,) classes of a split.

    Raises:
        ValueError: they are no integers from 0, as where a test set's classes are secret.
    """
    if split.data.column(column).null_count:
        _refuse_missing(path, split, column)
    labels = np.asarray(split[column][:])
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(f"data.path={path}: column {column} is {labels.dtype}: takes integers")
    if labels.min() < 0:
        raise ValueError(f"data.path={path}: column {column} has class {labels.min()}: takes 0 up")
    return labels.astype(np.int64)


def input_array(
    path: str,
    split: "datasets.Dataset",
    column: str,
    shape: tuple[int, ...],
    resize: tuple[int, ...] | None,
) -> NDArray[Any]:
    """Return (N, *shape) inputs of a split, uint8 or float32.

    Raises:
        ValueError: one has another shape.
    """
    parts, num_greyed = [], 0
    for start in range(0, len(split), CHUNK):
        values = split[start : start + CHUNK][column]
        num_greyed += sum(shape[0] == 1 and has_colour(value) for value in values)
        rows = [to_array(path, value, resize, shape) for value in values]
        for row in rows:
            if row.shape != shape:
                raise ValueError(
                    f"data.path={path}: an input is {row.shape}, not {shape}; "
                    "data.options.resize=true with data.shape brings images to one size"
                )
        parts.append(np.stack(rows))
    if num_greyed:
        log.warning(
            "data.path=%s: %d of %d images of %s have colours, which are left out: the first is "
            "grey, and so are all taken", path, num_greyed, len(split), split.split,
        )  # fmt: skip
    return np.concatenate(parts)


def has_colour(value: Any) -> bool:
    """Whether it is an image with a pixel that is not grey."""
    from PIL.Image import Image

    if not isinstance(value, Image) or value.mode in _GREY:
        return False
    pixels = np.asarray(opaque(value).convert("RGB"))
    return bool((pixels != pixels[..., :1]).any())


def to_array(
    path: str,
    value: Any,
    resize: tuple[int, ...] | None,
    shape: tuple[int, ...] = (),
) -> NDArray[Any]:
    """Return one input as (C, H, W) or (C, L): uint8 from an image, else as it is, as float32.

    Args:
        path: for messages.
        value: an image, or nested lists.
        resize: (C, H, W) that an image is brought to; None leaves its size.
        shape: of other inputs, whose number of channels an image is converted to.

    Raises:
        ValueError: it is neither an image of 8 bits nor numbers of one to three dimensions.
    """
    from PIL.Image import Image

    if isinstance(value, Image):
        return image_array(path, value, resize, shape)
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or not 1 <= array.ndim <= 3:
        raise ValueError(
            f"data.options.image: data.path={path} has {array.dtype} of {array.ndim} dimensions "
            "there; takes images, or numbers of 1 to 3"
        )
    array = array.astype(np.float32)
    return array[None] if array.ndim == 1 else array


def image_array(
    path: str, image: "Image", resize: tuple[int, ...] | None, shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Return an image as (1, H, W) or (3, H, W) bytes; transparency is dropped.

    An image with a palette has the colours of its pixels: where all are grey it is a grey one.
    """
    from PIL.Image import Resampling

    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"data.path={path}: an image has mode {image.mode}: takes 8 bits a channel"
        )
    is_grey = image.mode in _GREY or (image.mode in _PALETTE and not has_colour(image))
    num_channels = shape[0] if shape else 1 if is_grey else 3
    image = opaque(image).convert("L" if num_channels == 1 else "RGB")
    if resize is not None:
        image = image.resize((resize[2], resize[1]), Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def opaque(image: "Image") -> "Image":
    """Return an image whose palette has no transparent colours; Pillow warns of others."""
    return image.convert("RGBA") if image.mode in _PALETTE else image


_GREY = ("1", "L", "LA", "La")
_PALETTE = ("P", "PA")


def content(path: str, chosen: Options) -> str:
    """Name the content: a digest of a local folder's files, or a commit of the Hub."""
    if Path(path).is_dir():
        return folder_digest(Path(path))
    return str(_builder(path, chosen.subset, chosen.revision, "").hash)


def folder_digest(folder: Path) -> str:
    """Return 16 hex digits of the names and bytes of all files in a folder that can be data."""
    status = [(file, file.stat()) for file in folders.files(folder)]
    return _files_digest(
        folder, tuple((file, found.st_size, found.st_mtime_ns) for file, found in status)
    )


@functools.lru_cache(maxsize=4)
def _files_digest(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    """Read the files once per process, and again when one has changed."""
    digest = hashlib.sha256()
    for file, _, _ in files:
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=4)
def _builder(
    path: str, subset: str | None, revision: str | None, digest: str
) -> "datasets.DatasetBuilder":
    """Return the builder of a data set that is on this machine, fetched first where it is not.

    Args:
        path: folder or name.
        subset: a configuration.
        revision: on the Hub.
        digest: of a folder's files, so that a folder that changed is opened anew.
    """
    import datasets

    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    if Path(path).is_dir():
        folder = folders.plain(Path(path), digest)
        builder = datasets.load_dataset_builder(str(folder), subset)
    else:
        reason = hub_refusal(path, revision)
        with _offline(reason is not None):
            builder = _remote(path, subset, revision, reason)
    builder.download_and_prepare()
    return builder


def _remote(
    path: str, subset: str | None, revision: str | None, reason: str | None
) -> "datasets.DatasetBuilder":
    """Return the builder of a data set on the Hub; with a ``reason`` of its copy in the cache."""
    import datasets

    if reason is None:
        return datasets.load_dataset_builder(path, subset, revision=revision)
    try:
        builder = datasets.load_dataset_builder(path, subset)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"data.path={path}: no folder of that name, not in the cache of Hugging Face "
            f"({datasets.config.HF_DATASETS_CACHE}), and the Hub cannot be reached: {reason}"
        ) from error
    if revision not in (None, builder.hash):
        raise ValueError(
            f"data.options.revision={revision}: the cache has {builder.hash} of data.path={path}, "
            f"and the Hub cannot be reached: {reason}"
        )
    return builder


def hub_refusal(path: str, revision: str | None) -> str | None:
    """Return why the Hub cannot be reached, or None where it can; asks once and does not wait long.

    datasets itself would try six times over.

    Raises:
        ValueError: the Hub answers that it has no such data set, or gives it only to some.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", path):  # datasets would take csv for files right here
        raise ValueError(
            f"data.path={path}: neither a folder that is there nor owner/name on the Hub"
        )
    try:
        HfApi().dataset_info(path, revision=revision, timeout=TIMEOUT_S)
    except GatedRepoError as error:
        raise ValueError(
            f"data.path={path}: ask for access at https://huggingface.co/datasets/{path}, then "
            "log in with hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"data.path={path}: neither a folder that is there nor a data set that the Hub shows; "
            "a private one needs hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(
            f"data.options.revision={revision}: data.path={path} has no such revision"
        ) from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        return _one_line(error)
    return None


@contextmanager
def _offline(yes: bool) -> Iterator[None]:
    """Keep datasets from asking the Hub; its switch is read from the environment only once."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = yes or before
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn whatever datasets raises into one line that names the key."""
    try:
        yield
    except Exception as error:
        if str(error).startswith("data."):
            raise
        while error.__cause__ is not None:  # its own message is that something went wrong
            assert isinstance(error.__cause__, Exception)
            error = error.__cause__
        raise ValueError(f"data.path={path}: cannot be loaded: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + " …"
