"""The typed schema of conf/: Hydra checks names and types of everything against it."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from privacy.settings import PrivacySettings as Privacy
from quant.codec import LinkSettings
from quant.layers import QuantSpec
from strategies.client.training import LocalTraining
from strategies.server.bottleneck import PruneSettings


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
    lr_decay: float = 1.0  # from one round to the next
    augment: str = "none"

    def settings(self) -> LocalTraining:
        """Return what the strategies take."""
        if self.server_lr == 0:
            raise ValueError("train.server_lr=0: takes a positive number, or null for train.lr")
        return LocalTraining(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            server_lr=self.server_lr or 0.0,
            lr_decay=self.lr_decay,
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
    source: str = MISSING  # module; app.data_sources says what it has
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
    attack: bool = True

    def settings(self) -> Privacy:
        """Return what the strategies take."""
        return Privacy(self.dcor_weight, self.epsilon)


@dataclass
class PruneConfig:
    """The bottleneck at the cut; None takes what the number of rounds suggests."""

    ratio: float = 0.75
    schedule: str = "grow"
    importance: str = "l1"
    rounds: Any = None  # int or float, as clients.per_round, or None
    stages: int = 4
    frozen: bool = False
    source: str | None = None
    source_content: str = ""  # found at source; names what is there
    pretrain_rounds: int | None = None

    def settings(self, rounds: int) -> PruneSettings:
        """Return what the strategies take, in an experiment of ``rounds`` rounds.

        Raises:
            ValueError: a value that cannot be; names the key.
        """
        last = self._last(rounds)
        # Where nothing says how long: half of the way, or as little as the importance needs.
        default = last // 2 if not self.source else int(self.importance == "taylor")
        return PruneSettings(
            ratio=self.ratio,
            schedule=self.schedule,
            importance=self.importance,
            rounds=last,
            stages=self.stages,
            source=self.source or "",
            pretrain_rounds=default if self.pretrain_rounds is None else self.pretrain_rounds,
        )

    def _last(self, rounds: int) -> int:
        value = rounds if self.rounds is None else self.rounds
        if isinstance(value, float) and 0 < value <= 1:
            return max(1, round(value * rounds))
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= rounds:
            return value
        raise ValueError(
            f"prune.rounds={value}: takes 1 to rounds={rounds}, a share of them in (0, 1], or "
            "null for all"
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
    capacity_content: str = ""  # found there; names what the file holds
    availability_content: str = ""  # the same of a trace


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


def flatten(node: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested keys as one level, joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


@functools.cache
def known_keys() -> Mapping[str, Any]:
    """Every key of the schema, flat, with its default; not to be changed."""
    container = OmegaConf.to_container(OmegaConf.structured(Config), resolve=False)
    assert isinstance(container, dict)
    return flatten(container)
