"""The runs of one or several folders, as they lie on disk, and what tells them apart."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from targets import short_name

# Said on the command line, but never the reason of a result.
_NO_REASON = ("resume", "name", "sweep", "tracker", "checkpoint")


@dataclass(frozen=True)
class Run:
    """What one run left behind.

    Attributes:
        job: its folder, relative to where runs were looked for.
        folder: its folder.
        overrides: what the command line said, in its order.
        status: ``finished``, ``same as <job>``, ``failed`` or ``unfinished``.
        error: the last line of its traceback; empty unless it failed.
        config: what its results depend on, as flat keys; empty if it failed before it had any.
        summary: summary.json; empty if it did not finish.
    """

    job: str
    folder: Path
    overrides: Sequence[str]
    status: str
    error: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

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
        """Return the run as one flat row: job, overrides, status, error, summary, versions."""
        row = {"job": self.job, "overrides": " ".join(self.overrides), "status": self.status}
        if self.error:
            row["error"] = self.error
        summary = dict(self.summary)
        versions = summary.pop("versions", {})
        return row | summary | {f"version_{name}": value for name, value in versions.items()}


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
    # The choice of a file under conf/ is kept as its name, a network as its class.
    places = [place for place in (key, f"{key}.name", f"{key}._target_") if place in known]
    if not places or not run.config:
        return run.said.get(key)
    found = run.config.get(places[0])
    return short_name(str(found)) if places[0] == f"{key}._target_" else found


def common(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return the overrides that all jobs have, in the first one's order; none for a single job."""
    if len(jobs) < 2:
        return []
    return [text for text in jobs[0] if all(text in job for job in jobs)]


def _under(root: Path) -> Iterator[Path]:
    """The folders of runs; what lies inside of one can be large, and is not looked through."""
    for path, below, files in os.walk(root):
        below[:] = [name for name in below if name not in (".hydra", "checkpoint", "wandb")]
        if "config.json" in files or "error.txt" in files:
            yield Path(path)


def _text(found: Any) -> str:
    return found if isinstance(found, str) else json.dumps(found)


def _read(folder: Path, job: str) -> Run:
    given = folder / ".hydra" / "overrides.yaml"
    overrides = (yaml.safe_load(given.read_text("utf-8")) if given.exists() else None) or []
    config = _json(folder / "config.json")
    summary = _json(folder / "summary.json")
    status = "unfinished"
    if summary:
        status = f"same as {summary['same_as']}" if "same_as" in summary else "finished"
    error = ""
    if (folder / "error.txt").exists():  # also where a finished run was to grow and failed
        lines = (folder / "error.txt").read_text("utf-8", errors="replace").strip().split("\n")
        status, error = "failed", lines[-1].strip()
    said = [text.lstrip("+") for text in overrides if not text.startswith("resume=")]
    return Run(job, folder, said, status, error, config, summary)


def _json(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found: dict[str, Any] = json.loads(text) if text else {}  # empty: killed in its first moment
    return found
