"""Other people's text: an ASCII terminal, formulas, markup, and what a terminal would obey."""

import ast
import csv
import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from unicodedata import category

import pytest
import yaml
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from app.config.errors import explain
from tracking import text
from tracking.collect import find
from tracking.html import describe
from tracking.live import SweepView
from tracking.progress import ProgressSink
from tracking.report import markdown, print_tables, write_report
from tracking.wandb_names import LONGEST_TAG, tags

ESCAPES = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202egnp.exe\u2066\x00\x7f\ud800\u2028"
MARKUP = "<script>alert(1)</script> `x` | [a](javascript:b) *c* [/bold] $d$ \\"
NASTY = f"{ESCAPES} {MARKUP}"
FORMULAS = ("=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", " =1", "=cmd|' /C calc'!A0", "＝1")


def is_plain(shown: str, but: str = "") -> bool:
    odd = {c for c in shown if category(c)[0] == "C" or category(c) in ("Zl", "Zp")}
    return odd <= set(but)


# ASCII --------------------------------------------------------------------------------------------

COMMANDS = """
import runpy, sys
run = "engine=serial clients.total=2 rounds=1 data.max_train=40 tracker.wandb.mode=disabled".split()
commands = [
    ["main.py", "--help"],
    ["main.py", *run, "strategy=fedavg", "hydra.run.dir=one"],
    ["main.py", "-m", *run, "strategy=hierarchical", "seed=0,1", "hydra.sweep.dir=both"],
    ["main.py", "name=\\udcc3\\udca9", "data.alpha=0"],
    ["app.cuts", "--help"], ["app.cuts", "model=cnn"], ["app.cuts", "model=\\udcc3"],
    ["app.plan", "--help"], ["app.plan", "model=cnn"],
    ["app.exits", "both/0"], ["app.export", "one"], ["app.ptq", "one"], ["app.ptq", "nowhere"],
    ["tracking.report", "both"], ["tracking.report", "nowhere"],
]
for command in commands:
    for module in [name for name in sys.modules if name.startswith("app.") and name == command[0]]:
        del sys.modules[module]
    sys.argv[:] = command
    code = 0
    try:
        if command[0].endswith(".py"):
            runpy.run_path(f"{ROOT}/{command[0]}", run_name="__main__")
        else:
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    print("ended:", code, ascii(command[:2]), flush=True)
"""


@pytest.mark.long
def test_every_command_in_ascii(tmp_path: Path) -> None:
    environment = os.environ | {
        "LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS.replace("{ROOT}", str(ROOT))], cwd=tmp_path,
        env=environment, capture_output=True,
    )  # fmt: skip
    out, err = done.stdout.decode("ascii"), done.stderr.decode("ascii")
    codes = re.findall(r"^ended: (\d+)", out, re.M)
    assert done.returncode == 0, err
    assert "Traceback" not in err
    assert codes == [*"000", "1", *"00", "1", *"00", *"000", "1", "0", "1"], (out, err)
    for path in ("one/.hydra/config.yaml", "both/report.html", "both/summary.md", "one/cutbit.log"):
        (tmp_path / path).read_text("utf-8")


def test_files_name_their_encoding() -> None:
    paths = [ROOT / "main.py", ROOT / "targets.py"]
    for folder in ("app", "data", "fleet", "models", "privacy", "quant", "strategies", "tracking"):
        paths += (ROOT / folder).rglob("*.py")
    left_out = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for path in paths
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and _opens_text(node) and not _names_encoding(node)
    ]
    assert not left_out


def _name(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _opens_text(node: ast.Call) -> bool:
    if _name(node) in ("read_text", "write_text", "fdopen", "TextIOWrapper"):
        return True
    owner = ast.unparse(node.func).rpartition(".")[0]
    modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
    is_binary = any("b" in str(mode) or ":" in str(mode) for mode in modes)
    is_member = owner in ("os", "file", "archive", "webbrowser")  # of an archive, or no file at all
    return _name(node) == "open" and not is_binary and not is_member


def _names_encoding(node: ast.Call) -> bool:
    given_ = [a.value for a in node.args if isinstance(a, ast.Constant)]
    return "utf-8" in given_ or any(k.arg == "encoding" for k in node.keywords)


# One line -----------------------------------------------------------------------------------------


@given(st.text())
def test_a_line_is_one_line_that_no_terminal_obeys(value: str) -> None:
    shown = text.line(value)
    assert is_plain(shown)
    assert is_plain(text.lines(value), but="\n")
    assert is_plain(str(text.cell(value)), but="\n")
    assert text.line(shown) == shown


def test_a_long_line_keeps_its_begin_and_its_end() -> None:
    shown = text.line("name=" + "x" * 10**6 + ": takes a folder")
    assert len(shown) <= text.LONGEST + 3
    assert shown.startswith("name=xxx")
    assert shown.endswith("xxx: takes a folder")


def test_printable_text_stays_as_it_is() -> None:
    for value in ("é – × 日本語 😀", "a\u00a0b", r"C:\x", "1.5e-3"):
        assert text.line(value) == value


def test_errors_are_plain() -> None:
    shown = explain(ValueError(f"data.path={NASTY}{'x' * 10**5}: no such file"))
    assert is_plain(shown)
    assert len(shown) < 1100
    assert shown.startswith(r"data.path=\x1b[2J")


def test_the_log_is_plain() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(text.PlainFormatter("%(levelname)s: %(message)s"))
    log = logging.Logger("x")
    log.addHandler(handler)
    try:
        raise ValueError(NASTY)
    except ValueError:
        log.exception("client %s", NASTY)
    log.warning("x" * 10**6)
    assert is_plain(out.getvalue(), but="\n")
    assert len(out.getvalue()) < 3 * text.LONGEST_LOG


def test_the_runs_log_has_that_format() -> None:
    config = yaml.safe_load((ROOT / "conf/hydra/job_logging/plain.yaml").read_text("utf-8"))
    assert {f["()"] for f in config["formatters"].values()} == {"tracking.text.PlainFormatter"}
    assert config["handlers"]["file"]["encoding"] == "utf-8"


# Tables and pages ---------------------------------------------------------------------------------


@pytest.fixture
def nasty_runs(tmp_path: Path) -> Path:
    """Two runs whose every text is hostile."""
    for number in range(2):
        folder = tmp_path / f"<b>`{number}` | \x1b[31m [red] = ="
        (folder / ".hydra").mkdir(parents=True)
        overrides = [f"name={NASTY}", f"model.x=={number}", f"seed=-{number}"]
        (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides), "utf-8")
        config = {"seed": -number, "name": NASTY, "model.x": f"={number}", "strategy.name": NASTY}
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        summary = {"final_accuracy": -0.5, "strategy": NASTY, f"=x{NASTY}": 1, "note": "-1.5"}
        (folder / "summary.json").write_text(json.dumps(summary), "utf-8")
        if number:
            error = f"Traceback\nValueError: {NASTY}".encode("utf-8", "replace")
            (folder / "error.txt").write_bytes(error)
    return tmp_path


@pytest.mark.parametrize("is_terminal", [True, False])
def test_tables_are_plain(nasty_runs: Path, is_terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, color_system=None, width=4000)
    print_tables(find([nasty_runs]), console)
    shown = re.sub(r"\x1b\[\d+(;\d+)*m", "", out.getvalue()) if is_terminal else out.getvalue()
    assert is_plain(shown, but="\n")
    assert "[red]" in shown.replace("\n", "")


def test_no_cell_is_a_formula(nasty_runs: Path) -> None:
    write_report([nasty_runs], nasty_runs)
    with (nasty_runs / "summary.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.reader(file))
    for row in table:
        for value in row:
            assert is_plain(value, but="\n")
            is_number = re.fullmatch(r"-?[\d.]+", value) is not None
            assert is_number or not value.lstrip(" ").startswith(tuple("=+-@\t\r＝"))
    rows = [dict(zip(table[0], row, strict=True)) for row in table[1:]]
    assert [row["final_accuracy"] for row in rows] == ["-0.5", "-0.5"]
    assert [row["model.x"] for row in rows] == ["'=0", "'=1"]


@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas_become_text(formula: str) -> None:
    assert str(text.cell(formula)).startswith("'")


@pytest.mark.parametrize("number", [-1, -0.5, "-1", "+1.5e-3", "-.5", None, 1, "plain", ""])
def test_numbers_stay_numbers(number: object) -> None:
    assert text.cell(number) == number


def test_markdown_has_no_markup_of_others(nasty_runs: Path) -> None:
    shown = markdown(find([nasty_runs]))
    assert is_plain(shown, but="\n")
    assert "<" not in shown
    lines = shown.splitlines()
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line}
    assert len(bars) == 1  # nobody ends a cell
    assert not re.search(r"(?<!\\)[`*\[$]", "".join(lines))


def test_the_page_is_plain(nasty_runs: Path) -> None:
    def texts(node: object) -> list[str]:
        if isinstance(node, dict):
            return [*node, *(t for inner in node.values() for t in texts(inner))]
        if isinstance(node, list):
            return [t for inner in node for t in texts(inner)]
        return [node] if isinstance(node, str) else []

    shown = texts(describe(find([nasty_runs]), NASTY))
    assert len(shown) > 20
    assert all(is_plain(text, but="\n") for text in shown)  # a reason can have several lines


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_live_view_is_plain(is_terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, color_system=None, width=100)
    view = SweepView(2, console)
    view.begin(1, NASTY).end(f"error: {NASTY}", failed=True)
    view.close()
    sink = ProgressSink(2, label=NASTY, console=console)
    sink.finish(None)
    own = re.sub(r"\x1b\[(\?25[lh]|\d*[A-Km])|\r", "", out.getvalue())  # rich's own, of its bars
    assert is_plain(own, but="\n")
    assert "owned" in own


def test_wandb_gets_plain_and_short_names() -> None:
    found = tags({"strategy.name": NASTY, "model._target_": "a." + "b" * 500, "data.name": "x"})
    assert all(map(is_plain, found))
    assert max(map(len, found)) <= LONGEST_TAG + 3 == 64
