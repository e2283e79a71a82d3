"""The trials of a search, one after another or several at a time: drawn, run as jobs, told.

With w trials at a time, trial n is drawn when trial n - w has ended, and from what the trials up
to that one found, in their order. So the trials do not depend on which of them are quicker, and a
search that is killed and continued has the same.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from app import signals
from app.config.composition import open_keys
from app.config.schema import CONF, Config
from app.experiment import Experiment, Prepared
from app.one_job import said
from app.run_folder import SUMMARY
from app.search.plan import Plan, claim_search, configured, trial
from app.search.space import space
from app.search.study import Drawn, Result, Study
from fleet.outages import is_number
from strategies.server.ending import PRUNED
from tracking.checksums import read_json
from tracking.files import writing
from tracking.jsonl import ROUNDS, readable


class Runner(Protocol):
    """What runs the jobs of a command line: `app.jobs.Jobs`. Jobs are numbered from 1."""

    @property
    def failed(self) -> Mapping[int, str]:
        """What went wrong, by the number of the job."""

    @property
    def folders(self) -> Mapping[int, Path]:
        """The folders of those that began or were passed over."""

    @property
    def width(self) -> int:
        """How many run at a time, as far as that is known."""

    def lock(self, folder: Path) -> None:
        """Keep others from the folder of the sweep."""

    def admit(
        self, overrides: Sequence[str], config: Config, chosen: Experiment, prepared: Prepared
    ) -> None:
        """Take a checked job, which begins next."""

    def job(self, node: DictConfig) -> None:
        """Run it, or have it run beside others."""

    def wait(self, number: int) -> None:
        """Return once it has ended."""

    def pass_over(self, number: int, what: str, folder: Path, chosen: Experiment) -> None:
        """Show one that has ended before."""

    def fail(self, number: int, what: str, failure: str, ended: bool) -> None:
        """Show and keep what went wrong with one, which may have ended."""


@dataclass(frozen=True)
class _Begun:
    """A trial that was begun.

    Attributes:
        number: from 0.
        what: what was drawn.
        failure: why it could not begin, or empty.
        folder: where that is said.
    """

    number: int
    what: str
    failure: str = ""
    folder: str = ""


def run_search(plan: Plan, jobs: Runner, overrides: Sequence[str]) -> None:
    """Run the trials that are still to be run.

    Args:
        plan: the search, as it was checked.
        jobs: runs them.
        overrides: the command line, with the folder of the sweep.

    Raises:
        ValueError: an objective is no number of the first run's summary; names the key.
        FolderTakenError: the folder holds another search.
        CannotWriteError: it cannot be written to.
    """
    found = space(overrides)
    with launching(found.fixed, jobs.job) as (folder, launch):
        jobs.lock(folder)
        claim_search(folder, plan)
        with writing("the study", folder):
            study = Study(folder, plan.settings, found.drawn, plan.identity, plan.experiment.rounds)
            Search(replace(plan, space=found), jobs, study, folder, launch).run()


class Search:
    """Draws, begins and tells the trials.

    Args:
        plan: what is searched.
        jobs: runs them.
        study: draws their values, and is told what came of them.
        folder: of the sweep.
        launch: has Hydra begin a job, by its number from 0 and its overrides.
    """

    def __init__(
        self,
        plan: Plan,
        jobs: Runner,
        study: Study,
        folder: Path,
        launch: Callable[[int, Sequence[str]], None],
    ) -> None:
        self._plan, self._jobs, self._study = plan, jobs, study
        self._folder, self._launch = folder, launch

    def run(self) -> None:
        """Run the trials that are still to be run, and settle those that were begun."""
        assert self._plan.settings.trials is not None
        running: deque[_Begun] = deque()
        for number in range(self._plan.settings.trials):
            if (told := self._study.result(number)) is not None:
                self._pass_over(number, told)
                continue
            while len(running) >= self._jobs.width:
                self._settle(running.popleft())
            running.append(self._begin(number))
        while running:
            self._settle(running.popleft())

    def _pass_over(self, number: int, told: Result) -> None:
        """Show a trial that was told before; one like it need not run again."""
        drawn = self._study.drawn(number)
        what, folder = self._what(drawn), self._folder / (told.folder or str(number))
        if told.failure:
            self._jobs.fail(number + 1, what, told.failure, ended=False)
        else:
            chosen = configured(self._plan.space.overrides(drawn.values), drawn.floors)[1]
            self._jobs.pass_over(number + 1, what, folder, chosen)

    def _begin(self, number: int) -> _Begun:
        """Draw a trial and run it, or have it run; one that cannot be is said to have failed."""
        drawn = self._study.ask(number)
        what, overrides = self._what(drawn), self._plan.space.overrides(drawn.values)
        try:
            config, chosen, prepared = trial(overrides, drawn.floors)
        except Exception as error:  # whatever a network says to what was drawn for it
            signals.check()
            failure = self._refuse(number, overrides, error)
            self._jobs.fail(number + 1, what, failure, ended=False)
            return _Begun(number, what, failure, str(number))
        opened = open_keys(overrides)
        self._jobs.admit(opened, config, chosen, prepared)
        self._launch(number, opened)
        return _Begun(number, what)

    def _refuse(self, number: int, overrides: Sequence[str], error: Exception) -> str:
        """Leave what went wrong where a job leaves it, and return it in one line."""
        folder = self._folder / str(number)
        with writing("error.txt", folder.parent):
            (folder / ".hydra").mkdir(parents=True, exist_ok=True)
            task = [text for text in overrides if not text.startswith("hydra")]
            OmegaConf.save(OmegaConf.create(task), folder / ".hydra" / "overrides.yaml")
        return said(error, folder)

    def _settle(self, begun: _Begun) -> None:
        """Wait for a trial's end, and tell the study what came of it."""
        if begun.failure:
            self._study.tell(begun.number, Result(failure=begun.failure, folder=begun.folder))
            return
        self._jobs.wait(begun.number + 1)
        self._study.tell(begun.number, self._result(begun))

    def _result(self, begun: _Begun) -> Result:
        """Return what came of a job that has ended.

        Raises:
            ValueError: no summary has such a number; names the key.
        """
        path = self._jobs.folders[begun.number + 1]
        folder = str(path.relative_to(self._folder))
        rows = readable(path / ROUNDS)[0]
        accuracies = [row["accuracy"] for row in rows]
        if failure := self._jobs.failed.get(begun.number + 1):
            return Result(accuracies=accuracies, failure=failure, folder=folder)
        summary = read_json(path / SUMMARY)
        if summary.get("ended_by") == PRUNED:
            return Result(accuracies=accuracies, is_pruned=True, folder=folder)
        names = self._plan.settings.names
        if lacking := [name for name in names if not _is_figure(summary.get(name))]:
            numbers = [name for name, value in summary.items() if _is_figure(value)]
            why = ", ".join(f"{name}={summary.get(name, 'none')}" for name in lacking)
            failure = f"{why}: no number in {path / SUMMARY}"
            if not set(lacking) <= summary.keys() and not self._study.has_values():
                raise ValueError(f"sweep.search: {failure}, which has {', '.join(numbers)}")
            self._jobs.fail(begun.number + 1, begun.what, failure, ended=True)
            return Result(accuracies=accuracies, failure=failure, folder=folder)
        values = [float(summary[name]) for name in names]
        return Result(values=values, accuracies=accuracies, folder=folder)

    def _what(self, drawn: Drawn) -> str:
        return " ".join(self._plan.space.own(drawn.values))


def _is_figure(value: Any) -> bool:
    return is_number(value, int | float) and math.isfinite(value)


@contextmanager
def launching(
    overrides: Sequence[str], task: Callable[[DictConfig], None]
) -> Iterator[tuple[Path, Callable[[int, Sequence[str]], None]]]:
    """Start a multirun of Hydra's whose jobs are not known beforehand.

    Args:
        overrides: that all jobs have.
        task: runs a job.

    Yields:
        the folder of the sweep, and what runs a job by its number, from 0, and its overrides.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config(
            "config", open_keys(overrides), RunMode.MULTIRUN, with_log_configuration=True
        )
        callbacks = Callbacks(config)
        callbacks.on_multirun_start(config=config, config_name="config")
        launcher = Plugins.instance().instantiate_launcher(
            HydraContext(config_loader=hydra.config_loader, callbacks=callbacks), task, config
        )
        folder = Path(config.hydra.sweep.dir).absolute()
        with writing("multirun.yaml", folder.parent):
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(config, folder / "multirun.yaml")

        def launch(number: int, job: Sequence[str]) -> None:
            for ended in launcher.launch([list(job)], initial_job_idx=number):
                _ = ended.return_value  # raises what was raised outside of the task

        yield folder, launch
        callbacks.on_multirun_end(config=config, config_name="config")
