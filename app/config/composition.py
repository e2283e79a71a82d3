"""From a command line to a checked configuration, and what of it identifies an experiment.

Hydra checks names and types against `app.config.schema`, each group checks its own values, and
here is checked what fits together.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from app import build_fleet as fleets
from app import data_sources as sources
from app.config import methods
from app.config.choices import composed
from app.config.errors import explain, nearest
from app.config.quoting import MOST_NESTED, as_typed
from app.config.retired import RETIRED
from app.config.schema import CONF, Config, flatten, known_keys, schema
from app.config.stored import read_plain, refuse_code
from data.partition import SCHEMES
from fleet.per_client import AUTO
from models.metrics import check as check_metrics
from models.objective import TaskSettings
from models.precision import FP32
from quant.settings import QuantSettings
from strategies.server.bottleneck import PruneSettings
from strategies.server.ending import PRUNED
from targets import FileTarget, pin, placeless
from tracking.text import line

# Keys of ``model`` that are ours and not its constructor's; the last is found, not given.
MODEL_KEYS = ("_target_", "weights", "replace_head", "weights_content")
# Keys that may name a file of the user's own code.
TARGETS = (
    "model._target_", "strategy._target_", "task._target_", "data.source", "data.partition",
    "link.up", "link.down",
)  # fmt: skip


# From the command line to a Config --------------------------------------------------------------


def open_keys(overrides: Sequence[str]) -> list[str]:
    """Let ``model.<option>=…`` and ``strategy.<option>=…`` add keys.

    What a network takes is known by its constructor alone, and what a method takes by its own.
    """
    opened = re.compile(r"(model|strategy)\.[A-Za-z]\w*=")
    return ["++" + text if opened.match(text) else text for text in overrides]


def parsed(overrides: Sequence[str], **options: Any) -> list[Override]:
    """Return what Hydra reads in overrides.

    Raises:
        ValueError: one is nested deeper than Hydra can follow, or has too many digits.
        OverrideParseException: one cannot be read.
    """
    parser, found = OverridesParser.create(**options), list[Override]()
    for text in overrides:
        if sum(text.count(bracket) for bracket in "[{(") > MOST_NESTED:
            raise ValueError(f"{line(text, 80)}: has more than {MOST_NESTED} brackets")
        try:
            found += parser.parse_overrides([text])
        except ValueError as error:  # a number of too many digits
            raise ValueError(f"{line(text, 80)}: cannot be read: {error}") from error
    return found


def compose(overrides: Sequence[str]) -> Config:
    """Compose conf/ with ``overrides`` and validate it, in any process.

    Raises:
        ValueError: one line that names the key.
    """
    try:
        overrides = as_typed(overrides)
        refuse_additions(overrides)
        opened = open_keys(overrides)
        methods.register()
        return from_omegaconf(composed(opened))
    except (HydraException, OmegaConfBaseException) as error:
        text = explain(error)
        keys = [override.lstrip("+~").partition("=")[0] for override in overrides]
        if not any(key in text for key in keys):  # Hydra does not always say which
            text = f"{line(' '.join(overrides), 200)}: {text}"
        raise ValueError(text) from error


def from_omegaconf(node: DictConfig) -> Config:
    """Turn what Hydra composed into a validated Config; what files hold is found and named.

    Raises:
        ValueError: one line that names the key.
        FileNotFoundError: a file that is named is not there.
    """
    config = OmegaConf.to_object(_pinned(node))
    assert isinstance(config, Config)
    # Absolute before it goes to workers, which run in folders of their own.
    root = to_absolute_path(str(Path(config.data.root).expanduser()))
    completed = replace(
        config,
        prune=_completed_prune(config.prune),
        fleet=fleets.completed(config.fleet),
        data=sources.completed(replace(config.data, root=root)),
        model=_completed_model(config.model),
        strategy=methods.completed(config.strategy),
    )
    _check_together(completed)
    return _planned(completed)


def _planned(config: Config) -> Config:
    """Leave of a plan what a method over a cut can leave open: where it has one width, the cut."""
    reads = methods.method_class(str(config.strategy["_target_"])).reads
    if not config.plan.is_auto or "plan" in reads or not is_under("split.cut", reads):
        return config
    quant = config.quant
    if quant.bits == AUTO:
        quant = replace(quant, bits=QuantSettings().bits)
    return replace(config, quant=quant, submodel=replace(config.submodel, share=1))


def _pinned(node: DictConfig) -> DictConfig:
    """Name files of the user's own code by absolute path and content."""
    node = node.copy()
    for key in TARGETS:
        group, _, name = key.partition(".")
        with read_write(node), read_write(node[group]):
            if OmegaConf.select(node, key) is not None:
                node[group][name] = pin(str(node[group][name]), key)
    return node


def from_stored(path: Path, trust: bool = False) -> Config:
    """Read back the configuration that a run stored, without the weights that it began with.

    It has others now, and those may be gone.

    Args:
        path: .hydra/config.yaml in the run's folder, which may be anybody's.
        trust: whether code that it names may run; without it ours alone does.

    Raises:
        ValueError: the file is damaged, names other code, or has values that are not accepted.
    """
    run = path.parents[1]
    stored = read_plain(path)
    if not isinstance(stored.get("model"), DictConfig):
        raise ValueError(f"{path}: is damaged: it has no group model")
    for key in ("weights", "replace_head"):
        stored.model.pop(key, None)
    for key, retired in RETIRED.items():
        group, _, name = key.partition(".")
        if isinstance(stored.get(group), DictConfig) and stored[group].get(name) == retired.value:
            stored[group].pop(name)
    if trust:
        _keep_code(stored, run)
    else:
        refuse_code(stored, run, TARGETS)
    node = OmegaConf.merge(schema(), stored)
    assert isinstance(node, DictConfig)
    return from_omegaconf(node)


def _keep_code(stored: DictConfig, run: Path) -> None:
    """Name files of code as the run did: from the folder that it began in, with their content."""
    began, identity = run / ".hydra" / "hydra.yaml", run / "config.json"
    if not (began.is_file() and identity.is_file()):
        return
    folder = Path(read_plain(began).hydra.runtime.cwd)
    known = json.loads(identity.read_text("utf-8"))
    for key in TARGETS:
        file = FileTarget.of(str(OmegaConf.select(stored, key) or ""))
        ran = FileTarget.of(str(known.get(key, "")))
        if file is not None and ran is not None:
            whole = FileTarget(str(folder / Path(file.path).expanduser()), file.name, ran.content)
            OmegaConf.update(stored, key, str(whole))


def _completed_prune(prune: PruneSettings) -> PruneSettings:
    """Name the content of prune.source; whether a run is there is for who loads it to say."""
    if not prune.source:
        return replace(prune, source=None, source_content="")
    source = to_absolute_path(str(Path(prune.source).expanduser()))
    file = Path(source) / "model.safetensors"
    content = sources.file_digest(str(file)) if file.is_file() else ""
    return replace(prune, source=source, source_content=content)


def _completed_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """Make model.weights a file that is there, and name its content."""
    completed = {key: value for key, value in model.items() if key != "weights_content"}
    if (weights := completed.get("weights")) is None:
        return completed
    path = Path(sources.absolute(str(weights)))
    path = path / "model.safetensors" if path.is_dir() else path  # a run's folder
    if not path.is_file():
        raise FileNotFoundError(f"model.weights={weights}: no such file: {path}")
    return completed | {
        "weights": str(path),
        "weights_content": sources.file_digest(str(path)),
    }


def from_run_config(run_config: Mapping[str, Any]) -> Config:
    """Config of a Flower run.

    Args:
        run_config: has ``overrides``, a command line such as ``strategy=oqfl quant.bits=4``.
    """
    text = str(run_config.get("overrides", ""))
    try:
        overrides = shlex.split(text)
    except ValueError as error:  # an open quote
        raise ValueError(f"overrides={text!r}: {error}") from error
    return compose(overrides)


def refuse_additions(overrides: Sequence[str]) -> None:
    """Refuse ``+key=value`` of unknown keys: Hydra would take any key so, whatever the schema.

    Under ``model`` and ``strategy`` the constructors say which there are.

    Raises:
        ValueError: names the key.
    """
    known = known_keys()
    for override in parsed(overrides):
        key = override.key_or_group
        value = None if override.is_delete() or override.is_sweep_override() else override.value()
        if not isinstance(value, str | None) and (CONF / key).is_dir():
            raise ValueError(f"{key}={line(value, 80)}: takes the name of a file in conf/{key}")
        if key.endswith("_content") and key.removesuffix("_content") in known:
            raise ValueError(f"{key}: is found at {key.removesuffix('_content')}, not given")
        if override.is_delete() and not key.startswith("hydra"):
            raise ValueError(f"~{key}: keys cannot be taken away; every one has a default")
        is_new = override.is_add() or (override.is_force_add() and key not in known)
        if is_new and not key.startswith(("model.", "strategy.", "hydra")):
            sign = "++" if override.is_force_add() else "+"
            raise ValueError(f"{sign}{key}: unknown key; keys cannot be added{nearest(key)}")


def _check_together(config: Config) -> None:
    """Check what fits together; each group has checked its own values.

    Raises:
        ValueError: one line that names the key, what it got and what it takes.
    """
    methods.settings_of(config.strategy)  # they check themselves
    config.prune.resolved(config.rounds)
    config.train.resolved(config.rounds)
    config.data.check_shape()
    if not config.task._target_:  # what a user's own is, its object says
        check_metrics(config.evaluate.metrics, config.task.name, config.task.shown)
    if config.evaluate.on == "clients" and config.data.validation:
        raise ValueError(
            f"evaluate.on=clients with data.validation={config.data.validation}: the server is to "
            "choose the best round; takes both, or data.validation=null"
        )
    if config.evaluate.patience is not None and not config.data.validation:
        raise ValueError(
            f"evaluate.patience={config.evaluate.patience}: takes data.validation beside it: the "
            "share of the training data that decides"
        )
    if config.engine.gpus_per_worker is not None and config.sweep.jobs != 1:
        raise ValueError(
            f"engine.gpus_per_worker={config.engine.gpus_per_worker} with sweep.jobs="
            f"{config.sweep.jobs}: takes sweep.jobs=1: jobs side by side share all GPUs"
        )
    if config.train.augment != "none":
        config.data.check_images(f"train.augment={config.train.augment}")
    if not isinstance(config.model.get("replace_head", False), bool):
        raise ValueError(f"model.replace_head={config.model['replace_head']}: takes true or false")


# What identifies an experiment --------------------------------------------------------------------

CLASSES = TaskSettings(loss="cross_entropy")  # what experiments without the group had
# Changing these does not change the results.
NOT_HASHED = (
    "name", "engine", "tracker", "checkpoint", "resume", "target_accuracy", "sweep",
)  # fmt: skip
# These say how long a run goes on: of two that differ in them one may continue the other.
LENGTH = ("rounds", "stop_at_target", "target_accuracy", "evaluate.patience", PRUNED)
# Keys and groups that only methods which say so read (`FederatedStrategy.reads`).
_OPTIONAL = (
    "quant",
    "split",
    "link",
    "prune",
    "privacy",
    "submodel",
    "plan",
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
    flat = flatten(asdict(config))
    # What null stands for, because `rounds` itself may grow where a run is continued.
    flat |= flatten({"prune": asdict(config.prune.resolved(config.rounds))})
    flat["train.decay_rounds"] = config.train.resolved(config.rounds).decay_rounds
    flat["prune.source"] = flat["prune.source"] or ""
    unread = {*NOT_HASHED, "data.root", "data.path", "model.weights"}
    # What a file holds is part of an experiment; where it lies is not.
    for key in ("prune.source", "fleet.capacity", "fleet.availability"):
        unread.add(key if flat[f"{key}_content"] else f"{key}_content")
    unread |= {key for key in flat if is_under(key, _OPTIONAL) and not is_under(key, reads)}
    unread |= {key for key in flat if key.startswith("data.options.") and flat[key] is None}
    unread.add("fleet.name")  # what it stands for is there beside it
    if config.task._target_:
        unread |= {"task.name", "task.loss"}
    elif replace(config.task, loss=config.task.loss_name) == CLASSES:
        unread.add("task")
    else:
        flat["task.loss"] = config.task.loss_name
        unread.add("task._target_")
    if config.data.vocab_size is None:
        unread.add("data.vocab_size")
    if config.stop_at_target:
        unread.remove("target_accuracy")
    else:
        unread.add("stop_at_target")
    unread.add("data.label_names")  # a part of what data.content names
    if not config.data.content:
        unread.add("data.content")
    if not config.data.validation:
        unread.add("data.validation")
    flat["evaluate.metrics"] = sorted(set(config.evaluate.metrics))
    if not config.evaluate.metrics:
        unread.add("evaluate.metrics")
    if config.evaluate.on == "server":
        unread |= {"evaluate.on", "evaluate.held_out"}
    if config.evaluate.patience is None:
        unread.add("evaluate.patience")
    if config.model.get("weights") is None:
        unread.add("model.replace_head")
    if config.plan.is_auto:
        unread.discard("fleet.objective")
    else:
        unread.add("plan")
    if config.submodel.share == 1 and is_under("split.cut", reads):
        unread.add("submodel.share")  # hashes stay those from before it was read over a cut
    if config.submodel.statistics == "shared":
        unread.add("submodel.statistics")
    if config.submodel.weighting == "samples":
        unread.add("submodel.weighting")
    if config.train.augment == "none":
        unread.add("train.augment")
    if config.train.lr_decay == 1:
        unread.add("train.lr_decay")
    if config.data.partition in SCHEMES and config.data.partition != "dirichlet":
        unread.add("data.alpha")
    if config.train.optimizer != "sgd":
        unread |= {"train.momentum", "train.nesterov"}
    if config.train.schedule == "constant":
        unread |= {"train.schedule", "train.decay_rounds"}
    unread |= {
        f"train.{name}"
        for name in ("nesterov", "warmup_rounds", "clip_norm")
        if not getattr(config.train, name)
    }
    unread |= {f"schedule.{name}" for name in config.schedule.unread()}
    unread |= {f"fleet.{name}" for name in config.fleet.unread()}
    unread |= {f"strategy.{name}" for name in methods.unread(config.strategy)}
    found = {key: value for key, value in flat.items() if not is_under(key, unread)}
    if config.engine.precision != FP32:  # the one key of the engine that changes results
        found["engine.precision"] = config.engine.precision
    if config.sweep.search.prune_content:
        found[PRUNED] = config.sweep.search.prune_content
    found |= {key: one.value for key, one in RETIRED.items() if one.beside in found}
    found |= {key: placeless(str(found[key])) for key in TARGETS if key in found}
    # Through JSON, so that what is compared with a file is equal to what was written to it.
    return {key: json.loads(json.dumps(value)) for key, value in found.items()}


def is_under(key: str, names: Iterable[str]) -> bool:
    """Whether ``key`` is one of ``names`` or in a group that is."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def but_length(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `relevant` returned without what says how long a run goes on."""
    return {key: value for key, value in identity.items() if key not in LENGTH}


def config_hash(config: Config, reads: Sequence[str]) -> str:
    """Return twelve hex digits that are equal where the results must be."""
    return hash_of(relevant(config, reads))


def hash_of(identity: Mapping[str, Any]) -> str:
    """Return the same of what `relevant` returned."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
