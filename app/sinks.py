"""The sink of an experiment's tracker, and what it is told beside the configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.config.composition import is_under
from app.config.schema import flatten
from app.experiment import Experiment, method_class
from app.provenance import provenance
from quant.layers import FULL_PRECISION
from tracking.jsonl import CLIENTS, readable
from tracking.record import RoundRecord, Sink
from tracking.sinks import CsvSink, MlflowSink, TensorboardSink
from tracking.wandb_names import run_name
from tracking.wandb_sink import Inputs, WandbSink


def tracker_sink(
    chosen: Experiment, folder: Path, group: str = "", done: Sequence[RoundRecord] = ()
) -> Sink:
    """Return the sink of a run's tracker; arguments as `WandbSink`."""
    config = {**chosen.identity, **effective(chosen), "config_hash": chosen.hash, **origin()}
    if chosen.tracker == "csv":
        numbers = {record.round for record in done}
        rows = readable(folder / CLIENTS)[0] if done else []
        return CsvSink(folder, done, [row for row in rows if row["round"] in numbers])
    if chosen.tracker == "tensorboard":
        return TensorboardSink(folder, done)
    if chosen.tracker == "mlflow":
        name = run_name(folder, config)
        return MlflowSink(folder, name, chosen.name, config | {"group": group}, done)
    return WandbSink(chosen.wandb, folder, config, group, done, inputs(chosen))


def origin() -> dict[str, Any]:
    """What ran and where, as flat keys; the packages wandb keeps itself."""
    found = {
        key: value for key, value in provenance().items() if key not in ("packages", "started")
    }
    return flatten({"provenance": found})


def effective(chosen: Experiment) -> dict[str, Any]:
    """Bits, cut and share of pruned channels, as every method has them, whether it reads them.

    The configuration has none of a method that does not quantize, cut or prune, and null where a
    method decides; wandb's parallel coordinates leave out what lacks a value.
    """
    kind = method_class(chosen)
    quant = chosen.quant
    bits: dict[str, Any] = dict.fromkeys(
        ("effective.weight_bits", "effective.act_bits"), FULL_PRECISION
    )
    if is_under("quant.bits", kind.reads) and quant.varies:
        for name in ("weight_bits", "act_bits"):
            own = getattr(quant, name)
            bits[f"effective.{name}"] = str(quant.bits if own is None else own)
    elif is_under("quant.bits", kind.reads):
        spec = chosen.quant.spec(kind.default_bits)
        bits = {"effective.weight_bits": spec.weight_bits, "effective.act_bits": spec.act_bits}
    return {
        **bits,
        "effective.cut": str(chosen.split.cut) if is_under("split.cut", kind.reads) else "none",
        "effective.ratio": chosen.prune.ratio if is_under("prune.ratio", kind.reads) else 0.0,
    }


def inputs(chosen: Experiment) -> Inputs:
    """The data set and the weights that a run begins with."""
    data, weights = chosen.data.settings, chosen.network.weights
    described = {
        "name": data.name,
        "source": data.source,
        "shape": list(data.shape),
        "num_classes": data.num_classes,
        "content": data.content,
        "label_names": list(data.label_names),
    }
    return Inputs(described, data.path, Path(weights) if weights else None)
