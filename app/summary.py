"""What summary.json says of a run: totals over its rounds, the client's model, and what ran."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from app.experiment import Experiment
from strategies.server.loop import FederatedStrategy
from tracking.summary import summarise


def describe(experiment: Experiment, strategy: FederatedStrategy, folder: Path) -> dict[str, Any]:
    """Return what summary.json holds, but for the wall-clock times of the set-up.

    Args:
        experiment: what ran.
        strategy: its method, prepared.
        folder: the run's folder, with its rounds.
    """
    network, train = strategy.prepared().in_round(experiment.rounds), experiment.train
    parts, whole = network.device_costs(), network.cost()
    batch, slots = train.batch_size, train.optimizer_slots
    return {
        **summarise(folder, experiment.target_accuracy),
        "client_params": sum(part.params for part in parts),
        "client_model_bytes": sum(part.packed_bytes for part in parts),
        "client_flops_per_sample": sum(p.flops_forward + p.flops_backward for p in parts),
        "client_bops_per_sample": sum(part.bops for part in parts),
        "client_peak_train_bytes": sum(part.peak_train_bytes(batch, slots) for part in parts),
        "network_params": whole.params,
        "network_flops_per_sample": whole.flops_forward + whole.flops_backward,
        "network_peak_train_bytes": whole.peak_train_bytes(batch, slots),
        **network.describe(train),
        "strategy": experiment.method,
        "model": experiment.network.name,
        "data": experiment.data.settings.name,
        "seed": experiment.seed,
        "config_hash": experiment.hash,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    packages = ("torch", "flwr", "ray", "numpy", "hydra-core")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}
