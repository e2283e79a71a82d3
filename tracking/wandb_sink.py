"""Weights & Biases: one run per run's folder, offline by default, always finished.

An offline run lies in the run's folder; `python -m tracking.sync <folders>` uploads it, with the
model and the configuration that lie beside it. An online run whose server went away ends within a
minute and is on disk too. Its id is the folder's: a run that is resumed is the same one in wandb.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracking import wandb_names as names
from tracking.files import DamagedError, whole
from tracking.jsonl import CLIENTS, readable
from tracking.metrics_file import read_metrics, tested
from tracking.record import ClientRecord, RoundRecord, numbers
from tracking.text import line
from tracking.wandb_run import Begin, artifact, begin, keep_tables, tried
from tracking.wandb_settings import WandbSettings, resolved
from tracking.wandb_tables import ClientTally, of_classes, of_confusion, of_rows

COSTS = ("sim_s", "energy_j", "wall_s")
CLIENT_FIGURES = ("loss", "accuracy", "sim_s", "energy_j")
BINS = 32
_JOB_TYPE = "train"
# What wandb's summary has of a figure of rounds beside its last: it charts and sorts by these.
_BEST = {"accuracy": "max", "loss": "min", "train_loss": "min"}

_ENDED = {"rounds": "finished", "target_accuracy": "reached its target"}
_LONGEST_TITLE = 60  # wandb takes 63 characters of an alert's
MOST_ROWS = 200_000  # of a table, in wandb

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What a run was given beside its configuration.

    Attributes:
        data: what identifies the data set, its name among it.
        path: where it lies, if that is known.
        weights: file that the network's weights came from.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    path: str | None = None
    weights: Path | None = None


class WandbSink:
    """Logs every round: its record, running totals as further axes, histograms over the clients.

    Args:
        settings: of tracker.wandb. Online, a server that does not answer makes it offline.
        folder: the run's folder, where the clients of the rounds in ``done`` are found.
        config: flat configuration, stored with the run.
        group: the sweep that the run is part of.
        done: records of the rounds before this start; an offline run is written anew with them, so
            that the one to upload is whole, and of an online run what it has is not sent again.
        inputs: become artifacts that the run uses.
    """

    def __init__(
        self,
        settings: WandbSettings,
        folder: Path,
        config: Mapping[str, Any],
        group: str = "",
        done: Sequence[RoundRecord] = (),
        inputs: Inputs = Inputs(),
    ) -> None:
        self._run: Any = None
        chosen, said = resolved(settings, os.environ)
        said += _unused(group)
        for text in said if not group or folder.name == "0" else []:  # once in a sweep
            log.warning(text)
        if chosen.mode == "disabled":
            return
        self._folder, self._collection = folder, names.collection(folder, group)
        self._chosen, self._speaks = chosen, not group or folder.name == "0"
        self._run = begin(
            chosen,
            Begin(
                folder=folder,
                name=names.run_name(folder, config),
                collection=self._collection,
                job_type=os.environ.get("WANDB_JOB_TYPE") or _JOB_TYPE,
                group=group,
                config=config,
                tags=names.tags(config, os.environ.get("WANDB_TAGS", "")),
            ),
        )
        # Of an online run that is continued: one after its last.
        self._first = self._run.starting_step
        for axis in ("round", "total_bytes", "total_sim_h", *(f"total_{name}" for name in COSTS)):
            self._run.define_metric(axis)
        self._run.define_metric("*", step_metric="round")
        for name, best in _BEST.items():
            self._run.define_metric(name, step_metric="round", summary=f"{best},last")
        self._take(inputs)
        self._totals: dict[str, float] = {"total_bytes": 0}
        self._tally, self._last_round = ClientTally(), 0
        clients: dict[int, list[dict[str, Any]]] = {}
        for row in readable(folder / CLIENTS)[0] if done else []:
            clients.setdefault(row["round"], []).append(row)
        for record in done:
            self._log(record, clients.get(record.round, []))

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Log a round."""
        if self._run is not None:
            self._log(record, [client.to_dict() for client in clients])

    def _log(self, record: RoundRecord, clients: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        self._last_round = record.round
        self._tally.add(clients)
        row = {name: v for name, v in numbers(record.to_dict()).items() if v is not None}
        self._totals["total_bytes"] += record.bytes_up + record.bytes_down
        for name in COSTS:
            if name in row:
                self._totals[f"total_{name}"] = self._totals.get(f"total_{name}", 0) + row[name]
        if "total_sim_s" in self._totals:
            self._totals["total_sim_h"] = self._totals["total_sim_s"] / 3600
        if record.round < self._first:
            return
        histograms = {}
        for name in CLIENT_FIGURES:
            values = [client[name] for client in clients if client.get(name) is not None]
            if values:
                histograms[f"clients/{name}"] = wandb.Histogram(values, num_bins=BINS)
        self._run.log({**row, **self._totals, **histograms}, step=record.round, commit=True)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Store the summary and end the run, as failed if there is none."""
        if self._run is None:
            return
        if summary is not None:
            # Where it is from is in its configuration.
            self._run.summary.update({k: v for k, v in summary.items() if k != "provenance"})
            with tried("what is told of clients and classes"):
                self._keep_tables()
            accuracy = summary.get("final_accuracy")
            others = [*self._folder.parent.glob("*/summary.json")]
            best = ["best"] if names.is_best(self._folder, accuracy, others) else []
            figures = {"accuracy": accuracy, "config_hash": summary.get("config_hash")}
            self._keep("model", figures, ["latest", *best], "model.safetensors",
                       "model_best.safetensors")  # fmt: skip
            self._keep("config", {}, ["latest"], "config.json", ".hydra/config.yaml")
        if self._chosen.alerts:
            self._alert(summary)
        self._run.finish(exit_code=0 if summary is not None else 1)

    def _keep_tables(self) -> None:
        """Keep tables of the clients and, where they were told apart, of the classes."""
        try:
            found = read_metrics(self._folder)
        except DamagedError as error:
            log.warning("wandb: %s", error)
            found = {}
        tables = {"clients/results": self._tally.table(tested(found)), "classes": of_classes(found)}
        if self._chosen.clients:
            rows, _ = readable(self._folder / CLIENTS)
            tables["clients/table"] = of_rows(rows, MOST_ROWS)
        kept = {key: table for key, table in tables.items() if table is not None and table.rows}
        for key, table in kept.items():
            if table.left_out and self._speaks:
                of = len(table.rows) + table.left_out
                log.warning("wandb: table %s has the first %d of %d", key, len(table.rows), of)
        keep_tables(self._run, self._folder, kept, of_confusion(found))

    def _alert(self, summary: Mapping[str, Any] | None) -> None:
        """Say how the run ended to whom wandb tells it."""
        if summary is None:
            title, level = "failed", "ERROR"
            text = f"no result after round {self._last_round}"
        else:
            ended_by, level = summary.get("ended_by", "rounds"), "INFO"
            title = _ENDED.get(ended_by, f"ended by {ended_by}")
            accuracy = summary.get("final_accuracy")
            reached = "" if accuracy is None else f", accuracy {accuracy:.4f}"
            text = f"{summary.get('rounds', self._last_round)} rounds{reached}"
        title = line(f"{title}: {self._run.name}", _LONGEST_TITLE)
        with tried("the alert"):
            self._run.alert(title, line(f"{text}; {self._folder}"), level)

    def _keep(
        self, kind: str, metadata: Mapping[str, Any], aliases: Sequence[str], *files: str
    ) -> None:
        """Log files of the run's folder as an artifact; they are not copied."""
        paths = [path for name in files if (path := self._folder / name).exists()]
        name = f"{kind}-{self._collection}"
        with tried(f"artifact {name}"):
            if paths:
                made = artifact(name, kind, metadata, paths)
                self._run.log_artifact(made, aliases=list(aliases))

    def _take(self, inputs: Inputs) -> None:
        """Name the data set and the file of weights as what the run uses."""
        if name := inputs.data.get("name"):
            described = self._folder / "wandb" / "data.json"
            with whole(described) as part:
                part.write_text(json.dumps(dict(inputs.data), indent=2) + "\n", "utf-8")
            where = {"path": inputs.path} if inputs.path else {}
            metadata = {**inputs.data, **where}
            self._use(f"data-{names.plain(str(name))}", "dataset", metadata, described)
        if (path := inputs.weights) is not None and path.is_file():
            run_id = names.stored_id(path.parent)
            made_by = {"run": run_id} if run_id else {}
            self._use(names.of_weights(path), "model", {"path": str(path), **made_by}, path)

    def _use(self, name: str, kind: str, metadata: Mapping[str, Any], path: Path) -> None:
        """Say that the run uses an artifact.

        `use_artifact` refuses offline, and online waits for the server; otherwise it is this.
        """
        with tried(f"artifact {name}"):
            made = artifact(name, kind, metadata, [path])
            self._run._log_artifact(made, aliases=[], is_user_created=True, use_after_commit=True)


def _unused(group: str) -> list[str]:
    """What the environment says of one run, where there are several."""
    there = [name for name in ("WANDB_RUN_ID", "WANDB_NAME") if os.environ.get(name)]
    return [f"{name}: is not used by the jobs of a sweep" for name in there if group]
