"""Whether a client is there when a round begins.

A client that is there at the beginning stays for the whole round. What it says depends on (seed,
round, partition) and on the simulated time, never on who else was asked.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fleet.seeds import draw_uniform

DAY_S = 86_400.0


class Availability(Protocol):
    """Says who is there."""

    def absence(self, partition: int, server_round: int, now_s: float, seed: int) -> str | None:
        """Return why a client is absent, or None if it is there.

        Args:
            partition: the client's id.
            server_round: the round that begins.
            now_s: simulated seconds since the experiment began.
            seed: of the experiment.
        """


@dataclass(frozen=True)
class Always:
    """Everybody is there."""

    def absence(self, partition: int, server_round: int, now_s: float, seed: int) -> str | None:
        """Return None."""
        return None


@dataclass(frozen=True)
class Sometimes:
    """Each client is there with probability ``p`` in each round."""

    p: float

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"fleet.availability={self.p}: takes a probability from 0 to 1")

    def absence(self, partition: int, server_round: int, now_s: float, seed: int) -> str | None:
        """Drawn anew in each round."""
        is_there = draw_uniform(seed, "availability", server_round, partition) < self.p
        return None if is_there else f"available in {self.p:.0%} of rounds, not in this one"


@dataclass(frozen=True)
class Diurnal:
    """Each client's probability swings daily between ``low`` at noon and ``high`` at midnight.

    p(t) = low + (high − low) · (1 + cos 2π(t/day − h/24)) / 2. The clients' midnights h are spread
    evenly over ``spread_h`` hours, by seed; the experiment begins at midnight of the earliest.
    """

    low: float = 0.1
    high: float = 0.9
    spread_h: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"fleet.availability: low={self.low}, high={self.high}: takes 0 ≤ low ≤ high ≤ 1"
            )
        if not 0 <= self.spread_h <= 24:
            raise ValueError(f"fleet.availability: spread_h={self.spread_h}: takes 0 to 24 hours")

    def probability(self, partition: int, now_s: float, seed: int) -> float:
        """How likely a client is there at a time."""
        midnight_h = self.spread_h * draw_uniform(seed, "midnight", 0, partition)
        swing = math.cos(2 * math.pi * (now_s / DAY_S - midnight_h / 24))
        return self.low + (self.high - self.low) * (1 + swing) / 2

    def absence(self, partition: int, server_round: int, now_s: float, seed: int) -> str | None:
        """Drawn anew in each round."""
        p = self.probability(partition, now_s, seed)
        is_there = draw_uniform(seed, "availability", server_round, partition) < p
        return (
            None if is_there else f"available with {p:.0%} at this time of day, not in this round"
        )


@dataclass(frozen=True)
class Intervals:
    """When one client is there, over and over.

    Attributes:
        spans: (begin, end) in seconds from the trace's begin, in order, apart from each other.
        period_s: after which the trace starts again.
    """

    spans: tuple[tuple[float, float], ...]
    period_s: float

    def __post_init__(self) -> None:
        if not 0 < self.period_s < math.inf:
            raise ValueError(f"period {self.period_s} s: takes a positive number")
        edges = [edge for span in self.spans for edge in span]
        if edges != sorted(edges) or (edges and not 0 <= edges[0] <= edges[-1] <= self.period_s):
            raise ValueError("spans take begin ≤ end, in order, within the trace")

    def covers(self, now_s: float) -> bool:
        """Whether the client is there at a time; begins count, ends do not."""
        time_s = now_s % self.period_s
        index = bisect_right(self.spans, time_s, key=lambda span: span[0]) - 1
        return index >= 0 and time_s < self.spans[index][1]


@dataclass(frozen=True)
class Traced:
    """Each client is there when its trace says so; one without a trace never is."""

    spans: Mapping[int, Intervals] = field(default_factory=dict)

    def absence(self, partition: int, server_round: int, now_s: float, seed: int) -> str | None:
        """Looked up by simulated time."""
        if (intervals := self.spans.get(partition)) is None:
            return "the trace has no such client"
        return None if intervals.covers(now_s) else "not available at this time of the trace"
