"""report.html: runs side by side in one file that needs no network.

page/ holds its parts; what they show is put in as JSON. Overrides, paths and errors are other
people's text: here nothing of them may end the element that holds them, and the page sets them as
text, never as markup.
"""

import html
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import accumulate
from pathlib import Path
from typing import Any

from tracking.answer import answer
from tracking.collect import Run, common, flat_provenance, swept, value
from tracking.files import DamagedError, whole
from tracking.jsonl import CLIENTS, ROUNDS, readable
from tracking.metrics_file import METRICS, MOST_CLASSES, per_class, read_metrics, tested
from tracking.record import numbers
from tracking.seeds import Group, Spread, groups
from tracking.simulated import compare, is_timed
from tracking.text import line, lines
from tracking.works import works

SCRIPTS = (
    "data.js", "figures.js", "answer.js", "simulated.js", "table.js", "charts.js", "clients.js",
    "works.js", "classes.js", "compare.js", "search.js", "main.js",
)  # fmt: skip
# Axes of the page: running totals over the rounds.
TOTALS = {"bytes": ("bytes_up", "bytes_down"), "sim_s": ("sim_s",), "energy_j": ("energy_j",),
          "wall_s": ("wall_s",)}  # fmt: skip
DIGITS = 6  # that a number is shown with at most
QUANTILES = 100  # a distribution over more clients than this is kept as its quantiles
MOST_POINTS = 60_000  # rounds of all runs together; of more, every second, third … is kept
MOST_CELLS = (
    500_000  # clients times rounds of all runs together; a run of more than its part has none
)
MOST_BARS = 60_000  # works of clients on simulated time, of all runs together
MOST_BARS_OF_RUN = 4_000
STATES = ("ok", "alone", "late", "surplus", "absent", "unfit", "failed", "left", "stale")


def write_html(
    path: Path, runs: Sequence[Run], title: str, search: Mapping[str, Any] | None = None
) -> None:
    """Write the page.

    Args:
        path: the file.
        runs: at least one.
        title: stands above, as text.
        search: what `tracking.search.described` says, where the runs are the trials of one.
    """
    with whole(path) as part:
        part.write_text(render(runs, title, search), encoding="utf-8")


def render(runs: Sequence[Run], title: str, search: Mapping[str, Any] | None = None) -> str:
    """Return the page; arguments as `write_html`."""
    from plotly.offline import get_plotlyjs  # as long to import as all of this to make

    parts = {
        "title": html.escape(line(title)),
        "style": _page("page.css"),
        "plotly": get_plotlyjs(),
        "data": embed(describe(runs, title) | {"search": _finite(search or {})}),
        "script": "\n".join(_page(name) for name in SCRIPTS),
    }
    before, *marked = _page("page.html").split("{{")
    pieces = (piece.split("}}", 1) for piece in marked)
    return before + "".join(parts[name] + after for name, after in pieces)


def embed(content: Any) -> str:
    """Return JSON that can stand in a script element: it cannot end it or open a comment."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def describe(runs: Sequence[Run], title: str) -> dict[str, Any]:
    """Return what the page shows; page/data.js says what it makes of it."""
    keys = swept(runs)
    known = {key for run in runs for key in run.config}
    divided = groups(runs)
    group_of = {run.job: number for number, group in enumerate(divided) for run in group.runs}
    rounds = [readable(run.folder / ROUNDS)[0] for run in runs]
    step = max(1, math.ceil(sum(map(len, rounds)) / MOST_POINTS))
    details = [_details(run) for run in runs]
    notes = [f"{run.job}: {wrong}" for run, (_, wrong) in zip(runs, details, strict=True) if wrong]
    if step > 1:
        notes.append(f"of each {step} rounds one is drawn, and the last")
    of_clients = [readable(run.folder / CLIENTS)[0] for run in runs]
    timelines = [timeline(rows, MOST_CELLS // len(runs)) for rows in of_clients]
    pairs = zip(of_clients, timelines, strict=True)
    if large := sum(bool(rows) and not found for rows, found in pairs):
        notes.append(f"{large} runs have too many clients and rounds for a timeline")
    most_bars = min(MOST_BARS_OF_RUN, MOST_BARS // len(runs))
    bars = [works(*pair, most_bars) for pair in zip(of_clients, rounds, strict=True)]
    if cut := sum(found.get("num_works", 0) > most_bars for found in bars):
        notes.append(
            f"{cut} runs have too many works of clients: the first {most_bars} of each are drawn"
        )
    if many := sum(_has_many_classes(found) for found, _ in details):
        notes.append(f"{many} runs have over {MOST_CLASSES} classes: their values are in {METRICS}")
    return {
        "title": line(title),
        "keys": _finite(keys),
        "common": _finite(common([run.overrides for run in runs])),
        "groups": [line(group.label, None) for group in divided],
        "answer": _answer(divided),
        "simulated": _simulated(
            runs, divided, dict(zip([run.job for run in runs], rounds, strict=True))
        ),
        "failures": _failures(runs),
        "notes": [line(note) for note in notes],
        "runs": [
            {
                "job": line(run.job, None),
                "overrides": line(" ".join(run.overrides), None),
                "status": line(run.status),
                "copy": run.is_copy,
                "error": line(run.error),
                "group": group_of[run.job],
                "values": [_finite(value(run, key, known)) for key in keys],
                "config": _finite(run.config),
                "summary": _finite(_shown(run.summary)),
                "rounds": curves(rows, step),
                "clients": clients(trained, _accuracies(found)),
                "timeline": when,
                "works": _rounded(bar),
                "classes": classes(found),
            }
            for run, rows, (found, _), trained, when, bar in zip(
                runs, rounds, details, of_clients, timelines, bars, strict=True
            )
        ],
    }


def _answer(divided: Sequence[Group]) -> dict[str, Any]:
    found = answer(divided)
    rivals = [
        {
            "group": rival.group, "difference": rival.found.mean, "low": rival.found.low,
            "high": rival.found.high, "p": rival.p, "n": rival.found.n, "verdict": rival.verdict,
        }
        for rival in found.rivals
    ]  # fmt: skip
    shown: dict[str, Any] = _finite(
        {
            "measure": found.measure, "best": found.best, "rivals": rivals,
            "short": list(found.short), "fronts": dict(found.fronts),
        }
    )  # fmt: skip
    return shown


def _simulated(
    runs: Sequence[Run], divided: Sequence[Group], rounds: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """What settings reached on simulated time, and whether that is the axis to begin with."""
    found = compare(divided, rounds)
    ran = [run for run in runs if rounds[run.job]]
    clocked = bool(ran) and all(row["sim_s"] is not None for r in ran for row in rounds[r.job])
    shown: dict[str, Any] = _finite(
        {
            "first": clocked and any(map(is_timed, ran)),
            "schedules": list(found.schedules),
            "at_s": found.at_s,
            "settings": [
                {
                    "group": one.group, "seeds": one.num_seeds, "accuracy": _spread(one.accuracy),
                    "target": one.target, "reached": one.num_reached,
                    "costs": {name: _spread(cost) for name, cost in one.costs.items()},
                }
                for one in found.settings
            ] if found.is_mixed or found.has_target else [],
        }
    )  # fmt: skip
    return shown


def _spread(found: Spread | None) -> dict[str, Any] | None:
    return None if found is None else {"mean": found.mean, "sd": found.sd, "n": found.n}


def _rounded(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Columns without the digits that nobody sees."""
    return {
        name: [_short(number) for number in column] if isinstance(column, list) else column
        for name, column in columns.items()
    }


def _failures(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each reason once, whole, with its jobs and the traceback of the first."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.error:
            found.setdefault((run.status, run.error), []).append(run)
    return [
        {
            "status": line(status),
            "reason": lines(reason),
            "jobs": [line(run.job, None) for run in those],
            "traceback": lines(those[0].traceback),
        }
        for (status, reason), those in found.items()
    ]


def _details(run: Run) -> tuple[Mapping[str, Any], str]:
    """metrics.json, empty where there is none, and what is wrong with it."""
    if not run.summary:
        return {}, ""
    try:
        return read_metrics(run.folder), ""
    except DamagedError as error:
        return {}, str(error)


def _accuracies(details: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Device class and accuracy of the clients that were tested at the end."""
    return [
        (str(row.get("device") or ""), float(row["accuracy"]))
        for row in tested(details).values()
        if isinstance(row.get("accuracy"), int | float)
    ]


def classes(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return what metrics.json says per class of the last round's model.

    ``labels`` (None without names), by measure a value per class, and ``matrix``: rows are classes,
    columns predictions. Empty where it says nothing, or of more than `MOST_CLASSES`.
    """
    found = {
        line(measure): [_short(number) for number in values]
        for measure, values in per_class(details).items()
        if len(values) <= MOST_CLASSES
    }
    shown: dict[str, Any] = {"measures": found} if found else {}
    if _is_matrix(matrix := details.get("final", {}).get("confusion_matrix")):
        shown["matrix"] = _finite(matrix)
    labels = details.get("labels")
    if shown and isinstance(labels, list):
        shown["labels"] = [line(label) for label in labels]
    return shown


def _has_many_classes(details: Mapping[str, Any]) -> bool:
    matrix = details.get("final", {}).get("confusion_matrix", [])
    measures = details.get("final", {}).get("per_class", {})
    columns = [matrix, *(measures.values() if isinstance(measures, Mapping) else ())]
    return any(isinstance(found, list) and len(found) > MOST_CLASSES for found in columns)


def _is_matrix(found: Any) -> bool:
    """Whether it is rows of one length, no more than are shown."""
    return (
        isinstance(found, list)
        and 0 < len(found) <= MOST_CLASSES
        and all(isinstance(row, list) and len(row) == len(found[0]) for row in found)
    )


def _shown(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a summary whose provenance is flat: the page shows a value for each key."""
    origin = flat_provenance(summary.get("provenance"))
    rest = {key: value for key, value in summary.items() if key not in ("provenance", "per_class")}
    return rest | {f"provenance: {key.replace('_', ' ')}": v for key, v in origin.items()}


def curves(rows: Sequence[Mapping[str, Any]], step: int = 1) -> dict[str, list[Any]]:
    """Return a run's rounds as columns, with running totals in place of the rounds' own costs.

    A total that a round lacks is left out, as is what no round has.

    Args:
        rows: of rounds.jsonl.
        step: of so many evaluated rounds one is kept, and the last.
    """
    names = dict.fromkeys(name for row in rows for name in numbers(row))
    spent = {name for parts in TOTALS.values() for name in parts}
    columns: dict[str, list[Any]] = {
        name: [row.get(name) for row in rows] for name in names if name not in spent
    }
    for total, parts in TOTALS.items():
        if all(row.get(part) is not None for row in rows for part in parts):
            columns[total] = list(accumulate(sum(row[part] for part in parts) for row in rows))
    kept = _kept(rows, step)
    return {
        line(name): [_short(column[index]) for index in kept]
        for name, column in columns.items()
        if any(number is not None for number in column)
    }


def _kept(rows: Sequence[Mapping[str, Any]], step: int) -> list[int]:
    """Which rounds are drawn: of the evaluated ones where not all of them can be."""
    if step == 1:
        return list(range(len(rows)))
    evaluated = [index for index, row in enumerate(rows) if row.get("accuracy") is not None]
    chosen = (evaluated or list(range(len(rows))))[::-1][::step]
    return chosen[::-1]


def clients(
    rows: Sequence[Mapping[str, Any]], tested: Sequence[tuple[str, float]] = ()
) -> dict[str, dict[str, list[float]]]:
    """Return, by device class ("" without a fleet) and measure, a sorted value per client.

    Loss and accuracy are of a client's last round; seconds, joules and bytes means over its rounds.

    Args:
        rows: of clients.jsonl.
        tested: device class and accuracy of each client at the end, where all were tested.
    """
    mine: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] in ("ok", "alone"):
            mine.setdefault((row["device"] or "", row["partition"]), []).append(row)
    found: dict[str, dict[str, list[float]]] = {}
    for (device, _), own in mine.items():
        for measure, number in _client(own).items():
            if measure != "accuracy" or not tested:
                found.setdefault(device, {}).setdefault(measure, []).append(number)
    for device, accuracy in tested:
        found.setdefault(device, {}).setdefault("accuracy", []).append(accuracy)
    return {
        line(device): {name: _quantiles(sorted(values)) for name, values in measures.items()}
        for device, measures in found.items()
    }


def timeline(rows: Sequence[Mapping[str, Any]], most: int = MOST_CELLS) -> dict[str, Any]:
    """Return who did what in each round, from the lines of clients.jsonl.

    ``clients`` by partition, with their device class, and for each of them ``states``: a character
    for each round, the index into `STATES`, or ``.`` where it was not drawn. Empty where these are
    more than ``most``.
    """
    num_rounds = max((row["round"] for row in rows), default=0)
    devices = {row["partition"]: row["device"] for row in rows}
    if not 0 < num_rounds * len(devices) <= most:
        return {}
    states = {partition: ["."] * num_rounds for partition in sorted(devices)}
    for row in rows:
        if row["status"] in STATES:
            states[row["partition"]][row["round"] - 1] = str(STATES.index(row["status"]))
    return {
        "clients": [line(f"{p} {devices[p]}" if devices[p] else p) for p in states],
        "states": ["".join(found) for found in states.values()],
    }


def _client(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    num = len(rows)
    last = {name: rows[-1].get(name) for name in ("loss", "accuracy")}
    found = {name: float(value) for name, value in last.items() if value is not None}
    for name in ("sim_s", "energy_j"):
        values = [row[name] for row in rows]
        if None not in values:
            found[name] = sum(values) / num
    found["bytes"] = sum(row["bytes_up"] + row["bytes_down"] for row in rows) / num
    return found


def _quantiles(values: Sequence[float]) -> list[float]:
    last = len(values) - 1
    steps = min(last, QUANTILES)
    return [_short(values[round(i * last / steps) if steps else 0]) for i in range(steps + 1)]


def _short(number: Any) -> Any:
    """Return a number without the digits that nobody sees."""
    if not isinstance(number, float) or not math.isfinite(number):
        return _finite(number)
    short = float(f"{number:.{DIGITS}g}")
    return int(short) if short.is_integer() else short


def _finite(content: Any) -> Any:
    """Return JSON with null for NaN and infinities, which it has no word for, and plain text."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, str):
        return line(content, None)
    if isinstance(content, Mapping):
        return {line(key, None): _finite(inner) for key, inner in content.items()}
    return [_finite(inner) for inner in content] if isinstance(content, list) else content


def _page(name: str) -> str:
    return (resources.files("tracking") / "page" / name).read_text(encoding="utf-8")
