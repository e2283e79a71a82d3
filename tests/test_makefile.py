"""What `make` does before there is an environment."""

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


def python(folder: Path, version: str) -> Path:
    """A Python that says it is of this version and, as a venv, makes an empty one."""
    path = folder / "python"
    text = f'#!/bin/sh\n[ "$1" = -c ] && echo {version} && exit\necho "$@" > called\nexit 3\n'
    path.write_text(text)
    path.chmod(0o755)
    return path


def install(folder: Path, python: str | Path) -> subprocess.CompletedProcess[str]:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    command = ["make", "install", f"PYTHON={python}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("version", ["2.7", "3.10", "3.14", "3.1"])
def test_another_python_is_named_before_anything_is_installed(version: str, tmp_path: Path) -> None:
    found = install(tmp_path, mine := python(tmp_path, version))
    assert found.returncode == 2
    assert f"PYTHON={mine}: is {version}; 3.11, 3.12 or 3.13 is needed" in found.stderr
    assert not (tmp_path / "called").exists()


def test_a_missing_python_is_named(tmp_path: Path) -> None:
    found = install(tmp_path, "python-that-is-not-there")
    assert found.returncode == 2
    assert "PYTHON=python-that-is-not-there: is missing; 3.11, 3.12" in found.stderr


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_a_supported_python_makes_the_environment(version: str, tmp_path: Path) -> None:
    install(tmp_path, python(tmp_path, version))
    assert (tmp_path / "called").read_text() == "-m venv .venv\n"


@pytest.mark.parametrize("fails", ["", "ruff", "mypy", "pytest"])
def test_make_test_fails_where_any_check_does(fails: str, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("ruff", "mypy", "pytest"):
        (binaries / name).write_text(f"#!/bin/sh\necho {name} ran\nexit {int(name == fails)}\n")
        (binaries / name).chmod(0o755)
    (tmp_path / ".venv" / "dev").touch()
    done = subprocess.run(["make", "test"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode != 0) == bool(fails), done.stderr
    ran = [line.split()[0] for line in done.stdout.splitlines() if line.endswith(" ran")]
    order = ["ruff", "ruff", "mypy", "pytest"]
    assert ran == (order[: order.index(fails) + 1] if fails else order)
