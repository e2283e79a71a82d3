"""The jobs of one command line: checked before the first, run one after another, then compared."""

import json
import logging
import os
import shutil
import socket
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from omegaconf import DictConfig

from app import experiment
from app.config.composition import NOT_HASHED, compose, from_omegaconf, open_keys
from app.config.composition import parsed as read_overrides
from app.config.schema import CONF, Config
from app.engine import Simulator
from app.experiment import Experiment, Prepared, resolve
from app.run_folder import CONFIG, FolderTakenError, claim, write_json
from strategies.server.cuts import AUTO
from tracking.collect import common, find
from tracking.files import whole
from tracking.jsonl import ROUNDS, read
from tracking.live import SweepView
from tracking.progress import ProgressSink
from tracking.record import RoundRecord
from tracking.report import print_tables, write_report
from tracking.summary import summarise
from tracking.text import line
from tracking.wandb_sink import WandbSink, check_online

RUNS = Path("runs")
MOST_JOBS = 10_000
COPIED = ("rounds.jsonl", "clients.jsonl", "model.safetensors", "config.json")

log = logging.getLogger(__name__)


class Jobs:
    """Runs jobs as Hydra calls for them, and keeps what failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self._is_sweep = False
        self._num_jobs = 1
        self._view: SweepView | None = None  # of a sweep, from its first job on
        self._shared: list[str] = []  # overrides that all jobs have
        self._simulator = Simulator()
        self._finished: dict[str, Path] = {}  # by this process
        self._beside: dict[str, Path] | None = None  # before it, in folders beside this one's
        self._folder: Path | None = None  # of the sweep, or of the one run
        self._resolved: dict[tuple[str, ...], Experiment] = {}  # by the overrides of the job
        self._prepared: Prepared | None = None  # of the one run: of a sweep it would be too many

    def check(self, overrides: Sequence[str], is_sweep: bool) -> list[str]:
        """Check every job before any runs, and return the overrides to run with.

        Those given, a preset's, and the folder of the run to continue where one is to be.

        Raises:
            ValueError: one line that names the key.
            FileNotFoundError: the data are not there.
        """
        overrides = [*preset(overrides, is_sweep), *overrides]
        open_jobs = [open_keys(job) for job in expand(overrides, is_sweep)]
        configs = [compose(job) for job in open_jobs]
        found = [resolve(config) for config in configs]
        for first, *others in alike(configs):
            prepared = experiment.check(found[first])
            for other in others:
                experiment.check_drawn(found[other], prepared.strategy)
            self._prepared = None if is_sweep else prepared
        for one in found:
            check_online(one.wandb)
            check_address(one.engine.address)
        self._resolved = {of_task(job): one for job, one in zip(open_jobs, found, strict=True)}
        self._num_jobs, self._is_sweep = len(found), is_sweep
        self._shared = common(open_jobs)
        given = given_folder(overrides, is_sweep)
        if given is not None:
            for number, one in enumerate(found):
                claim(given / str(number) if is_sweep else given, one)
        elif found[0].resume:
            folder = newest(RUNS / found[0].name, found, is_sweep)
            key = "hydra.sweep.dir" if is_sweep else "hydra.run.dir"
            if folder is None:
                what = f"there is no run of this experiment under runs/{found[0].name}"
                sys.stderr.write(f"resume=true: {what}; a new one begins\n")
            else:
                overrides.append(f"{key}='{folder}'")
        return overrides

    def job(self, node: DictConfig) -> None:
        """Run one job; an error is shown, kept, and does not stop the jobs after it."""
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        self._folder = Path(hydra.sweep.dir).absolute() if self._is_sweep else folder
        number, what = 1, ""
        if self._is_sweep:
            number = int(hydra.job.num) + 1
            what = " ".join(text for text in hydra.overrides.task if text not in self._shared)
            self._view = self._view or SweepView(self._num_jobs)
            self._view.begin(number, what)
        try:
            known = self._resolved.get(of_task(hydra.overrides.task))
            outcome = self._run(known or resolve(from_omegaconf(node)), folder)
        except (Exception, SystemExit) as error:  # a job's exit must not end the others
            log.info("failed", exc_info=True)  # to the log file; the terminal gets one line
            if not isinstance(error, FolderTakenError):  # what is there is not ours to mark
                (folder / "error.txt").write_text(traceback.format_exc(), "utf-8")
            lines = str(error).strip().splitlines() or [""]
            kind = "" if lines[0] and isinstance(error, Exception) else f"{type(error).__name__} "
            failure = f"{kind}{line(lines[0])} ({line(folder / 'error.txt')}, cutbit.log)"
            if self._view is None:
                self.failed.append(failure)
                sys.stderr.write(f"error: {failure}\n")
            else:
                self.failed.append(f"job {number}/{self._num_jobs} {line(what)}: {failure}")
                self._view.end(f"error: {failure}", failed=True)
        else:
            if self._view is not None:
                self._view.end(outcome)
            elif outcome:
                sys.stderr.write(f"{line(folder)}: {line(outcome)}\n")

    def finish(self) -> None:
        """End the workers, print the tables, and write a sweep's report."""
        if self._view is not None:
            self._view.close()
        self._simulator.close()
        if self._folder is None or (self.failed and not self._is_sweep):
            return
        folder = self._folder
        try:
            print_tables(write_report([folder], folder) if self._is_sweep else find([folder]))
            report = folder / "report.html"
            sys.stdout.write(line(report if self._is_sweep else folder, None) + "\n")
        finally:
            for failure in self.failed if self._is_sweep else []:
                sys.stderr.write(f"failed: {failure}\n")

    def _run(self, chosen: Experiment, folder: Path) -> str:
        """Run a job, or return why it need not be run."""
        assert self._folder is not None
        group = "/".join(self._folder.parts[-2:]) if self._is_sweep else ""
        claim(folder, chosen)
        (folder / "error.txt").unlink(missing_ok=True)
        # The engine does not change results, but who sweeps over it wants to see just that.
        key = chosen.hash + json.dumps(asdict(chosen.engine)) + chosen.data.settings.root
        outcome = ""
        if chosen.resume and is_finished(folder, chosen.rounds):
            outcome = "finished already"
        elif before := self._finished.get(key) or self._earlier(chosen):
            copy_results(before, folder, chosen.target_accuracy)
            publish(chosen, folder, group)
            job = f"job {before.name}" if before.parent == folder.parent else str(before)
            outcome = f"the same experiment as {job}, not run again"
        else:
            show = ProgressSink if self._view is None else self._view.progress
            prepared, self._prepared = self._prepared, None
            self._simulator.run(chosen, folder, group, show, prepared)
        self._finished.setdefault(key, folder)
        return outcome

    def _earlier(self, chosen: Experiment) -> Path | None:
        """Return a finished run of the same experiment from beside this sweep, if one will do."""
        if not chosen.skip_finished:
            return None
        if self._beside is None:
            assert self._folder is not None
            self._beside = finished(self._folder.parent)
        return self._beside.get(chosen.hash)


def of_task(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides of a job without Hydra's own."""
    return tuple(sorted(text for text in overrides if not text.lstrip("+~").startswith("hydra")))


def preset(overrides: Sequence[str], is_sweep: bool) -> list[str]:
    """Return the overrides that ``sweep=<preset>`` stands for, but for keys that are given too.

    An ``experiment=`` whose method is none of the preset's keeps its method.

    Raises:
        ValueError: there is no such preset, or nothing to run it with.
    """
    parsed = read_overrides(overrides)
    chosen = [override for override in parsed if override.key_or_group == "sweep"]
    if not chosen or chosen[-1].value() is None:
        return []
    name = chosen[-1].value()
    if chosen[-1].is_sweep_override():
        raise ValueError(f"sweep: takes one preset, not {chosen[-1].input_line}")
    path = searchpath(overrides)
    over = compose([*path, f"sweep={name}"]).sweep.over
    if not is_sweep and over:
        raise ValueError(f"sweep={name}: runs several jobs; takes -m beside it")
    given = {override.key_or_group for override in parsed}
    papers = [override.value() for override in parsed if override.key_or_group == "experiment"]
    if papers and isinstance(papers[-1], str):
        method = compose([*path, f"experiment={papers[-1]}"]).strategy["name"]
        if method not in str(over.get("strategy", method)).split(","):
            given.add("strategy")
    return [f"{key}={values}" for key, values in over.items() if key not in given]


def searchpath(overrides: Sequence[str]) -> list[str]:
    """Return the override that says where a user's own groups lie, if there is one."""
    parsed = read_overrides(overrides)
    return [str(o.input_line) for o in parsed if o.key_or_group == "hydra.searchpath"]


def expand(overrides: Sequence[str], is_sweep: bool) -> list[list[str]]:
    """Return the overrides of each job, as Hydra's basic sweeper divides them."""
    if not is_sweep:
        return [list(overrides)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()  # which glob(*) asks what there is
        parsed = read_overrides(overrides, config_loader=loader)
        refuse_many(parsed)
    batches: list[list[list[str]]] = BasicSweeper.split_arguments(parsed, None)
    return [job for batch in batches for job in batch]


def refuse_many(overrides: Sequence[Override]) -> None:
    """Refuse a sweep of more jobs than anybody runs, before each is written out.

    Raises:
        ValueError: names the keys.
    """
    num_jobs, keys = 1.0, []
    for override in overrides:
        if override.is_sweep_override():
            values: Any = override.value()
            if isinstance(values, RangeSweep):
                span = float(values.stop or 0) - float(values.start or 0)
                num_jobs *= max(1.0, span / float(values.step or 1))
            elif isinstance(values, ChoiceSweep):
                num_jobs *= max(1, len(values.list))
            keys.append(override.key_or_group)
    if not num_jobs <= MOST_JOBS:
        raise ValueError(f"{', '.join(keys)}: {num_jobs:.3g} jobs; takes {MOST_JOBS} or fewer")


def alike(configs: Sequence[Config]) -> list[list[int]]:
    """Put those together that have the same network with the same cuts and differ in draws.

    Returns:
        positions in ``configs``.
    """
    groups: dict[str, list[int]] = {}
    for position, config in enumerate(configs):
        # The best cut is the best for the devices that the seed draws.
        aside = NOT_HASHED if config.split.cut == AUTO else ("seed", *NOT_HASHED)
        parts = {key: part for key, part in asdict(config).items() if key not in aside}
        groups.setdefault(json.dumps(parts), []).append(position)
    return list(groups.values())


def given_folder(overrides: Sequence[str], is_sweep: bool) -> Path | None:
    """Return the folder that the command line names, unless it is to be interpolated."""
    key = "hydra.sweep.dir" if is_sweep else "hydra.run.dir"
    parsed = read_overrides(overrides)
    values = [str(override.value()) for override in parsed if override.key_or_group == key]
    return None if not values or "${" in values[-1] else Path(values[-1])


def newest(runs: Path, chosen: Sequence[Experiment], is_sweep: bool) -> Path | None:
    """Return the newest folder under ``runs`` that holds these experiments, or None.

    Of a sweep that was interrupted the first jobs are there, each with its own experiment.
    """
    identities = [{**one.identity, "rounds": None} for one in chosen]

    def holds(folder: Path) -> bool:
        paths = [folder / str(i) / CONFIG for i in range(len(chosen))]
        if not is_sweep:
            paths = [folder / CONFIG]
        there = [
            (path, mine)
            for path, mine in zip(paths, identities, strict=True)
            if path.exists() and path.stat().st_size
        ]
        return bool(there) and all(
            json.loads(path.read_text("utf-8")) | {"rounds": None} == mine for path, mine in there
        )

    found = [folder for folder in runs.glob("*/") if holds(folder)]
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def is_finished(folder: Path, rounds: int) -> bool:
    """Whether the folder's run has its summary, of as many rounds as are asked for."""
    path = folder / "summary.json"
    return path.exists() and bool(json.loads(path.read_text("utf-8"))["rounds"] == rounds)


def finished(above: Path) -> dict[str, Path]:
    """Return the whole runs among the runs and sweeps in a folder, by the hash of their config."""
    found: dict[str, Path] = {}
    for path in sorted([*above.glob("*/summary.json"), *above.glob("*/*/summary.json")]):
        if all((path.parent / name).exists() for name in COPIED):
            found[json.loads(path.read_text("utf-8"))["config_hash"]] = path.parent
    return found


def copy_results(before: Path, folder: Path, target_accuracy: float | None) -> None:
    """Give an identical job the results of the one that ran; the target may be another."""
    for name in COPIED:
        with whole(folder / name) as part:
            shutil.copy2(before / name, part)
    summary = json.loads((before / "summary.json").read_text("utf-8"))
    kept = {name: found for name, found in summary.items() if "target" not in name}
    same_as = os.path.relpath(before, folder.parent)
    target = summarise(folder, target_accuracy)
    write_json(folder / "summary.json", kept | target | {"same_as": same_as})


def publish(chosen: Experiment, folder: Path, group: str) -> None:
    """Give copied results a wandb run of their own, so that the sweep's group is whole."""
    done = [RoundRecord.from_dict(row) for row in read(folder / ROUNDS)]
    sink = WandbSink(chosen.wandb, folder, chosen.identity, group, done)
    sink.finish(json.loads((folder / "summary.json").read_text("utf-8")))


def check_address(address: str | None) -> None:
    """Refuse a cluster that nobody answers for; Ray itself would try for more than a minute.

    Raises:
        ValueError: names engine.address.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # none, or a word that Ray resolves itself, such as auto
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError as error:
        raise ValueError(f"engine.address={address}: nothing answers there: {error}") from error
