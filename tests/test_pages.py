"""The documentation site (`make docs`) has every page of the repository, and modules that exist."""

import ast
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT


def listed(nav: Any) -> Iterator[str]:
    """The pages in a navigation of MkDocs."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from listed(entry)


def assigned(name: str) -> Any:
    """A constant of docs/site/pages.py, which needs MkDocs to be imported."""
    tree = ast.parse((ROOT / "docs/site/pages.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise LookupError(name)


def test_the_site_has_every_page_once() -> None:
    pages = list(listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))
    own = [path for folder in ("docs", "strategies") for path in (ROOT / folder).glob("*.md")]
    expected = {path.relative_to(ROOT).as_posix() for path in own} | set(assigned("PAGES"))
    assert sorted(pages) == sorted(expected | {f"api/{name}.md" for name in assigned("API")})


def test_every_module_of_the_api_exists() -> None:
    for modules in assigned("API").values():
        for name in modules:
            assert importlib.util.find_spec(name) is not None, name


@pytest.mark.skipif(shutil.which("mkdocs") is None, reason="no MkDocs: pip install -e '.[docs]'")
def test_the_site_is_built(tmp_path: Path) -> None:
    command = ["mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "schedule=buffered" in (tmp_path / "docs/ASYNC.html").read_text("utf-8")
    assert "Flight" in (tmp_path / "api/fleet.html").read_text("utf-8")
