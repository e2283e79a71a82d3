"""What ran, where, and by which command: for who wants to run it again.

It is found at the start of a run, from what the process knows, from git where the code lies in a
repository of its own, and from what pip has left where it is installed. Git is asked once per
process.
"""

import functools
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app import ROOT
from tracking.text import line

PACKAGE = "cutbit"
GIT_S = 5.0  # that git may take; on a slow disk it is not waited for
COMMAND = "CUTBIT_COMMAND"  # in a job's process beside the driver: the driver's command line
LONGEST = 2000


def provenance() -> dict[str, Any]:
    """Return what summary.json holds of it.

    ``version`` of CutBit; ``commit`` and ``dirty`` of its code, null where they cannot be known,
    and ``code`` says why or where it lies; ``own_commit`` and ``own_dirty`` of the repository of
    the current folder, where that is another; ``command``; ``started``, UTC; ``machine``;
    ``packages`` that CutBit names, with their versions.
    """
    found = {"version": version(), **code()}
    own = repository(Path.cwd())
    if own and own["top"] != str(ROOT):
        found |= {"own_commit": own["commit"], "own_dirty": own["dirty"]}
    return {
        **found,
        "command": os.environ.get(COMMAND) or command(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "packages": packages(),
    }


def said(found: dict[str, Any]) -> str:
    """Return a line of it for the log."""
    commit = (found["commit"] or "")[:12]
    code = (
        f"commit {commit}{' with changes' if found['dirty'] else ''}" if commit else found["code"]
    )
    place = found["machine"]
    return (
        f"cutbit {found['version']}, {code}; {found['command']}; {place['cpu']} of {place['name']}"
    )


def command() -> str:
    """Return the command line of this process."""
    return line(shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]), LONGEST)


@functools.cache
def version() -> str | None:
    """Version of CutBit; None where its files were copied and never installed."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def code() -> dict[str, Any]:
    """Return commit, whether tracked files differ from it, and where the code is from."""
    found = repository(ROOT)
    if found and found["top"] == str(ROOT):
        return {"commit": found["commit"], "dirty": found["dirty"], "code": "git"}
    if commit := _installed_commit():
        return {"commit": commit, "dirty": None, "code": "installed from git"}
    is_checkout = (ROOT / ".git").exists()
    return {"commit": None, "dirty": None, "code": "git says nothing" if is_checkout else "no git"}


@functools.cache
def _installed_commit() -> str | None:
    """The commit that pip has installed; None where it was no commit."""
    try:
        read = importlib.metadata.distribution(PACKAGE).read_text
        text = read("direct_url.json")
        found = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except (importlib.metadata.PackageNotFoundError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


@functools.cache
def repository(folder: Path) -> dict[str, Any] | None:
    """Return ``top``, ``commit``, ``dirty`` of a folder's repository; None without git or one."""
    top, commit = _git(folder, "rev-parse", "--show-toplevel"), _git(folder, "rev-parse", "HEAD")
    if not top or not commit:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    dirty = None if changes is None else bool(changes)
    return {"top": str(Path(top).resolve()), "commit": commit, "dirty": dirty}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints; None where it is not there, fails, or takes too long."""
    command = ["git", "-C", str(folder), *arguments]
    quiet = {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, env={**os.environ, **quiet}, timeout=GIT_S, check=True, capture_output=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()


@functools.cache
def machine() -> dict[str, Any]:
    """Return name, system, processor, cores and memory of this machine."""
    try:
        info = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        info = ""
    models = re.findall(r"^model name\s*:\s*(.+)$", info, re.M)
    try:
        num_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        num_bytes = None
    return {
        "name": platform.node(),
        "system": platform.platform(),
        "cpu": models[0].strip() if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": num_bytes,
    }


@functools.cache
def packages() -> dict[str, str]:
    """Return the versions of the packages that CutBit depends on, as far as they are there."""
    try:
        needed = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = {}
    for requirement in needed:
        name = re.match(r"[\w.-]+", requirement)
        if name is None or "extra ==" in requirement:
            continue
        try:
            found[name[0]] = importlib.metadata.version(name[0])
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
