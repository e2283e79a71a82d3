"""A run in wandb: begun under its folder's id, and what is kept with it beside its history."""

import glob
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracking import wandb_names as names
from tracking.text import line
from tracking.wandb_settings import WandbSettings
from tracking.wandb_tables import CONFUSION, Table

TABLES = Path("wandb") / "tables"  # in the run's folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Begin:
    """What a run begins with.

    Attributes:
        folder: the run's.
        name: that is shown.
        collection: that its artifacts are versions of.
        job_type: what kind of run it is.
        group: the sweep that it is part of; a run of none takes id and name from the environment.
        config: flat.
        tags: of it.
    """

    folder: Path
    name: str
    collection: str
    job_type: str
    group: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()


def begin(chosen: WandbSettings, given: Begin) -> Any:
    """Begin a run, or the same one anew; offline where no server answers.

    Args:
        chosen: as `wandb_settings.resolved` returns them.
        given: what it begins with.
    """
    import wandb  # a second to import, so only where it is used

    folder = given.folder
    single = {} if given.group else os.environ  # of several jobs, each needs its own
    run_id = names.stored_id(folder) or single.get("WANDB_RUN_ID") or names.new_id()
    above = Path(os.environ.get("WANDB_DIR") or folder).absolute()
    elsewhere = {} if above == folder.absolute() else {"dir": str(above)}
    names.store(folder, id=run_id, collection=given.collection, **elsewhere)
    above.mkdir(parents=True, exist_ok=True)
    if chosen.mode == "offline":  # what an earlier start of this run left
        left = {*(above / "wandb").glob(f"offline-run-*-{glob.escape(run_id)}")}
        for old in left | {*(folder / "wandb").glob("offline-run-*")}:
            shutil.rmtree(old)
    passed: dict[str, Any] = {
        "project": chosen.project,
        "entity": chosen.entity,
        "dir": str(above),
        "id": run_id,
        "group": line(given.group, names.LONGEST_NAME) or None,
        "name": single.get("WANDB_NAME") or given.name,
        "job_type": given.job_type,
        "tags": list(given.tags),
        "config": dict(given.config),
        "reinit": "finish_previous",
        "settings": wandb.Settings(
            silent=True,
            console="wrap" if chosen.console else "off",
            x_disable_stats=not chosen.system,
            init_timeout=30,
            login_timeout=30,
            finish_timeout=60,  # what is not uploaded until then stays on disk
            # A killed process loses what was not flushed; the default is 15 s.
            x_transaction_log_flush_interval=0.5,
        ),
    }
    if chosen.mode == "offline":
        return wandb.init(mode="offline", **passed)
    wandb.setup(wandb.Settings(silent=True))  # a run's own settings do not silence its messages
    try:
        return wandb.init(mode="online", resume="allow", **passed)
    except wandb.Error as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.warning(
            "tracker.wandb.mode=online: %s; kept offline, see python -m tracking.sync", reason
        )
        return wandb.init(mode="offline", **passed)


@contextmanager
def tried(what: str) -> Iterator[None]:
    """Say what a server did not take, and go on: the run itself is not lost by it."""
    import wandb

    try:
        yield
    except (wandb.Error, ValueError, TypeError, OSError, RuntimeError) as error:
        log.warning("wandb: %s is not logged: %s", what, line(error, 200))


def artifact(name: str, kind: str, metadata: Mapping[str, Any], paths: Sequence[Path]) -> Any:
    """Return an artifact of files that stay where they are."""
    import wandb

    made = wandb.Artifact(name, kind, metadata=dict(metadata))
    for path in paths:
        made.add_file(str(path), name=path.name, policy="immutable", skip_cache=True)
    return made


def keep_tables(
    run: Any, folder: Path, tables: Mapping[str, Table], confusion: Table | None = None
) -> None:
    """Put tables into the run's summary, and one artifact of them beside it.

    The summary, and not the history: a row of history after the last round would take the step of
    the next one, were the run continued. wandb's pages find a table in its artifact; its file is
    kept in the run's folder and not in the user's, so that it is uploaded from wherever that is.

    Args:
        run: of wandb.
        folder: the run's.
        tables: by their keys in the summary.
        confusion: a matrix that is drawn by wandb's own chart, under ``confusion_matrix``.
    """
    import wandb

    shown: dict[str, Any] = {
        key: wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
        for key, table in tables.items()
    }
    if confusion is not None:
        cells = wandb.Table(columns=list(CONFUSION), data=[list(row) for row in confusion.rows])
        fields = {name: name for name in CONFUSION}
        chart = wandb.plot_table("wandb/confusion_matrix/v1", cells, fields)
        # What `run.log` does with a chart: its description into the configuration.
        shown |= run._serialize_custom_charts({"confusion_matrix": chart})
    if not shown:
        return
    (folder / TABLES).mkdir(parents=True, exist_ok=True)
    kept = wandb.Artifact(f"tables-{run.id}", "tables")
    for key, table in shown.items():
        entry = kept.add(table, key)
        place = folder / TABLES / f"{names.plain(key)}.table.json"
        shutil.move(str(entry.local_path), place)
        entry.local_path = str(place)
    run.log_artifact(kept)
    for key, table in shown.items():
        table.bind_to_run(run, key, "summary")  # else it gets an artifact of its own, elsewhere
        run.summary[key] = table
