"""Deprune: split learning over a bottleneck whose width changes while training.

Pruning and depruning for split learning (arXiv 2311.05739, ACM TOIT 24(4)). Only the abstract was
at hand: the bottleneck, its schedules and its criteria are our reading of it (deprune.md).
"""

from typing import ClassVar

from strategies.client.split_loop import SplitClient
from strategies.server.bottleneck import (
    BottleneckStrategy,
    between,
    cut_with_bottleneck,
    stage,
)


class Deprune(BottleneckStrategy):
    """Server half; `strategies.server.schedules.on_base` puts it on a base."""

    client = SplitClient(cut_with_bottleneck)
    reads: ClassVar[tuple[str, ...]] = (*BottleneckStrategy.reads, "prune.schedule")

    def active(self, server_round: int) -> int:
        """The target throughout, or up to it from few, or down to it from all."""
        channels, settings = self.bottleneck.channels, self.prune
        target = settings.target(channels)
        now, stages = stage(server_round, settings.rounds, settings.stages)
        if settings.schedule == "grow":
            return between(1, target, now / stages)
        if settings.schedule == "shrink" and stages > 1:
            return between(channels, target, (now - 1) / (stages - 1))
        return target
