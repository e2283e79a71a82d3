"""What ran: asked of git where the code is a repository of its own, and said without one."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import simulate

from app import provenance
from tracking.collect import find, flat_provenance
from tracking.html import describe

GIT = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    caches = (provenance.repository, provenance._installed_commit, provenance.version)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, env=os.environ | GIT)
    return done.stdout.decode().strip()


def checkout(folder: Path) -> str:
    """A repository with one commit, whose name is returned."""
    folder.mkdir()
    (folder / "code.py").write_text("1\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        git(folder, *arguments)
    return git(folder, "rev-parse", "HEAD")


def test_a_commit_and_whether_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = checkout(tmp_path / "code")
    monkeypatch.setattr(provenance, "ROOT", (tmp_path / "code").resolve())
    (tmp_path / "code" / "runs.txt").write_text("not tracked")
    found = provenance.code()
    assert found == {"commit": commit, "dirty": False, "code": "git"}
    (tmp_path / "code" / "code.py").write_text("2\n")
    assert provenance.code() == found  # asked once
    provenance.repository.cache_clear()
    assert provenance.code() == found | {"dirty": True}


def test_the_users_own_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = checkout(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    found = provenance.provenance()
    assert (found["own_commit"], found["own_dirty"]) == (commit, False)
    monkeypatch.chdir(tmp_path)
    assert "own_commit" not in provenance.provenance()


def test_without_git_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = {"commit": None, "dirty": None, "code": "no git"}
    monkeypatch.setattr(provenance, "_installed_commit", lambda: None)
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "site-packages")
    assert provenance.code() == nothing
    checkout(tmp_path / "around")  # as a .venv in somebody's repository
    inside = tmp_path / "around" / "site-packages"
    inside.mkdir()
    monkeypatch.setattr(provenance, "ROOT", inside)
    assert provenance.code() == nothing
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "around")
    monkeypatch.setenv("PATH", str(tmp_path))
    provenance.repository.cache_clear()
    assert provenance.code() == nothing | {"code": "git says nothing"}
    assert provenance.said(provenance.provenance()).startswith("cutbit 0.1.0, git says nothing; ")
    monkeypatch.setattr(provenance, "_installed_commit", lambda: "c0ffee")
    assert provenance.code() == {"commit": "c0ffee", "dirty": None, "code": "installed from git"}


def test_git_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "git"
    slow.write_text(f"#!{shutil.which('sh')}\nexec {shutil.which('sleep')} 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(provenance, "GIT_S", 0.05)
    assert provenance.repository(tmp_path) is None


def test_files_that_were_copied_have_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGE", "no-such-package")
    provenance.packages.cache_clear()
    assert (provenance.version(), provenance._installed_commit()) == (None, None)
    assert provenance.packages() == {}
    provenance.packages.cache_clear()


def test_a_run_says_where_it_is_from(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    simulate(folder, "strategy=fedavg", "rounds=1")
    found = json.loads((folder / "summary.json").read_text())["provenance"]
    assert found["version"] == "0.1.0"
    assert shlex.split(found["command"])[1:] == sys.orig_argv[1:]
    assert (
        found["packages"]["torch"]
        == json.loads((folder / "summary.json").read_text())["versions"]["torch"]
    )
    assert found["machine"]["cores"] == os.cpu_count()
    runs = find([folder])
    row = runs[0].row()
    assert row["provenance_machine_cpu"] == found["machine"]["cpu"]
    assert not any(isinstance(value, dict) for value in row.values())
    shown = describe(runs, "")["runs"][0]["summary"]
    assert shown["provenance: command"] == found["command"]
    assert not any(isinstance(v, dict) for name, v in shown.items() if name != "versions")
    assert flat_provenance(None) == flat_provenance([1]) == {}
