"""Data sources as modules: those with files under data.root, and those that read data.path.

The first kind has ``files(root)`` and ``load(root)``, and where it has users
``load_by_user(root)``, whose test users are no client's; conf says what they hold. The second has
``describe(path, **options)`` and ``load(path, shape, num_classes, **options)``: what it holds is
found before anything runs.
"""

import functools
import hashlib
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from data.dataset import Dataset
from data.settings import DataSettings
from targets import locate_module, shown


def find(data: DataSettings) -> ModuleType:
    """Return the source's module.

    Raises:
        ValueError: names data.source.
    """
    key, expected = "data.source", "a module such as my_pkg.my_source or sources/mine.py"
    source = locate_module(data.source, key, expected)
    kinds = (("files", "load"), ("describe", "load"))
    if not any(all(hasattr(source, name) for name in names) for names in kinds):
        raise ValueError(
            f"{key}={shown(data.source)}: has neither files and load nor describe and load"
        )
    return source


def completed(data: DataSettings) -> DataSettings:
    """Fill in shape, num_classes and content of a source that reads data.path, and check the path.

    Raises:
        ValueError: the path is missing, not read, or does not hold what is stated.
        FileNotFoundError: nothing is there.
    """
    source = find(data)
    if not hasattr(source, "describe"):
        if data.path is not None:
            raise ValueError(
                f"data.path={data.path}: data={data.name} does not read it; data=arrays and "
                "data=hub do"
            )
        if data.content:
            raise ValueError(f"data.content={data.content}: is found at data.path, not given")
        if data.label_names:
            raise ValueError(
                f"data.label_names={data.label_names}: are found at data.path, not given"
            )
        return data
    if data.path is None:
        takes = "a .npz file" if data.name == "arrays" else "a name on the Hub or a folder"
        raise ValueError(f"data.path: data={data.name} needs it: {takes}")
    path = absolute(data.path)
    found = source.describe(path, **data.options)
    if not (data.shape or found.shape):
        raise ValueError("data.options.resize=true: needs data.shape, such as data.shape=[3,32,32]")
    if data.shape and found.shape and _shape(data.shape) != found.shape:
        raise ValueError(f"data.shape={data.shape}: data.path={path} holds {found.shape}")
    if 0 < data.num_classes < found.num_classes:
        raise ValueError(
            f"data.num_classes={data.num_classes}: data.path={path} has {found.num_classes}"
        )
    if data.vocab_size is not None and data.vocab_size < (found.vocab_size or math.inf):
        holds = found.vocab_size or "real numbers"
        raise ValueError(f"data.vocab_size={data.vocab_size}: data.path={path} has {holds}")
    shape = data.shape or [list(s) if isinstance(s, tuple) else s for s in found.shape]
    return replace(
        data,
        path=path,
        shape=list(shape),
        vocab_size=data.vocab_size or found.vocab_size,
        label_names=list(found.label_names),
        num_classes=data.num_classes or found.num_classes,
        content=found.content,
    )


def _shape(stated: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(one) if isinstance(one, list) else one for one in stated)


def read(data: DataSettings) -> Dataset:
    """Load the data set from its source.

    Raises:
        FileNotFoundError: the source's files are not there; says where they were looked for.
        ValueError: they are damaged, or have changed since `completed` looked at them.
    """
    source, root = find(data), Path(data.root)
    if data.content:
        if source.describe(data.path, **data.options).content != data.content:
            raise ValueError(f"data.path={data.path}: has changed since the run began")
        whole = source.load(data.path, _shape(data.shape), data.num_classes, **data.options)
    else:
        whole = source.load_by_user(root) if is_by_user(data) else source.load(root)
    assert isinstance(whole, Dataset)
    return whole


def is_by_user(data: DataSettings) -> bool:
    """Whether the source sets other users aside for the test."""
    return data.partition == "natural" and hasattr(find(data), "load_by_user")


def fingerprint(data: DataSettings) -> Any:
    """Return what changes when the source's files do."""
    if data.content:
        return data.content
    files = find(data).files(Path(data.root))
    return [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def absolute(path: str) -> str:
    """Return an absolute path where something is at ``path``, for processes in other folders."""
    there = Path(path).expanduser()
    return str(there.absolute()) if there.exists() else path


def file_digest(path: str) -> str:
    """Return 16 hex digits of a file's bytes."""
    status = Path(path).stat()
    return _file_digest(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _file_digest(path: str, size: int, mtime_ns: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
