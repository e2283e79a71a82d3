"""Compare runs: tables in the terminal, and report.html, summary.csv and summary.md.

python -m tracking.report runs/<name>/<time>           a sweep, or one run
python -m tracking.report runs/<name>/* --out here     several together
"""

import argparse
import csv
import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tracking.answer import VALIDATION, answer
from tracking.collect import Run, common, find, swept, value
from tracking.files import whole
from tracking.html import write_html
from tracking.jsonl import ROUNDS, readable
from tracking.paired import FEWEST
from tracking.search import conclusion, described, find_search, write_search
from tracking.search import markdown as text_of
from tracking.seeds import MEASURES, Group, Spread, groups
from tracking.simulated import compare, schedules
from tracking.text import cell, line, shortened, tolerant
from tracking.text import markdown as marked
from tracking.text import table as text_table

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
    if of_devices := [row for run in runs for row in device_rows(run.row())]:
        tables.append((DEVICE_HEADINGS, of_devices))
    divided = groups(runs)
    said = [*found_lines(divided), *simulated_lines(divided)]
    found = "".join(f"- {marked(text)}\n" for text in said)
    return "\n".join(
        [*([found] if found else []), *(text_table(*parts) + "\n" for parts in tables)]
    )


DEVICE_HEADINGS = ("job", "device", "clients", "accuracy")
CHOSEN = "clients/"  # in a summary, before device and what its clients train


def device_rows(row: Mapping[str, Any]) -> list[list[str]]:
    """Return one row per device class of a run whose clients train different networks."""
    found: dict[str, list[str]] = {}
    for key, count in row.items():
        if key.startswith(CHOSEN):
            _, device, kind = key.split("/", 2)
            found.setdefault(device, []).append(f"{count} {kind}")
    return [
        [row["job"], device, ", ".join(kinds), _share(row.get(f"final_clients_accuracy_{device}"))]
        for device, kinds in found.items()
    ]


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
        _rounded(sim_s),
        _rounded(energy_j),
        _spread(wall_s, ".1f"),
    ]


MOST_ROWS = 60  # runs; of more, only the table over seeds is printed


def print_tables(runs: Sequence[Run], console: Console | None = None) -> None:
    """Print what was found: a row for each run and, where there are several seeds, each setting.

    What varies comes first, then accuracy and costs; what has the same value for all stands above
    or is left out, and of costs what has no room (summary.csv has everything). Where there is no
    terminal, every row is one line.
    """
    console = console or Console()
    together = over_seeds(runs)
    said = runs[0].overrides if len(runs) == 1 else common([run.overrides for run in runs])
    console.print(Text(line(" ".join(said))), soft_wrap=not console.is_terminal)
    if together and len(runs) > MOST_ROWS:
        console.print(f"{len(runs)} runs, in summary.csv")
    else:
        _print(console, _of_runs(runs))
    if together:
        _print(console, _of_settings(runs, together))
    divided = groups(runs)
    for text in [*found_lines(divided), *simulated_lines(divided)]:
        console.print(Text(line(text)), soft_wrap=not console.is_terminal)


@dataclass(frozen=True)
class Columns:
    """A table by columns: heading, and a text for each row; those at the end go first for room."""

    first: Mapping[str, Sequence[str]]
    rest: Mapping[str, Sequence[str]]


def _of_runs(runs: Sequence[Run]) -> Columns:
    rows = [run.row() for run in runs]
    filled = dict(zip(HEADINGS, zip(*(cells(row) for row in rows), strict=True), strict=True))
    keys = swept(runs)
    by_key = _by_key(runs, keys)
    status = {} if set(filled["status"]) == {"finished"} else {"status": filled["status"]}
    named = {} if "strategy" in keys else {"strategy": filled["strategy"]}
    as_set = zip(filled["bits"], by_key.get("quant.bits", filled["overrides"]), runs, strict=True)
    is_told = all(bits == given for bits, given, run in as_set if run.summary)
    effective = {} if is_told else {"bits": filled["bits"]}  # w2 a8, 4 (5%)
    costs = {name: filled[name] for name in ("up", "down", "seconds")}
    return Columns(
        {"job": filled["job"], **by_key, "accuracy": filled["accuracy"], **status},
        _told(named | effective | costs, always=("up", "down", "seconds")),
    )


def _of_settings(runs: Sequence[Run], together: Sequence[Group]) -> Columns:
    """The settings, that of the highest accuracy first."""
    ranked = sorted(together, key=_rank)
    filled = dict(zip(SEED_HEADINGS, zip(*map(seed_cells, ranked), strict=True), strict=True))
    keys = [key for key in swept(runs) if key != "seed"]
    by_key = _by_key([group.runs[0] for group in ranked], keys)
    if not by_key or len({*zip(*by_key.values(), strict=True)}) < len(ranked):
        by_key = {"experiment": filled["experiment"]}
    costs = {name: filled[name] for name in ("up", "down", "sim s", "joules", "seconds")}
    return Columns(
        {**by_key, "seeds": filled["seeds"], "accuracy": filled["accuracy"]}, _told(costs)
    )


def _rank(group: Group) -> float:
    accuracy = group.measures.get("final_accuracy")
    return math.inf if accuracy is None else -accuracy.mean


def _by_key(runs: Sequence[Run], keys: Sequence[str]) -> dict[str, Sequence[str]]:
    """A column for each key, called by its last word where that is enough."""
    known = {key for run in runs for key in run.config}
    last = [key.rpartition(".")[2] for key in keys]
    columns: dict[str, Sequence[str]] = {}
    for key, word in zip(keys, last, strict=True):
        is_clear = last.count(word) == 1 and word not in HEADINGS + SEED_HEADINGS
        values = [value(run, key, known) for run in runs]
        texts = [shortened(_said(found), LONGEST_VALUE) for found in values]
        columns[word if is_clear and not word.startswith("_") else key] = texts
    return columns


def _said(found: Any) -> str:
    """A value of a setting as the tables show it."""
    if found is None:
        return NOT_READ
    return found if isinstance(found, str) else json.dumps(found)


def _told(columns: Mapping[str, Sequence[str]], always: Sequence[str] = ()) -> dict[str, Any]:
    """Leave out what is empty, or has one value for several rows."""
    return {
        name: texts
        for name, texts in columns.items()
        if any(texts) and (name in always or len(texts) < 2 or len({*filter(None, texts)}) > 1)
    }


def found_lines(divided: Sequence[Group]) -> list[str]:
    """Return in words what was found: the best setting, and what cannot be told apart from it."""
    found = answer(divided)
    if found.best is None or not found.rivals:
        return []
    best = divided[found.best]
    mean = _spread(best.measures.get("final_accuracy"), ".4f")
    by = found.measure == VALIDATION
    title, where = ("best by validation accuracy", " on the test set") if by else ("best", "")
    lines = [f"{title}: {best.label}  {mean}{where if mean else ''}".rstrip()]
    kinds: dict[str, list[str]] = {}
    for rival in found.rivals:
        kinds.setdefault(rival.verdict, []).append(divided[rival.group].label)
    for verdict, title in VERDICTS.items():
        if labels := kinds.get(verdict):
            more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
            lines.append(f"{title}: {'; '.join(labels[:3])}{more}")
    return lines if kinds.keys() != {"few"} else [lines[0] + f"  ({TOO_FEW})"]


VERDICTS = {
    "same": "equal to it, seed by seed",
    "open": "cannot be told apart from it (paired t-test)",
    "worse": "worse (p < 0.05)",
    "few": "too few seeds to say",
}
TOO_FEW = f"too few seeds for a test, which takes {FEWEST}"
LONGEST_VALUE = 40  # characters of a setting's value in a column


def simulated_lines(divided: Sequence[Group]) -> list[str]:
    """Return in words how settings of different schedules compare, whose rounds do not.

    Accuracies at equal simulated time, and the time to the target where one was set.
    """
    if len(schedules(divided)) < 2:
        return []
    runs = [run for group in divided for run in group.seeds.values()]
    found = compare(divided, {run.job: readable(run.folder / ROUNDS)[0] for run in runs})
    lines = [f"rounds of different schedules ({', '.join(found.schedules)}) are not comparable"]
    if found.at_s is not None:
        by_then = [
            f"{divided[one.group].label} {_spread(one.accuracy, '.4f') or NOT_READ}"
            for one in found.settings
        ]
        lines.append(f"accuracy at {found.at_s:.3g} s of simulated time: {'; '.join(by_then)}")
    if found.has_target:
        until = [
            f"{divided[one.group].label} {_rounded(one.costs.get('sim_s')) or NOT_READ} s "
            f"({one.num_reached} of {one.num_seeds} seeds)"
            for one in found.settings
            if one.target is not None
        ]
        lines.append(f"simulated time to the target accuracy: {'; '.join(until)}")
    return lines


def _print(console: Console, columns: Columns) -> None:
    """Print a table with what has room; a terminal that is too narrow for the rest folds it."""
    shown = {**columns.first, **columns.rest}
    width = console.width if console.is_terminal else WIDEST
    droppable = list(columns.rest)
    while droppable and _width(shown) > width:
        del shown[droppable.pop()]
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    numbers = ("accuracy", "up", "down", "seconds", "seeds", "sim s", "joules", "bits")
    for heading in shown:
        folds = heading not in numbers and heading != "job"
        table.add_column(
            Text(line(heading)), justify="right" if heading in numbers else "left",
            no_wrap=not folds, overflow="fold",
        )  # fmt: skip
    for row in zip(*shown.values(), strict=True):
        table.add_row(*(Text(line(text)) for text in row))  # Text, not markup: brackets stay
    if not console.is_terminal:  # wide enough for every row to be one line
        console = Console(file=console.file, width=max(_width(shown), 1) + 10)
    console.print(table)


WIDEST = 160  # columns of a row where there is no terminal


def _width(shown: Mapping[str, Sequence[str]]) -> int:
    """Characters of the longest row, with two between columns."""
    return sum(
        max(cell_len(line(text)) for text in (name, *texts)) + 2 for name, texts in shown.items()
    )


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


def _rounded(found: Spread | None) -> str:
    """Mean and deviation with two digits of the latter, but no more than three of the former."""
    if found is None:
        return ""
    digits = [2 - _magnitude(found.mean)] + ([1 - _magnitude(found.sd)] if found.sd else [])
    return _spread(found, f".{max(0, min(digits))}f")


def _magnitude(number: float) -> int:
    return math.floor(math.log10(abs(number))) if number else 0


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
        runs = write_report(given.folder, out)
        print_tables(runs)
        if len(given.folder) == 1:
            print_search(given.folder[0])
        for run in runs:
            if run.error:
                sys.stdout.write(f"{run.status}: job {line(run.job)}: {line(run.error)}\n")
    except OSError as error:
        sys.stderr.write(line(f"error: --out={out}: {error}") + "\n")
        return 1
    sys.stdout.write(f"{line(out / 'report.html', None)}\n")
    return 0


if __name__ == "__main__":
    tolerant()
    sys.exit(main(sys.argv[1:]))
