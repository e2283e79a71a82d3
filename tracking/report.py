"""Compare the runs of a folder: a table in the terminal, summary.csv and summary.md.

python -m tracking.report runs/<name>/<time>
"""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

NOT_READ = "–"


def collect(folder: Path) -> list[dict[str, Any]]:
    """Return one row per run in or under ``folder``, in the order of the jobs.

    A run that did not finish has a row too, with its ``status``: ``failed`` or ``unfinished``.
    """
    runs = {path.parent for path in folder.rglob("config.json")}
    runs |= {path.parent for path in folder.rglob("error.txt")}
    return [_row(run) for run in sorted(runs, key=lambda run: (len(run.name), run.name))]


def write_report(folder: Path) -> list[dict[str, Any]]:
    """Write summary.csv and summary.md into ``folder`` and return the rows."""
    rows = collect(folder)
    if rows:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with (folder / "summary.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        (folder / "summary.md").write_text(markdown(rows), encoding="utf-8")
    return rows


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


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table for a paper or an issue."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    escaped = ([cell.replace("|", "\\|") for cell in cells(row)] for row in rows)
    lines += ["| " + " | ".join(row) + " |" for row in escaped]
    return "\n".join(lines) + "\n"


def print_table(rows: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """Print the table for a terminal of 80 columns or more.

    What all rows have in common stands above it; the best accuracy and a status of nothing but
    finished runs are left out (summary.csv has everything). Where there is no terminal to fit it
    to, every row is one line.
    """
    console = console or Console()
    if not console.is_terminal:
        widest = max((len(" ".join(cells(row))) for row in rows), default=0)
        console = Console(file=console.file, width=widest + 100)
    shared = common([row["overrides"].split() for row in rows])
    left_out = {"best"} | ({"status"} if all(r["status"] == "finished" for r in rows) else set())
    shown = [heading for heading in HEADINGS if heading not in left_out]
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.title, table.title_justify = Text(" ".join(shared)), "left"
    for heading in shown:
        is_number = heading not in ("job", "overrides", "strategy", "status")
        table.add_column(
            heading, justify="right" if is_number else "left", no_wrap=heading != "overrides",
            overflow="fold",
        )  # fmt: skip
    for row in rows:
        own = " ".join(text for text in row["overrides"].split() if text not in shared)
        texts = dict(zip(HEADINGS, cells(row | {"overrides": own}), strict=True))
        table.add_row(*(Text(texts[heading]) for heading in shown))  # not markup: brackets
    console.print(table)


def common(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return the overrides that all jobs have, in the first one's order; none for a single job."""
    if len(jobs) < 2:
        return []
    return [text for text in jobs[0] if all(text in job for job in jobs)]


def _row(run: Path) -> dict[str, Any]:
    overrides = run / ".hydra" / "overrides.yaml"
    given = yaml.safe_load(overrides.read_text()) if overrides.exists() else []
    shown = [text.lstrip("+") for text in given or [] if not text.startswith("resume=")]
    row = {"job": run.name, "overrides": " ".join(shown), "status": "unfinished"}
    if (run / "summary.json").exists():
        summary = json.loads((run / "summary.json").read_text())
        versions = summary.pop("versions")
        row |= summary | {f"version_{name}": value for name, value in versions.items()}
        row["status"] = "finished" if "same_as" not in summary else f"same as {summary['same_as']}"
    if (run / "error.txt").exists():  # also where a finished run was to grow and failed
        row["status"] = "failed"
    return row


def _bits(row: dict[str, Any]) -> str:
    weight, act = row.get("weight_bits"), row.get("act_bits")
    if weight is None:
        return NOT_READ
    return str(weight) if weight == act else f"w{weight} a{act}"


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


def main(arguments: Sequence[str]) -> int:
    """Print the table of each folder given."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(f"{__doc__}\n")
        return 0 if arguments else 1
    for argument in arguments:
        rows = write_report(Path(argument))
        if not rows:
            sys.stderr.write(f"error: {argument}: no run there\n")
            return 1
        print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
