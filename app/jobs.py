"""The jobs of one command line: checked before the first, run, then compared.

They run one after another, or several at a time where sweep.jobs says so (`app.side_by_side`).
"""

import itertools
import json
import logging
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from app import device, experiment, signals
from app.config.composition import NOT_HASHED, compose, from_omegaconf, hash_of, open_keys
from app.config.composition import parsed as read_overrides
from app.config.quoting import quoted
from app.config.schema import CONF, Config
from app.engine import Simulator
from app.experiment import Experiment, Prepared, resolve
from app.job_memory import job_bytes
from app.kept_log import KeptLog
from app.one_job import carry_out, said
from app.provenance import COMMAND, command
from app.run_folder import CONFIG, claim, is_finished, is_of, locked
from app.search.asked import asked
from app.search.settings import SearchSettings
from app.wanted_jobs import Wanted, wanted
from fleet.per_client import AUTO
from strategies.server.ending import PRUNED
from tracking.checksums import read_json
from tracking.collect import Run, common, find, natural
from tracking.files import DamagedError, writing
from tracking.live import JobView, SweepView
from tracking.progress import ProgressSink
from tracking.report import print_search, print_tables, write_report
from tracking.text import line
from tracking.wandb_report import publish
from tracking.wandb_settings import check_online

if TYPE_CHECKING:
    from app.search.plan import Plan
    from app.side_by_side import SideBySide

RUNS = Path("runs")
MOST_JOBS = 10_000

log = logging.getLogger(__name__)


class Jobs:
    """Runs jobs as Hydra calls for them, and keeps what failed."""

    def __init__(self) -> None:
        self.failed: dict[int, str] = {}  # by the number of the job
        self._is_sweep = False
        self._num_jobs = 1
        self._names: set[str] = set()
        self._view: SweepView | None = None  # of a sweep, from its first job on
        self._shared: list[str] = []  # overrides that all jobs have
        self._simulator = Simulator()
        self._wanted: Wanted | None = None  # how jobs run side by side, where they do
        self._job_bytes = 0  # about what one of them takes
        self._side_by_side: SideBySide | None = None  # from the first job on
        self._locks = ExitStack()
        self._locked: set[Path] = set()  # by this process, until its end
        self._finished: dict[str, Path] = {}  # by this process
        self._beside: dict[str, list[Path]] | None = None  # before it, in folders beside this one's
        self._folder: Path | None = None  # of the sweep, or of the one run
        self._checked: dict[tuple[str, ...], tuple[Config, Experiment]] = {}  # by its overrides
        # Of the job that comes next, of one run or a search; of a sweep it would be too many.
        self._prepared: Prepared | None = None
        self._kept_log = KeptLog()  # of its check
        self.is_whole = False  # whether all jobs have been begun: nothing stopped them
        self.search: Plan | None = None  # where the jobs are those of a search
        self.folders: dict[int, Path] = {}  # by the number of the job

    def check(self, overrides: Sequence[str], is_sweep: bool) -> list[str]:
        """Check every job before any runs, and return the overrides to run with.

        Those given, a preset's, and the folder of the run to continue where one is to be.

        Raises:
            ValueError: one line that names the key.
            FileNotFoundError: the data are not there.
        """
        refuse_plugins(overrides)
        overrides = [*preset(overrides, is_sweep), *overrides]
        if (settings := asked(overrides, is_sweep)) is not None:
            return self._check_search(overrides, settings)
        open_jobs = [open_keys(job) for job in expand(overrides, is_sweep)]
        configs = [compose(job) for job in open_jobs]
        self._wanted = wanted(configs, is_sweep)
        found = [resolve(config) for config in configs]
        for first, *others in alike(configs):
            with nullcontext() if is_sweep else self._kept_log.listening():
                prepared = experiment.check(found[first])
            for other in others:
                experiment.check_drawn(found[other], prepared.strategy)
            self._prepared = None if is_sweep else prepared
            if self._wanted is not None and self._wanted.jobs is None:
                self._job_bytes = max(self._job_bytes, job_bytes(found[first], prepared.model))
        for one in found:
            check_places(one)
        checked = zip(configs, found, strict=True)
        self._checked = {of_task(job): one for job, one in zip(open_jobs, checked, strict=True)}
        self._num_jobs, self._is_sweep = len(found), is_sweep
        self._names = {one.name for one in found}
        self._shared = common(open_jobs)
        given = given_folder(overrides, is_sweep)
        if given is not None:
            for number, one in enumerate(found):
                claim(given / str(number) if is_sweep else given, one)
        elif found[0].resume:
            given = newest(RUNS / found[0].name, found, is_sweep)
            if given is None:
                what = f"there is no run of this experiment under runs/{found[0].name}"
                sys.stderr.write(f"resume=true: {what}; a new one begins\n")
            else:
                overrides.append(f"{folder_key(is_sweep)}={quoted(str(given))}")
        return overrides

    def _check_search(self, overrides: list[str], settings: SearchSettings) -> list[str]:
        """The same for the trials of a search, which are not known yet."""
        from app.search.plan import claim_search, newest_search, plan  # brings Optuna

        self.search = found = plan(overrides, settings)
        for text in found.remarks:
            sys.stderr.write(f"{line(text)}\n")
        assert settings.trials is not None
        self._is_sweep, self._num_jobs = True, settings.trials
        self._wanted = wanted([found.first], self._is_sweep)
        if self._wanted is not None and self._wanted.jobs is None:
            self._job_bytes = job_bytes(found.experiment, found.prepared.model)
        check_places(found.experiment)
        self._names, self._shared = {found.experiment.name}, open_keys(found.space.fixed)
        given = given_folder(overrides, self._is_sweep)
        if given is not None:
            claim_search(given, found)
        elif found.experiment.resume:
            given = newest_search(RUNS / found.experiment.name, found)
            if given is None:
                what = f"there is no such search under runs/{found.experiment.name}"
                sys.stderr.write(f"resume=true: {what}; a new one begins\n")
            else:
                overrides.append(f"{folder_key(self._is_sweep)}={quoted(str(given))}")
        return overrides

    def begin(self, overrides: Sequence[str]) -> list[str]:
        """Lock the folder of the run or sweep, and return the overrides with it.

        Where none is named, a new one is made here: named by Hydra, which knows the second alone,
        two runs that begin in the same one would have the same. A folder with interpolations, or
        that the user's own groups may name, is locked when the first job begins.

        Raises:
            FolderTakenError: another process works on it.
            CannotWriteError: it cannot be written to.
        """
        given, names = given_folder(overrides, self._is_sweep), self._names
        if given is None and len(names) == 1 and not is_folder_named(overrides):
            given = fresh(RUNS / next(iter(names)))
            overrides = [*overrides, f"{folder_key(self._is_sweep)}={quoted(str(given))}"]
        if given is not None:
            self.lock(given)
        return list(overrides)

    def job(self, node: DictConfig) -> None:
        """Run one job; an error is shown, kept, and does not stop the jobs after it.

        Where jobs run side by side, it returns once there is room for another.
        """
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        self._folder = Path(hydra.sweep.dir).absolute() if self._is_sweep else folder
        number, what, view = 1, "", None
        if self._is_sweep:
            number = int(hydra.job.num) + 1
            self.folders[number] = folder.absolute()
            own = [text for text in hydra.overrides.task if text not in self._shared]
            what = " ".join(_with_value(text, node) for text in own)
            sweep = self._sweep_view()
            view = sweep.begin(number, what) if self._wanted is None else None
        outcome = ""
        try:
            self.lock(self._folder)
            known = self._checked.get(of_task(hydra.overrides.task))
            config = known[0] if known else from_omegaconf(node)
            chosen = known[1] if known else resolve(config)
            if self._wanted is not None:
                self._submit(number, what, config, chosen, folder)
                return
            with nullcontext() if folder.resolve() in self._locked else locked(folder):
                outcome = self._run(chosen, folder, view)
        except (Exception, SystemExit) as error:  # a job's exit must not end the others
            signals.check()  # unless it is what became of a signal
            log.info("failed", exc_info=True)  # to the log file; the terminal gets one line
            failure = said(error, folder)
            self._fail(number, what, failure)
            if self._view is None:
                sys.stderr.write(f"error: {failure}\n")
            else:
                view = view or self._view.begin(number, what)
                view.end(f"error: {failure}", failed=True)
        else:
            if view is not None:
                view.end(outcome)
            elif outcome:
                sys.stderr.write(f"{line(folder)}: {line(outcome)}\n")

    def finish(self) -> None:
        """Wait for what still runs, print the tables, write a sweep's report, and end the workers.

        Raises:
            Stopped: jobs that ran side by side were stopped.
        """
        try:
            runs: list[Run] = []
            try:
                if self._side_by_side is not None:
                    self._side_by_side.drain()
            finally:
                runs = self._report()
            if self.is_whole and self._is_sweep:
                self._publish(runs)
        finally:
            if self._side_by_side is not None:
                self._side_by_side.close()
            self._simulator.close()
            self._locks.close()

    # For a search -------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """How many jobs run at a time, as far as that is known."""
        return 1 if self._side_by_side is None else self._side_by_side.width

    def admit(
        self, overrides: Sequence[str], config: Config, chosen: Experiment, prepared: Prepared
    ) -> None:
        """Take a checked job, which begins next."""
        self._checked = {of_task(overrides): (config, chosen)}
        self._prepared = prepared if self._wanted is None else None

    def wait(self, number: int) -> None:
        """Return once a job has ended."""
        if self._side_by_side is not None:
            self._side_by_side.wait(number)

    def pass_over(self, number: int, what: str, folder: Path, chosen: Experiment) -> None:
        """Show a job that has ended before, and have no other run the same experiment again."""
        self._folder = self._folder or folder.parent
        self.folders[number] = folder
        self._finished.setdefault(key_of(chosen), folder)
        self._sweep_view().begin(number, what).end("finished already")

    def fail(self, number: int, what: str, failure: str, ended: bool) -> None:
        """Show and keep what went wrong with a job, which may have ended."""
        self._fail(number, what, failure)
        view = self._sweep_view()
        if ended:
            view.say(f"job {number}/{self._num_jobs}: error: {failure}")
        else:
            view.begin(number, what).end(f"error: {failure}", failed=True)

    def _sweep_view(self) -> SweepView:
        self._view = self._view or SweepView(self._num_jobs)
        return self._view

    def _report(self) -> list[Run]:
        """Print the tables, write a sweep's report, and return the runs."""
        if self._view is not None:
            self._view.close()
        if self._folder is None or (self.failed and not self._is_sweep):
            return []
        folder = self._folder
        try:
            runs = write_report([folder], folder) if self._is_sweep else find([folder])
            print_tables(runs)
            if self.search is not None:
                print_search(folder)
            report = folder / "report.html"
            sys.stdout.write(line(report if self._is_sweep else folder, None) + "\n")
            return runs
        finally:
            for _, failure in sorted(self.failed.items()) if self._is_sweep else []:
                sys.stderr.write(f"failed: {failure}\n")

    def _publish(self, runs: Sequence[Run]) -> None:
        """Give a sweep that has come to its end a run of wandb's for its report."""
        first = next(iter(self._checked.values()), None)
        if first is not None and self._folder is not None:
            with signals.shielded():  # wandb has a process of its own
                publish(self._folder, runs, first[1].wandb, self._group)

    def _fail(self, number: int, what: str, failure: str) -> None:
        """Keep what went wrong with a job."""
        job = f"job {number}/{self._num_jobs} {line(what)}: " if self._is_sweep else ""
        self.failed[number] = job + failure

    def lock(self, folder: Path) -> None:
        """Keep others from the folder of the run or sweep until the end.

        Raises:
            FolderTakenError: another process works on it.
        """
        if folder.resolve() not in self._locked:
            self._locks.enter_context(locked(folder))
            self._locked.add(folder.resolve())

    def _run(self, chosen: Experiment, folder: Path, view: JobView | None) -> str:
        """Run a job, or return why it need not be run."""
        key, group = key_of(chosen), self._group if self._is_sweep else ""
        show = ProgressSink if view is None else view.progress

        def run() -> None:
            prepared, self._prepared = self._prepared, None
            with self._kept_log.said():
                self._simulator.run(chosen, folder, group, show, prepared)

        def before() -> Path | None:
            return self._finished.get(key) or self._earlier(chosen)

        outcome = carry_out(chosen, folder, group, before, run)
        self._finished.setdefault(key, folder)
        return outcome

    def _submit(
        self, number: int, what: str, config: Config, chosen: Experiment, folder: Path
    ) -> None:
        """Have a job run beside others."""
        from app.side_by_side import Job, JobPool, SideBySide  # brings Ray

        assert self._view is not None and self._wanted is not None and self._folder is not None
        how, view, key = self._wanted, self._view, key_of(chosen)
        self._side_by_side = self._side_by_side or SideBySide(
            lambda: JobPool(how, self._num_jobs, self._job_bytes, view.say),
            view,
            lambda job, failure: self._fail(job.number, job.what, failure),
        )
        if chosen.resume and is_finished(folder, chosen):
            claim(folder, chosen)
            view.begin(number, what).end("finished already")
            self._side_by_side.settle(key, folder)
            return
        hydra = HydraConfig.get()
        environment = {name: text for name, text in os.environ.items() if name.startswith("WANDB")}
        environment[COMMAND] = command()
        job = Job(
            number=number,
            what=what,
            config=config,
            folder=folder.absolute(),
            sweep=self._folder,
            group=self._group,
            key=key,
            before=self._earlier(chosen),
            logs=OmegaConf.to_container(hydra.job_logging, resolve=True),
            verbose=hydra.verbose,
            environment=environment | {n: str(value) for n, value in hydra.job.env_set.items()},
            cwd=Path.cwd(),
        )
        self._side_by_side.submit(job)

    @property
    def _group(self) -> str:
        """The sweep's name for wandb."""
        assert self._folder is not None
        return "/".join(self._folder.parts[-2:])

    def _earlier(self, chosen: Experiment) -> Path | None:
        """Return a finished run of the same experiment from beside this sweep, if one will do."""
        if not chosen.skip_finished:
            return None
        if self._beside is None:
            assert self._folder is not None
            self._beside = finished(self._folder.parent)
        there = self._beside.get(chosen.hash, [])
        return next((folder for folder in reversed(there) if is_finished(folder)), None)


def key_of(chosen: Experiment) -> str:
    """What is equal where one job's results are another's.

    The engine does not change results, but who sweeps over it wants to see just that.
    """
    # Of two trials one need not run, whatever the accuracies below which each would have ended.
    identity = {key: value for key, value in chosen.identity.items() if key != PRUNED}
    return hash_of(identity) + json.dumps(asdict(chosen.engine)) + chosen.data.settings.root


def refuse_plugins(overrides: Sequence[str]) -> None:
    """Refuse launchers and sweepers of Hydra's: jobs are checked, run and compared by our own.

    Raises:
        ValueError: names the key and what to use instead.
    """
    instead = {
        "launcher": "takes basic; sweep.jobs=2 or sweep.jobs=auto runs jobs side by side",
        "sweeper": "takes basic, which runs every combination of the values that are given; "
        "sweep=search draws them by Optuna (docs/SWEEPS.md)",
    }
    for override in read_overrides(overrides):
        for name, text in instead.items():
            keys = (f"hydra/{name}", f"hydra.{name}", f"hydra.{name}._target_")
            key = override.key_or_group
            value = None if override.is_delete() else override.value()
            if key in keys and value != "basic":
                raise ValueError(f"{key}={line(value, 80)}: {text}")


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
    chosen_sweep = compose([*path, f"sweep={name}"]).sweep
    over = chosen_sweep.over
    if not is_sweep and (over or chosen_sweep.search.trials is not None):
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
        is_drawn = AUTO in (config.split.cut, config.quant.bits)  # by the seed's devices
        aside = NOT_HASHED if is_drawn else ("seed", *NOT_HASHED)
        parts = {key: part for key, part in asdict(config).items() if key not in aside}
        groups.setdefault(json.dumps(parts), []).append(position)
    return list(groups.values())


def _with_value(override: str, node: DictConfig) -> str:
    """Return an override with the value that an interpolation in it came to."""
    key = override.partition("=")[0].lstrip("+")
    if "${" not in override.replace("\\", ""):  # Hydra keeps it as $\{…\}
        return override
    found = OmegaConf.select(node, key, throw_on_resolution_failure=False)
    return override if found is None else f"{key}={found}"


def given_folder(overrides: Sequence[str], is_sweep: bool) -> Path | None:
    """Return the folder that the command line names, unless it is to be interpolated."""
    key = folder_key(is_sweep)
    parsed = read_overrides(overrides)
    values = [str(override.value()) for override in parsed if override.key_or_group == key]
    return None if not values or "${" in values[-1] else Path(values[-1])


def folder_key(is_sweep: bool) -> str:
    """Return the key of the folder of a sweep, or of a run."""
    return "hydra.sweep.dir" if is_sweep else "hydra.run.dir"


def is_folder_named(overrides: Sequence[str]) -> bool:
    """Whether the command line, or what it leads to, may name a folder."""
    parsed = read_overrides(overrides)
    keys = ("hydra.sweep.dir", "hydra.run.dir", "hydra.searchpath")
    return any(override.key_or_group in keys for override in parsed)


def newest(runs: Path, chosen: Sequence[Experiment], is_sweep: bool) -> Path | None:
    """Return the newest folder under ``runs`` that holds these experiments, or None.

    Of a sweep that was interrupted the first jobs are there, each with its own experiment. What is
    unfinished comes before what is finished. Names are times; those of files may be anything.
    """

    def pairs(folder: Path) -> list[tuple[Path, Experiment]]:
        places = [folder / str(number) for number in range(len(chosen))] if is_sweep else [folder]
        return [
            (place, one)
            for place, one in zip(places, chosen, strict=True)
            if not is_sweep or (place / CONFIG).exists()
        ]

    def holds(folder: Path) -> bool:
        there = pairs(folder)
        return bool(there) and all(is_of(place, one) for place, one in there)

    def is_done(folder: Path) -> bool:
        there = pairs(folder)
        return len(there) == len(chosen) and all(is_finished(p, one) for p, one in there)

    found = sorted((folder for folder in runs.glob("*/") if holds(folder)), key=natural_name)
    unfinished = [folder for folder in found if not is_done(folder)]
    return next(reversed(unfinished or found), None)


def natural_name(folder: Path) -> list[Any]:
    """Key that sorts folders by their names."""
    return natural(folder.name)


def fresh(runs: Path) -> Path:
    """Make a new folder, named by the time, and return it: two runs never get the same."""
    time = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    with writing("a new run", runs):
        runs.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = runs / (time if number == 1 else f"{time}_{number}")
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
    raise AssertionError("unreachable")


def finished(above: Path) -> dict[str, list[Path]]:
    """Return the runs with a summary among the runs and sweeps in a folder, by their config_hash.

    Whether they are as they were written is for who takes one to check.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted([*above.glob("*/summary.json"), *above.glob("*/*/summary.json")]):
        with suppress(DamagedError):
            summary = read_json(path)
            found.setdefault(str(summary.get("config_hash")), []).append(path.parent)
    return found


def check_places(chosen: Experiment) -> None:
    """Refuse a tracker, a cluster or a device that is not there.

    Raises:
        ValueError: names the key.
    """
    check_online(chosen.wandb)
    check_address(chosen.engine.address)
    if chosen.engine.address is None:  # else the cluster's machines may have others
        device.find(chosen.engine.device)


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
