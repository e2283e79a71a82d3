"""Weights & Biases: one run per experiment, offline by default, always finished.

An offline run lies in the run's folder; `wandb sync <folder>/wandb/offline-run-*` uploads it.
"""

import netrc
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from tracking.record import ClientRecord, RoundRecord


class WandbSettings(Protocol):
    """What of the configuration this sink reads."""

    mode: str
    project: str
    entity: str | None


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
    """Logs every round, with running totals of bytes as further axes.

    Args:
        settings: mode, project and entity.
        folder: the run's folder.
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
        self._run = wandb.init(
            mode=settings.mode,  # type: ignore[arg-type]
            project=settings.project,
            entity=settings.entity,
            dir=str(folder),
            group=group or None,
            name="/".join(folder.parts[-2:]),
            tags=[str(config[key]) for key in ("strategy.name", "data.name") if key in config],
            config=dict(config),
            reinit="finish_previous",
            settings=wandb.Settings(
                silent=True,
                console="off",
                x_disable_stats=True,
                init_timeout=30,
                login_timeout=30,
                # A killed process loses what was not flushed; the default is 15 s.
                x_transaction_log_flush_interval=0.5,
            ),
        )
        self._run.define_metric("round")
        self._run.define_metric("total_bytes")
        self._run.define_metric("*", step_metric="round")
        self._total_bytes = 0
        for record in done:
            self.round(record, ())

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Log a round."""
        if self._run is None:
            return
        self._total_bytes += record.bytes_up + record.bytes_down
        row = {name: value for name, value in record.to_dict().items() if value is not None}
        self._run.log({**row, "total_bytes": self._total_bytes})

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Store the summary and end the run, as failed if there is none."""
        if self._run is None:
            return
        if summary is not None:
            self._run.summary.update(dict(summary))
        self._run.finish(exit_code=0 if summary is not None else 1)
