"""The runs of one or several folders, as they lie on disk, and what tells them apart."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from targets import short_name
from tracking.checksums import differing, read_json, stored
from tracking.files import DamagedError
from tracking.jsonl import CLIENTS, ROUNDS, readable
from tracking.text import last_message

# Said on the command line, but never the reason of a result.
_NO_REASON = ("resume", "name", "sweep", "tracker", "checkpoint")

SCHEDULE = "schedule.name"
NOT_STORED = {SCHEDULE: "sync", "engine.precision": "fp32"}  # what no entry stands for

_FIGURES = ("final_", "best_", "total_", "num_")  # of a summary; numbers or null


@dataclass(frozen=True)
class Run:
    """What one run left behind.

    Attributes:
        job: its folder, relative to where runs were looked for.
        folder: its folder.
        overrides: what the command line said, in its order; interpolations as their values.
        status: ``finished``, ``same as <job>``, ``failed``, ``unfinished``, or ``damaged``: a file
            is not what was written to it.
        error: the message that ends its traceback, whole, or what is damaged; else empty.
        traceback: error.txt of a failed run; else empty.
        config: what its results depend on, as flat keys; empty if it failed before it had any, or
            if config.json is damaged.
        summary: summary.json; empty if it did not finish, or if summary.json is damaged.
    """

    job: str
    folder: Path
    overrides: Sequence[str]
    status: str
    error: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    traceback: str = ""

    @property
    def is_copy(self) -> bool:
        """Whether another run's results were taken over."""
        return "same_as" in self.summary

    @property
    def said(self) -> dict[str, str]:
        """The overrides by key."""
        pairs = (text.partition("=") for text in self.overrides)
        return {key: value for key, _, value in pairs}

    def row(self) -> dict[str, Any]:
        """Return the run as one flat row: job, overrides, status, error, summary, versions.

        What ran and where is flat there too: ``provenance_commit``, ``provenance_machine_cpu`` …
        """
        row = {"job": self.job, "overrides": " ".join(self.overrides), "status": self.status}
        if self.error:
            row["error"] = self.error
        summary = dict(self.summary)
        versions = summary.pop("versions", {})
        summary.pop("per_class", None)  # lists, which a table has no column for
        named = {f"version_{name}": value for name, value in versions.items()}
        origin = flat_provenance(summary.pop("provenance", None))
        return row | summary | named | {f"provenance_{key}": value for key, value in origin.items()}


def flat_provenance(found: Any) -> dict[str, Any]:
    """Return a summary's provenance with the machine's keys beside the others, less packages."""
    if not isinstance(found, Mapping):
        return {}
    machine = found.get("machine")
    rest = {k: v for k, v in found.items() if k not in ("machine", "packages")}
    return rest | (
        {f"machine_{k}": v for k, v in machine.items()} if isinstance(machine, Mapping) else {}
    )


def find(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in or under ``folders``, each once, in the order of the jobs."""
    roots = [folder.resolve() for folder in folders]
    found = {folder for root in roots for folder in _under(root)}
    if not found:
        return []
    above = Path(os.path.commonpath(roots))
    named = {folder: str(folder.relative_to(above)) for folder in found}
    jobs = {folder: folder.name if name == "." else name for folder, name in named.items()}
    return [_read(folder, jobs[folder]) for folder in sorted(found, key=lambda f: natural(jobs[f]))]


def natural(text: str) -> list[Any]:
    """Key that sorts numbers within a text by value: 2 before 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", text))]


def swept(runs: Sequence[Run]) -> list[str]:
    """Return the keys that the command lines set to different values, in their order."""
    said = dict.fromkeys(key for run in runs for key in run.said)
    candidates = [key for key in said if key.partition(".")[0] not in _NO_REASON]
    known = {key for run in runs for key in run.config}
    return [k for k in candidates if len({_text(value(run, k, known)) for run in runs}) > 1]


def value(run: Run, key: str, known: set[str]) -> Any:
    """Return what a run has for a swept key; None where its method does not read it.

    Args:
        run: the run.
        key: as on the command line, such as ``quant.bits`` or ``strategy``.
        known: keys that the configuration of any run has.
    """
    chosen = (key, f"{key}.name", f"{key}._target_")
    own = {k.removeprefix(f"{key}."): v for k, v in run.config.items() if k.startswith(f"{key}.")}
    if own and not any(place in run.config for place in chosen):  # a mapping of clients
        return ", ".join(f"{name}: {found}" for name, found in own.items())
    # The choice of a file under conf/ is kept as its name, a network as its class.
    places = [place for place in chosen if place in known]
    if not places or not run.config:
        return run.said.get(key)
    found = run.config.get(places[0], NOT_STORED.get(places[0]))
    return short_name(str(found)) if places[0] == f"{key}._target_" else found


def schedule(run: Run) -> str:
    """Return when its rounds end: ``buffered``, ``semi``, or ``sync``, which is not stored."""
    return str(run.config.get(SCHEDULE, NOT_STORED[SCHEDULE]))


def resolved(override: str, config: Mapping[str, Any]) -> str:
    """Return an override with the value that an interpolation in it (``${…}``) came to.

    Args:
        override: ``key=value``.
        config: flat keys; an override of another key stays as it is.
    """
    key = override.partition("=")[0]
    return f"{key}={_text(config[key])}" if "${" in override and key in config else override


def common(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return the overrides that all jobs have, in the first one's order; none for a single job."""
    if len(jobs) < 2:
        return []
    return [text for text in jobs[0] if all(text in job for job in jobs)]


def _under(root: Path) -> Iterator[Path]:
    """The folders of runs; what lies inside of one can be large, and is not looked through."""
    for path, below, files in os.walk(root):
        below[:] = [name for name in below if name not in (".hydra", "checkpoint", "wandb")]
        if not {"config.json", "error.txt", ROUNDS}.isdisjoint(files):
            yield Path(path)


def _is_figure(found: Any) -> bool:
    """Whether it is a number that can be averaged, or null."""
    try:
        return found is None or (isinstance(found, int | float) and math.isfinite(found))
    except OverflowError:  # of an integer that no float holds
        return False


def _text(found: Any) -> str:
    return found if isinstance(found, str) else json.dumps(found)


def _read(folder: Path, job: str) -> Run:
    wrong: list[str] = []
    overrides = _overrides(folder, wrong)
    config = _json(folder / "config.json", wrong)
    summary = _json(folder / "summary.json", wrong)
    for name, found in summary.items():
        if name.startswith(_FIGURES) and not _is_figure(found):
            summary = {}
            wrong.append(f"summary.json is damaged ({name} is no number)")
            break
    if differs := _differing(folder, has_summary=bool(summary)):
        config = {} if differs.startswith("config.json") else config
        summary = {} if differs.startswith("summary.json") else summary
        wrong.append(differs)
    status, error, traceback = "unfinished", "", ""
    if wrong:
        status, error = "damaged", wrong[0]
    elif summary:
        status = f"same as {summary['same_as']}" if "same_as" in summary else "finished"
    if not wrong and (folder / "error.txt").exists():  # also of a finished run that was to grow
        traceback = (folder / "error.txt").read_text("utf-8", errors="replace").strip()
        status, error = "failed", last_message(traceback)
    given = [text.lstrip("+") for text in overrides if not text.startswith("resume=")]
    said = [resolved(text, config) for text in given]
    return Run(job, folder, said, status, error, config, summary, traceback)


def _overrides(folder: Path, wrong: list[str]) -> list[str]:
    path = folder / ".hydra" / "overrides.yaml"
    try:
        found = yaml.safe_load(path.read_text("utf-8")) if path.exists() else []
        if isinstance(found or [], list) and all(isinstance(text, str) for text in found or []):
            return found or []
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        pass
    wrong.append(".hydra/overrides.yaml is damaged")
    return []


def _json(path: Path, wrong: list[str]) -> dict[str, Any]:
    rounds = path.with_name(ROUNDS)
    if path.name == "config.json" and not path.exists() and rounds.exists():
        wrong += [f"{path.name} is missing"] if rounds.stat().st_size else []
    if not path.exists() or (path.name == "config.json" and not path.stat().st_size):
        return {}  # an empty config.json: killed in its first moment
    try:
        return read_json(path)
    except DamagedError as error:
        wrong.append(str(error))
        return {}


def _differing(folder: Path, has_summary: bool) -> str:
    """Say which of the files that reports are made of is not what it was; empty if none is."""
    try:
        files = stored(folder)
    except DamagedError as error:
        return str(error)
    files = {name: files[name] for name in ("config.json", "summary.json") if name in files}
    if files and (wrong := differing(folder, files)):
        return wrong
    for name in (ROUNDS, CLIENTS):
        rows, problem = readable(folder / name)
        if problem:
            return problem
        if name == ROUNDS and [row["round"] for row in rows] != [*range(1, len(rows) + 1)]:
            return f"{name} is damaged (rounds are missing)"
    rest = {name: text for name, text in stored(folder).items() if name in (ROUNDS, CLIENTS)}
    return differing(folder, rest) if has_summary else ""
