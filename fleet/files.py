"""Files of unknown origin, read as plain values: JSON, YAML and pickles, each with limits.

Whatever is wrong with one, the error is a ValueError of one line that names the file. What these
formats offer to make much out of little is refused: aliases in YAML, pickles that name code or
places far beyond what they hold, nesting without end, keys given twice.
"""

import io
import json
import pickle
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 2**31
MOST_YAML_BYTES = 2**22  # its parser is slow
MOST_DEPTH = 32


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: names the file.
        FileNotFoundError: it is not there.
    """
    return _read(path, "JSON", MOST_BYTES, _parse_json)


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds; raises as `read_json`."""
    return _read(path, "YAML", MOST_YAML_BYTES, _parse_yaml)


def read_pickle(path: Path) -> Any:
    """Return what a pickle of dict, list, int, float, str, bool and None holds.

    Raises as `read_json`.
    """
    return _read(path, "a pickle", MOST_BYTES, _unpickle)


def _read(path: Path, what: str, most: int, parse: Callable[[bytes], Any]) -> Any:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: cannot be read as {what}: is no file")
    if status.st_size > most:
        raise ValueError(f"{path}: cannot be read as {what}: has more than {most} bytes")
    content = path.read_bytes()
    try:
        return parse(content)
    except Exception as error:  # a broken file can raise anything
        lines = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: cannot be read as {what}: {lines[0]}") from error


# JSON -------------------------------------------------------------------------------------------


def _parse_json(content: bytes) -> Any:
    return json.loads(
        content.decode(), object_pairs_hook=_once_each, parse_constant=_refuse_constant
    )


def _once_each(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has {twice!r} more than once")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"has {name}, takes finite numbers")


# YAML -------------------------------------------------------------------------------------------


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, where yaml was built with it


class _Plain(_Loader):  # type: ignore[misc]
    """Takes no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Construct a mapping of distinct keys."""
        if isinstance(node, yaml.MappingNode):
            _once_each([(self.construct_object(key, True), None) for key, _ in node.value])
        return super().construct_mapping(node, deep)


def _parse_yaml(content: bytes) -> Any:
    depth = 0
    for event in yaml.parse(content, _Loader):  # before anything is made of it
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("has an alias, takes values written out")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise ValueError(f"is nested deeper than {MOST_DEPTH}")
    return yaml.load(content, _Plain)


# Pickles ----------------------------------------------------------------------------------------

_FIXED = re.compile(
    rb"(?:[N.\x88\x89\x94(}\]dlaesu0]|G.{8}|J.{4}|K.|M..|[qh].|j.{4}|\x80.|\x95.{8})++", re.DOTALL
)
"""Opcodes of plain values that take a fixed number of bytes, as many as there are."""
_COUNTED = {b"\x8c": 1, b"X": 4, b"\x8d": 8, b"U": 1, b"T": 4, b"\x8a": 1, b"\x8b": 4}
"""Texts and long integers, with the bytes of their length."""
_LINES = b"FILSVpg"
"""Opcodes of the oldest protocol, that go to the end of their line."""


class _NoCode(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"holds {module}.{name}, takes plain values only")


def _unpickle(content: bytes) -> Any:
    _check_opcodes(content)
    return _NoCode(io.BytesIO(content)).load()


def _check_opcodes(content: bytes) -> None:
    """Refuse a pickle that has other opcodes than plain values need, before any is obeyed.

    Unpickling makes room for as many places as an opcode names, and hashes keys that may be tuples
    of tuples without end: so there are no tuples, and no place beyond the file's length.
    """
    at, end = 0, len(content)
    while at < end:
        if (run := _FIXED.match(content, at)) is not None:
            at = run.end()
            continue
        code = content[at : at + 1]
        if code in _COUNTED:
            start = at + 1 + _COUNTED[code]
            at = start + int.from_bytes(content[at + 1 : start], "little")
        elif code == b"r":
            if int.from_bytes(content[at + 1 : at + 5], "little") > end:
                raise ValueError("is damaged: names a place that it cannot have")
            at += 5
        elif code in _LINES:
            stop = content.find(b"\n", at)
            text = content[at + 1 : stop]
            if stop < 0 or (code in b"pg" and not (text.isdigit() and int(text) <= end)):
                raise ValueError("is damaged")
            at = stop + 1
        else:
            raise ValueError(f"holds opcode {code!r}, takes plain values only")
    if at > end:
        raise ValueError("is cut off")
