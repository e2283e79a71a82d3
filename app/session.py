"""The jobs of one command line: checked before the first, run one after another, then compared."""

import json
import logging
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
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from app import experiment
from app.config import CONF, Config, compose, config_hash, from_omegaconf, open_model_keys
from app.engine import Simulator
from app.server import FolderTakenError, claim, identity, write_json
from tracking.jsonl import ROUNDS, read
from tracking.record import RoundRecord
from tracking.report import collect, common, print_table, write_report
from tracking.wandb_sink import WandbSink, check_online

RUNS = Path("runs")
COPIED = ("rounds.jsonl", "clients.jsonl", "model.safetensors", "config.json")

log = logging.getLogger(__name__)


class Session:
    """Runs jobs as Hydra calls for them, and keeps what failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self._num_jobs = 1
        self._is_sweep = False
        self._shared: list[str] = []  # overrides that all jobs have
        self._simulator = Simulator()
        self._finished: dict[str, Path] = {}
        self._folder: Path | None = None  # of the sweep, or of the one run

    def prepare(self, overrides: Sequence[str], is_sweep: bool) -> list[str]:
        """Check every job before any runs, and return overrides to add to the command line.

        Those name the folder of the run to continue, where one is to be continued.

        Raises:
            ValueError: one line that names the key.
            FileNotFoundError: the data are not there.
        """
        open_jobs = [open_model_keys(job) for job in expand(overrides, is_sweep)]
        configs = [compose(job) for job in open_jobs]
        checked: list[tuple[Any, ...]] = []
        for config in configs:
            method = experiment.strategy(config)  # its constructor checks what the schema cannot
            data = config.data
            if (parts := (config.model, data.name, data.shape, data.num_classes)) not in checked:
                experiment.check_network(config)
                checked.append(parts)
            if (
                cuts := (*parts, config.strategy, config.split, config.quant, config.fleet)
            ) not in checked:
                experiment.prepare(config, method)  # loads and divides the data, into the cache
                method.check_fleet()
                checked.append(cuts)
            check_online(config.tracker.wandb)
            check_address(config.engine.address)
        self._num_jobs, self._is_sweep = len(configs), is_sweep
        self._shared = common(open_jobs)
        given = given_folder(overrides, is_sweep)
        if given is not None:
            for number, config in enumerate(configs):
                claim(given / str(number) if is_sweep else given, config)
        elif configs[0].resume:
            found = newest(RUNS / configs[0].name, configs, is_sweep)
            key = "hydra.sweep.dir" if is_sweep else "hydra.run.dir"
            return [] if found is None else [f"{key}='{found}'"]
        return []

    def job(self, node: DictConfig) -> None:
        """Run one job; an error is shown, kept, and does not stop the jobs after it."""
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        self._folder = Path(hydra.sweep.dir).absolute() if self._is_sweep else folder
        label, group = "", ""
        if self._is_sweep:
            what = " ".join(text for text in hydra.overrides.task if text not in self._shared)
            label = f"job {int(hydra.job.num) + 1}/{self._num_jobs} {what}"
            group = "/".join(self._folder.parts[-2:])
        try:
            self._run(from_omegaconf(node), folder, label, group)
        except Exception as error:
            log.info("failed", exc_info=True)  # to the log file; the terminal gets one line
            if not isinstance(error, FolderTakenError):  # what is there is not ours to mark
                (folder / "error.txt").write_text(traceback.format_exc())
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self.failed.append(f"{label}: {lines[0]} ({folder / 'error.txt'})".removeprefix(": "))
            sys.stderr.write(f"error: {self.failed[-1]}\n")

    def finish(self) -> None:
        """End the workers, print the table, and write a sweep's summary files."""
        self._simulator.close()
        if self._folder is None or (self.failed and not self._is_sweep):
            return
        print_table(write_report(self._folder) if self._is_sweep else collect(self._folder))
        sys.stdout.write(f"{self._folder}\n")
        for failure in self.failed if self._is_sweep else []:
            sys.stderr.write(f"failed: {failure}\n")

    def _run(self, config: Config, folder: Path, label: str, group: str) -> None:
        claim(folder, config)
        (folder / "error.txt").unlink(missing_ok=True)
        key = config_hash(config, experiment.strategy_class(config).reads)
        # The engine does not change results, but who sweeps over it wants to see just that.
        key += json.dumps(asdict(config.engine)) + config.data.root
        before = self._finished.get(key)
        if config.resume and is_finished(folder, config):
            sys.stderr.write(f"{label or folder}: finished already\n")
        elif before is not None:
            copy_results(before, folder)
            publish(config, folder, group)
            sys.stderr.write(f"{label}: the same experiment as job {before.name}, not run again\n")
        else:
            self._simulator.run(config, folder, label, group)
        self._finished.setdefault(key, folder)


def expand(overrides: Sequence[str], is_sweep: bool) -> list[list[str]]:
    """Return the overrides of each job, as Hydra's basic sweeper divides them."""
    if not is_sweep:
        return [list(overrides)]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()  # which glob(*) asks what there is
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    batches: list[list[list[str]]] = BasicSweeper.split_arguments(parsed, None)
    return [job for batch in batches for job in batch]


def given_folder(overrides: Sequence[str], is_sweep: bool) -> Path | None:
    """Return the folder that the command line names, unless it is to be interpolated."""
    key = "hydra.sweep.dir" if is_sweep else "hydra.run.dir"
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = [str(override.value()) for override in parsed if override.key_or_group == key]
    return None if not values or "${" in values[-1] else Path(values[-1])


def newest(runs: Path, configs: Sequence[Config], is_sweep: bool) -> Path | None:
    """Return the newest folder under ``runs`` that holds these experiments, or None.

    Of a sweep that was interrupted the first jobs are there, each with its own experiment.
    """
    identities = [identity(config) | {"rounds": None} for config in configs]

    def holds(folder: Path) -> bool:
        paths = [folder / str(i) / "config.json" for i in range(len(configs))]
        if not is_sweep:
            paths = [folder / "config.json"]
        there = [(p, mine) for p, mine in zip(paths, identities, strict=True) if p.exists()]
        return bool(there) and all(
            json.loads(path.read_text()) | {"rounds": None} == mine for path, mine in there
        )

    found = [folder for folder in runs.glob("*/") if holds(folder)]
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def is_finished(folder: Path, config: Config) -> bool:
    """Whether the folder's run has its summary, of as many rounds as are asked for."""
    path = folder / "summary.json"
    return path.exists() and bool(json.loads(path.read_text())["rounds"] == config.rounds)


def copy_results(before: Path, folder: Path) -> None:
    """Give an identical job the results of the one that ran."""
    for name in COPIED:
        shutil.copy2(before / name, folder / name)
    summary = json.loads((before / "summary.json").read_text())
    write_json(folder / "summary.json", summary | {"same_as": before.name})


def publish(config: Config, folder: Path, group: str) -> None:
    """Give copied results a wandb run of their own, so that the sweep's group is whole."""
    done = [RoundRecord.from_dict(row) for row in read(folder / ROUNDS)]
    sink = WandbSink(config.tracker.wandb, folder, identity(config), group, done)
    sink.finish(json.loads((folder / "summary.json").read_text()))


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
