"""A sweep's report in wandb: one more run of the sweep's group, of job type ``report``.

It has tables of the settings, the runs and the Pareto fronts, report.html to be looked at, and
report.html, summary.csv and summary.md as an artifact. Its id is kept in the sweep's folder, as a
run's is in its own, so that it is the same run however often the sweep is resumed or uploaded.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tracking import wandb_names as names
from tracking.answer import answer, price
from tracking.collect import Run, swept, value
from tracking.record import is_number_or_none
from tracking.seeds import MEASURES, Group, groups
from tracking.wandb_run import Begin, artifact, begin, keep_tables, tried
from tracking.wandb_settings import WandbSettings, resolved
from tracking.wandb_tables import Table, of_rows

JOB_TYPE = "report"
FILES = ("report.html", "summary.csv", "summary.md")


def publish(folder: Path, runs: Sequence[Run], settings: WandbSettings, group: str) -> None:
    """Make the run of a sweep's report, or make it anew.

    Args:
        folder: the sweep's, where `report.write_report` has left its files.
        runs: of the sweep.
        settings: of its jobs.
        group: the sweep's name in wandb.
    """
    chosen, _ = resolved(settings, os.environ)
    if chosen.mode == "disabled" or not runs:
        return
    import wandb

    with tried("the sweep's report"):
        collection = names.collection(folder, group)
        tags = names.tags({}, os.environ.get("WANDB_TAGS", ""))
        run = begin(chosen, Begin(folder, f"report {group}", collection, JOB_TYPE, group, {}, tags))
        try:
            keep_tables(run, folder, tables(runs))
            paths = [path for name in FILES if (path := folder / name).exists()]
            if (page := folder / FILES[0]) in paths:
                run.summary["sweep/report"] = wandb.Html(str(page), inject=False)
            made = artifact(f"report-{collection}", JOB_TYPE, {"runs": len(runs)}, paths)
            run.log_artifact(made, aliases=["latest"])
        finally:
            run.finish(exit_code=0)


def tables(runs: Sequence[Run]) -> dict[str, Table]:
    """Return the tables of a sweep: its settings, its runs, and its fronts where it has any."""
    divided = groups(runs)
    found = {
        "sweep/settings": of_rows([_setting(group) for group in divided]),
        "sweep/runs": of_rows(_alike(_rows(runs))),
        "sweep/pareto": of_rows(_fronts(divided)),
    }
    return {name: table for name, table in found.items() if table.rows}


def _setting(group: Group) -> dict[str, Any]:
    """A group's figures: the mean over its seeds of each, and of accuracy the deviation."""
    means = {name: spread.mean for name, spread in group.measures.items()}
    accuracy = group.measures.get("final_accuracy")
    return {
        "setting": group.label,
        "seeds": len(group.seeds),
        "final_accuracy": means.pop("final_accuracy", None),
        "sd": None if accuracy is None else accuracy.sd,
        **{name: means.get(name) for name in MEASURES if name != "final_accuracy"},
    }


def _rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    known = {key for run in runs for key in run.config}
    keys = swept(runs)
    return [
        {
            "job": run.job,
            **{key: value(run, key, known) for key in keys},
            **{name: run.summary.get(name) for name in MEASURES},
            "status": run.status,
        }
        for run in runs
    ]


def _alike(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows whose columns have values of one kind, as wandb asks: all numbers, or texts."""
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    texts = {name for name, found in columns.items() if not all(map(is_number_or_none, found))}
    return [
        {k: str(v) if k in texts and v is not None else v for k, v in row.items()} for row in rows
    ]


def _fronts(divided: Sequence[Group]) -> list[dict[str, Any]]:
    """The settings that none is both cheaper and better than, for each price, by rising price."""
    rows = []
    for name, numbers in answer(divided).fronts.items():
        for number in numbers:
            group = divided[number]
            known = [price(run, name) for run in group.seeds.values()]
            mean = fmean(one for one in known if one is not None)
            accuracy = group.measures["final_accuracy"].mean
            rows.append({"price": name, "setting": group.label, "mean": mean, "accuracy": accuracy})
    return rows
