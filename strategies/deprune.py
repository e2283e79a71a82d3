"""Deprune: split learning over a bottleneck whose width changes while training.

Pruning and depruning for split learning (arXiv 2311.05739, ACM TOIT 24(4)). Only the abstract was
available: bottleneck, schedules and criteria are our interpretation (deprune.md).
"""

import functools
from typing import Unpack

from quant.codec import LinkSettings
from quant.settings import QuantSettings
from strategies.client.split_loop import SplitClient
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
from strategies.server.schedules import BaseSettings
from strategies.server.wires import Latent, device_part


class Deprune(FederatedStrategy):
    """A cut with a bottleneck of a width that changes, on the schedule of a base.

    Args:
        prune: what happens to the bottleneck, with numbers for its rounds.
        settings: whose schedule it is.
        split: where the network is cut.
        link: codecs at the cut.
        quant: bit widths, and of which part.
        averaging: how clients are averaged.
        objective: what ``split.cut=auto`` makes least.
        rounds: as `RoundSettings`.
    """

    client = SplitClient(cut_with_bottleneck)
    reads = (*NARROW_READS, "prune.schedule")
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
        width = functools.partial(active, prune)
        method = Method(
            network=Narrow(Cut.of(split, link, quant, objective), prune, width),
            schedule=(settings or BaseSettings()).schedule,
            wire=Latent(device_part),
            aggregate=Averaging.over_a_cut(averaging),
            report=active_channels,
            needs_prepare="a network that is cut",
        )
        super().__init__(method, **rounds)


def active(prune: PruneSettings, server_round: int, channels: int) -> int:
    """Active channels of a round: the target throughout, or up to it from few, or down from all."""
    target = prune.target(channels)
    now, stages = stage(server_round, prune.rounds, prune.stages)
    if prune.schedule == "grow":
        return between(1, target, now / stages)
    if prune.schedule == "shrink" and stages > 1:
        return between(channels, target, (now - 1) / (stages - 1))
    return target
