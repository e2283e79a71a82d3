"""Sinks in the place of wandb: csv, TensorBoard and MLflow, as thin as their libraries make them.

Each begins anew from the rounds before this start, so that what is there is whole after a resume.
"""

import csv
import importlib.util
import io
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tracking.checksums import read_json
from tracking.files import DamagedError, whole
from tracking.record import ClientRecord, RoundRecord
from tracking.text import cell, line

TRACKERS = ("wandb", "csv", "tensorboard", "mlflow", "none")
_PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow"}
_MLFLOW_URI = "MLFLOW_TRACKING_URI"
_IDENTITY = "mlflow.json"  # in the run's folder
_MOST_PARAMS, _LONGEST_PARAM = 100, 500  # that MLflow takes at once, and of each

log = logging.getLogger(__name__)


def check_tracker(name: str) -> None:
    """Refuse a tracker that is none, or whose library is not there.

    Raises:
        ValueError: names tracker.
    """
    if name not in TRACKERS:
        raise ValueError(f"tracker.name={name}: takes {', '.join(TRACKERS)}")
    package = _PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ValueError(f"tracker={name}: {package} is not installed; pip install cutbit[{name}]")
    if name == "mlflow" and not os.environ.get(_MLFLOW_URI):
        raise ValueError(
            f"tracker=mlflow: takes a server in {_MLFLOW_URI}, such as http://host:5000"
        )


class CsvSink:
    """rounds.csv and clients.csv: the rows of their .jsonl for who has a spreadsheet."""

    def __init__(self, folder: Path, done: Sequence[RoundRecord], clients: Sequence[Any]) -> None:
        self._rounds = _Csv(folder / "rounds.csv", [record.to_dict() for record in done])
        self._clients = _Csv(folder / "clients.csv", list(clients))

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Add a round's rows."""
        self._rounds.add([record.to_dict()])
        self._clients.add([client.to_dict() for client in clients])

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Nothing is left to do."""


class _Csv:
    """A file that grows; where a row brings a column it is written anew."""

    def __init__(self, path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        self._path, self._rows, self._columns = path, list(rows), list[str]()
        self._write()

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows += rows
        if any(name not in self._columns for row in rows for name in row):
            self._write()
        elif rows:
            with self._path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._text(rows))

    def _write(self) -> None:
        self._columns = list(dict.fromkeys(name for row in self._rows for name in row))
        with whole(self._path) as part:
            text = self._text([{name: name for name in self._columns}] if self._columns else [])
            part.write_text(text + self._text(self._rows), encoding="utf-8", newline="")

    def _text(self, rows: Sequence[Mapping[str, Any]]) -> str:
        text = io.StringIO(newline="")
        values = ([row.get(name) for name in self._columns] for row in rows)
        csv.writer(text).writerows(
            ["" if value is None else cell(value) for value in row] for row in values
        )
        return text.getvalue()


class TensorboardSink:
    """Event files in the run's folder: a scalar for each figure of a round, and running bytes."""

    def __init__(self, folder: Path, done: Sequence[RoundRecord]) -> None:
        from tensorboard.summary import Writer

        place = folder / "tensorboard"
        shutil.rmtree(place, ignore_errors=True)  # of an earlier start: `done` has its rounds
        self._writer: Any = Writer(str(place))
        self._total = 0
        for record in done:
            self.round(record, ())

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Write a round."""
        self._total += record.bytes_up + record.bytes_down
        for name, value in {**_numbers(record.to_dict()), "total_bytes": self._total}.items():
            if name != "round":
                self._writer.add_scalar(name, value, step=record.round)
        self._writer.flush()

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Close the file."""
        self._writer.close()


class MlflowSink:
    """A run of MLflow per folder, on the server that MLFLOW_TRACKING_URI names.

    Args:
        folder: the run's.
        name: of the run.
        experiment: that it is part of.
        config: flat; its parameters.
        done: records of the rounds before this start, of which it has those that it has.
    """

    def __init__(
        self, folder: Path, name: str, experiment: str, config: Mapping[str, Any],
        done: Sequence[RoundRecord],
    ) -> None:  # fmt: skip
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient(os.environ[_MLFLOW_URI])
        try:
            self._run = str(read_json(folder / _IDENTITY)["run_id"])
            self._client.update_run(self._run, status="RUNNING")
        except (DamagedError, KeyError):
            there = self._client.get_experiment_by_name(experiment)
            number = there.experiment_id if there else self._client.create_experiment(experiment)
            self._run = self._client.create_run(number, run_name=name).info.run_id
            with whole(folder / _IDENTITY) as part:
                part.write_text(json.dumps({"run_id": self._run}) + "\n", "utf-8")
            self._log_params(config)
        history = self._client.get_metric_history(self._run, "train_loss")
        self._last = max((metric.step for metric in history), default=0)
        for record in done:
            self.round(record, ())

    def _log_params(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, line(value, _LONGEST_PARAM)) for key, value in config.items()]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(self._run, params=params[start : start + _MOST_PARAMS])

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Log a round, unless it is there."""
        if record.round > self._last:
            with _said(f"round {record.round}"):
                self._log(_numbers(record.to_dict()), record.round)

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in figures.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Log the summary's numbers and end the run, as failed if there is none."""
        with _said("the end of the run"):
            if summary is not None:
                self._log(_numbers(summary), int(summary.get("rounds") or 0))
            status = "FINISHED" if summary is not None else "FAILED"
            self._client.set_terminated(self._run, status)


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Say what a server did not take, and go on."""
    try:
        yield
    except Exception as error:  # of whichever library lies beneath
        log.warning("mlflow: %s is not logged: %s", what, line(error, 200))


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The values of a row that are numbers."""
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
