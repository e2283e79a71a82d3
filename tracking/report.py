"""Compare runs: tables in the terminal, and report.html, summary.csv and summary.md.

python -m tracking.report runs/<name>/<time>           a sweep, or one run
python -m tracking.report runs/<name>/* --out here     several together
"""

import argparse
import csv
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tracking.collect import Run, common, find, swept, value
from tracking.files import whole
from tracking.html import write_html
from tracking.search import conclusion, described, find_search, write_search
from tracking.search import markdown as text_of
from tracking.seeds import MEASURES, Group, Spread, groups
from tracking.text import cell, line, tolerant
from tracking.text import markdown as marked

NOT_READ = "–"


def write_report(folders: Sequence[Path], out: Path) -> list[Run]:
    """Compare the runs in or under ``folders`` in files in the folder ``out``, and return them."""
    runs = find(folders)
    if runs:
        out.mkdir(parents=True, exist_ok=True)
        rows = _csv_rows(runs)
        columns = list(dict.fromkeys(str(key) for row in rows for key in row))
        table = io.StringIO(newline="")
        writer = csv.writer(table)
        writer.writerow(map(cell, columns))
        writer.writerows([cell(row.get(key, "")) for key in columns] for row in rows)
        _write(out / "summary.csv", table.getvalue())
        search = write_search(folders[0], out) if len(folders) == 1 else None
        _write(out / "summary.md", markdown(runs) + ("" if search is None else text_of(search)))
        title = ", ".join(map(_shown, folders))
        shown = None if search is None else described(search)
        write_html(out / "report.html", runs, title, shown)
    return runs


def _write(path: Path, text: str) -> None:
    """Write whole or not at all, line ends as they are."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def _csv_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each run's row, with a column for each swept key behind the job."""
    keys = swept(runs)
    known = {key for run in runs for key in run.config}
    values = [{key: value(run, key, known) for key in keys} for run in runs]
    return [{"job": run.job} | own | run.row() for run, own in zip(runs, values, strict=True)]


def _shown(folder: Path) -> str:
    """The folder as its user would say it."""
    whole = folder.absolute()
    here = Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)


def print_search(folder: Path) -> None:
    """Print what the search in a folder found, if there is one."""
    found = find_search(folder, with_importances=False)
    for text in [] if found is None else conclusion(found):
        sys.stdout.write(f"{text}\n")


HEADINGS = (
    "job", "overrides", "strategy", "bits", "accuracy", "best", "up", "down", "seconds", "status",
)  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    """Return a row as the texts of the table's columns."""
    return [
        row["job"],
        row["overrides"],
        str(row.get("strategy", "")),
        _bits(row),
        _share(row.get("final_accuracy")),
        _share(row.get("best_accuracy")),
        _bytes(row.get("total_bytes_up")),
        _bytes(row.get("total_bytes_down")),
        "" if row.get("total_wall_s") is None else f"{row['total_wall_s']:.1f}",
        row["status"],
    ]


def markdown(runs: Sequence[Run]) -> str:
    """Return the tables for a paper or an issue: seeds together where there are several, runs."""
    tables: list[tuple[Sequence[str], list[list[str]]]]
    tables = [(HEADINGS, [cells(run.row()) for run in runs])]
    if together := over_seeds(runs):
        tables.insert(0, (SEED_HEADINGS, [seed_cells(group) for group in together]))
    return "\n".join(_markdown(headings, rows) for headings, rows in tables)


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for row in rows:
        lines.append("| " + " | ".join(map(marked, row)) + " |")
    return "\n".join(lines) + "\n"


SEED_HEADINGS = (
    "experiment", "seeds", "accuracy", "best", "up", "down", "sim s", "joules", "seconds",
)  # fmt: skip


def over_seeds(runs: Sequence[Run]) -> list[Group]:
    """Return the runs with their seeds together; nothing where no experiment has several."""
    divided = groups(runs)
    several = any(found.n > 1 for group in divided for found in group.measures.values())
    return divided if several else []


def seed_cells(group: Group) -> list[str]:
    """Return a group as the texts of its table's columns: mean ± sample standard deviation."""
    found = group.measures
    accuracy, best, up, down, sim_s, energy_j, wall_s = (found.get(name) for name in MEASURES)
    return [
        group.label,
        str(max((spread.n for spread in found.values()), default=0)),
        _spread(accuracy, ".4f"),
        _spread(best, ".4f"),
        _bytes(None if up is None else up.mean),
        _bytes(None if down is None else down.mean),
        _spread(sim_s, ".4g"),
        _spread(energy_j, ".4g"),
        _spread(wall_s, ".1f"),
    ]


def print_tables(runs: Sequence[Run], console: Console | None = None) -> None:
    """Print the runs and, where an experiment has several seeds, its mean and spread.

    Made for terminals of 80 columns or more. What all runs have in common stands above; what is
    the same or empty for all is left out (summary.csv has everything). Where there is no terminal
    to fit a table to, every row is one line.
    """
    console = console or Console()
    rows = [run.row() for run in runs]
    if not console.is_terminal:
        widest = max((len(" ".join(cells(row))) for row in rows), default=0)
        console = Console(file=console.file, width=widest + 100)
    shared = common([run.overrides for run in runs])
    for run, row in zip(runs, rows, strict=True):
        row["overrides"] = " ".join(text for text in run.overrides if text not in shared)
    left_out = {"best"} | ({"status"} if all(r["status"] == "finished" for r in rows) else set())
    table = _table(HEADINGS, [cells(row) for row in rows], left_out)
    table.title, table.title_justify = Text(line(" ".join(shared))), "left"
    console.print(table)
    if together := over_seeds(runs):
        filled = [seed_cells(group) for group in together]
        empty = {h for i, h in enumerate(SEED_HEADINGS) if not any(row[i] for row in filled)}
        console.print(_table(SEED_HEADINGS, filled, {"best"} | empty))


LEFT = ("job", "overrides", "strategy", "status", "experiment")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], left_out: set[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in headings:
        if heading not in left_out:
            folds = heading in ("overrides", "experiment")
            justify: Any = "left" if heading in LEFT else "right"
            table.add_column(heading, justify=justify, no_wrap=not folds, overflow="fold")
    for row in rows:
        texts = zip(headings, row, strict=True)
        # Text, not markup: brackets stay.
        table.add_row(*(Text(line(text)) for heading, text in texts if heading not in left_out))
    return table


def _bits(row: dict[str, Any]) -> str:
    weight, act = row.get("weight_bits"), row.get("act_bits")
    if weight is None:
        return NOT_READ
    if weight != act:
        return f"w{weight} a{act}"
    share = row.get("quantized_share", 1.0)
    # How many of the multiply-adds, where it is not all of them.
    return str(weight) if weight == 32 or share >= 0.995 else f"{weight} ({share:.0%})"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _bytes(value: float | None) -> str:
    if value is None:
        return ""
    units = ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.3g} {units[0]}"


def _spread(found: Spread | None, form: str) -> str:
    if found is None:
        return ""
    return f"{found.mean:{form}}" + ("" if found.sd is None else f" ± {found.sd:{form}}")


def main(arguments: Sequence[str]) -> int:
    """Compare the folders given."""
    parser = argparse.ArgumentParser(
        "python -m tracking.report", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", nargs="+", type=Path, help="of a run, a sweep, or several")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder to write to; by default that of the runs, of several the one above them",
    )
    given = parser.parse_args(arguments)
    for folder in given.folder:
        if not find([folder]):
            sys.stderr.write(f"error: {line(folder)}: no run there\n")
            return 1
    above = os.path.commonpath([folder.absolute() for folder in given.folder])
    out = given.out or (given.folder[0] if len(given.folder) == 1 else Path(above))
    try:
        print_tables(write_report(given.folder, out))
        if len(given.folder) == 1:
            print_search(given.folder[0])
    except OSError as error:
        sys.stderr.write(line(f"error: --out={out}: {error}") + "\n")
        return 1
    sys.stdout.write(f"{line(out / 'report.html', None)}\n")
    return 0


if __name__ == "__main__":
    tolerant()
    sys.exit(main(sys.argv[1:]))
