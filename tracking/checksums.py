"""Whether files are what was written to them.

A finished run has checksums.json, which names the digest of each of its files; a checkpoint's
manifest does the same. Runs and checkpoints from before there were any are taken as they are.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking.files import DamagedError, whole

CHECKSUMS = "checksums.json"
_CHUNK = 1 << 20


def digest_of(content: bytes) -> str:
    """Return the digest of a file that holds ``content``."""
    return _new(content).hexdigest()


def digest(path: Path, num_bytes: int | None = None) -> str:
    """Return the digest of a file, or of its first bytes."""
    found, left = _new(), num_bytes
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK if left is None else min(_CHUNK, left)):
            found.update(chunk)
            left = None if left is None else left - len(chunk)
    return found.hexdigest()


def differing(folder: Path, files: Mapping[str, str]) -> str:
    """Say what is wrong with the first file that is not what it was; empty if all are.

    Args:
        folder: where they lie.
        files: digests by name.
    """
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if digest(path) != wanted:
            return f"{name} is damaged (its checksum differs)"
    return ""


def write(folder: Path, names: Iterable[str], contents: Mapping[str, bytes]) -> None:
    """Write checksums.json.

    Args:
        folder: of the run.
        names: of files that are there.
        contents: of files that are still to be written.
    """
    files = {name: digest(folder / name) for name in names}
    files |= {name: digest_of(content) for name, content in contents.items()}
    with whole(folder / CHECKSUMS) as part:
        part.write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")


def stored(folder: Path) -> dict[str, str]:
    """Return the digests of a finished run; none of one that has no checksums.json.

    Raises:
        DamagedError: checksums.json is not what was written.
    """
    path = folder / CHECKSUMS
    files = read_json(path).get("files") if path.exists() else {}
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        raise DamagedError(f"{CHECKSUMS} is damaged")
    return files


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        DamagedError: it holds none; names the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if not path.exists():
            raise DamagedError(f"{path.name} is missing") from error
        raise DamagedError(f"{path.name} is damaged (no JSON)") from error
    if not isinstance(found, dict):
        raise DamagedError(f"{path.name} is damaged (no JSON object)")
    return found


@dataclass(frozen=True)
class Stamp:
    """How a file that grows began when it was looked at."""

    num_bytes: int
    digest: str

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """The stamp of a file as it is now."""
        num_bytes = path.stat().st_size
        return cls(num_bytes, digest(path, num_bytes))

    def fits(self, path: Path) -> bool:
        """Whether the file still begins as it did."""
        if not path.is_file() or path.stat().st_size < self.num_bytes:
            return False
        return digest(path, self.num_bytes) == self.digest


def _new(content: bytes = b"") -> "hashlib.blake2b":
    return hashlib.blake2b(content, digest_size=16)
