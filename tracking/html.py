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

from tracking.collect import Run, common, flat_provenance, swept, value
from tracking.files import whole
from tracking.jsonl import CLIENTS, ROUNDS, readable
from tracking.record import numbers
from tracking.seeds import groups
from tracking.text import line

SCRIPTS = ("data.js", "table.js", "charts.js", "compare.js", "main.js", "search.js")
# Axes of the page: running totals over the rounds.
TOTALS = {"bytes": ("bytes_up", "bytes_down"), "sim_s": ("sim_s",), "energy_j": ("energy_j",),
          "wall_s": ("wall_s",)}  # fmt: skip
DIGITS = 6  # that a number is shown with at most
QUANTILES = 100  # a distribution over more clients than this is kept as its quantiles


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
    return {
        "title": line(title),
        "keys": _finite(keys),
        "common": _finite(common([run.overrides for run in runs])),
        "groups": [line(group.label, None) for group in divided],
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
                "rounds": curves(readable(run.folder / ROUNDS)[0]),
                "clients": clients(readable(run.folder / CLIENTS)[0]),
            }
            for run in runs
        ],
    }


def _shown(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return a summary whose provenance is flat: the page shows a value for each key."""
    origin = flat_provenance(summary.get("provenance"))
    rest = {key: value for key, value in summary.items() if key not in ("provenance", "per_class")}
    return rest | {f"provenance: {key.replace('_', ' ')}": v for key, v in origin.items()}


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return a run's rounds as columns, with running totals in place of the rounds' own costs.

    A total that a round lacks is left out, as is what no round has.
    """
    names = dict.fromkeys(name for row in rows for name in numbers(row))
    spent = {name for parts in TOTALS.values() for name in parts}
    columns: dict[str, list[Any]] = {
        name: [row.get(name) for row in rows] for name in names if name not in spent
    }
    for total, parts in TOTALS.items():
        if all(row.get(part) is not None for row in rows for part in parts):
            columns[total] = list(accumulate(sum(row[part] for part in parts) for row in rows))
    return {
        line(name): [_short(number) for number in column]
        for name, column in columns.items()
        if any(number is not None for number in column)
    }


def clients(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Return, by device class ("" without a fleet) and measure, a sorted value per client.

    Loss and accuracy are of a client's last round; seconds, joules and bytes means over its rounds.
    """
    mine: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] in ("ok", "alone"):
            mine.setdefault((row["device"] or "", row["partition"]), []).append(row)
    found: dict[str, dict[str, list[float]]] = {}
    for (device, _), lines in mine.items():
        for measure, number in _client(lines).items():
            found.setdefault(device, {}).setdefault(measure, []).append(number)
    return {
        line(device): {name: _quantiles(sorted(values)) for name, values in measures.items()}
        for device, measures in found.items()
    }


def _client(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    num = len(lines)
    last = {name: lines[-1].get(name) for name in ("loss", "accuracy")}
    found = {name: float(value) for name, value in last.items() if value is not None}
    for name in ("sim_s", "energy_j"):
        values = [row[name] for row in lines]
        if None not in values:
            found[name] = sum(values) / num
    found["bytes"] = sum(row["bytes_up"] + row["bytes_down"] for row in lines) / num
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
