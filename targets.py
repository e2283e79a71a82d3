"""Code of the user's own, named on the command line: ``my_pkg.MyNet`` or ``nets/mine.py:MyNet``.

A dotted path is imported as Python imports it. A file is loaded under a module name that holds its
folder and its content (`module_name`), and never through ``sys.path``: a folder ``models/`` of the
user's and ours do not meet, and an edited file is another module. What lies beside the file is
imported relative to it: ``from .blocks import Block``. On another machine of a cluster, which may
lack the file, it is what was sent along (`SHIPPED`).

`pin` makes such a name good for other processes, and for a run's identity: the path becomes
absolute, and the file's content is named, ``/home/me/nets/mine.py:MyNet@3fa9c1d2e5f6``.

This file lies below every folder, because models, quant, data and app all ask it; it imports none.
"""

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

OURS = ("app", "data", "fleet", "models", "privacy", "quant", "strategies", "tracking")
CONTENT_DIGITS = 12
# What the driver sent to a machine of a cluster, a folder for each of the user's folders.
SHIPPED = Path(__file__).resolve().parent / "shipped"
_FILE = re.compile(rf"(.+\.py)(?::(\w+))?(?:@([0-9a-f]{{{CONTENT_DIGITS}}}))?")


@dataclass(frozen=True)
class FileTarget:
    """A name in a file.

    Attributes:
        path: of the file, as given.
        name: what is meant in it; empty for the module itself.
        content: digest of the file's bytes; empty where none was given.
    """

    path: str
    name: str
    content: str

    @staticmethod
    def of(target: str) -> "FileTarget | None":
        """``target`` as a file's, or None where it is a dotted path."""
        found = _FILE.fullmatch(target)
        return FileTarget(found[1], found[2] or "", found[3] or "") if found else None

    def __str__(self) -> str:
        name = f":{self.name}" if self.name else ""
        return self.path + name + (f"@{self.content}" if self.content else "")


def is_target(text: str) -> bool:
    """Whether ``text`` names code, and is not a plain word such as ``iid``."""
    return "." in text


def pin(target: str, key: str) -> str:
    """Return ``target`` with an absolute path and the file's content; a dotted path as it is.

    Raises:
        ValueError: there is no such file, or it is not what it was; names ``key``.
    """
    file = FileTarget.of(target)
    if file is None:
        return target
    path = Path(file.path).expanduser().absolute()
    if not _place(path).is_file():
        raise ValueError(f"{key}={target}: no such file: {path}; expected folder/file.py:Name")
    content = _digest(_place(path).read_bytes())
    if file.content not in ("", content):
        raise ValueError(f"{key}={target}: {path} has changed since the run began")
    return str(FileTarget(str(path), file.name, content))


def placeless(target: str) -> str:
    """Return a pinned target without its folder; any other text as it is.

    What a file holds is part of an experiment; where it lies is not.
    """
    file = FileTarget.of(target)
    if file is None or not file.content:
        return target
    return str(FileTarget(Path(file.path).name, file.name, file.content))


def shown(target: str) -> str:
    """Return ``target`` as a message says it: without its content."""
    file = FileTarget.of(target)
    return target if file is None else str(FileTarget(file.path, file.name, ""))


def short_name(target: str) -> str:
    """Return what a table calls ``target``: ``models.cnn.CNN`` is ``cnn``."""
    file = FileTarget.of(target)
    last = target.rpartition(".")[2] if file is None else file.name or Path(file.path).stem
    return last.lower()


def locate(target: str, key: str, expected: str) -> Any:
    """Import what ``target`` names.

    Args:
        target: ``package.module.Name``, or ``folder/file.py:Name``.
        key: where it was given, such as ``model._target_``.
        expected: what it should be, for the message.

    Raises:
        ValueError: one line with the key, the target, what went wrong and what is expected.
    """
    try:
        file = FileTarget.of(target)
        if file is not None:
            if not file.name:
                raise _NotFoundError(f"the name in it is missing, as in {file.path}:Name")
            module = _load(pin(target, key))
            if not hasattr(module, file.name):
                raise _NotFoundError(f"{Path(file.path).name} has no {file.name}")
            return getattr(module, file.name)
        path, _, name = target.rpartition(".")
        if not path or path.startswith("."):
            raise _NotFoundError("is neither a dotted path nor a file")
        module = _import(path, name)
        if not hasattr(module, name):
            raise _NotFoundError(f"{path} has no {name}{_hint(path, name)}")
        return getattr(module, name)
    except _NotFoundError as error:
        raise ValueError(f"{key}={shown(target)}: {error}; expected {expected}") from error


def locate_module(target: str, key: str, expected: str) -> ModuleType:
    """Import the module ``package.module``, or ``folder/file.py``.

    Raises:
        ValueError: as `locate`.
    """
    try:
        file = FileTarget.of(target)
        if file is None:
            return _import(target)
        if file.name:
            raise _NotFoundError(f"names {file.name} and not the file alone")
        return _load(pin(target, key))
    except _NotFoundError as error:
        raise ValueError(f"{key}={shown(target)}: {error}; expected {expected}") from error


def module_name(path: Path, content: str) -> tuple[str, str]:
    """Names under which a file is loaded: of its folder, as a package, and of itself in it."""
    package = f"files_{_digest(str(path.parent).encode())}"
    stem = re.sub(r"\W", "_", path.stem)
    return package, f"{package}.{stem}_{content}"


class _NotFoundError(Exception):
    """What went wrong, without the key."""


def _import(module: str, name: str = "") -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever the user's module raises
        raise _NotFoundError(
            f"cannot be imported: {_reason(error)}{_hint(module, name)}"
        ) from error


def _load(pinned: str) -> ModuleType:
    """Load a file once per process and content."""
    file = FileTarget.of(pinned)
    assert file is not None
    package, name = module_name(Path(file.path), file.content)
    path = _place(Path(file.path))
    if name in sys.modules:
        return sys.modules[name]
    if package not in sys.modules:  # empty; says where relative imports look
        spec = ModuleSpec(package, None, is_package=True)
        spec.submodule_search_locations = [str(path.parent)]
        sys.modules[package] = importlib.util.module_from_spec(spec)
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look there
    try:
        found.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        del sys.modules[name]
        raise _NotFoundError(f"cannot be loaded: {_reason(error, str(path))}") from error
    return module


def _place(path: Path) -> Path:
    """Where a file lies on this machine: what was sent to it comes before what it has."""
    sent = SHIPPED / module_name(path, "")[0] / path.name
    return sent if sent.is_file() else path


def _reason(error: Exception, path: str = "") -> str:
    """First line of an error, and the line of the user's file that it comes from."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    within = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    return f"{text} (line {within[-1]})" if within else text


def _hint(module: str, name: str) -> str:
    """What to write where a folder of the user's has a name of ours."""
    file = Path(*module.split(".")).with_suffix(".py")
    if file.parts[0] not in OURS or not file.is_file():
        return ""
    return f"; {file.parts[0]} is CutBit's own package, your file is {file}{':' * bool(name)}{name}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:CONTENT_DIGITS]
