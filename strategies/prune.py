"""Prune: a trained network whose cut is narrowed in stages, with fine-tuning after each.

Pruning and depruning for split learning (arXiv 2311.05739, ACM TOIT 24(4)). Only the abstract was
available: bottleneck, stages and criteria are our interpretation (prune.md).
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from models.bottleneck import ENCODER_WEIGHT
from models.exits import exit_name
from quant.codec import LinkSettings
from quant.layers import FULL_PRECISION
from quant.settings import QuantSettings
from strategies.client.split_loop import SplitClient
from strategies.client.training import load_arrays
from strategies.server.aggregation import AverageSettings, Averaging
from strategies.server.bottleneck import (
    NARROW_READS,
    Narrow,
    PruneSettings,
    active_channels,
    between,
    cut_with_bottleneck,
    stage,
)
from strategies.server.cutting import Cut, SplitSettings
from strategies.server.loop import FederatedStrategy
from strategies.server.method import Method, RoundArguments
from strategies.server.results import check_shapes
from strategies.server.schedules import BaseSettings
from strategies.server.wires import Latent, device_part

MODEL, SUMMARY = "model.safetensors", "summary.json"
PRIVATE = ("splitfed_v3",)  # methods whose model is an average that nobody trains from or tests


class Prune(FederatedStrategy):
    """A trained network whose cut is made narrow in stages, on the schedule of a base.

    Args:
        prune: what happens to the bottleneck, with numbers for its rounds, and what it begins with.
        settings: whose schedule it is.
        split: where the network is cut.
        link: codecs at the cut.
        quant: bit widths, and of which part.
        averaging: how clients are averaged.
        objective: what ``split.cut=auto`` makes least.
        rounds: as `RoundSettings`.
    """

    client = SplitClient(cut_with_bottleneck)
    reads = (*NARROW_READS, "prune.source", "prune.source_content", "prune.pretrain_rounds")
    has_server_half = True

    def __init__(
        self,
        *,
        prune: PruneSettings | None = None,
        settings: BaseSettings | None = None,
        split: SplitSettings | None = None,
        link: LinkSettings | None = None,
        quant: QuantSettings | None = None,
        averaging: AverageSettings | None = None,
        objective: str = "seconds",
        **rounds: Unpack[RoundArguments],
    ) -> None:
        prune = prune or PruneSettings(rounds=10, pretrain_rounds=0)
        _check(prune)
        source = functools.partial(load_source, run=Path(prune.source)) if prune.source else None
        width = functools.partial(active, prune)
        method = Method(
            network=Narrow(Cut.of(split, link, quant, objective), prune, width, begin=source),
            schedule=(settings or BaseSettings()).schedule,
            wire=Latent(device_part),
            aggregate=Averaging.over_a_cut(averaging),
            report=active_channels,
            needs_prepare="a network that is cut",
        )
        super().__init__(method, **rounds)


def active(prune: PruneSettings, server_round: int, channels: int) -> int:
    """Active channels of a round: all at first, then down to the target."""
    before = prune.pretrain_rounds or 0
    if server_round <= before:
        return channels
    now, stages = stage(server_round - before, prune.rounds - before, prune.stages)
    return between(channels, prune.target(channels), now / stages)


def _check(prune: PruneSettings) -> None:
    before, last = prune.pretrain_rounds or 0, prune.rounds
    if before >= last:
        raise ValueError(f"prune.pretrain_rounds={before}: takes fewer than prune.rounds={last}")
    if prune.importance == "taylor" and not before:
        raise ValueError(
            "prune.importance=taylor: needs prune.pretrain_rounds of 1 or more, whose "
            "gradients it ranks by"
        )


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
    found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, dict):
        raise ValueError("it states nothing")
    return found
