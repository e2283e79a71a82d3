"""What summary.json says of a run: totals over its rounds, the client's model, and what ran."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

from app.device import CPU, find
from app.experiment import (
    Experiment,
    dataset,
    done_to_weights,
    held_out,
    method_class,
    num_examples,
    without_samples,
)
from app.run_folder import end
from data.dataset import Dataset
from models.cost import FULL_PRECISION_BITS, LayerCost
from models.metrics import lacking
from strategies.server.cuts import CutNetwork
from strategies.server.loop import FederatedStrategy
from strategies.server.method import Network
from strategies.server.schedule_settings import BUFFERED
from strategies.server.varied import Kind, VariedNetwork
from tracking.summary import summarise

MOST_NAMED = 10  # classes in a remark
NAMED = {"test": "test set", "validation": "validation data", "clients": "clients' held-out data"}


def describe(experiment: Experiment, strategy: FederatedStrategy, folder: Path) -> dict[str, Any]:
    """Return what summary.json holds, but for the wall-clock times of the set-up.

    Args:
        experiment: what ran.
        strategy: its method, prepared.
        folder: the run's folder, with its rounds.
    """
    totals = summarise(folder, experiment.target_accuracy)
    network, train = strategy.prepared().in_round(totals["rounds"]), experiment.train
    parts, whole = network.device_costs(), network.cost()
    batch, slots = train.batch_size, train.optimizer_slots
    return {
        **totals,
        "ended_by": end(folder, experiment, totals["rounds"])[1] or "rounds",
        "client_params": sum(part.params for part in parts),
        "client_model_bytes": sum(part.packed_bytes for part in parts),
        "client_flops_per_sample": sum(p.flops_forward + p.flops_backward for p in parts),
        "client_bops_per_sample": sum(part.bops for part in parts),
        "client_peak_train_bytes": sum(part.peak_train_bytes(batch, slots) for part in parts),
        "network_params": whole.params,
        "network_flops_per_sample": whole.flops_forward + whole.flops_backward,
        "network_peak_train_bytes": whole.peak_train_bytes(batch, slots),
        "quantized_share": whole.quantized_share,
        "mean_weight_bits": whole.mean_weight_bits,
        "mean_act_bits": whole.mean_act_bits,
        **network.describe(train),
        "strategy": experiment.method,
        "model": experiment.network.name,
        "data": experiment.data.settings.name,
        "seed": experiment.seed,
        "config_hash": experiment.hash,
        "versions": versions(),
    }


def remarks(experiment: Experiment, strategy: FederatedStrategy) -> list[str]:
    """What a user would want to know before the first round, one line each.

    Args:
        experiment: what will run.
        strategy: its method, prepared.
    """
    said = [f"model.weights={experiment.network.weights}: {t}" for t in done_to_weights(experiment)]
    data = dataset(experiment)
    if empty := without_samples(data):
        settings = experiment.data.settings
        names = settings.label_names or [str(number) for number in range(data.num_classes)]
        named = ", ".join(names[number] for number in empty[:MOST_NAMED])
        more = f" and {len(empty) - MOST_NAMED} more" if len(empty) > MOST_NAMED else ""
        hint = "; labels count from 0, these begin at 1" if empty == [0] else ""
        said.append(
            f"data={settings.name}: {len(empty)} of {data.num_classes} classes have no training "
            f"sample: {named}{more}{hint}"
        )
    if text := without_evaluation(experiment, data):
        said.append(text)
    if (schedule := experiment.schedule).name == BUFFERED:
        with_data = sum(map(bool, num_examples(experiment).values()))
        at_work = schedule.at_work(experiment.clients_per_round, with_data)
        said.append(
            f"schedule=buffered: a round is a server step of {schedule.arrivals(at_work)} updates, "
            f"with {at_work} clients at work"
        )
    if experiment.plan.is_auto and "plan" not in strategy.reads:
        said.append(
            f"plan=auto: of strategy={experiment.method} the cut alone is chosen: all clients have "
            "one width and all channels"
        )
    engine = experiment.engine
    if engine.gpus_per_worker and not engine.address and find(engine.device).type == CPU:
        said.append(f"engine.gpus_per_worker={engine.gpus_per_worker}: not read: there is no GPU")
    return said + left_in_fp32(experiment, strategy)


def without_evaluation(experiment: Experiment, data: Dataset) -> str:
    """Which classes the metrics leave out; empty for none, and without metrics."""
    metrics = experiment.metrics
    if not metrics.names:
        return ""
    where = experiment.evaluated_on
    if where == "clients":
        labels = data.train_y[torch.cat(held_out(experiment))]
    else:
        labels = data.test_y if data.valid_y is None else data.valid_y
    left = lacking(labels, metrics.kind, data.num_classes)
    named = ", ".join(map(str, left[:MOST_NAMED])) + (", …" if len(left) > MOST_NAMED else "")
    what, why = "classes", "no sample"
    if metrics.kind == "multilabel":
        what, why = "labels", "no sample, or every one,"
    if not left:
        return ""
    return (
        f"evaluate.metrics: {len(left)} of {data.num_classes} {what} ({named}) have {why} in the "
        f"{NAMED[where]}: left out of means over {what} where undefined, null in per_class"
    )


def left_in_fp32(experiment: Experiment, strategy: FederatedStrategy) -> list[str]:
    """What the settings of quantization leave as it is, where that is not said by them.

    Args:
        experiment: what will run.
        strategy: its method, prepared.
    """
    kind = method_class(experiment)
    if "quant.bits" not in kind.reads:
        return []
    network = strategy.prepared().in_round(1)
    is_half = "quant.side" in kind.reads and experiment.quant.side == "client"
    if experiment.quant.varies:  # the network with the fewest bits tells it of all
        least = min(kinds_of(network), key=lambda kind: kind.cost.bops)
        spec, costs = least.spec, network.device_costs() if is_half else [least.cost]
    else:
        spec = experiment.quant.spec(kind.default_bits)
        costs = network.device_costs() if is_half else [network.cost()]
    if spec.is_identity:
        return []
    rows = [row for part in costs for row in part.layers]

    def is_left(row: LayerCost) -> bool:
        weight = row.weight_bits if row.has_weight else FULL_PRECISION_BITS
        acts = [row.input_bits] if row.has_weight else [row.input_bits, row.weight_bits]
        return (row.has_weight and weight == FULL_PRECISION_BITS and spec.weight_bits < weight) or (
            max(acts) == FULL_PRECISION_BITS and spec.act_bits < FULL_PRECISION_BITS
        )

    said = []
    total = sum(row.macs for row in rows)
    left: dict[str, int] = {}
    for row in filter(is_left, rows):
        left[row.name] = left.get(row.name, 0) + row.macs
    if left:
        largest = sorted(left, key=lambda name: -left[name])
        named = ", ".join(f"{name} ({left[name] / total:.1%})" for name in largest[:5])
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        said.append(
            f"in fp32 stay {sum(left.values()) / total:.1%} of the multiply-adds: {named}{more}; "
            "docs/NETWORKS.md says what can be quantized"
        )
    edge = spec.edge_bits
    used = {bits for row in rows if not is_left(row) for bits in (row.weight_bits, row.input_bits)}
    if used and used <= {edge, FULL_PRECISION_BITS} and {spec.weight_bits, spec.act_bits} != {edge}:
        said.append(
            "quant.bits changes nothing: all that is quantized are the network's first and last "
            f"layer, which have quant.edge_bits={edge}"
        )
    return said


def kinds_of(network: Network) -> list[Kind]:
    """The networks that clients have, where they have different ones."""
    if isinstance(network, CutNetwork):
        return [place.kind for place in network.in_use() if place.kind is not None]
    return network.in_use() if isinstance(network, VariedNetwork) else []


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    packages = ("torch", "flwr", "ray", "numpy", "hydra-core")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}
