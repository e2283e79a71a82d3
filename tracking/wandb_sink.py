"""Weights & Biases: one run per experiment, offline by default, always finished.

An offline run lies in the run's folder; `wandb sync <folder>/wandb/offline-run-*` uploads it, with
the model and the configuration that lie beside it. An online run whose server went away ends within
a minute and is on disk too: `wandb sync --no-skip-online <folder>/wandb/run-*`.
"""

import logging
import netrc
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from targets import short_name
from tracking.jsonl import CLIENTS, readable
from tracking.record import ClientRecord, RoundRecord
from tracking.text import line

COSTS = ("sim_s", "energy_j", "wall_s")
CLIENT_FIGURES = ("loss", "sim_s", "energy_j")
BINS = 32
MODES = ("offline", "online", "disabled")
LONGEST_NAME, LONGEST_TAG = 125, 61  # and " … "; wandb takes 128 and 64

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WandbSettings:
    """The group tracker.wandb of the configuration."""

    mode: str = field(default="offline", metadata={"help": "wandb mode: offline, online, disabled"})
    project: str = field(default="cutbit", metadata={"help": "wandb project"})
    entity: str | None = field(
        default=None, metadata={"help": "wandb user or team; null: your default"}
    )

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"tracker.wandb.mode={self.mode}: takes {', '.join(MODES)}")


def check_online(settings: WandbSettings) -> None:
    """Refuse to go online without a key: wandb would ask for one, in the middle of a run.

    Raises:
        ValueError: names tracker.wandb.mode.
    """
    if settings.mode != "online" or os.environ.get("WANDB_API_KEY"):
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    if not known:
        raise ValueError(
            f"tracker.wandb.mode=online: no key for {host}; set WANDB_API_KEY or run wandb login, "
            "or take offline and upload later with wandb sync"
        )


class WandbSink:
    """Logs every round: its record, running totals as further axes, histograms over the clients.

    Args:
        settings: mode, project and entity. Online, a server that does not answer makes it offline.
        folder: the run's folder, where the clients of the rounds in ``done`` are found.
        config: flat configuration, stored with the run.
        group: the sweep that the run is part of.
        done: records of the rounds before this start; an offline run is written anew with them, so
            that the one to upload is whole.
    """

    def __init__(
        self,
        settings: WandbSettings,
        folder: Path,
        config: Mapping[str, Any],
        group: str = "",
        done: Sequence[RoundRecord] = (),
    ) -> None:
        self._run: Any = None
        if settings.mode == "disabled":
            return
        import wandb  # a second to import, so only where it is used

        if settings.mode == "offline":  # what an earlier start of this run left
            for old in (folder / "wandb").glob("offline-run-*"):
                shutil.rmtree(old)
        given: dict[str, Any] = {
            "project": settings.project,
            "entity": settings.entity,
            "dir": str(folder),
            "group": line(group, LONGEST_NAME) or None,
            "name": line("/".join(folder.parts[-2:]), LONGEST_NAME),
            "tags": tags(config),
            "config": dict(config),
            "reinit": "finish_previous",
            "settings": wandb.Settings(
                silent=True,
                console="off",
                x_disable_stats=True,
                init_timeout=30,
                login_timeout=30,
                finish_timeout=60,  # what is not uploaded until then stays on disk
                # A killed process loses what was not flushed; the default is 15 s.
                x_transaction_log_flush_interval=0.5,
            ),
        }
        try:
            self._run = wandb.init(mode=settings.mode, **given)  # type: ignore[arg-type]
        except wandb.Error as error:
            if settings.mode == "offline":
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("tracker.wandb.mode=online: %s; kept offline, see wandb sync", reason)
            self._run = wandb.init(mode="offline", **given)
        self._folder = folder
        for axis in ("round", "total_bytes", *(f"total_{name}" for name in COSTS)):
            self._run.define_metric(axis)
        self._run.define_metric("*", step_metric="round")
        self._totals: dict[str, float] = {"total_bytes": 0}
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

        row = {name: value for name, value in record.to_dict().items() if value is not None}
        self._totals["total_bytes"] += record.bytes_up + record.bytes_down
        for name in COSTS:
            if name in row:
                self._totals[f"total_{name}"] = self._totals.get(f"total_{name}", 0) + row[name]
        histograms = {}
        for name in CLIENT_FIGURES:
            values = [client[name] for client in clients if client[name] is not None]
            if values:
                histograms[f"clients/{name}"] = wandb.Histogram(values, num_bins=BINS)
        self._run.log({**row, **self._totals, **histograms})

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Store the summary and end the run, as failed if there is none."""
        if self._run is None:
            return
        if summary is not None:
            self._run.summary.update(dict(summary))
            self._keep("model", "model.safetensors")
            self._keep("config", "config.json", ".hydra/config.yaml")
        self._run.finish(exit_code=0 if summary is not None else 1)

    def _keep(self, kind: str, *names: str) -> None:
        """Log files of the run's folder as an artifact; they are not copied."""
        import wandb

        artifact = wandb.Artifact(f"{kind}-{self._run.id}", kind)
        there = [name for name in names if (self._folder / name).exists()]
        for name in there:
            path = str(self._folder / name)
            artifact.add_file(path, name=Path(name).name, policy="immutable", skip_cache=True)
        if there:
            self._run.log_artifact(artifact)


def tags(config: Mapping[str, Any]) -> list[str]:
    """Return the names of method, model and data, as far as the configuration has them."""
    names = [config.get(key) for key in ("strategy.name", "model._target_", "data.name")]
    return [line(short_name(str(name)), LONGEST_TAG) for name in names if name]
