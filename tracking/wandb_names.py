"""What a run is called in wandb: its id, its name, its tags, the collections of its artifacts."""

import json
import re
import secrets
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from targets import short_name
from tracking.checksums import read_json
from tracking.files import DamagedError, whole
from tracking.text import line

LONGEST_NAME, LONGEST_TAG, LONGEST_COLLECTION = 125, 61, 100  # wandb takes 128, 64 and 128
IDENTITY = Path("wandb") / "run.json"  # in the run's folder
# What a command line sets that says nothing of a result, or is in the name already.
_UNSAID = ("strategy", "seed", "resume", "name", "sweep", "tracker", "checkpoint", "hydra",
           "experiment", "target_accuracy")  # fmt: skip


def stored_id(folder: Path) -> str | None:
    """Return the id of a folder's run in wandb; None where it has none yet."""
    try:
        found = read_json(folder / IDENTITY).get("id")
    except DamagedError:
        return None
    return found if isinstance(found, str) and re.fullmatch(r"[\w.-]{1,64}", found) else None


def new_id() -> str:
    """Return an id as wandb makes them: eight digits to the base 36."""
    return "".join(secrets.choice(string.digits + string.ascii_lowercase) for _ in range(8))


def store(folder: Path, **identity: Any) -> None:
    """Write the id and what else finds the run again."""
    (folder / IDENTITY).parent.mkdir(parents=True, exist_ok=True)
    with whole(folder / IDENTITY) as part:
        part.write_text(json.dumps(identity) + "\n", "utf-8")


def run_name(folder: Path, config: Mapping[str, Any]) -> str:
    """Return method, what the job's command line sets other than those of its sweep, and seed.

    Args:
        folder: the run's; Hydra has left the overrides in it, and those of a sweep above it.
        config: flat; what a method does not read is not there, and not named either.
    """
    method = config.get("strategy.name")
    if not method:
        return line("/".join(folder.parts[-2:]), LONGEST_NAME)
    own = _overrides(folder / ".hydra" / "overrides.yaml")
    common = _overrides(folder.parent / "multirun.yaml", "hydra", "overrides", "task")
    pairs = [text.lstrip("+").partition("=") for text in own if text not in common]
    chosen = {key: value.strip("'\"") for key, _, value in pairs if _is_said(key, config)}
    ends = Counter(key.rpartition(".")[2] for key in chosen)
    short = {key: key.rpartition(".")[2] for key in chosen}
    parts = [f"{short[k] if ends[short[k]] == 1 else k}={value}" for k, value in chosen.items()]
    seed = [f"seed={config['seed']}"] if "seed" in config else []
    return line(" ".join([str(method), *parts, *seed]), LONGEST_NAME)


def _is_said(key: str, config: Mapping[str, Any]) -> bool:
    """Whether a key is part of a name: it is read, and says something."""
    places = (key, f"{key}.name", f"{key}._target_")
    return key.partition(".")[0] not in _UNSAID and any(place in config for place in places)


def _overrides(path: Path, *keys: str) -> list[str]:
    """The overrides that a file of Hydra's holds under some keys; none where there are none."""
    try:
        found: Any = yaml.load(
            path.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
        for key in keys:
            found = found[key]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return []
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def tags(config: Mapping[str, Any], added: str = "") -> list[str]:
    """Return the names of method, model and data, as far as the configuration has them.

    Args:
        config: flat.
        added: further ones, with commas between them, as WANDB_TAGS has them.
    """
    names = [config.get(key) for key in ("strategy.name", "model._target_", "data.name")]
    own = [short_name(str(name)) for name in names if name]
    return [line(tag, LONGEST_TAG) for tag in dict.fromkeys([*own, *_listed(added)])]


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def collection(folder: Path, group: str) -> str:
    """Return the name under which the models of an experiment are versions of one.

    An experiment is a sweep, or the single runs of one name.
    """
    return plain(group or folder.parent.name or folder.name)


def plain(text: str) -> str:
    """Return text as it can be a part of an artifact's name; its end, where it is long."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII)[-LONGEST_COLLECTION:] or "run"


def of_weights(path: Path) -> str:
    """Return the artifact that a file of weights is a version of: that of its run, if it has one.

    The folder may be anybody's.
    """
    try:
        known = read_json(path.parent / IDENTITY).get("collection")
    except DamagedError:
        known = None
    return f"model-{plain(known)}" if isinstance(known, str) else f"weights-{plain(path.stem)}"


def is_best(folder: Path, accuracy: float | None, others: Sequence[Path]) -> bool:
    """Whether no other finished run is as accurate."""
    found = []
    for path in others:
        if path.parent != folder:
            try:
                found.append(read_json(path).get("final_accuracy"))
            except DamagedError:
                continue
    known = [value for value in found if isinstance(value, int | float)]
    return accuracy is not None and accuracy > max(known, default=float("-inf"))
