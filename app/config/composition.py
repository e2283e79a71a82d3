"""From a command line to a checked configuration, and what of it identifies an experiment.

Hydra checks names and types against `app.config.schema`; `validate` checks values and what fits
together.
"""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from app import build_fleet as fleets
from app import data_sources as sources
from app.config.errors import explain, nearest
from app.config.schema import ClientsConfig, Config, PruneConfig, flatten, known_keys
from data.partition import SCHEMES, check_scheme
from quant.layers import BIT_WIDTHS, FULL_PRECISION
from strategies.client.proximal import check_mu
from strategies.client.split_loop import SIDES
from strategies.oqfl import WIRES
from strategies.server.aggregation import AVERAGES
from strategies.server.server_optimizer import ServerSettings
from targets import pin, placeless

CONF = Path(__file__).resolve().parents[2] / "conf"
# Keys of ``model`` that are ours and not its constructor's; the last is found, not given.
MODEL_KEYS = ("_target_", "weights", "replace_head", "weights_content")
# Keys that may name a file of the user's own code.
TARGETS = (
    "model._target_", "strategy._target_", "data.source", "data.partition", "link.up", "link.down",
)  # fmt: skip
WANDB_MODES = ("offline", "online", "disabled")


# From the command line to a Config --------------------------------------------------------------


def open_model_keys(overrides: Sequence[str]) -> list[str]:
    """Let ``model.<option>=…`` add keys: what a network takes is known by its constructor alone."""
    return ["++" + text if re.match(r"model\.[A-Za-z]\w*=", text) else text for text in overrides]


def compose(overrides: Sequence[str]) -> Config:
    """Compose conf/ with ``overrides`` and validate it, in any process.

    Raises:
        ValueError: one line that names the key.
    """
    try:
        refuse_additions(overrides)
        opened = open_model_keys(overrides)
        if GlobalHydra.instance().is_initialized():  # inside @hydra.main
            return from_omegaconf(hydra_compose("config", opened))
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return from_omegaconf(hydra_compose("config", opened))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error)) from error


def from_omegaconf(node: DictConfig) -> Config:
    """Turn what Hydra composed into a validated Config."""
    config = OmegaConf.to_object(_pinned(node))
    assert isinstance(config, Config)
    # Absolute before it goes to workers, which run in folders of their own.
    config.data.root = to_absolute_path(str(Path(config.data.root).expanduser()))
    _complete_prune(config.prune)
    fleets.complete(config.fleet)
    sources.complete(config.data)
    _complete_model(config.model)
    validate(config)
    return config


def _pinned(node: DictConfig) -> DictConfig:
    """Name files of the user's own code by absolute path and content."""
    node = node.copy()
    for key in TARGETS:
        group, _, name = key.partition(".")
        with read_write(node), read_write(node[group]):
            if OmegaConf.select(node, key) is not None:
                node[group][name] = pin(str(node[group][name]), key)
    return node


def _complete_prune(prune: PruneConfig) -> None:
    """Name the content of prune.source; whether a run is there is for who loads it to say."""
    if not prune.source:
        prune.source, prune.source_content = None, ""
        return
    prune.source = to_absolute_path(str(Path(prune.source).expanduser()))
    file = Path(prune.source) / "model.safetensors"
    if not prune.source_content and file.is_file():  # else by whoever sent this configuration
        prune.source_content = sources.file_digest(str(file))


def _complete_model(model: dict[str, Any]) -> None:
    """Make model.weights a file that is there, and name its content."""
    model.pop("weights_content", None)
    if (weights := model.get("weights")) is None:
        return
    path = Path(sources.absolute(str(weights)))
    path = path / "model.safetensors" if path.is_dir() else path  # a run's folder
    if not path.is_file():
        raise FileNotFoundError(f"model.weights={weights}: no such file: {path}")
    model["weights"] = str(path)
    model["weights_content"] = sources.file_digest(str(path))


def from_run_config(run_config: Mapping[str, Any]) -> Config:
    """Config of a Flower run.

    Args:
        run_config: has ``overrides``, a command line such as ``strategy=oqfl quant.bits=4``; our
            own engine gives ``config`` instead, the composed configuration as JSON.
    """
    if "config" in run_config:
        node = OmegaConf.merge(Config, json.loads(str(run_config["config"])))
        assert isinstance(node, DictConfig)
        return from_omegaconf(node)
    text = str(run_config.get("overrides", ""))
    try:
        overrides = shlex.split(text)
    except ValueError as error:  # an open quote
        raise ValueError(f"overrides={text!r}: {error}") from error
    return compose(overrides)


def refuse_additions(overrides: Sequence[str]) -> None:
    """Refuse ``+key=value`` but under ``model``: Hydra would take any key so, whatever the schema.

    Raises:
        ValueError: names the key.
    """
    known = known_keys()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key.endswith("_content") and key.removesuffix("_content") in known:
            raise ValueError(f"{key}: is found at {key.removesuffix('_content')}, not given")
        if override.is_delete() and not key.startswith("hydra"):
            raise ValueError(f"~{key}: keys cannot be taken away; every one has a default")
        is_new = override.is_add() or (override.is_force_add() and key not in known)
        if is_new and not key.startswith(("model.", "hydra")):
            sign = "++" if override.is_force_add() else "+"
            raise ValueError(f"{sign}{key}: unknown key; keys cannot be added{nearest(key)}")


# Checks -----------------------------------------------------------------------------------------


def validate(config: Config) -> None:
    """Check values and what fits together.

    Raises:
        ValueError: one line that names the key, what it got and what it takes.
    """
    clients, data, quant = config.clients, config.data, config.quant
    _at_least("seed", config.seed, 0)
    _at_least("rounds", config.rounds, 1)
    _at_least("clients.total", clients.total, 1)
    _at_least("evaluate.every", config.evaluate.every, 1)
    _at_least("evaluate.clients", config.evaluate.clients, 1)
    _at_least("checkpoint.every", config.checkpoint.every, 0)
    _at_least("checkpoint.keep", config.checkpoint.keep, 1)
    for key, value in (
        ("train.max_batches", config.train.max_batches),
        ("data.samples_per_client", data.samples_per_client),
        ("data.max_train", data.max_train),
        ("data.max_test", data.max_test),
        ("data.image_size", data.image_size),
        ("engine.workers", config.engine.workers),
    ):
        if value is not None:
            _at_least(key, value, 1)
    if config.target_accuracy is not None and not 0 < config.target_accuracy <= 1:
        raise ValueError(f"target_accuracy={config.target_accuracy}: takes a share in (0, 1]")
    is_plain = re.fullmatch(r"[\w. -]+(/[\w. -]+)*", config.name) is not None
    if not is_plain or ".." in Path(config.name).parts:
        raise ValueError(
            f"name={config.name!r}: takes a folder name under runs/, of letters, digits and . _ - /"
        )
    _check_per_round(clients)
    check_scheme(data.partition)
    if not 0 < data.alpha < math.inf:
        raise ValueError(f"data.alpha={data.alpha}: takes a finite number above 0")
    _one_of("strategy.average", config.strategy.get("average", "mean"), tuple(AVERAGES))
    _one_of("quant.wire", quant.wire, WIRES)
    _one_of("tracker.wandb.mode", config.tracker.wandb.mode, WANDB_MODES)
    if quant.bits is not None and None not in (quant.weight_bits, quant.act_bits):
        raise ValueError(
            f"quant.bits={quant.bits}: contradicts quant.weight_bits={quant.weight_bits} and "
            f"quant.act_bits={quant.act_bits}, which together leave it nothing to say"
        )
    for key in ("bits", "weight_bits", "act_bits", "edge_bits"):
        value = getattr(quant, key)
        if value is not None and value not in BIT_WIDTHS:
            raise ValueError(f"quant.{key}={value}: takes 2 to 8, {FULL_PRECISION} or null")
    _one_of("quant.side", quant.side, SIDES)
    config.train.settings()  # checks itself
    config.link.settings()
    config.prune.settings(config.rounds)
    fleets.check(config.fleet)
    if config.privacy.epsilon == 0:
        raise ValueError("privacy.epsilon=0.0: takes a positive number, or null for no noise")
    config.privacy.settings()
    ServerSettings.of(config.strategy)  # checks itself
    check_mu(config.strategy.get("proximal_mu", 0.0))
    if min(data.shape, default=0) < 1 or data.num_classes < 1:
        raise ValueError(
            f"data.shape={data.shape}, data.num_classes={data.num_classes}: data={data.name} takes "
            "positive ones"
        )
    if data.image_size is not None and len(data.shape) != 3:
        raise ValueError(
            f"data.image_size={data.image_size}: takes images (C, H, W), data={data.name} has "
            f"samples of {tuple(data.shape)}"
        )
    if config.train.augment != "none" and len(data.shape) != 3:
        raise ValueError(
            f"train.augment={config.train.augment}: takes images (C, H, W), data={data.name} has "
            f"samples of {tuple(data.shape)}"
        )
    if not isinstance(config.model.get("replace_head", False), bool):
        raise ValueError(f"model.replace_head={config.model['replace_head']}: takes true or false")


def _check_per_round(clients: ClientsConfig) -> None:
    value = clients.per_round
    takes = f"takes an integer from 1 to clients.total={clients.total}, or a share in (0, 1]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"clients.per_round={value}: {takes}")
    if not 0 < value <= (clients.total if isinstance(value, int) else 1):
        raise ValueError(f"clients.per_round={value}: {takes}")


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{key}={value}: takes {least} or more")


def _one_of(key: str, value: str, accepted: Sequence[str]) -> None:
    if value not in accepted:
        raise ValueError(f"{key}={value}: takes {', '.join(accepted)}")


# What identifies an experiment --------------------------------------------------------------------

# Changing these does not change the results.
NOT_HASHED = (
    "name", "engine", "tracker", "checkpoint", "resume", "target_accuracy", "sweep",
)  # fmt: skip
# Keys and groups that only methods which say so read (`FederatedStrategy.reads`).
_OPTIONAL = (
    "quant",
    "split",
    "link",
    "prune",
    "privacy",
    "train.server_lr",
    "evaluate.clients",
    "fleet.objective",
)


def relevant(config: Config, reads: Sequence[str]) -> dict[str, Any]:
    """Return the configuration as flat keys, without what cannot change the results.

    Args:
        config: the experiment.
        reads: optional keys and groups that the method reads.
    """
    container = OmegaConf.to_container(OmegaConf.structured(config), resolve=True)
    assert isinstance(container, dict)
    flat = flatten(container)
    # What null stands for, because `rounds` itself may grow where a run is continued.
    flat |= flatten({"prune": asdict(config.prune.settings(config.rounds))})
    unread = {*NOT_HASHED, "data.root", "data.path", "model.weights"}
    # What a file holds is part of an experiment; where it lies is not.
    for key in ("prune.source", "fleet.capacity", "fleet.availability"):
        unread.add(key if flat[f"{key}_content"] else f"{key}_content")
    unread |= {key for key in flat if is_under(key, _OPTIONAL) and not is_under(key, reads)}
    unread |= {key for key in flat if key.startswith("data.options.") and flat[key] is None}
    unread.add("fleet.name")  # what it stands for is there beside it
    if not config.data.content:
        unread.add("data.content")
    if config.model.get("weights") is None:
        unread.add("model.replace_head")
    if config.train.augment == "none":
        unread.add("train.augment")
    if config.train.lr_decay == 1:
        unread.add("train.lr_decay")
    if config.data.partition in SCHEMES and config.data.partition != "dirichlet":
        unread.add("data.alpha")
    if config.train.optimizer != "sgd":
        unread.add("train.momentum")
    unread |= {f"strategy.{name}" for name in ServerSettings.of(config.strategy).unread()}
    flat |= {key: placeless(str(flat[key])) for key in TARGETS if flat.get(key) is not None}
    # Through JSON, so that what is compared with a file is equal to what was written to it.
    return {
        key: json.loads(json.dumps(value))
        for key, value in flat.items()
        if not is_under(key, unread)
    }


def is_under(key: str, names: Iterable[str]) -> bool:
    """Whether ``key`` is one of ``names`` or in a group that is."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def config_hash(config: Config, reads: Sequence[str]) -> str:
    """Return twelve hex digits that are equal where the results must be."""
    text = json.dumps(relevant(config, reads), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
