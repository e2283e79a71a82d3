"""What Hydra composes of conf/, composed once for each choice of files.

Hydra reads and merges some twenty files for every job of a sweep, 0.1 s each. The jobs differ in
values more often than in files: what the files give is kept, and the values are written into a copy
by the function of Hydra's that writes them into what it has just composed.
"""

import copy
import functools
from collections.abc import Sequence
from contextlib import nullcontext

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from app.config.schema import CONF, known_keys

SEARCHPATH = "hydra.searchpath"


def composed(overrides: Sequence[str]) -> DictConfig:
    """Compose conf/ with ``overrides``, equal to what Hydra composes, in any process.

    Raises:
        HydraException: as Hydra does.
        OmegaConfBaseException: as Hydra does.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    files = tuple(text for text, one in zip(overrides, parsed, strict=True) if not is_value(one))
    if not any(SEARCHPATH in text for text in files):  # the user's own files may change
        try:
            node = copy.deepcopy(_of_files(files))
            values = [one for one in parsed if is_value(one)]
            ConfigLoaderImpl._apply_overrides_to_config(values, node)
            return node
        except (HydraException, OmegaConfBaseException):
            pass  # as Hydra says it
    return _by_hydra(overrides)


def is_value(override: Override) -> bool:
    """Whether an override sets one value and so chooses no file."""
    key = override.key_or_group
    return (
        not override.is_sweep_override()
        and not override.is_delete()
        and override.package is None
        and not key.startswith("hydra")
        and ("." in key or (key in known_keys() and not (CONF / key).is_dir()))
    )


@functools.lru_cache(maxsize=256)
def _of_files(files: tuple[str, ...]) -> DictConfig:
    return _by_hydra(files)


def _by_hydra(overrides: Sequence[str]) -> DictConfig:
    is_ready = GlobalHydra.instance().is_initialized()  # inside @hydra.main
    with nullcontext() if is_ready else initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose("config", list(overrides))
