"""A folder of files as its user keeps it: of any name, with links, and with what systems leave.

Files that begin with a dot, folders that begin with ``__`` and what Windows keeps of a folder are
no data: datasets reads none of them, so they do not name the content either. Folders are followed
where they are links, which datasets does not do, nor does it take a path with the characters of a
pattern (``*?[``) literally: `plain` gives it one of the same files that it can read.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from glob import has_magic
from pathlib import Path

from data.cache_folder import cache_folder

SYSTEM = frozenset({"thumbs.db", "desktop.ini", "icon\r"})
_READ = ".huggingface.yaml"  # the one hidden file that datasets does read


def files(folder: Path) -> list[Path]:
    """All files below a folder that can be data, sorted; links to folders are followed once.

    Returns:
        paths that begin with ``folder``.
    """
    return sorted(_under(folder, ()))


def _under(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that it lies in
        return
    for entry in os.scandir(folder):
        if entry.is_dir():
            if not entry.name.startswith((".", "__")):
                yield from _under(folder / entry.name, (*above, real))
        elif entry.is_file() and is_data(entry.name):
            yield folder / entry.name


def is_data(name: str) -> bool:
    """Whether a file of this name is no leaving of a system or an editor."""
    return (name == _READ or not name.startswith(".")) and name.lower() not in SYSTEM


def plain(folder: Path, digest: str) -> Path:
    """Return ``folder``, or a folder of links to its files where datasets cannot read it itself.

    Args:
        folder: of the data.
        digest: names its content.
    """
    folder = folder.absolute()
    below = (place for file in files(folder) for place in file.relative_to(folder).parents)
    has_links = any((folder / place).is_symlink() for place in set(below) - {Path()})
    if not (has_links or has_magic(str(folder)) or "::" in str(folder)):
        return folder
    named = hashlib.sha256(f"{folder}\0{digest}".encode()).hexdigest()[:16]
    linked = cache_folder() / "folders" / named
    if not linked.is_dir():
        linked.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=linked.parent, prefix=f"{named}.part"))
        for file in files(folder):
            place = aside / file.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)
        try:
            aside.rename(linked)
        except OSError:  # another process has made it
            shutil.rmtree(aside)
            if not linked.is_dir():
                raise
    return linked
