"""Which clients take part in a round."""

import numbers
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet.seeds import derive_seed

MOST_CLIENTS = 1_000_000


@dataclass(frozen=True)
class ClientsSettings:
    """The group clients of the configuration."""

    total: int = field(default=100, metadata={"help": "number of clients"})
    per_round: Any = field(  # int or float, which mean different things
        default=1.0,
        metadata={"help": "clients per round: an integer, or a share in (0, 1] such as 0.1"},
    )

    def __post_init__(self) -> None:
        if self.total < 1:
            raise ValueError(f"clients.total={self.total}: takes 1 or more")
        if self.total > MOST_CLIENTS:
            raise ValueError(f"clients.total={self.total}: takes {MOST_CLIENTS} or fewer")
        value = self.per_round
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value <= (self.total if isinstance(value, int) else 1):
            raise ValueError(
                f"clients.per_round={value}: takes an integer from 1 to "
                f"clients.total={self.total}, or a share in (0, 1]"
            )


def num_selected(per_round: int | float, num_clients: int) -> int:
    """How many of ``num_clients`` a round takes: an integer counts, a float is a share.

    At least one, at most all; halves round to even, as Python's `round` does.
    """
    is_count = isinstance(per_round, numbers.Integral)
    wanted = int(per_round) if is_count else round(per_round * num_clients)
    return max(1, min(wanted, num_clients))


def select(
    partitions: Sequence[int], per_round: int | float, seed: int, server_round: int
) -> list[int]:
    """Draw a round's clients by partition id, in increasing order.

    The draw depends on (seed, round) and the ids alone: not on the strategy, the engine, or the
    node ids, which Flower draws anew for each run.
    """
    if not partitions:
        raise ValueError("there are no clients to choose from")
    generator = random.Random(derive_seed(seed, "selection", server_round))
    count = num_selected(per_round, len(partitions))
    return sorted(generator.sample(sorted(partitions), count))
