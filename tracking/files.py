"""Files that are there whole or not at all, however a process ends; what to say of a full disk."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DamagedError(ValueError):
    """A file does not hold what was once written to it."""


class CannotWriteError(OSError):
    """Something could not be written; says what, where and why."""


class FolderGoneError(CannotWriteError):
    """A folder was deleted while something was written to it."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it takes the place of ``path`` once it is written.

    What an error leaves behind is called ``path`` with ``.part`` at its end.

    Raises:
        CannotWriteError: there is no room, no permission, or no folder.
    """
    part = path.with_name(path.name + ".part")
    with writing(path.name, path.parent):
        part.unlink(missing_ok=True)  # a link of this name may lead anywhere
        yield part
        sync(part)  # else a power cut may leave the new name with nothing in it
        part.replace(path)


@contextmanager
def writing(what: str, folder: Path, num_bytes: int | None = None) -> Iterator[None]:
    """Say of an error of the system what was to be written, where, and how much room there is.

    Args:
        what: is written, such as ``rounds.jsonl`` or ``the checkpoint of round 3``.
        folder: where.
        num_bytes: how much it is, where that is known.

    Raises:
        CannotWriteError: in place of the system's error.
    """
    try:
        yield
    except CannotWriteError:
        raise
    except OSError as error:
        if not folder.is_dir():
            raise gone(folder) from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        room = ""
        if error.errno in _FULL:
            needed = "" if num_bytes is None else f"{num_bytes / 1e6:.3g} MB to write, "
            room = f" ({needed}{shutil.disk_usage(folder).free / 1e6:.3g} MB free)"
        raise CannotWriteError(f"cannot write {what} to {folder}: {reason}{room}") from error


def gone(folder: Path) -> FolderGoneError:
    """Return the error of a folder that was deleted while a run wrote to it."""
    return FolderGoneError(f"{folder}: was deleted or replaced while the run went on")


def sync(path: Path) -> None:
    """Ask the system to have ``path`` on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
