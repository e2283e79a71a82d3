"""The typed schema of conf/: Hydra checks names and types of everything against it.

Each group is the frozen dataclass of the part that reads it: it holds the defaults, the checks, and
a line of help for each key. The groups strategy and model are open: a method's constructor says
what the first takes (`app.config.methods`), a network's constructor what the second does.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from app import device
from app.evaluation import EvaluateSettings
from app.search.settings import SearchSettings
from data.settings import DataSettings
from fleet.selection import ClientsSettings
from fleet.settings import FleetSettings
from models.objective import TaskSettings
from models.precision import FP32, PRECISIONS
from privacy.settings import PrivacySettings
from quant.codec import LinkSettings
from quant.settings import QuantSettings
from strategies.client.training import LocalTraining
from strategies.server.bottleneck import PruneSettings
from strategies.server.checkpoint import CheckpointSettings
from strategies.server.cutting import SplitSettings
from strategies.server.kinds import SubmodelSettings
from strategies.server.planning import PlanSettings
from strategies.server.schedule_settings import ScheduleSettings
from tracking.wandb_settings import WandbSettings

AUTO = "auto"
MOST_JOBS = 1000  # side by side: more processes than any one user has cores
MOST_GPUS = 64  # of one worker
LONGEST_S = 1e7  # of a client; alarms take no more than some such number
CONF = Path(__file__).resolve().parents[2] / "conf"


@dataclass(frozen=True)
class EngineSettings:
    """Where clients run."""

    name: str = field(default="ray", metadata={"help": "engine, as in conf/engine"})
    workers: int | None = field(
        default=None,
        metadata={"help": "worker processes; null: one per processor that this process may use"},
    )
    address: str | None = field(
        default=None, metadata={"help": "address of a Ray cluster; null: starts a local one"}
    )
    fork: bool = field(
        default=True,
        metadata={
            "help": "train in processes forked at once until Ray's are there; short runs never "
            "start Ray, see docs/ARCHITECTURE.md"
        },
    )
    device: str = field(
        default="auto",
        metadata={
            "help": "where clients train and the server tests: auto (cuda where there is one), "
            "cpu, cuda, cuda:1, mps"
        },
    )
    precision: str = field(
        default=FP32,
        metadata={"help": "in which networks compute: fp32, bf16 (mixed precision, docs/GPU.md)"},
    )
    gpus_per_worker: float | None = field(
        default=None,
        metadata={"help": "share of a GPU that a worker takes; null: the workers share all"},
    )
    client_timeout_s: float | None = field(
        default=3600.0,
        metadata={"help": "seconds that a client may train in a round; null: no limit"},
    )

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"engine.workers={self.workers}: takes 1 or more")
        if not device.is_name(self.device):
            raise ValueError(f"engine.device={self.device}: takes {device.ACCEPTED}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"engine.precision={self.precision}: takes {', '.join(PRECISIONS)}")
        if self.precision != FP32 and self.device == device.MPS:
            raise ValueError(
                f"engine.precision={self.precision} with engine.device=mps: takes "
                "engine.device=auto, cpu or cuda"
            )
        if self.device.startswith("cuda:") and self.name == "ray":
            raise ValueError(
                f"engine.device={self.device}: with engine=ray, which gives each worker its GPU, "
                "takes cuda; CUDA_VISIBLE_DEVICES says which there are"
            )
        if (share := self.gpus_per_worker) is not None:
            key = f"engine.gpus_per_worker={share}"
            if not 0 < share <= MOST_GPUS:
                raise ValueError(f"{key}: takes more than 0 and up to {MOST_GPUS}, or null")
            if self.name != "ray" or self.device not in (device.AUTO, device.CUDA):
                raise ValueError(
                    f"{key} with engine={self.name}, engine.device={self.device}: takes engine=ray "
                    "and engine.device=auto or cuda"
                )
        seconds = self.client_timeout_s
        if seconds is not None and not 0 < seconds <= LONGEST_S:
            raise ValueError(
                f"engine.client_timeout_s={seconds}: takes seconds above 0 and up to "
                f"{LONGEST_S:.0f}, or null for no limit"
            )


@dataclass(frozen=True)
class TrackerSettings:
    """Where records go beside the run's folder."""

    name: str = field(default="wandb", metadata={"help": "tracker, as in conf/tracker"})
    wandb: WandbSettings = field(default_factory=WandbSettings)


@dataclass(frozen=True)
class SweepSettings:
    """What -m runs beside the jobs of the command line."""

    over: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "swept keys and their values; set by the presets of conf/sweep"},
    )
    skip_finished: bool = field(
        default=False,
        metadata={"help": "reuse finished runs of other sweeps in the same folder"},
    )
    jobs: Any = field(
        default=1,
        metadata={"help": "jobs that run side by side, each in a process: 1, a number, auto"},
    )
    search: SearchSettings = field(default_factory=SearchSettings)

    def __post_init__(self) -> None:
        is_number = isinstance(self.jobs, int) and not isinstance(self.jobs, bool)
        if self.jobs != AUTO and not (is_number and 1 <= self.jobs <= MOST_JOBS):
            raise ValueError(f"sweep.jobs={self.jobs}: takes 1 to {MOST_JOBS}, or {AUTO}")


@dataclass(frozen=True)
class Config:
    """The configuration of an experiment, and of how it is run."""

    seed: int = field(default=0, metadata={"help": "seed of all random streams"})
    rounds: int = field(
        default=20, metadata={"help": "communication rounds; may be increased with resume=true"}
    )
    name: str = field(default="${data.name}", metadata={"help": "folder of the runs under runs/"})
    target_accuracy: float | None = field(
        default=None, metadata={"help": "also report rounds, bytes and time to reach this accuracy"}
    )
    stop_at_target: bool = field(
        default=False, metadata={"help": "end the run with the round that reaches target_accuracy"}
    )
    resume: bool = field(default=False, metadata={"help": "continue an interrupted run or sweep"})
    strategy: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    data: DataSettings = field(default_factory=DataSettings)
    task: TaskSettings = field(default_factory=TaskSettings)
    clients: ClientsSettings = field(default_factory=ClientsSettings)
    train: LocalTraining = field(default_factory=LocalTraining)
    quant: QuantSettings = field(default_factory=QuantSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    link: LinkSettings = field(default_factory=LinkSettings)
    prune: PruneSettings = field(default_factory=PruneSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    submodel: SubmodelSettings = field(default_factory=SubmodelSettings)
    plan: PlanSettings = field(default_factory=PlanSettings)
    fleet: FleetSettings = field(default_factory=FleetSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    tracker: TrackerSettings = field(default_factory=TrackerSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    sweep: SweepSettings = field(default_factory=SweepSettings)

    def __post_init__(self) -> None:
        for key, value, least in (("seed", self.seed, 0), ("rounds", self.rounds, 1)):
            if value < least:
                raise ValueError(f"{key}={value}: takes {least} or more")
            if value >= 2**63:
                raise ValueError(f"{key}={value}: takes less than 2^63")
        if self.target_accuracy is not None and not 0 < self.target_accuracy <= 1:
            raise ValueError(f"target_accuracy={self.target_accuracy}: takes a share in (0, 1]")
        if self.stop_at_target and self.target_accuracy is None:
            raise ValueError("stop_at_target=true: takes target_accuracy beside it, in (0, 1]")
        is_plain = re.fullmatch(r"[\w. -]+(/[\w. -]+)*", self.name) is not None
        if not is_plain or ".." in Path(self.name).parts:
            raise ValueError(
                f"name={self.name!r}: takes a folder name under runs/, of letters, digits and "
                ". _ - /"
            )


# Options of conf/model that are ours and not the network's.
MODEL_HELP = {
    "model.<option>": "an option of the network; model._target_=my_pkg.MyNet uses your own",
    "model.weights": "initial weights: .pth or .safetensors file, or folder of a run",
    "model.replace_head": "keep a newly initialised last layer with model.weights",
}


@functools.cache
def schema() -> DictConfig:
    """The schema as a node that Hydra can fill; OmegaConf would make frozen classes read-only."""
    node = OmegaConf.structured(Config)
    _thaw(node)
    assert isinstance(node, DictConfig)
    return node


def _thaw(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            _thaw(child)


ConfigStore.instance().store(name="schema", node=schema())


def walk(kind: type[Any], prefix: str = "") -> Iterator[tuple[str, "Field[Any]"]]:
    """Every key below a dataclass with its field; what only the program fills in has no help."""
    hints = get_type_hints(kind)
    for one in fields(kind):
        if is_dataclass(hint := hints[one.name]):
            assert isinstance(hint, type)
            yield from walk(hint, f"{prefix}{one.name}.")
        else:
            yield f"{prefix}{one.name}", one


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
    container = OmegaConf.to_container(schema(), resolve=False)
    assert isinstance(container, dict)
    return flatten(container)
