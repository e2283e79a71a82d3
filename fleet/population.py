"""Who has which device and link, and how their speeds vary between rounds. All drawn by seed."""

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import NormalDist

from fleet.devices import Device, Link, Population, Tables
from fleet.seeds import draw_uniform


@dataclass(frozen=True)
class Client:
    """What one partition runs on."""

    device: Device
    link: Link


def assign(
    population: Population, tables: Tables, partitions: Sequence[int], seed: int
) -> dict[int, Client]:
    """Draw a device and a link for each partition, independently of each other.

    What a partition gets depends on the seed and its id alone, not on how many there are.

    Args:
        population: shares of devices and links.
        tables: what they are.
        partitions: ids.
        seed: of the experiment.
    """
    return {
        partition: Client(
            tables.device(_pick(population.devices, draw_uniform(seed, "device", 0, partition))),
            tables.link(_pick(population.links, draw_uniform(seed, "link", 0, partition))),
        )
        for partition in partitions
    }


MOST_JITTER = 10  # a fastest and a slowest client are then e^60 apart


def jitter(sigma: float, seed: int, server_round: int, partition: int) -> tuple[float, float]:
    """Return by what factors device and link of a partition are slower in a round.

    Two independent lognormal numbers exp(sigma · z) with median 1; (1, 1) where sigma is 0.

    Raises:
        ValueError: sigma is negative or not finite.
    """
    if not 0 <= sigma <= MOST_JITTER:
        raise ValueError(f"fleet.jitter={sigma}: takes a finite number from 0 to {MOST_JITTER}")
    if sigma == 0:
        return 1.0, 1.0
    z = [
        _NORMAL.inv_cdf(draw_uniform(seed, purpose, server_round, partition))
        for purpose in ("jitter device", "jitter link")
    ]
    return math.exp(sigma * z[0]), math.exp(sigma * z[1])


_NORMAL = NormalDist()


def stays(dropout: float, seed: int, server_round: int, partition: int) -> float:
    """Return the share of a round's work after which a client leaves; 1 where it does not.

    It leaves with probability ``dropout``, at a moment that is drawn evenly.

    Raises:
        ValueError: it is no probability below 1.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"fleet.dropout={dropout}: takes a probability in [0, 1)")
    if dropout == 0:
        return 1.0
    drawn = draw_uniform(seed, "dropout of clients", server_round, partition)
    return drawn / dropout if drawn < dropout else 1.0


def _pick(shares: Mapping[str, float], u: float) -> str:
    names = [name for name, share in shares.items() if share > 0]
    edges = list(accumulate(shares[name] for name in names))
    return names[min(bisect(edges, u * edges[-1]), len(names) - 1)]
