"""What decides for a client where the user leaves its bits, its share of channels or its cut open.

none   the largest with which it ends in time, of cuts the one that takes least
auto   what takes it least of fleet.objective, with at least a floor of the network's capacity
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet.cost import RoundCost, check_objective, largest_in_time, least
from fleet.per_client import AUTO, PerClient, each

PLANS = ("none", AUTO)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanSettings:
    """The group plan of the configuration."""

    name: str = field(
        default="none",
        metadata={
            "help": "none, auto: bits, share and cut of each client are those that take least of "
            "fleet.objective (docs/EACH_PHONE.md)"
        },
    )
    floor: Any = field(
        default=0.25,
        metadata={
            "help": "plan=auto: least share of the bit operations of the largest choice that a "
            "client trains, one or a mapping: '{phone_low: 0.1, default: 1}'"
        },
    )

    def __post_init__(self) -> None:
        if self.name not in PLANS:
            raise ValueError(f"plan.name={self.name}: takes {', '.join(PLANS)}")
        for key, value in each("plan.floor", self.floor, "share").items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and 0 <= value <= 1):
                raise ValueError(f"{key}={value}: takes a share in [0, 1]")

    @property
    def is_auto(self) -> bool:
        """Whether there is a plan."""
        return self.name == AUTO


@dataclass(frozen=True)
class Planning:
    """What decides.

    Attributes:
        settings: whether there is a plan, and its floor.
        objective: what it makes least: ``seconds`` or ``joules`` of a round.
    """

    settings: PlanSettings
    objective: str

    @staticmethod
    def of(settings: PlanSettings | None, objective: str) -> "Planning":
        """Return what the settings say.

        Raises:
            ValueError: no such objective.
        """
        check_objective(objective)
        return Planning(settings or PlanSettings(), objective)

    @property
    def label(self) -> str:
        """What decides, as the log says it."""
        return f"plan={AUTO}" if self.settings.is_auto else AUTO

    def floors(self) -> PerClient[float]:
        """The least capacity of each client."""
        return PerClient.of("plan.floor", self.settings.floor)

    def choose(
        self,
        costs: Sequence[RoundCost],
        capacities: Sequence[float],
        partition: int | None,
        device: str,
        deadline_s: float = math.inf,
    ) -> int:
        """Return the index of what a client trains.

        Args:
            costs: of what it may train, from the smallest to the largest.
            capacities: shares of the largest choice's bit operations.
            partition: the client; None for any with that device.
            device: its.
            deadline_s: when a round ends at the latest.
        """
        if not self.settings.is_auto:
            return largest_in_time(costs, deadline_s)
        floor = self.floors().of_client(partition, device)
        return least(costs, capacities, self.objective, floor, deadline_s)


def say(label: str, chosen: Mapping[int, str], device: Callable[[int], str]) -> None:
    """Log what was chosen, by device."""
    counted = Counter((device(partition), name) for partition, name in chosen.items())
    for (kind, name), count in sorted(counted.items()):
        log.info("%s: %s for %d clients with %s", label, name, count, kind)
