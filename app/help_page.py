"""The page of --help, kept until the code changes.

To make it, every method is imported, and torch and Flower with them: some three seconds.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from app import ROOT
from data.cache_folder import cache_folder

OURS = ("app", "conf", "data", "fleet", "models", "privacy", "quant", "strategies", "tracking")


def help_page() -> str:
    """Return the page, as it was made of the same files before, or made now."""
    path = cache_folder() / f"help-{_digest()}.txt"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text("utf-8")
    from app.config.help import help_text

    page = help_text()
    with contextlib.suppress(OSError):
        _keep(page, path)
    return page


def _digest() -> str:
    """Stand for the names and contents of our code and of conf/; some ten milliseconds."""
    digest = hashlib.sha256()
    for path in _files():
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _files() -> Iterator[Path]:
    for name in OURS:
        yield from sorted([*(ROOT / name).rglob("*.py"), *(ROOT / name).rglob("*.yaml")])


def _keep(page: str, path: Path) -> None:
    """Write aside and rename; pages of other code go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob("help-*.txt"):
        old.unlink(missing_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(page)
    Path(name).replace(path)
