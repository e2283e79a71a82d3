"""What a search found, read from its study: the best trials or the front, and what mattered.

`app.search` writes the study into the sweep's folder; here it is read alone.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking.files import whole
from tracking.text import line, table

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

STUDY = "search.jsonl"  # Optuna's journal, in the sweep's folder
SUMMARY = "search.json"
NAME = "search"  # of the study in it
FOLDER, REASON = "folder", "reason"  # attributes of a trial: the job's folder, why it failed
SHOWN = 5  # trials in the terminal
FEWEST = 4  # trials with values that importances are computed of
STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "unfinished"}


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: from 0, that of its job.
        job: its folder within the sweep's.
        state: ``finished``, ``pruned``, ``failed`` or ``unfinished``.
        values: of the objectives; empty unless finished.
        params: what was drawn, by key.
        reason: why it failed, or empty.
    """

    number: int
    job: str
    state: str
    values: Sequence[float]
    params: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        objectives: their names.
        maximized: of each, whether it is to be large.
        sampler: what drew the trials.
        keys: what was drawn.
        logs: those that were drawn by orders of magnitude.
        trials: all of them.
        front: of the finished trials those that none is better than in all objectives, by the
            first, each setting once; of one objective the best.
        importances: by objective and key, the share of the variance that the key explains; empty
            where there are too few trials.
    """

    objectives: Sequence[str]
    maximized: Sequence[bool]
    sampler: str
    keys: Sequence[str]
    logs: Sequence[str]
    trials: Sequence[Trial]
    front: Sequence[Trial]
    importances: Mapping[str, Mapping[str, float]]


def read_study(folder: Path) -> "Study | None":
    """Return the study in a folder, to be read alone; None where there is none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / STUDY
    if not path.is_file():
        return None
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            storage = JournalStorage(JournalFileBackend(str(path)))
            return optuna.load_study(study_name=NAME, storage=storage)
        except KeyError:  # killed before its first line
            return None
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: is damaged: {error}") from error


def find_search(folder: Path, with_importances: bool = True) -> Found | None:
    """Return what the search in a folder found; None where there is none.

    Args:
        folder: of the sweep.
        with_importances: whether to compute them; they take seconds.

    Raises:
        ValueError: the file is damaged.
    """
    study = read_study(folder)
    if study is None:
        return None
    from optuna.study import StudyDirection

    objectives = [str(name) for name in study.user_attrs.get("objectives", [])]
    maximized = [one is StudyDirection.MAXIMIZE for one in study.directions]
    frozen = study.get_trials(deepcopy=False)
    trials = [_trial(one) for one in frozen]
    drawn = {key: of for one in frozen for key, of in one.distributions.items()}
    best = {one.number for one in study.best_trials} if _finished(trials) else set()
    sign = -1 if maximized[0] else 1
    front = sorted(
        (one for one in trials if one.number in best), key=lambda one: sign * one.values[0]
    )
    return Found(
        objectives=objectives,
        maximized=maximized,
        sampler=str(study.user_attrs.get("sampler", "")),
        keys=[key.lstrip("+") for key in drawn],
        logs=[key.lstrip("+") for key, of in drawn.items() if getattr(of, "log", False)],
        trials=trials,
        front=_once(front) if len(objectives) > 1 else front[:1],
        importances=_importances(study, objectives, trials) if with_importances else {},
    )


def _trial(one: "FrozenTrial") -> Trial:
    return Trial(
        number=one.number,
        job=str(one.user_attrs.get(FOLDER) or one.number),
        state=STATES.get(one.state.name, "unfinished"),
        values=tuple(one.values or ()) if one.state.name == "COMPLETE" else (),
        params={key.lstrip("+"): value for key, value in one.params.items()},
        reason=str(one.user_attrs.get(REASON, "")),
    )


def _once(trials: Sequence[Trial]) -> list[Trial]:
    """Of trials with the same values the first."""
    found: dict[str, Trial] = {}
    for one in sorted(trials, key=lambda one: one.number):
        found.setdefault(json.dumps(one.params, sort_keys=True), one)
    return [one for one in trials if one in found.values()]


def _finished(trials: Sequence[Trial]) -> list[Trial]:
    return [one for one in trials if one.state == "finished"]


def _importances(
    study: "Study", objectives: Sequence[str], trials: Sequence[Trial]
) -> dict[str, dict[str, float]]:
    """By fANOVA, as Optuna has it; nothing of an objective that does not vary."""
    finished = _finished(trials)
    if len(finished) < FEWEST:
        return {}
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    found = {}
    for at, name in enumerate(objectives):
        values = {one.values[at] for one in finished}
        if len(values) < 2 or not all(map(math.isfinite, values)):
            continue

        def target(trial: "FrozenTrial", at: int = at) -> float:
            return float(trial.values[at])

        evaluator = FanovaImportanceEvaluator(seed=0)
        shares = get_param_importances(study, evaluator=evaluator, target=target)
        found[name] = {key.lstrip("+"): round(float(share), 4) for key, share in shares.items()}
    return found


def write_search(folder: Path, out: Path) -> Found | None:
    """Write what the search in a folder found to search.json in ``out``, and return it.

    Raises:
        ValueError: the study is damaged.
        CannotWriteError: there is no room.
    """
    found = find_search(folder)
    if found is not None:
        with whole(out / SUMMARY) as part:
            part.write_text(json.dumps(described(found), indent=2) + "\n", "utf-8")
    return found


def described(found: Found) -> dict[str, Any]:
    """Return it as JSON, which the page is given, too."""
    return {
        "objectives": [
            {"name": name, "direction": "maximize" if up else "minimize"}
            for name, up in zip(found.objectives, found.maximized, strict=True)
        ],
        "sampler": found.sampler,
        "keys": list(found.keys),
        "logs": list(found.logs),
        "trials": [
            {
                "job": line(one.job),
                "state": one.state,
                "values": list(one.values),
                "params": dict(one.params),
                **({"reason": line(one.reason)} if one.reason else {}),
            }
            for one in found.trials
        ],
        "front": [line(one.job) for one in found.front],
        "importances": {name: dict(shares) for name, shares in found.importances.items()},
    }


def conclusion(found: Found) -> list[str]:
    """Return what there is to say in a terminal."""
    lines = [f"search by {found.sampler}: {counted(found)}"]
    if len(found.objectives) > 1:
        lines[0] += f"; {len(found.front)} on the front of {', '.join(wanted(found))}"
    for one in found.front[:SHOWN]:
        values = " ".join(
            f"{name}={value:.6g}" for name, value in zip(found.objectives, one.values, strict=True)
        )
        what = "front" if len(found.objectives) > 1 else "best"
        lines.append(f"{what}: job {line(one.job)}  {values}  {line(said(one.params))}")
    if (more := len(found.front) - SHOWN) > 0:
        lines.append(f"front: {more} more in {SUMMARY}")
    return lines


def counted(found: Found) -> str:
    """Return how many trials there are of each state."""
    states = [one.state for one in found.trials]
    num = {state: states.count(state) for state in STATES.values()}
    return f"{len(states)} trials: " + ", ".join(f"{n} {state}" for state, n in num.items() if n)


def wanted(found: Found) -> list[str]:
    """Return the objectives with what is wanted of them."""
    pairs = zip(found.objectives, found.maximized, strict=True)
    return [f"{'high' if up else 'low'} {name}" for name, up in pairs]


def said(params: Mapping[str, Any]) -> str:
    """Return what was drawn as the command line has it."""
    texts = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in params.items()}
    return " ".join(f"{key}={text}" for key, text in texts.items())


def markdown(found: Found) -> str:
    """Return the part of summary.md: front or best trial, and importances."""
    several = len(found.objectives) > 1
    parts = [
        f"Search by {found.sampler} for {', '.join(wanted(found))}. {counted(found)}. "
        + ("On the front:" if several else "The best:"),
        table(
            ["job", *found.keys, *found.objectives],
            [
                [one.job, *(_number(one.params.get(key, "")) for key in found.keys),
                 *map(_number, one.values)]
                for one in found.front
            ],
        ),
    ]  # fmt: skip
    if found.importances:
        parts += [
            "Share of the variance of each objective that a key explains (fANOVA):",
            table(
                ["key", *found.importances],
                [
                    [key, *(f"{shares.get(key, 0):.2f}" for shares in found.importances.values())]
                    for key in found.keys
                ],
            ),
        ]
    return "\n" + "\n\n".join(parts) + "\n"


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
