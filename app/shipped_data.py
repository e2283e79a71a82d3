"""The data that a cluster's workers need: training samples and their division among the clients.

The driver, which has them, puts them into Ray's object store. A machine fetches them when its first
worker asks, keeps them in its cache (data.cache), and its other workers, also those of later runs,
map that file. So they travel once to a machine, whoever trains there, and it needs no data of
its own. What is for the test stays with the driver.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from app import experiment
from app.experiment import Data, Parts
from data.cache import cached, checksum
from data.cache_folder import cache_folder
from data.dataset import Dataset
from strategies.contract import ClientData

DATA = "data"  # in the run config of workers on a cluster
LOCK_S = 600.0  # that a worker waits for another one of its machine to fetch


@dataclass(frozen=True)
class ShippedData:
    """Data that were sent.

    Attributes:
        key: names the content.
        num_bytes: of it.
        source: Ray's reference to it; in a worker what returns it, (num_bytes,) uint8.
    """

    key: str
    num_bytes: int
    source: Any = field(compare=False, repr=False)


class Sender:
    """Puts data where the workers find them; those of the latest experiment are kept there.

    Args:
        put: puts an array into the object store, and returns a reference.
    """

    def __init__(self, put: Callable[[np.ndarray[Any, Any]], Any]) -> None:
        self._put = put
        self._of: Data | None = None
        self._sent: ShippedData | None = None

    def sent(self, parts: Parts) -> ShippedData:
        """Put an experiment's data there, unless they are."""
        if self._sent is None or self._of != parts.data:
            self._sent = None  # before the next ones are there
            key, content = pack(parts)
            self._of, self._sent = parts.data, ShippedData(key, len(content), self._put(content))
        return self._sent

    def run_config(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the ClientApp finds in its context on a machine that has no files of ours.

        Neither data, nor the file of initial weights: a client gets its weights with each message.
        """
        parts = given.get(experiment.PARTS)
        if not isinstance(parts, Parts):
            return dict(given)
        weightless = replace(parts, network=replace(parts.network, weights=None))
        return {**given, experiment.PARTS: weightless, DATA: self.sent(parts)}


def pack(parts: Parts) -> tuple[str, np.ndarray[Any, Any]]:
    """Return a name for the content of an experiment's training data, and it as bytes, uint8."""
    whole, rows = experiment.dataset(parts), experiment.division(parts)
    names = ("train_x", "train_y", "num_classes")
    tensors = {
        name: tensor.clone(memory_format=torch.contiguous_format)  # safetensors takes no shared one
        for name, tensor in whole.tensors().items()
        if name.split(".")[0] in names
    }
    tensors |= {"rows": torch.cat(rows), "sizes": torch.tensor([len(part) for part in rows])}
    return f"sent-{checksum(tensors)}", np.frombuffer(save(tensors), np.uint8)


def received(run_config: Mapping[str, Any], fetch: Callable[[Any], Any]) -> Mapping[str, Any]:
    """In a worker: the run config with the data that were sent, if any, in this process.

    Not left to the first client, whose failure it would be where they do not come.
    """
    sent = run_config.get(DATA)
    if not isinstance(sent, ShippedData):
        return run_config
    here = replace(sent, source=functools.partial(fetch, sent.source))
    _loaded(here)
    return {**run_config, DATA: here}


def client_data(run_config: Mapping[str, Any], parts: Parts, client: int) -> ClientData:
    """Return the samples of one client: from what was sent, else as this machine has them.

    Raises:
        ValueError: there is no such client.
    """
    sent = run_config.get(DATA)
    if not isinstance(sent, ShippedData):
        return experiment.client_data(parts, client)
    return experiment.of_client(*_loaded(sent), client)


def forget() -> None:
    """Map the file anew when it is next asked for: what is in memory was spoilt."""
    _loaded.cache_clear()


@functools.lru_cache(maxsize=2)
def _loaded(sent: ShippedData) -> tuple[Dataset, list[Tensor]]:
    import filelock  # here, as most processes have no need of it

    with ExitStack() as stack:
        # Without a folder that can be written to each worker has a copy of its own.
        with suppress(OSError):
            cache_folder().mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(cache_folder() / f"{sent.key}.lock", timeout=LOCK_S)
            stack.enter_context(lock)
        tensors = cached(sent.key, lambda: load(sent.source().tobytes()))
    nothing = {
        name.replace("train", "test"): x[:0] for name, x in tensors.items() if "train" in name
    }
    rows = tensors["rows"].split(tensors["sizes"].tolist())
    return Dataset.from_tensors(tensors | nothing), list(rows)
