"""The typed schema of conf/, its cross-field checks, and its messages.

Hydra checks names and types against the dataclasses below; `validate` checks values and what fits
together. Whatever is wrong becomes one line that names the key, what it got and what it takes.
"""

import difflib
import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import to_absolute_path
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from app import fleets, sources
from data.partition import SCHEMES
from quant.codec import LinkSettings
from quant.layers import BIT_WIDTHS, FULL_PRECISION, QuantSpec
from strategies.aggregate import AVERAGES
from strategies.binarized_split import Privacy
from strategies.local import LocalTraining
from strategies.oqfl import WIRES
from strategies.proximal import check_mu
from strategies.server_optimizer import ServerSettings
from strategies.split_bottleneck import PruneSettings
from strategies.split_learning import SIDES

CONF = Path(__file__).resolve().parent.parent / "conf"
# Keys of ``model`` that are ours and not its constructor's; the last is found, not given.
MODEL_KEYS = ("_target_", "weights", "replace_head", "weights_content")
WANDB_MODES = ("offline", "online", "disabled")


@dataclass
class ClientsConfig:
    """Who there is and how many take part."""

    total: int = MISSING
    per_round: Any = MISSING  # int or float, which mean different things


@dataclass
class TrainConfig:
    """Local training."""

    epochs: int = MISSING
    batch_size: int = MISSING
    lr: float = MISSING
    optimizer: str = MISSING
    momentum: float = MISSING
    weight_decay: float = MISSING
    max_batches: int | None = None
    server_lr: float | None = None  # of the server's half; None takes lr
    augment: str = "none"

    def settings(self) -> LocalTraining:
        """Return what the strategies take."""
        return LocalTraining(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            optimizer=self.optimizer,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            max_batches=self.max_batches or 0,
            augment=self.augment,
        )


@dataclass
class DataConfig:
    """A data source and its division; shape and num_classes are known before anything is loaded."""

    name: str = MISSING
    source: str = MISSING  # module; app.sources says what it has
    shape: list[int] = MISSING  # [] and 0: found at data.path
    num_classes: int = MISSING
    path: str | None = None
    content: str = ""  # found at data.path; names what is there
    options: dict[str, Any] = field(default_factory=dict)  # checked by the source
    root: str = "${oc.env:CUTBIT_DATA,${oc.env:HOME,/tmp}/.cache/cutbit}"
    partition: str = "iid"
    alpha: float = 0.5
    samples_per_client: int | None = None
    max_train: int | None = None
    max_test: int | None = None
    image_size: int | None = None  # images are brought to this height and width


@dataclass
class QuantConfig:
    """Bit widths; None takes the method's own."""

    bits: int | None = None
    weight_bits: int | None = None
    act_bits: int | None = None
    edge_bits: int = 8
    learn_step: bool = True
    per_channel: bool = False
    wire: str = "latent"
    side: str = "both"  # of a cut network: both, or the client's

    def spec(self, default_bits: int) -> QuantSpec:
        """Return what the strategies take."""
        bits = default_bits if self.bits is None else self.bits
        return QuantSpec(
            weight_bits=bits if self.weight_bits is None else self.weight_bits,
            act_bits=bits if self.act_bits is None else self.act_bits,
            edge_bits=self.edge_bits,
            learn_step=self.learn_step,
            per_channel=self.per_channel,
        )


@dataclass
class SplitConfig:
    """Where the network is cut."""

    cut: Any = MISSING  # a name, a share of the FLOPs, or a mapping from partitions to either
    tail: str = MISSING


@dataclass
class LinkConfig:
    """What crosses the cut, and how."""

    up: str = "fp32"
    down: str = "fp32"
    k: float = 0.1
    alpha: float = 0.1
    per_channel: bool = False
    rounding: str = "nearest"

    def settings(self) -> LinkSettings:
        """Return what the strategies take."""
        return LinkSettings(**{f.name: getattr(self, f.name) for f in fields(self)})


@dataclass
class PrivacyConfig:
    """Measures against what the cut says about the input."""

    dcor_weight: float = 0.0
    epsilon: float | None = None

    def settings(self) -> Privacy:
        """Return what the strategies take."""
        return Privacy(self.dcor_weight, self.epsilon or 0.0)


@dataclass
class PruneConfig:
    """The bottleneck at the cut; None takes what the number of rounds suggests."""

    ratio: float = 0.75
    schedule: str = "grow"
    importance: str = "l1"
    rounds: int | None = None
    stages: int = 4
    frozen: bool = False
    source: str | None = None
    pretrain_rounds: int | None = None

    def settings(self, rounds: int) -> PruneSettings:
        """Return what the strategies take, in an experiment of ``rounds`` rounds."""
        last = rounds if self.rounds is None else self.rounds
        # Where nothing says how long: half of the way, or as little as the importance needs.
        default = last // 2 if not self.source else int(self.importance == "taylor")
        return PruneSettings(
            ratio=self.ratio,
            schedule=self.schedule,
            importance=self.importance,
            rounds=last,
            stages=self.stages,
            frozen=self.frozen,
            source=self.source or "",
            pretrain_rounds=default if self.pretrain_rounds is None else self.pretrain_rounds,
        )


@dataclass
class FleetConfig:
    """What clients run on, when they are there, and how long a round may last."""

    name: str = MISSING
    population: str | None = None  # a row of fleet/tables/populations.yaml
    capacity: str | None = None  # instead: a FedScale file of devices
    device: str = "phone_mid"  # what such a file does not say: memory, power, latency
    link: str = "wifi"
    availability: Any = "always"  # always, a probability, diurnal, or a trace's path
    by_id: bool = False  # whether partition i is the trace's client i; else drawn by seed
    low: float = 0.1  # diurnal: probability at noon
    high: float = 0.9  # diurnal: at midnight
    spread_h: float = 3.0  # diurnal: over how many hours midnights are spread
    deadline_s: float | None = None
    over_select: float = 1.0
    jitter: float = 0.0
    tails: bool = False
    objective: str = "seconds"


@dataclass
class EvaluateConfig:
    """When the server evaluates, and how many clients' halves where each has its own."""

    every: int = MISSING
    clients: int = 10


@dataclass
class EngineConfig:
    """Where clients run."""

    name: str = MISSING
    workers: int | None = None
    address: str | None = None


@dataclass
class WandbConfig:
    """Weights & Biases."""

    mode: str = "offline"
    project: str = "cutbit"
    entity: str | None = None


@dataclass
class TrackerConfig:
    """Where records go beside the run's folder."""

    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass
class SweepConfig:
    """What -m runs: a preset's keys with Hydra's lists of values, and what it need not run."""

    over: dict[str, Any] = field(default_factory=dict)
    skip_finished: bool = False


@dataclass
class CheckpointConfig:
    """Rounds between checkpoints (0: none) and how many of the newest stay."""

    every: int = MISSING
    keep: int = MISSING


@dataclass
class Config:
    """A whole experiment."""

    seed: int = MISSING
    rounds: int = MISSING
    name: str = MISSING
    target_accuracy: float | None = None
    resume: bool = False
    strategy: dict[str, Any] = MISSING  # checked by the strategy's own constructor
    model: dict[str, Any] = MISSING  # checked by the model's own constructor
    data: DataConfig = field(default_factory=DataConfig)
    clients: ClientsConfig = field(default_factory=ClientsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    link: LinkConfig = field(default_factory=LinkConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)


ConfigStore.instance().store(name="schema", node=Config)


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
    config = OmegaConf.to_object(node)
    assert isinstance(config, Config)
    # Absolute before it goes to workers, which run in folders of their own.
    config.data.root = to_absolute_path(str(Path(config.data.root).expanduser()))
    if config.prune.source is not None:
        config.prune.source = to_absolute_path(str(Path(config.prune.source).expanduser()))
    sources.complete(config.data)
    _complete_model(config.model)
    validate(config)
    return config


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
    known = _flatten(_keys(Config))
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
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
    _one_of("data.partition", data.partition, SCHEMES)
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
    if config.prune.rounds is not None and config.prune.rounds > config.rounds:
        raise ValueError(
            f"prune.rounds={config.prune.rounds}: takes 1 to rounds={config.rounds}, or null for it"
        )
    fleets.check(config.fleet)
    if config.privacy.epsilon is not None and not config.privacy.epsilon > 0:
        raise ValueError(
            f"privacy.epsilon={config.privacy.epsilon}: takes a positive number, or null"
        )
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
_NOT_HASHED = (
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
    flat = _flatten(container)
    # What null stands for, because `rounds` itself may grow where a run is continued.
    flat |= _flatten({"prune": asdict(config.prune.settings(config.rounds))})
    unread = {*_NOT_HASHED, "data.root", "data.path", "model.weights"}
    # What a file holds is part of an experiment; where it lies is not.
    unread |= {key for key in flat if is_under(key, _OPTIONAL) and not is_under(key, reads)}
    unread |= {key for key in flat if key.startswith("data.options.") and flat[key] is None}
    unread.add("fleet.name")  # what it stands for is there beside it
    if not config.data.content:
        unread.add("data.content")
    if config.model.get("weights") is None:
        unread.add("model.replace_head")
    if config.train.augment == "none":
        unread.add("train.augment")
    if config.data.partition != "dirichlet":
        unread.add("data.alpha")
    if config.train.optimizer != "sgd":
        unread.add("train.momentum")
    unread |= {f"strategy.{name}" for name in ServerSettings.of(config.strategy).unread()}
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


def _flatten(node: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


# Messages ---------------------------------------------------------------------------------------


def explain(error: BaseException) -> str:
    """Return one line for an error of Hydra, OmegaConf or our own."""
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return _first_line(error)
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text = "\n".join(str(link) for link in chain)
    if found := re.search(
        r"Could not find '([^']+)/([^'/]+)'\s+Available options in[^:]+:(.*)", text, re.S
    ):
        group, option, options = found.groups()
        return (
            f"{group}={option}: takes {', '.join(options.split('Config search path')[0].split())}"
        )
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found[1]
        if not re.search(r"is not in struct|not in '", text):
            return f"{key}: {_first_line(chain[-1])}"
        return f"{key}: unknown key{nearest(key)}"
    if found := re.search(r"Key '([^']+)' (?:is )?not in '?\w+'?\s+full_key: (\S+)", text):
        return f"{found[2]}: unknown key{nearest(found[2])}"
    if found := re.search(
        r"Value '(.*?)' .*could not be converted to (\w+)\s+full_key: (\S+)", text
    ):
        return f"{found[3]}={found[1]}: takes {_KINDS.get(found[2], found[2])}"
    if found := re.search(r"Value '(.*?)' is not a valid (\w+).*full_key: (\S+)", text, re.S):
        return f"{found[3]}={found[1]}: takes {_KINDS.get(found[2], found[2])}"
    if found := re.search(r"full_key: (\S+)", text):
        return f"{found[1]}: {_first_line(chain[-1])}"
    return _first_line(chain[-1])


_KINDS = {
    "Integer": "an integer",
    "Float": "a number",
    "Boolean": "true or false",
    "bool": "true or false",
}


def nearest(key: str) -> str:
    """Return a hint with the nearest existing keys, or nothing."""
    known = list(_flatten(_keys(Config)))
    known += [f"strategy.{name}" for name in ("average", "proximal_mu", *ServerSettings.names())]
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    close += [k for k in known if k.split(".")[-1] == key.split(".")[-1] and k not in close]
    return f"; did you mean {', '.join(close[:3])}?" if close else ""


def _keys(schema: type) -> dict[str, Any]:
    node = OmegaConf.structured(schema)
    container = OmegaConf.to_container(node, resolve=False)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
