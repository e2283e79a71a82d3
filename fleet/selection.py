"""Which clients take part in a round."""

import numbers
import random
from collections.abc import Sequence

from fleet.seeds import derive_seed


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
