"""The code that a cluster's workers need: our packages, and the user's modules in the driver.

Ray takes one folder to every machine that runs a worker, once for each content (`runtime_env`, as
``working_dir``), and puts it first on the workers' path. Only Python files and our own tables go:
what lies beside them (runs, data, environments, a repository) stays. Libraries do not travel, they
are installed on the machines (`app.cluster` compares their versions).
"""

import hashlib
import shutil
import site
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from app import ROOT
from targets import OURS, SHIPPED

SUFFIXES = (".py", ".yaml")
FILES = "files_"  # how the package of a user's folder is named, of files that targets.py loads
INSTALLED = ("site-packages", "dist-packages")


def ours() -> dict[str, Path]:
    """Our files, by where they are to lie."""
    found = {"targets.py": ROOT / "targets.py"}
    for folder in (*OURS, "conf"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                found[str(path.relative_to(ROOT))] = path
    return found


def users() -> dict[str, Path]:
    """The files of the modules in this process that are neither ours nor installed.

    A file named on a command line (``nets/mine.py:MyNet``), and what it imports beside it, is to
    lie where targets.py looks for it; a module where it is imported from.
    """
    found = {}
    for name, module in sorted(sys.modules.items()):
        file = vars(module).get("__file__")  # not asked of it: some import more when they are asked
        if not file or not file.endswith(".py") or name == "__main__" or _is_installed(file):
            continue
        if name.split(".")[0] in (*OURS, "targets", "__mp_main__"):
            continue
        path = Path(file)
        if name.startswith(FILES):
            package = sys.modules[name.split(".")[0]]
            inside = path.relative_to(next(iter(package.__path__)))
            found[f"{SHIPPED.name}/{package.__name__}/{inside}"] = path
        else:
            is_package = path.name == "__init__.py"
            found[name.replace(".", "/") + ("/__init__.py" if is_package else ".py")] = path
    return {place: path for place, path in found.items() if path.is_file()}


def digest(files: Mapping[str, Path]) -> str:
    """Return what changes when a file, or where it is to lie, does."""
    found = hashlib.sha256()
    for place, path in files.items():
        found.update(place.encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


@contextmanager
def folder(files: Mapping[str, Path]) -> Iterator[Path]:
    """A folder with copies of the files, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="cutbit-code-") as name:
        for place, path in files.items():
            copy = Path(name) / place
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        yield Path(name)


def said(sent: Mapping[str, Path], own: Mapping[str, Path]) -> str:
    """What is sent, in words: how much, and what of the user's."""
    size = sum(path.stat().st_size for path in (*sent.values(), *own.values()))
    text = f"{len(sent) + len(own)} files, {size / 1e6:.1f} MB"
    names = [str(path) for path in own.values()]
    if names:
        text += f", of yours {', '.join(names[:3])}"
        text += f" and {len(names) - 3} more" if len(names) > 3 else ""
    return text


def _is_installed(file: str) -> bool:
    """Whether a module came with Python or was installed, so that the machines have it, too."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    places = [*(sysconfig.get_path(name) for name in names), site.getusersitepackages()]
    return not {*INSTALLED}.isdisjoint(Path(file).parts) or any(
        Path(file).is_relative_to(place) for place in places
    )
