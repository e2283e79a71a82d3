"""The configuration in a run's folder, read as data: the folder may be anybody's.

A configuration can name code (a network, a method, a source of data, a partitioner, a codec), and
to import code is to run it. What a folder names is therefore compared with what conf/ names before
anything is imported. Nor does it say what is read from the environment.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from app.config.schema import CONF, known_keys
from data.partition import SCHEMES
from quant.codec import CODECS

TRUST = "run the code that the run's folder names: your own, or that of somebody you trust"
MOST_BYTES = 1_000_000
MOST_DEPTH = 20
_REFERENCE = re.compile(r"\$\{[\w.]+\}")  # to another key of the same configuration


def read_plain(path: Path) -> DictConfig:
    """Read a file that Hydra wrote: no links, no objects, no more than a configuration holds.

    Raises:
        ValueError: it is none.
    """
    if not path.is_file():  # a pipe would wait for ever
        raise ValueError(f"{path}: is no file")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path}: is damaged: larger than any configuration")
    try:
        text = path.read_text(encoding="utf-8")
        _check_events(text)
        stored = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: is damaged: {reason}") from error
    if not isinstance(stored, DictConfig):
        raise ValueError(f"{path}: is damaged: it holds no keys")
    return stored


def _check_events(text: str) -> None:
    """Refuse what makes a small text large (an alias for an alias), or deep."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it refers to parts of itself")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise ValueError(f"keys lie more than {MOST_DEPTH} deep")


def refuse_code(stored: DictConfig, run: Path, targets: Sequence[str]) -> None:
    """Refuse a configuration that names code other than ours, or wants something resolved.

    Args:
        stored: the configuration, with nothing resolved.
        run: its folder, for the message.
        targets: keys that name code, beside all that are called ``_target_``.

    Raises:
        ValueError: one line with the folder, the key and the value.
    """
    for key, value in _leaves(OmegaConf.to_container(stored, resolve=False)):
        is_code = key in targets or "_target_" in key.split(".")
        if is_code and value not in ours().get(key, ()):
            what = f"{key}={value}: is no code of CutBit's own"
        elif "${" in _REFERENCE.sub("", f"{key}{value}") and value != known_keys().get(key):
            what = f"{key}={value}: is resolved outside of the configuration"
        else:
            continue
        raise ValueError(f"{run}: {what}; --trust takes it, where you trust who made the folder")


@functools.cache
def ours() -> Mapping[str, frozenset[Any]]:
    """What our own code is called, by the keys that name it."""
    return {
        "model._target_": _named("model", "_target_"),
        "strategy._target_": _named("strategy", "_target_"),
        "task._target_": frozenset([None]),  # ours have names
        "data.source": _named("data", "source"),
        "data.partition": frozenset(SCHEMES),
        "link.up": frozenset(CODECS),
        "link.down": frozenset(CODECS),
    }


def _named(group: str, key: str) -> frozenset[Any]:
    """The values of a key in the files of a group of conf/."""
    found = [yaml.safe_load(file.read_text("utf-8")) for file in (CONF / group).glob("*.yaml")]
    return frozenset(values[key] for values in found if key in values)


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no mapping and no list, with its key; of a list's, the list's key."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list):
        for value in node:
            yield from _leaves(value, prefix)
    else:
        yield prefix, node
