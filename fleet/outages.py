"""When there is no network, for hierarchical training: for all devices, and for single ones."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet.availability import Always, Availability
from fleet.seeds import derive_seed


@dataclass(frozen=True)
class Outage:
    """Rounds without network; an `Availability` of the link.

    Attributes:
        probability: of a round without, drawn by the experiment's seed.
        rounds: those that have none whatever is drawn.
        otherwise: who has a network in the others.
    """

    probability: float = 0.0
    rounds: Sequence[int] = ()
    otherwise: Availability = field(default_factory=Always)

    @classmethod
    def of(cls, given: object) -> "Outage":
        """Take a probability or a list of rounds.

        Raises:
            ValueError: it is neither; names the key.
        """
        if isinstance(given, list | tuple):
            if all(is_number(value, int) and value >= 1 for value in given):
                return cls(rounds=tuple(given))
        elif is_number(given, int | float) and 0 <= given <= 1:  # type: ignore[operator]
            return cls(probability=float(given))  # type: ignore[arg-type]
        raise ValueError(
            f"strategy.outage={given}: takes a probability in [0, 1], or a list of rounds from 1"
        )

    @property
    def happens(self) -> bool:
        """Whether anybody can be without network at all."""
        return self.probability > 0 or bool(self.rounds) or self.otherwise != Always()

    def is_now(self, seed: int, server_round: int) -> bool:
        """Whether a round has no network for anybody."""
        if server_round in self.rounds:
            return True
        drawn = random.Random(derive_seed(seed, "outage", server_round)).random()
        return drawn < self.probability

    def absence(self, partition: int, server_round: int, now_s: float, seed: int) -> str | None:
        """Return why a device has no network, or None if it has one."""
        if self.is_now(seed, server_round):
            return "no network in this round"
        return self.otherwise.absence(partition, server_round, now_s, seed)


def is_number(value: object, kinds: Any) -> bool:
    """Whether ``value`` is of those kinds; true and false are not."""
    return isinstance(value, kinds) and not isinstance(value, bool)
