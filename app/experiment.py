"""An experiment: everything that a run needs, resolved once from its configuration.

The configuration ends here; what comes after takes an `Experiment`, and a client's process `Parts`.
Data and divisions are prepared once per machine (data.cache) and loaded once per process.
"""

import copy
import functools
import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app import build_fleet
from app import data_sources as sources
from app.config import methods
from app.config.composition import MODEL_KEYS, hash_of, relevant
from app.config.schema import Config, EngineSettings
from app.evaluation import EvaluateSettings
from data.cache import cached
from data.dataset import Dataset, hold_out
from data.partition import SCHEMES, own_partition, partition
from data.settings import DataSettings
from fleet.plan import Fleet
from fleet.seeds import derive_seed
from models import build as models_build
from models.build import build, check_batch_of_one, smallest_input
from models.inputs import Inputs, InputSpec, Several, call
from models.metrics import CONFUSION, MOST_CLASSES, Metrics, kind_of, lacking
from models.metrics import check as check_names
from models.objective import TaskSettings, kind_of_labels
from models.weights import load_weights
from privacy.settings import PrivacySettings
from quant.codec import LinkSettings
from quant.settings import QuantSettings
from strategies.client.training import LocalTraining
from strategies.contract import ClientData
from strategies.server.bottleneck import PruneSettings
from strategies.server.checkpoint import CheckpointSettings
from strategies.server.cutting import SplitSettings
from strategies.server.ending import Ending
from strategies.server.kinds import SubmodelSettings
from strategies.server.loop import FederatedStrategy
from strategies.server.planning import PlanSettings
from strategies.server.schedule_settings import ScheduleSettings
from targets import short_name
from tracking.sinks import check_tracker
from tracking.wandb_settings import WandbSettings

PARTS = "parts"  # in the run config of our own engine


@dataclass(frozen=True)
class Network:
    """The network that the user chose.

    Attributes:
        target: dotted path of its class or function.
        options: its constructor's.
        weights: file to start from; None draws them by the seed.
        weights_content: names what that file holds.
        replace_head: whether a last layer that differs from the file's keeps its drawn weights.
        input_shape: of one sample; of several inputs, one each.
        num_classes: of the data.
        seed: of the experiment.
        vocab_size: number of tokens, where inputs are tokens.
    """

    target: str
    options: Mapping[str, Any]
    weights: str | None
    weights_content: str
    replace_head: bool
    input_shape: tuple[Any, ...]
    num_classes: int
    seed: int
    vocab_size: int | None = None

    @property
    def inputs(self) -> Inputs:
        """What it takes: the plain shape, where that says it all."""
        shapes = self.input_shape if isinstance(self.input_shape[0], tuple) else None
        if shapes is not None:
            return Several(tuple(InputSpec(shape) for shape in shapes))
        if self.vocab_size is not None:
            return InputSpec(self.input_shape, torch.int64, self.vocab_size)
        return self.input_shape

    @property
    def name(self) -> str:
        """Short name: ``models.cnn.CNN`` is ``cnn``."""
        return short_name(self.target)


@dataclass(frozen=True)
class Data:
    """The data and their division.

    Attributes:
        settings: source and division, completed.
        num_clients: among whom they are divided.
        seed: of the experiment.
        held_out: share of its samples that each client is tested on and does not train on.
    """

    settings: DataSettings
    num_clients: int
    seed: int
    held_out: float = 0.0


@dataclass(frozen=True)
class Parts:
    """What a client's process needs of an experiment; equal where `key` is.

    Attributes:
        key: stands for the other parts.
        target: dotted path of the method's class.
        network: how to build the network.
        data: how to load the data.
    """

    key: str
    target: str = field(compare=False)
    network: Network = field(compare=False)
    data: Data = field(compare=False)


@dataclass(frozen=True, eq=False)
class Experiment(Parts):
    """What a run needs, resolved and checked; the parts have the names that methods take them by.

    Attributes:
        method: name of the strategy.
        name: folder under runs/.
        seed: of every random stream.
        rounds: how many.
        target_accuracy: up to which costs are summed as well; None for none.
        ending: what ends the run before its last round.
        resume: whether an interrupted run is continued.
        skip_finished: whether a sweep takes over what ran beside it.
        task: what the network's outputs are for.
        train: how clients train.
        quant: which quantizers there are.
        split: where the network is cut.
        link: what crosses the cut.
        prune: what happens to a bottleneck, in numbers of rounds.
        privacy: what is done against leakage.
        submodel: which share of the channels a client trains.
        plan: what chooses a client's bits, share and cut.
        own: the method's keys of the group strategy, by the parameter that takes each dataclass.
        clients_per_round: an integer counts clients, a float is a share.
        fleet: the clients' devices, links and availability.
        over_select: how many times the clients wanted are asked.
        schedule: whether rounds wait for their clients.
        objective: what ``split.cut=auto`` minimises.
        evaluate: when the server evaluates, and on how many clients' halves.
        engine: where clients run.
        checkpoint: when the state is written.
        tracker: where records go beside the run's folder.
        wandb: Weights & Biases, where that is the tracker; else it is disabled.
        identity: what the results depend on, as flat keys; config.json holds it.
        hash: twelve hex digits of it.
    """

    method: str
    name: str
    seed: int
    rounds: int
    target_accuracy: float | None
    ending: Ending
    resume: bool
    skip_finished: bool
    task: TaskSettings
    train: LocalTraining
    quant: QuantSettings
    split: SplitSettings
    link: LinkSettings
    prune: PruneSettings
    privacy: PrivacySettings
    submodel: SubmodelSettings
    plan: PlanSettings
    own: Mapping[str, Any]
    clients_per_round: int | float
    fleet: Fleet
    over_select: float
    schedule: ScheduleSettings
    objective: str
    evaluate: EvaluateSettings
    engine: EngineSettings
    checkpoint: CheckpointSettings
    tracker: str
    wandb: WandbSettings
    identity: Mapping[str, Any]
    hash: str

    @property
    def metrics(self) -> Metrics:
        """What is said beside accuracy, of the task."""
        return Metrics(kind_of(self.task.objective()), self.evaluate.metrics)

    @property
    def evaluated_on(self) -> str:
        """What the accuracy of the rounds is of, as records say it."""
        if self.evaluate.on == "clients":
            return "clients"
        return "validation" if self.keeps_best else "test"

    @property
    def keeps_best(self) -> bool:
        """Whether samples are kept to choose the best round on."""
        return bool(self.data.settings.validation)


@dataclass(frozen=True)
class Prepared:
    """A method with the network that it trains, checked: ready to start."""

    strategy: FederatedStrategy
    model: nn.Module


def resolve(config: Config) -> Experiment:
    """Resolve a validated configuration; draws the fleet and loads no data.

    Raises:
        ValueError: names the key.
        FileNotFoundError: a trace is not there.
    """
    target = str(config.strategy["_target_"])
    reads = methods.method_class(target).reads
    parts, identity = parts_of(config), relevant(config, reads)
    tracker = config.tracker.name
    check_tracker(tracker)
    return Experiment(
        **{name: getattr(parts, name) for name in ("key", "target", "network", "data")},
        method=str(config.strategy["name"]),
        name=config.name,
        seed=config.seed,
        rounds=config.rounds,
        target_accuracy=config.target_accuracy,
        ending=Ending(
            config.target_accuracy if config.stop_at_target else None,
            config.evaluate.patience,
            tuple(config.sweep.search.prune_content or ()),
        ),
        resume=config.resume,
        skip_finished=config.sweep.skip_finished,
        task=config.task,
        train=config.train.resolved(config.rounds),
        quant=config.quant,
        split=config.split,
        link=config.link,
        prune=config.prune.resolved(config.rounds),
        privacy=config.privacy,
        submodel=config.submodel,
        plan=config.plan,
        own=methods.settings_of(config.strategy),
        clients_per_round=config.clients.per_round,
        fleet=build_fleet.make(config.fleet, config.clients.total, config.seed),
        over_select=config.fleet.over_select,
        schedule=config.schedule,
        objective=config.fleet.objective,
        evaluate=config.evaluate,
        engine=config.engine,
        checkpoint=config.checkpoint,
        tracker=tracker,
        wandb=config.tracker.wandb if tracker == "wandb" else WandbSettings(mode="disabled"),
        identity=identity,
        hash=hash_of(identity),
    )


def parts_of(config: Config) -> Parts:
    """Resolve what a client's process needs."""
    model = config.model
    network = Network(
        target=str(model["_target_"]),
        options={str(key): value for key, value in model.items() if key not in MODEL_KEYS},
        weights=model.get("weights"),
        weights_content=model.get("weights_content", ""),
        replace_head=model.get("replace_head", False),
        input_shape=config.data.input_shape,
        num_classes=config.data.num_classes,
        seed=config.seed,
        vocab_size=config.data.vocab_size,
    )
    share = 0.0 if config.evaluate.on == "server" else config.evaluate.held_out
    data = Data(config.data, config.clients.total, config.seed, share)
    target = str(config.strategy["_target_"])
    key = _digest(target, asdict(network), asdict(data))
    return Parts(key, target, network, data)


def run_config(parts: Parts) -> dict[str, Parts]:
    """What the ClientApp gets in our own engine, where it composes nothing."""
    return {PARTS: Parts(parts.key, parts.target, parts.network, parts.data)}


# Data ---------------------------------------------------------------------------------------------


def dataset(parts: Parts) -> Dataset:
    """Return the data set, from this process, the machine's cache, or its source.

    Raises:
        FileNotFoundError: the source's files are not there; says where they were looked for.
        ValueError: the data are not what conf/data says.
    """
    return _dataset(json.dumps(asdict(parts.data.settings)), parts.data.seed)


def test_inputs(chosen: "Experiment", who: str) -> tuple[Dataset, Tensor]:
    """Return the data set, and its test inputs, for a command that takes classes of real numbers.

    Raises:
        ValueError: the experiment is about something else; names the command ``who``.
    """
    data = dataset(chosen)
    x = data.test_x
    if chosen.task.objective().name != "classification" or not isinstance(x, Tensor):
        raise ValueError(f"{chosen.task.shown}: {who} takes task=classification and one input")
    if chosen.network.vocab_size is not None:
        raise ValueError(f"data={chosen.data.settings.name}: {who} takes real numbers, not tokens")
    return data, x


def client_data(parts: Parts, client: int) -> ClientData:
    """Return the samples of one client.

    Raises:
        ValueError: there is no such client.
    """
    return of_client(*_divided(parts), client)


def of_client(whole: Dataset, rows: Sequence[Tensor], client: int) -> ClientData:
    """Return one client's samples of the data, given the rows of each.

    Raises:
        ValueError: there is no such client.
    """
    if not 0 <= client < len(rows):
        raise ValueError(f"clients.total={len(rows)}: there is no client {client}")
    return ClientData(whole.train_x, whole.train_y, rows[client], whole.num_classes)


def forget_data() -> None:
    """Read data and divisions anew when they are next asked for: what is in memory was spoilt."""
    _divided.cache_clear()
    _dataset.cache_clear()
    _division.cache_clear()
    _held_out.cache_clear()


@functools.lru_cache(maxsize=2)
def _divided(parts: Parts) -> tuple[Dataset, list[Tensor]]:
    """Data set and division, found by the parts' key: each message of each client asks for them."""
    return dataset(parts), division(parts)


def division(parts: Parts) -> list[Tensor]:
    """Return each client's rows of the training set, on which it trains."""
    return _two_divisions(parts)[0]


def held_out(parts: Parts) -> list[Tensor]:
    """Return each client's rows of the training set on which it is tested; it may have none."""
    return _two_divisions(parts)[1]


def _two_divisions(parts: Parts) -> tuple[list[Tensor], list[Tensor]]:
    data = parts.data
    return _held_out(json.dumps(asdict(data.settings)), data.num_clients, data.seed, data.held_out)


def num_examples(parts: Parts) -> dict[int, int]:
    """Return how many samples each client has."""
    return {partition: len(rows) for partition, rows in enumerate(division(parts))}


# The network --------------------------------------------------------------------------------------


def network(parts: Parts) -> nn.Module:
    """Return the network that the user chose, its weights drawn by the seed or from model.weights.

    Raises:
        ValueError: the network or its weights do not fit; names the key.
    """
    return copy.deepcopy(_network(_keyed(parts))[0])


def done_to_weights(parts: Parts) -> list[str]:
    """What had to be done to the names in model.weights, in words."""
    return _network(_keyed(parts))[1]


@dataclass(frozen=True)
class _Keyed:
    key: str
    network: Network = field(compare=False)


def _keyed(parts: Parts) -> _Keyed:
    return _Keyed(json.dumps(asdict(parts.network)), parts.network)


@functools.lru_cache(maxsize=1)
def _network(keyed: _Keyed) -> tuple[nn.Module, list[str]]:
    one, done = keyed.network, list[str]()
    seed = derive_seed(one.seed, "model")
    model = build(one.target, one.options, one.inputs, one.num_classes, seed)
    if one.weights:
        try:
            done = load_weights(model, one.weights, one.replace_head)
        except ValueError as error:
            raise ValueError(f"model.weights={error}") from error
    return model, done


def check_network(experiment: Experiment) -> None:
    """Refuse a network that cannot take the data.

    Raises:
        ValueError: names model and data, and the smallest input that the model takes.
    """
    one = experiment.network
    try:
        model = network(experiment)
        objective = experiment.task.objective()
        shape = objective.output_shape(one.num_classes, one.input_shape)
        models_build.check(model, one.inputs, one.num_classes, shape)
        if experiment.train.batch_size == 1:
            check_batch_of_one(model, one.inputs)
    except (ValueError, RuntimeError, TypeError) as error:
        if str(error).startswith(("model.", "train.", "task.")):
            raise ValueError(str(error)) from error
        is_plain = isinstance(one.inputs, tuple) and experiment.task == TaskSettings()
        smallest = is_plain and smallest_input(
            one.target, one.options, one.input_shape, one.num_classes
        )
        hint = f"; the smallest it takes is {smallest}" if smallest else ""
        raise ValueError(
            f"model={one.name} with data={experiment.data.settings.name}: {error}{hint}"
        ) from error


def check_labels(experiment: Experiment) -> None:
    """Refuse data whose labels are not those of the task, and a loss that cannot train.

    Loads the data.

    Raises:
        ValueError: names task.
        FileNotFoundError: the data are not there.
    """
    task, name, data = experiment.task, experiment.data.settings.name, dataset(experiment)
    objective = task.objective()
    for labels in (data.train_y, data.test_y):
        if wanted := objective.refusal(labels, data.num_classes):
            kind = kind_of_labels(labels)
            hint = f", which are those of task={kind}" if kind else ""
            size = "×".join(["N", *map(str, labels.shape[1:])])
            got = f"{size} of {str(labels.dtype).removeprefix('torch.')}"
            raise ValueError(
                f"{task.shown} with data={name}: takes labels {wanted}, got {got}{hint}"
            )
        is_count = not labels.is_floating_point() and labels.dtype != torch.uint8
        if is_count and len(labels) and not 0 <= labels.min() <= labels.max() < data.num_classes:
            worst = labels.min() if labels.min() < 0 else labels.max()
            raise ValueError(
                f"data={name}: has label {int(worst)}: data.num_classes={data.num_classes} takes "
                f"0 to {data.num_classes - 1}"
            )
    if task == TaskSettings():
        return
    x = data.train_x
    inputs = x[:2] if isinstance(x, Tensor) else tuple(one[:2] for one in x)
    with torch.random.fork_rng(devices=[]):
        outputs = call(network(experiment).eval(), inputs)
    try:
        loss = objective.loss(outputs, data.train_y[:2])
        objective.metrics(objective.sums(outputs.detach(), data.train_y[:2]), data.train_y[:2])
    except Exception as error:  # whatever the user's own raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{task.shown} with data={name}: {reason}") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise ValueError(f"{task.shown}: its loss is no scalar that the network's outputs made")


def check_metrics(experiment: Experiment) -> None:
    """Refuse metrics that are not of the task, and a matrix too large for anybody to read.

    Raises:
        ValueError: names evaluate.metrics.
    """
    metrics, classes = experiment.metrics, experiment.network.num_classes
    check_names(metrics.names, metrics.kind, experiment.task.shown)
    if CONFUSION in metrics.names and classes > MOST_CLASSES:
        raise ValueError(
            f"evaluate.metrics=[{CONFUSION}]: takes {MOST_CLASSES} classes or fewer, "
            f"data={experiment.data.settings.name} has {classes}"
        )


def check_held_out(experiment: Experiment) -> None:
    """Refuse clients that are to be tested and cannot be.

    Raises:
        ValueError: names evaluate.on.
    """
    if experiment.data.held_out and not any(map(len, held_out(experiment))):
        raise ValueError(
            f"evaluate.on={experiment.evaluate.on}: no client has two samples, one to train on and "
            "one to be tested on"
        )


def without_samples(data: Dataset) -> list[int]:
    """Classes that no training sample has; none where labels are no classes."""
    labels = data.train_y
    if labels.ndim != 1 or labels.is_floating_point() or not len(labels):
        return []
    return lacking(labels, "classification", data.num_classes)


# The method ---------------------------------------------------------------------------------------


def method_class(parts: Parts) -> type[FederatedStrategy]:
    """Return the method's class."""
    return methods.method_class(parts.target)


def strategy(experiment: Experiment) -> FederatedStrategy:
    """Return the method, ready to be prepared.

    Its constructor gets what it has parameters for, by their names.

    Raises:
        ValueError: settings that the method cannot take together; names the key.
    """
    kind = method_class(experiment)
    groups = ("train", "task", "quant", "split", "link", "prune", "privacy", "submodel", "plan",
              "fleet", "objective", "clients_per_round", "over_select", "schedule",
              "seed")  # fmt: skip
    given = {name: getattr(experiment, name) for name in groups} | dict(experiment.own)
    given |= {
        "num_clients": experiment.data.num_clients,
        "evaluate_every": experiment.evaluate.every,
        "evaluate_clients": experiment.evaluate.clients,
    }
    taken = methods.parameters(kind)
    return kind(**{name: value for name, value in given.items() if name in taken})


def check(experiment: Experiment) -> Prepared:
    """Refuse what would go wrong later: a method's settings, network, data, cuts, fleet.

    Loads the data, and leaves them and their division in the cache.

    Raises:
        ValueError: names the key.
        FileNotFoundError: the data are not there.
    """
    check_plan(experiment)
    method = strategy(experiment)  # its constructor checks what the schema cannot
    check_network(experiment)
    check_labels(experiment)
    check_metrics(experiment)
    check_held_out(experiment)
    model = prepare(experiment, method)
    method.check_fleet()
    return Prepared(method, model)


def check_plan(experiment: Experiment) -> None:
    """Refuse a plan for a method that leaves nothing open.

    Raises:
        ValueError: names plan.
    """
    reads = methods.method_class(experiment.target).reads
    if experiment.plan.is_auto and not {"plan", "split.cut"} & set(reads):
        raise ValueError(
            f"plan=auto: strategy={experiment.method} leaves nothing open; takes oqfl, heterofl, "
            "fjord, or a method over a cut"
        )


def check_drawn(experiment: Experiment, method: FederatedStrategy) -> None:
    """Refuse what would go wrong with the devices and the division that another seed draws.

    Leaves that division in the cache, too.

    Args:
        experiment: differs from one that `check` passed in its seed, and in what is no part of
            results.
        method: of what `check` returned for that one; gets this one's devices and division.

    Raises:
        ValueError: names the key.
        FileNotFoundError: the data are not there.
    """
    check_held_out(experiment)
    strategy(experiment).check_fleet(method.prepared(), num_examples(experiment))


def prepare(experiment: Experiment, method: FederatedStrategy) -> nn.Module:
    """Return the global model that ``method`` makes of the user's network.

    Raises:
        ValueError: the method cannot train this network; names the key.
    """
    if "prune.source" in method.reads and experiment.prune.source_content:
        _check_source(experiment.prune)
    inputs, samples = experiment.network.inputs, num_examples(experiment)
    return method.prepare(network(experiment), inputs, samples)


def _check_source(prune: PruneSettings) -> None:
    """Refuse a source that is not what this experiment was made for.

    Raises:
        ValueError: names prune.source.
    """
    file = Path(prune.source or "") / "model.safetensors"
    if not file.is_file() or sources.file_digest(str(file)) != prune.source_content:
        raise ValueError(f"prune.source={prune.source}: has changed since the run began")


# Loading, once per process ------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _dataset(data_json: str, seed: int) -> Dataset:
    data = DataSettings(**json.loads(data_json))
    holds = (sources.fingerprint(data), data.options, data.shape, data.num_classes)
    key = f"{data.name}-{_digest(_code(sources.find(data)), *holds, sources.is_by_user(data))}"
    whole = Dataset.from_tensors(cached(key, lambda: sources.read(data).tensors()))
    stated = tuple(tuple(one) if isinstance(one, list) else one for one in data.shape)
    if whole.input_shape != stated or whole.num_classes != data.num_classes:
        raise ValueError(
            f"data={data.name}: conf says {stated} and {data.num_classes} classes, the "
            f"files hold {whole.input_shape} and {whole.num_classes}"
        )
    _check_tokens(data, whole)
    whole = whole.limit_train(data.max_train, derive_seed(seed, "max_train"))
    whole = whole.limit_test(data.max_test, derive_seed(seed, "max_test"))
    size = data.image_size
    if size is not None:
        key = f"{key}-{_digest(data.max_train, data.max_test, seed, size)}"
        whole = Dataset.from_tensors(cached(key, lambda: whole.resized(size).tensors()))
    if data.validation:
        whole = whole.with_validation(data.validation, derive_seed(seed, "validation"))
    return whole


def _check_tokens(data: DataSettings, whole: Dataset) -> None:
    """Refuse inputs that are not of the type that the configuration says."""
    for name, x in (("train_x", whole.train_x), ("test_x", whole.test_x)):
        for one in (x,) if isinstance(x, Tensor) else x:
            if data.vocab_size is None or data.is_several:
                if not one.is_floating_point():
                    raise ValueError(
                        f"data.vocab_size={json.dumps(data.vocab_size)}: data={data.name} has "
                        f"{name} of {one.dtype}: "
                        + (
                            "several inputs are real numbers"
                            if data.is_several
                            else "takes the number of tokens"
                        )
                    )
            elif one.dtype != torch.int64:
                raise ValueError(
                    f"data.vocab_size={data.vocab_size}: data={data.name} has {name} of "
                    f"{one.dtype}: takes null"
                )
            elif len(one) and not 0 <= int(one.min()) <= int(one.max()) < data.vocab_size:
                raise ValueError(
                    f"data.vocab_size={data.vocab_size}: data={data.name} has tokens from "
                    f"{int(one.min())} to {int(one.max())}"
                )


@functools.lru_cache(maxsize=8)
def _held_out(
    data_json: str, num_clients: int, seed: int, share: float
) -> tuple[list[Tensor], list[Tensor]]:
    rows = _division(data_json, num_clients, seed)
    if not share:
        return rows, [one[:0] for one in rows]
    seeds = [derive_seed(seed, "held_out", 0, client) for client in range(num_clients)]
    pairs = [hold_out(one, share, its) for one, its in zip(rows, seeds, strict=True)]
    return [kept for kept, _ in pairs], [held for _, held in pairs]


@functools.lru_cache(maxsize=8)
def _division(data_json: str, num_clients: int, seed: int) -> list[Tensor]:
    data = DataSettings(**json.loads(data_json))
    whole = _dataset(data_json, seed)
    labels = whole.train_y.numpy()
    users = whole.train_group.numpy() if whole.train_group is not None else None
    own = [] if data.partition in SCHEMES else [inspect.getmodule(own_partition(data.partition))]
    if data.partition != "natural" and not own:
        users = None
    options = {
        "scheme": data.partition,
        "num_clients": num_clients,
        "seed": derive_seed(seed, "partition"),
        "alpha": data.alpha,
        "samples_per_client": data.samples_per_client,
    }

    def divide() -> Mapping[str, Tensor]:
        rows = partition(labels, users=users, **options)  # type: ignore[arg-type]
        return {
            "rows": torch.from_numpy(np.concatenate(rows)),
            "sizes": torch.tensor([len(part) for part in rows]),
        }

    whose = [hashlib.sha256(a.tobytes()).hexdigest() for a in (labels, users) if a is not None]
    key = f"division-{_digest(options, _code(*filter(None, own)), whose)}"
    stored = cached(key, divide)
    return list(stored["rows"].split(stored["sizes"].tolist()))


def _code(*modules: ModuleType) -> str:
    """Changes when the code that prepares data does, or a library that it rests on."""
    folder = Path(inspect.getfile(Dataset)).parent
    texts = [path.read_text("utf-8") for path in sorted(folder.glob("*.py"))]
    texts += [inspect.getsource(module) for module in modules]
    libraries = ("flwr-datasets", "scikit-learn", "wfdb", "PyWavelets", "scipy", "datasets")
    texts += [importlib.metadata.version(name) for name in libraries]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
