"""From a Config to the things both apps need: data, their division, the network, the strategy.

Data and divisions are prepared once per machine (data.cache) and loaded once per process.
"""

import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app import build_fleet as fleets
from app import data_sources as sources
from app.config.composition import MODEL_KEYS
from app.config.schema import Config, DataConfig
from data.cache import cached
from data.dataset import Dataset
from data.partition import SCHEMES, own_partition, partition
from fleet.seeds import derive_seed
from models import build as models_build
from models.build import build, check_batch_of_one, smallest_input
from models.weights import load_weights
from strategies.client.training import ClientData
from strategies.server.aggregation import AVERAGES
from strategies.server.cuts import SplitStrategy
from strategies.server.loop import FederatedStrategy
from strategies.server.schedules import on_base
from strategies.server.server_optimizer import ServerSettings
from targets import short_name


def dataset(config: Config) -> Dataset:
    """Return the data set, from this process, the machine's cache, or its source.

    Raises:
        FileNotFoundError: the source's files are not there; says where they were looked for.
        ValueError: the data are not what conf/data says.
    """
    return _dataset(json.dumps(asdict(config.data)), config.seed)


def client_data(config: Config, client: int) -> ClientData:
    """Return the samples of one client.

    Raises:
        ValueError: there is no such client.
    """
    rows = division(config)
    if not 0 <= client < len(rows):
        raise ValueError(f"clients.total={len(rows)}: there is no client {client}")
    whole = dataset(config)
    return ClientData(whole.train_x, whole.train_y, rows[client])


def division(config: Config) -> list[Tensor]:
    """Return each client's rows of the training set."""
    return _division(json.dumps(asdict(config.data)), config.clients.total, config.seed)


def num_examples(config: Config) -> dict[int, int]:
    """Return how many samples each client has."""
    return {partition: len(rows) for partition, rows in enumerate(division(config))}


def input_shape(config: Config) -> tuple[int, ...]:
    """Return the shape of one sample as the network gets it."""
    channels, *size = config.data.shape
    return (channels, *([config.data.image_size] * 2 if config.data.image_size else size))


def network(config: Config) -> nn.Module:
    """Return the network that the user chose, its weights drawn by the seed or from model.weights.

    Raises:
        ValueError: the network or its weights do not fit; names the key.
    """
    shape, num_classes = input_shape(config), config.data.num_classes
    seed = derive_seed(config.seed, "model")
    model = build(config.model["_target_"], model_options(config), shape, num_classes, seed)
    if weights := config.model.get("weights"):
        try:
            load_weights(model, weights, config.model.get("replace_head", False))
        except ValueError as error:
            raise ValueError(f"model.weights={error}") from error
    return model


def model_options(config: Config) -> dict[str, Any]:
    """Return what the network's constructor is given."""
    return {str(key): value for key, value in config.model.items() if key not in MODEL_KEYS}


def check_network(config: Config) -> None:
    """Refuse a network that cannot take the data.

    Raises:
        ValueError: names model and data, and the smallest input that the model takes.
    """
    shape, num_classes = input_shape(config), config.data.num_classes
    target = config.model["_target_"]
    try:
        models_build.check(network(config), shape, num_classes)
        if config.train.batch_size == 1:
            check_batch_of_one(network(config), shape)
    except (ValueError, RuntimeError, TypeError) as error:
        if str(error).startswith(("model.", "train.")):
            raise ValueError(str(error)) from error
        smallest = smallest_input(target, model_options(config), shape, num_classes)
        hint = f"; the smallest it takes is {smallest}" if smallest else ""
        raise ValueError(
            f"model={model_name(config)} with data={config.data.name}: {error}{hint}"
        ) from error


def model_name(config: Config) -> str:
    """Return the network's short name: ``models.cnn.CNN`` is ``cnn``."""
    return short_name(str(config.model["_target_"]))


def method(config: Config) -> ModuleType:
    """Return the file of the strategy, which holds its client half."""
    return importlib.import_module(str(config.strategy["_target_"]).rpartition(".")[0])


def strategy_class(config: Config) -> type[FederatedStrategy]:
    """Return the strategy's class."""
    name = str(config.strategy["_target_"]).rpartition(".")[2]
    found = getattr(method(config), name)
    assert isinstance(found, type) and issubclass(found, FederatedStrategy)
    if "base" not in config.strategy:
        return found
    assert issubclass(found, SplitStrategy)
    base = config.strategy["base"]
    return on_base(found, "null" if base is None else str(base))


def strategy(config: Config) -> FederatedStrategy:
    """Return the server half, ready to start."""
    kind = strategy_class(config)
    common = ("_target_", "name", "average", "base", *ServerSettings.names())
    own = {k: v for k, v in config.strategy.items() if k not in common}
    settings = {
        "quant.bits": ("spec", config.quant.spec(kind.default_bits)),
        "quant.wire": ("wire", config.quant.wire),
        "quant.side": ("side", config.quant.side),
        "split.cut": ("cut", config.split.cut),
        "split.tail": ("tail", config.split.tail),
        "link": ("link", config.link.settings()),
        "privacy": ("privacy", config.privacy.settings()),
        "prune.ratio": ("prune", config.prune.settings(config.rounds)),
        "fleet.objective": ("objective", config.fleet.objective),
        "evaluate.clients": ("evaluate_clients", config.evaluate.clients),
    }
    own |= {name: value for key, (name, value) in settings.items() if key in kind.reads}
    return kind(
        train=config.train.settings(),
        clients_per_round=config.clients.per_round,
        seed=config.seed,
        average=AVERAGES[config.strategy["average"]],
        evaluate_every=config.evaluate.every,
        fleet=fleets.make(config),
        over_select=config.fleet.over_select,
        num_clients=config.clients.total,
        server=ServerSettings.of(config.strategy),
        **own,
    )


def check(config: Config) -> FederatedStrategy:
    """Refuse what would go wrong later: a method's settings, network, data, cuts, fleet.

    Loads the data, and leaves them and their division in the cache.

    Returns:
        the method, prepared.

    Raises:
        ValueError: names the key.
        FileNotFoundError: the data are not there.
    """
    method = strategy(config)  # its constructor checks what the schema cannot
    check_network(config)
    prepare(config, method)
    method.check_fleet()
    return method


def check_drawn(config: Config, method: FederatedStrategy) -> None:
    """Refuse what would go wrong with the devices and the division that another seed draws.

    Leaves that division in the cache, too.

    Args:
        config: differs from one that `check` passed in its seed, and in what is no part of results.
        method: what `check` returned for that one; gets this one's devices and division.

    Raises:
        ValueError: names the key.
        FileNotFoundError: the data are not there.
    """
    drawn = strategy(config)
    method.redraw(drawn.fleet, num_examples(config))
    method.check_fleet()


def prepare(config: Config, method: FederatedStrategy) -> nn.Module:
    """Return the global model that ``method`` makes of the user's network.

    Raises:
        ValueError: the method cannot train this network; names the key.
    """
    if not method.num_examples:  # what is known before a client is asked
        method.num_examples = num_examples(config)
    if "prune.source" in method.reads and config.prune.source_content:
        _check_source(config.prune.source, config.prune.source_content)
    return method.prepare(network(config), input_shape(config))


def _check_source(source: str | None, content: str) -> None:
    """Refuse a source that is not what this configuration was made for.

    Raises:
        ValueError: names prune.source.
    """
    file = Path(source or "") / "model.safetensors"
    if not file.is_file() or sources.file_digest(str(file)) != content:
        raise ValueError(f"prune.source={source}: has changed since the run began")


# Loading, once per process ------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _dataset(data_json: str, seed: int) -> Dataset:
    data = DataConfig(**json.loads(data_json))
    holds = (sources.fingerprint(data), data.options, data.shape, data.num_classes)
    key = f"{data.name}-{_digest(_code(sources.find(data)), *holds, sources.is_by_user(data))}"
    whole = Dataset.from_tensors(cached(key, lambda: sources.read(data).tensors()))
    if whole.input_shape != tuple(data.shape) or whole.num_classes != data.num_classes:
        raise ValueError(
            f"data={data.name}: conf says {tuple(data.shape)} and {data.num_classes} classes, the "
            f"files hold {whole.input_shape} and {whole.num_classes}"
        )
    whole = whole.limit_train(data.max_train, derive_seed(seed, "max_train"))
    whole = whole.limit_test(data.max_test, derive_seed(seed, "max_test"))
    size = data.image_size
    if size is None:
        return whole
    key = f"{key}-{_digest(data.max_train, data.max_test, seed, size)}"
    return Dataset.from_tensors(cached(key, lambda: whole.resized(size).tensors()))


@functools.lru_cache(maxsize=8)
def _division(data_json: str, num_clients: int, seed: int) -> list[Tensor]:
    data = DataConfig(**json.loads(data_json))
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
    texts = [path.read_text() for path in sorted(folder.glob("*.py"))]
    texts += [inspect.getsource(module) for module in modules]
    libraries = ("flwr-datasets", "scikit-learn", "wfdb", "PyWavelets", "scipy", "datasets")
    texts += [importlib.metadata.version(name) for name in libraries]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
