"""Weights & Biases: one run per run's folder, offline by default, always finished.

An offline run lies in the run's folder; `python -m tracking.sync <folders>` uploads it, with the
model and the configuration that lie beside it. An online run whose server went away ends within a
minute and is on disk too. Its id is the folder's: a run that is resumed is the same one in wandb.
"""

import glob
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tracking import wandb_names as names
from tracking.files import whole
from tracking.jsonl import CLIENTS, readable
from tracking.record import ClientRecord, RoundRecord, numbers
from tracking.text import line

COSTS = ("sim_s", "energy_j", "wall_s")
CLIENT_FIGURES = ("loss", "accuracy", "sim_s", "energy_j")
BINS = 32
MODES = ("offline", "online", "disabled")
# What stands in wandb's environment for a key that is not set, and what where that is not either.
_ELSE = {
    "mode": ("WANDB_MODE", "offline"),
    "project": ("WANDB_PROJECT", "cutbit"),
    "entity": ("WANDB_ENTITY", None),
}
_OLD_MODES = {"dryrun": "offline", "run": "online"}
_JOB_TYPE = "train"
_LONGEST_TAG = 64
# What wandb's summary has of a figure of rounds beside its last: it charts and sorts by these.
_BEST = {"accuracy": "max", "loss": "min", "train_loss": "min"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WandbSettings:
    """The group tracker.wandb of the configuration."""

    mode: str | None = field(
        default=None,
        metadata={"help": "wandb mode: offline, online, disabled; null: WANDB_MODE, or offline"},
    )
    project: str | None = field(
        default=None, metadata={"help": "wandb project; null: WANDB_PROJECT, or cutbit"}
    )
    entity: str | None = field(
        default=None,
        metadata={"help": "wandb user or team; null: WANDB_ENTITY, or your default"},
    )
    clients: bool = field(
        default=False, metadata={"help": "log clients.jsonl as a table at the end"}
    )
    console: bool = field(default=False, metadata={"help": "log what is printed"})
    system: bool = field(default=False, metadata={"help": "sample CPU, memory, disk and GPU"})

    def __post_init__(self) -> None:
        if self.mode is not None and self.mode not in MODES:
            raise ValueError(f"tracker.wandb.mode={self.mode}: takes {', '.join(MODES)} or null")


def resolved(
    settings: WandbSettings, environment: Mapping[str, str]
) -> tuple[WandbSettings, list[str]]:
    """Return the settings with what wandb's environment says where they are silent.

    Also lines for what the environment says in vain.

    Raises:
        ValueError: WANDB_MODE or WANDB_TAGS is none that we, or wandb, take.
    """
    found, said = dict[str, Any](), []
    for name, (variable, otherwise) in _ELSE.items():
        given, there = getattr(settings, name), environment.get(variable) or None
        if name == "mode" and there is not None:
            there = _OLD_MODES.get(there, there)
            if given is None and there not in MODES:
                raise ValueError(f"{variable}={line(there, 80)}: takes {', '.join(MODES)}")
        if given is not None and there not in (None, given):
            said.append(f"tracker.wandb.{name}={given}: {variable}={there} is not used")
        found[name] = given if given is not None else there or otherwise
    added = environment.get("WANDB_TAGS") or None
    if added and not all(1 <= len(tag) <= _LONGEST_TAG for tag in added.split(",")):
        raise ValueError(f"WANDB_TAGS={line(added, 80)}: takes tags of 1 to {_LONGEST_TAG} signs")
    return replace(settings, **found), said


def check_online(settings: WandbSettings) -> None:
    """Refuse to go online without a key: wandb would ask for one, in the middle of a run.

    Where keys are, and which server is meant, is asked of wandb: its environment, the settings that
    `wandb login --host` leaves, the file of keys.

    Raises:
        ValueError: names tracker.wandb.mode, or WANDB_MODE.
    """
    chosen, _ = resolved(settings, os.environ)
    if chosen.mode != "online":
        return
    host, reason = missing_key()
    if reason is not None:
        key = "WANDB_MODE" if settings.mode is None else "tracker.wandb.mode"
        raise ValueError(
            f"{key}=online: {reason or f'no key for {host}'}; set WANDB_API_KEY or run wandb "
            "login, or take offline and upload later with python -m tracking.sync"
        )


def missing_key() -> tuple[str, str | None]:
    """Return wandb's server, and why there is no key for it: None where there is one."""
    import wandb
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib.wbauth import authenticate_session  # `wandb.login` would print

    host = str(wandb_setup.singleton().settings.base_url)
    try:
        found = authenticate_session(host=host, source="cutbit", prompt=False, update_session=False)
    except wandb.Error as error:
        return host, line(error, 200)
    return host, None if found is not None else ""


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
        self._clients = chosen.clients
        self._run = self._start(chosen, config, group)
        self._first = (
            self._run.starting_step
        )  # of an online run that is continued: one after its last
        for axis in ("round", "total_bytes", *(f"total_{name}" for name in COSTS)):
            self._run.define_metric(axis)
        self._run.define_metric("*", step_metric="round")
        for name, best in _BEST.items():
            self._run.define_metric(name, step_metric="round", summary=f"{best},last")
        self._take(inputs)
        self._totals: dict[str, float] = {"total_bytes": 0}
        clients: dict[int, list[dict[str, Any]]] = {}
        for row in readable(folder / CLIENTS)[0] if done else []:
            clients.setdefault(row["round"], []).append(row)
        for record in done:
            self._log(record, clients.get(record.round, []))

    def _start(self, chosen: WandbSettings, config: Mapping[str, Any], group: str) -> Any:
        """Start the run, offline where no server answers."""
        import wandb  # a second to import, so only where it is used

        folder = self._folder
        single = {} if group else os.environ  # of several jobs, each needs its own
        run_id = names.stored_id(folder) or single.get("WANDB_RUN_ID") or names.new_id()
        above = Path(os.environ.get("WANDB_DIR") or folder).absolute()
        elsewhere = {} if above == folder.absolute() else {"dir": str(above)}
        names.store(folder, id=run_id, collection=self._collection, **elsewhere)
        above.mkdir(parents=True, exist_ok=True)
        if chosen.mode == "offline":  # what an earlier start of this run left
            left = {*(above / "wandb").glob(f"offline-run-*-{glob.escape(run_id)}")}
            for old in left | {*(folder / "wandb").glob("offline-run-*")}:
                shutil.rmtree(old)
        given: dict[str, Any] = {
            "project": chosen.project,
            "entity": chosen.entity,
            "dir": str(above),
            "id": run_id,
            "group": line(group, names.LONGEST_NAME) or None,
            "name": single.get("WANDB_NAME") or names.run_name(folder, config),
            "job_type": os.environ.get("WANDB_JOB_TYPE") or _JOB_TYPE,
            "tags": names.tags(config, os.environ.get("WANDB_TAGS", "")),
            "config": dict(config),
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
            return wandb.init(mode="offline", **given)
        wandb.setup(wandb.Settings(silent=True))  # a run's own settings do not silence its messages
        try:
            return wandb.init(mode="online", resume="allow", **given)
        except wandb.Error as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning(
                "tracker.wandb.mode=online: %s; kept offline, see python -m tracking.sync", reason
            )
            return wandb.init(mode="offline", **given)

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Log a round."""
        if self._run is not None:
            self._log(record, [client.to_dict() for client in clients])

    def _log(self, record: RoundRecord, clients: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        row = {name: v for name, v in numbers(record.to_dict()).items() if v is not None}
        self._totals["total_bytes"] += record.bytes_up + record.bytes_down
        for name in COSTS:
            if name in row:
                self._totals[f"total_{name}"] = self._totals.get(f"total_{name}", 0) + row[name]
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
            if self._clients:
                self._log_clients()
            accuracy = summary.get("final_accuracy")
            others = [*self._folder.parent.glob("*/summary.json")]
            best = ["best"] if names.is_best(self._folder, accuracy, others) else []
            figures = {"accuracy": accuracy, "config_hash": summary.get("config_hash")}
            self._keep("model", figures, ["latest", *best], "model.safetensors",
                       "model_best.safetensors")  # fmt: skip
            self._keep("config", {}, ["latest"], "config.json", ".hydra/config.yaml")
        self._run.finish(exit_code=0 if summary is not None else 1)

    def _log_clients(self) -> None:
        """Log clients.jsonl as one table."""
        import wandb

        rows, _ = readable(self._folder / CLIENTS)
        if not rows:
            return
        columns = list(dict.fromkeys(name for row in rows for name in row))
        data = [[row.get(name) for name in columns] for row in rows]
        table = wandb.Table(columns=list[str | int](columns), data=data)
        self._run.log({"clients/table": table, "round": max(r["round"] for r in rows)})

    def _keep(
        self, kind: str, metadata: Mapping[str, Any], aliases: Sequence[str], *files: str
    ) -> None:
        """Log files of the run's folder as an artifact; they are not copied."""
        paths = [path for name in files if (path := self._folder / name).exists()]
        name = f"{kind}-{self._collection}"
        with self._tried(name):
            if paths:
                artifact = _artifact(name, kind, metadata, paths)
                self._run.log_artifact(artifact, aliases=list(aliases))

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
            self._use(names.of_weights(path), "model", {"path": str(path)}, path)

    def _use(self, name: str, kind: str, metadata: Mapping[str, Any], path: Path) -> None:
        """Say that the run uses an artifact.

        `use_artifact` refuses offline, and online waits for the server; otherwise it is this.
        """
        with self._tried(name):
            artifact = _artifact(name, kind, metadata, [path])
            self._run._log_artifact(
                artifact, aliases=[], is_user_created=True, use_after_commit=True
            )

    @contextmanager
    def _tried(self, what: str) -> Iterator[None]:
        """Say what a server did not take, and go on: the run itself is not lost by it."""
        import wandb

        try:
            yield
        except (wandb.Error, ValueError, OSError, RuntimeError) as error:
            log.warning("wandb: artifact %s is not logged: %s", what, line(error, 200))


def _artifact(name: str, kind: str, metadata: Mapping[str, Any], paths: Sequence[Path]) -> Any:
    """Return an artifact of files that stay where they are."""
    import wandb

    artifact = wandb.Artifact(name, kind, metadata=dict(metadata))
    for path in paths:
        artifact.add_file(str(path), name=path.name, policy="immutable", skip_cache=True)
    return artifact


def _unused(group: str) -> list[str]:
    """What the environment says of one run, where there are several."""
    there = [name for name in ("WANDB_RUN_ID", "WANDB_NAME") if os.environ.get(name)]
    return [f"{name}: is not used by the jobs of a sweep" for name in there if group]
