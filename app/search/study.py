"""The study of a search: what Optuna draws, what came of it, and where both are kept.

It lies in the sweep's folder as Optuna's journal, one line for each thing that happens, on disk
before the next; optuna-dashboard reads it. Of a line that was being written when the process was
killed nothing is left. Trial n is drawn by a stream of its own from what was told before, so that
a search that was killed and is continued draws what one that was not would have drawn.
"""

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.samplers.nsgaii import BLXAlphaCrossover
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from app.search.settings import SearchSettings
from fleet.seeds import derive_seed
from tracking.search import FOLDER, NAME, REASON, STUDY, read_study

IDENTITY, FLOORS = "identity", "floors"  # attributes of the study, and of a trial
OBJECTIVES, SAMPLER = "objectives", "sampler"
POPULATION = 10  # of a generation of NSGA-II: Optuna's 50 are more than most searches have trials
STARTUP_TRIALS = 5  # that have ended before any is pruned
WARMUP = 5  # one in so many rounds, from the first, is not judged


@dataclass(frozen=True)
class Drawn:
    """What was drawn for a trial.

    Attributes:
        values: by key.
        floors: accuracies by round below which it ends; empty where nothing is pruned.
    """

    values: Mapping[str, Any]
    floors: Sequence[float | None]


@dataclass(frozen=True)
class Result:
    """What came of a trial.

    Attributes:
        values: of the objectives; empty where it failed or was pruned.
        accuracies: by round; None where it was not evaluated.
        is_pruned: whether it was ended early.
        failure: what went wrong, or empty.
        folder: of the job, within the sweep's.
    """

    values: Sequence[float] = ()
    accuracies: Sequence[float | None] = ()
    is_pruned: bool = False
    failure: str = ""
    folder: str = ""


def stored(folder: Path) -> dict[str, Any] | None:
    """Return what the search in a folder is (`plan.Plan.identity`); None where there is none."""
    study = read_study(folder)
    return None if study is None else study.user_attrs.get(IDENTITY)


class Study:
    """A study in the folder of a sweep, which this process has locked.

    Args:
        folder: of the sweep.
        settings: of the search.
        drawn: what is drawn.
        identity: what tells this search from another.
        rounds: of a trial.
    """

    def __init__(
        self,
        folder: Path,
        settings: SearchSettings,
        drawn: Mapping[str, BaseDistribution],
        identity: Mapping[str, Any],
        rounds: int,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # jobs are shown by the sweep
        self._settings, self._drawn, self._rounds = settings, drawn, rounds
        path = folder / STUDY
        _end_line(path)
        # One that is there is of a process that was killed: the sweep's folder is locked.
        path.with_name(f"{STUDY}.lock").unlink(missing_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            journal = JournalFileBackend(str(path), JournalFileOpenLock(str(path)))
            self._storage = JournalStorage(journal)
        directions = ["maximize"] * len(settings.maximized) + ["minimize"] * len(settings.minimized)
        self._study = optuna.create_study(
            storage=self._storage, study_name=NAME, directions=directions, load_if_exists=True
        )
        if IDENTITY not in self._study.user_attrs:
            self._study.set_user_attr(OBJECTIVES, list(settings.names))
            self._study.set_user_attr(SAMPLER, settings.sampled_by)
            self._study.set_user_attr(IDENTITY, dict(identity))

    def result(self, number: int) -> Result | None:
        """What was told of a trial, from 0; None where nothing was."""
        trial = self._trial(number)
        if trial is None or not trial.state.is_finished():
            return None
        failure = trial.user_attrs.get(REASON, "") if trial.state is TrialState.FAIL else ""
        return Result(
            values=trial.values or (),
            is_pruned=trial.state is TrialState.PRUNED,
            failure=failure,
            folder=trial.user_attrs.get(FOLDER, ""),
        )

    def drawn(self, number: int) -> Drawn:
        """What was drawn for a trial that is told already."""
        trial = self._trial(number)
        assert trial is not None
        return Drawn(trial.params, trial.user_attrs.get(FLOORS, ()))

    def ask(self, number: int) -> Drawn:
        """Draw the values of a trial, from 0, or return those of one that was interrupted.

        All before it have been asked for.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.sampler = _sampler(self._settings, number)
            known = self._trial(number)
            if known is None:
                trial = self._study.ask()
                assert trial.number == number
            else:
                trial = optuna.Trial(self._study, self._id(number))
            values = {key: _suggested(trial, key, of) for key, of in self._drawn.items()}
        if FLOORS not in trial.user_attrs:
            trial.set_user_attr(FLOORS, self._floors() if self._settings.prune else [])
        return Drawn(values, trial.user_attrs[FLOORS])

    def tell(self, number: int, result: Result) -> None:
        """Store what came of a trial that was asked for."""
        trial = self._trial(number)
        assert trial is not None
        number_id = self._id(number)
        self._storage.set_trial_user_attr(number_id, FOLDER, result.folder)
        for at, accuracy in enumerate(result.accuracies, start=1):
            if accuracy is not None and at not in trial.intermediate_values:
                self._storage.set_trial_intermediate_value(number_id, at, accuracy)
        if result.failure:
            self._storage.set_trial_user_attr(number_id, REASON, result.failure)
            self._study.tell(number, state=TrialState.FAIL)
        elif result.is_pruned:
            self._study.tell(number, state=TrialState.PRUNED)
        else:
            self._study.tell(number, list(result.values))

    def has_values(self) -> bool:
        """Whether any trial has ended with values."""
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))

    def _trial(self, number: int) -> optuna.trial.FrozenTrial | None:
        trials = self._study.get_trials(deepcopy=False)
        return trials[number] if number < len(trials) else None

    def _id(self, number: int) -> int:
        study = self._storage.get_study_id_from_name(NAME)
        return self._storage.get_trial_id_from_study_id_trial_number(study, number)

    def _floors(self) -> list[float | None]:
        """The median of the trials that ran to their end, by round.

        As Optuna's MedianPruner has it, computed beforehand: a job is then ended by its own
        accuracies alone, in whatever process, and the same whenever it is continued. The last
        round ends the trial anyway.
        """
        ended = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(ended) < STARTUP_TRIALS:
            return []
        floors: list[float | None] = []
        for number in range(1, self._rounds):
            of_round = [trial.intermediate_values.get(number, math.nan) for trial in ended]
            known = [accuracy for accuracy in of_round if math.isfinite(accuracy)]
            is_judged = number > self._rounds // WARMUP and len(known) >= STARTUP_TRIALS
            floors.append(statistics.median(known) if is_judged else None)
        return floors


def _end_line(path: Path) -> None:
    """Take away a line of the journal that was not written to its end."""
    if not path.exists():
        return
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _sampler(settings: SearchSettings, number: int) -> BaseSampler:
    """The sampler of one trial: samplers keep nothing beside the study but their generator."""
    seed = derive_seed(settings.seed, "search", number) % 2**32
    match settings.sampled_by:
        case "random":
            return RandomSampler(seed=seed)
        case "gp":
            return GPSampler(seed=seed)
        case "nsga2":
            # Between the parents' numbers and a little beyond: with Optuna's default, which takes
            # each number from one parent, one trial in four repeated another.
            crossover = BLXAlphaCrossover()
            return NSGAIISampler(seed=seed, population_size=POPULATION, crossover=crossover)
        case _:
            # Trials that are running count as bad ones, so that those beside them are elsewhere.
            return TPESampler(seed=seed, constant_liar=True)


def _suggested(trial: optuna.Trial, key: str, of: BaseDistribution) -> Any:
    if isinstance(of, CategoricalDistribution):
        return trial.suggest_categorical(key, of.choices)
    if isinstance(of, IntDistribution):
        return trial.suggest_int(key, of.low, of.high, step=of.step, log=of.log)
    assert isinstance(of, FloatDistribution)
    return trial.suggest_float(key, of.low, of.high, step=of.step, log=of.log)
