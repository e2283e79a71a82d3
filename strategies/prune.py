"""Prune: a trained network, whose cut is then made narrow in stages with training in between.

Pruning and depruning for split learning (arXiv 2311.05739, ACM TOIT 24(4)). Only the abstract was
at hand: the bottleneck, its stages and its criteria are our reading of it (prune.md).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from models.bottleneck import ENCODER_WEIGHT
from models.exits import exit_name
from quant.layers import FULL_PRECISION
from strategies.client.split_loop import train
from strategies.client.training import load_arrays
from strategies.server.bottleneck import BottleneckStrategy, between, prepare, stage
from strategies.server.results import check_shapes

__all__ = ["Prune", "prepare", "train"]

MODEL, SUMMARY = "model.safetensors", "summary.json"
PRIVATE = ("splitfed_v3",)  # methods whose model is an average that nobody trains from or tests


class Prune(BottleneckStrategy):
    """Server half; `strategies.server.schedules.on_base` puts it on a base."""

    reads: ClassVar[tuple[str, ...]] = (
        *BottleneckStrategy.reads, "prune.source", "prune.source_content",
        "prune.pretrain_rounds",
    )  # fmt: skip

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        before, last = self.prune.pretrain_rounds or 0, self.prune.rounds
        if before >= last:
            raise ValueError(
                f"prune.pretrain_rounds={before}: takes fewer than prune.rounds={last}"
            )
        if self.prune.importance == "taylor" and not before:
            raise ValueError(
                "prune.importance=taylor: needs prune.pretrain_rounds of 1 or more, whose "
                "gradients it ranks by"
            )

    def prepare(self, model: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
        """Load the source, where there is one, before anything is quantized or cut.

        Raises:
            ValueError: there is no finished run, or its network is another one; names the key.
        """
        if self.prune.source:
            load_source(model, Path(self.prune.source))
        return super().prepare(model, input_shape)

    def active(self, server_round: int) -> int:
        """All channels at first, then down to the target."""
        channels, settings = self.bottleneck.channels, self.prune
        before = settings.pretrain_rounds or 0
        if server_round <= before:
            return channels
        now, stages = stage(server_round - before, settings.rounds - before, settings.stages)
        return between(channels, settings.target(channels), now / stages)


def load_source(model: nn.Module, run: Path) -> None:
    """Copy the trained weights of a finished run into ``model``; an early exit's are left out.

    Raises:
        ValueError: there is no finished run, it is damaged, or what it trained is not this network
            at 32 bits; names prune.source.
    """
    arrays, summary = _read(run, MODEL, load_file), _read(run, SUMMARY, _read_json)
    if summary.get("strategy") in PRIVATE:
        raise ValueError(
            f"prune.source={run}: is one of strategy={summary['strategy']}, whose clients have "
            "halves of their own; takes a run that trains one network for all"
        )
    if ENCODER_WEIGHT in arrays:
        raise ValueError(
            f"prune.source={run}: its network has a bottleneck already; takes a run without one"
        )
    bits = {summary.get(key, FULL_PRECISION) for key in ("weight_bits", "act_bits")}
    if bits != {FULL_PRECISION}:
        raise ValueError(f"prune.source={run}: its network is quantized; takes a run at 32 bits")
    early = f"{exit_name(model)}."
    arrays = {name: tensor for name, tensor in arrays.items() if not name.startswith(early)}
    try:
        check_shapes(
            {name: tensor.numpy() for name, tensor in arrays.items()},
            {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        )
    except ValueError as error:
        raise ValueError(f"prune.source={run}: holds another network: {error}") from error
    load_arrays(model, arrays)


def _read(run: Path, name: str, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Return what a file of the source holds, by names."""
    if not (run / name).is_file():
        raise ValueError(f"prune.source={run}: no finished run there, {name} is missing")
    try:
        return read(run / name)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"prune.source={run}: {name} is damaged: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise ValueError("it states nothing")
    return found
