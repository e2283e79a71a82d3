"""The group schedule of the configuration: whether rounds wait for their clients."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fleet.selection import is_count_or_share, num_selected

SYNC, SEMI, BUFFERED = "sync", "semi", "buffered"
NAMES = (SYNC, SEMI, BUFFERED)


def constant(steps: int, settings: "ScheduleSettings") -> float:
    """An old update counts as a new one."""
    return 1.0


def polynomial(steps: int, settings: "ScheduleSettings") -> float:
    """(1 + k)^−a, of k steps."""
    return float((1 + steps) ** -settings.exponent)


def hinge(steps: int, settings: "ScheduleSettings") -> float:
    """1 up to b steps, then 1/(1 + a·(k − b))."""
    return 1 / (1 + settings.exponent * max(0, steps - settings.hinge))


# Of FedAsync (Xie et al. 2019, arXiv 1903.03934, section 5.2).
STALENESS: Mapping[str, Callable[[int, "ScheduleSettings"], float]] = {
    "constant": constant,
    "polynomial": polynomial,
    "hinge": hinge,
}


@dataclass(frozen=True)
class ScheduleSettings:
    """Who waits for whom."""

    name: str = field(
        default=SYNC,
        metadata={
            "help": "sync: rounds wait for their clients; semi: they end at the deadline, and part "
            "of the work counts; buffered: asynchronous, a round is a server step"
        },
    )
    buffer: Any = field(  # int or float, which mean different things
        default=0.1,
        metadata={
            "help": "buffered: updates that make a server step, a number or a share of the "
            "clients at work; 1 is FedAsync"
        },
    )
    concurrency: Any = field(
        default=None,
        metadata={
            "help": "buffered: clients at work at any moment, a number or a share; null: "
            "clients.per_round"
        },
    )
    staleness: str = field(
        default="polynomial",
        metadata={
            "help": "buffered: what an update's change is multiplied by, k steps later: constant "
            "(1), polynomial ((1 + k)^-exponent), hinge (1/(1 + exponent·(k - hinge)) beyond)"
        },
    )
    exponent: float = field(default=0.5, metadata={"help": "buffered: the number in staleness"})
    hinge: int = field(
        default=4, metadata={"help": "buffered: steps up to which an update counts in full"}
    )
    max_staleness: int | None = field(
        default=None,
        metadata={"help": "buffered: updates that are more steps late are left out; null: none"},
    )

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"schedule.name={self.name}: takes {', '.join(NAMES)}")
        for key in ("buffer", "concurrency"):
            value = getattr(self, key)
            if not is_count_or_share(value) and not (key == "concurrency" and value is None):
                raise ValueError(
                    f"schedule.{key}={value}: takes an integer from 1, or a share in (0, 1]"
                )
        if self.staleness not in STALENESS:
            raise ValueError(f"schedule.staleness={self.staleness}: takes {', '.join(STALENESS)}")
        if not 0 <= self.exponent < math.inf:
            raise ValueError(f"schedule.exponent={self.exponent}: takes 0 or more, and finite")
        for key in ("hinge", "max_staleness"):
            if (value := getattr(self, key)) is not None and value < 0:
                raise ValueError(f"schedule.{key}={value}: takes 0 or more")

    def damping(self, steps: int) -> float:
        """What the change of an update is multiplied by that comes ``steps`` steps late."""
        return STALENESS[self.staleness](steps, self)

    def at_work(self, per_round: int | float, num_clients: int) -> int:
        """How many of ``num_clients`` are at work at any moment.

        Args:
            per_round: clients.per_round, where ``concurrency`` is null.
            num_clients: with data.
        """
        given = per_round if self.concurrency is None else self.concurrency
        return num_selected(given, num_clients)

    def arrivals(self, at_work: int) -> int:
        """How many arrivals make a step; never more than are at work."""
        return num_selected(self.buffer, at_work)

    def check(self, per_round: int | float, num_clients: int) -> None:
        """Refuse a buffer that never fills.

        Raises:
            ValueError: names schedule.buffer.
        """
        at_work = self.at_work(per_round, num_clients)
        if isinstance(self.buffer, int) and self.buffer > at_work:
            raise ValueError(
                f"schedule.buffer={self.buffer}: takes at most the {at_work} clients that are at "
                "work (schedule.concurrency, clients.per_round)"
            )

    def unread(self) -> tuple[str, ...]:
        """Keys that change nothing, given the others; all of them where rounds are synchronous."""
        if self.name == SYNC:
            return ("name", *_OF_BUFFERED)
        if self.name == SEMI:
            return _OF_BUFFERED
        without = {"constant": ("exponent", "hinge"), "polynomial": ("hinge",), "hinge": ()}
        return without[self.staleness]


_OF_BUFFERED = ("buffer", "concurrency", "staleness", "exponent", "hinge", "max_staleness")
