"""A search, checked before its first trial runs, and what tells it from another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.config.composition import compose, open_keys
from app.config.schema import Config
from app.experiment import Experiment, Prepared, check, resolve
from app.run_folder import FolderTakenError
from app.search.settings import PREFIXES, VALIDATION, SearchSettings
from app.search.space import Space, ends, shown, space
from app.search.study import stored
from tracking.search import STUDY


@dataclass(frozen=True)
class Plan:
    """A search.

    Attributes:
        settings: its keys.
        space: what is drawn.
        first: the configuration of one possible trial.
        experiment: the same, resolved.
        prepared: the same, ready to start.
        remarks: what the user is told before it begins, one line each.
    """

    settings: SearchSettings
    space: Space
    first: Config
    experiment: Experiment
    prepared: Prepared
    remarks: Sequence[str]

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this search from another, as flat keys; more trials may follow."""
        drawn = {f"{key.lstrip('+')} of": shown(of) for key, of in self.space.drawn.items()}
        return {
            **self.experiment.identity,
            **drawn,
            "sweep.search.maximize": list(self.settings.maximized),
            "sweep.search.minimize": list(self.settings.minimized),
            "sweep.search.sampler": self.settings.sampled_by,
            "sweep.search.prune": self.settings.prune,
            "sweep.search.seed": self.settings.seed,
        }


def plan(overrides: Sequence[str], settings: SearchSettings) -> Plan:
    """Read and check a search.

    Raises:
        ValueError: a range, an objective, or a configuration that no trial could have; one line
            that names the key.
        FileNotFoundError: the data are not there.
    """
    found = space(overrides)
    _check_ends(found)
    first, chosen, prepared = _possible(found)
    remarks = _check_objectives(settings, chosen)
    return Plan(settings, found, first, chosen, prepared, remarks)


def configured(
    overrides: Sequence[str], floors: Sequence[float | None] = ()
) -> tuple[Config, Experiment]:
    """Resolve a trial's configuration.

    Args:
        overrides: of the trial.
        floors: accuracies by round below which it ends (`study.Drawn`).

    Raises:
        ValueError: it cannot be; names the key.
    """
    config = compose(open_keys(overrides))
    search = replace(config.sweep.search, prune_content=tuple(floors))
    config = replace(config, sweep=replace(config.sweep, search=search))
    return config, resolve(config)


def trial(
    overrides: Sequence[str], floors: Sequence[float | None] = ()
) -> tuple[Config, Experiment, Prepared]:
    """Check a trial's configuration; arguments as `configured`.

    Raises:
        ValueError: it cannot be; names the key.
        FileNotFoundError: the data are not there.
    """
    config, chosen = configured(overrides, floors)
    return config, chosen, check(chosen)


def _possible(found: Space) -> tuple[Config, Experiment, Prepared]:
    """Return a trial that can be: with all first values, or with all last ones."""
    first, last = ({key: ends(of)[at] for key, of in found.drawn.items()} for at in (0, -1))
    try:
        return trial(found.overrides(first))
    except ValueError as error:
        try:
            return trial(found.overrides(last))
        except ValueError:
            raise error from None


def _check_ends(found: Space) -> None:
    """Refuse values that their keys do not take.

    One that does not go with another key's value is for the trial that draws both.
    """
    first = {key: ends(of)[0] for key, of in found.drawn.items()}
    for key, of in found.drawn.items():
        name = key.lstrip("+")
        for value in ends(of):
            try:
                compose(open_keys(found.overrides(first | {key: value})))
            except ValueError as error:
                if str(error).startswith((f"{name}=", f"{name}:")):
                    raise


def _check_objectives(settings: SearchSettings, chosen: Experiment) -> list[str]:
    """Refuse objectives that runs do not have, and return where the test set is chosen on.

    Raises:
        ValueError: names the key.
    """
    remarks = []
    for key in ("maximize", "minimize"):
        for name in getattr(settings, f"{key}d"):
            if name in VALIDATION and chosen.evaluated_on != "validation":
                raise ValueError(
                    f"sweep.search.{key}={name}: takes data.validation beside it, such as "
                    "data.validation=0.1: a search decides on kept samples, not on the test set"
                )
            if name.endswith("_to_target") and chosen.target_accuracy is None:
                raise ValueError(f"sweep.search.{key}={name}: takes target_accuracy beside it")
            if (
                name.startswith(PREFIXES)
                and name not in (*VALIDATION, "best_round")
                and chosen.evaluated_on != "clients"
            ):
                remarks.append(
                    f"sweep.search.{key}={name}: chooses on the test set, so what it says of the "
                    f"best trial is too good; {VALIDATION[0]} with data.validation does not"
                )
    return remarks


def claim_search(folder: Path, wanted: Plan) -> None:
    """Refuse a folder that holds another search, or one that is not to be continued.

    Raises:
        FolderTakenError: names the differing keys.
    """
    theirs = stored(folder)
    if theirs is None:
        if wanted.experiment.resume and any(folder.glob("*/config.json")):
            raise FolderTakenError(f"resume: {folder}: {STUDY} is missing: holds no search")
        return
    if not wanted.experiment.resume:
        raise FolderTakenError(
            f"{folder}: holds a search already; resume=true continues it, another folder starts "
            "anew"
        )
    if different := list(_different(theirs, wanted.identity)):
        raise FolderTakenError(f"resume: {folder} holds another search: {', '.join(different)}")


def newest_search(runs: Path, wanted: Plan) -> Path | None:
    """Return the newest folder under ``runs`` that holds this search, or None."""
    found = [path.parent for path in runs.glob(f"*/{STUDY}")]
    same = [one for one in found if stored(one) == wanted.identity]
    return max(same, key=lambda folder: (folder / STUDY).stat().st_mtime, default=None)


def _different(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(theirs.keys() | mine.keys()):
        if theirs.get(key) != mine.get(key):
            yield f"{key} (was {theirs.get(key)}, is {mine.get(key)})"
