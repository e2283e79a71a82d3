"""Which clients take part in a round.

uniform            each as likely
fastest            those whose rounds take least
power_of_choice    of some drawn uniformly those with the largest loss (Cho et al. 2020, arXiv
                   2010.01243, the variant that knows a client's loss of when it last trained)
oort               by what a client's samples are worth and how long it takes, with some that
                   have not been tried yet (Lai et al., OSDI 2021, arXiv 2010.06081)
"""

import math
import numbers
import random
from collections.abc import Callable, Mapping, Sequence
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
        if not is_count_or_share(self.per_round, self.total):
            raise ValueError(
                f"clients.per_round={self.per_round}: takes an integer from 1 to "
                f"clients.total={self.total}, or a share in (0, 1]"
            )


def is_count_or_share(value: Any, most: float = math.inf) -> bool:
    """Whether it is an integer from 1 to ``most``, or a float in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value <= (most if isinstance(value, int) else 1)


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


# What selections know ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """What is known of the clients before a round.

    Attributes:
        round: the round, from 1.
        samples: of each client.
        seconds: of a client's round, alone with the server.
        losses: mean training loss of each client when it last took part; absent where it has not.
        rounds: when that was.
        candidates: power_of_choice: how many are drawn for each that is chosen.
    """

    round: int
    samples: Mapping[int, int]
    seconds: Callable[[int], float]
    losses: Mapping[int, float] = field(default_factory=dict)
    rounds: Mapping[int, int] = field(default_factory=dict)
    candidates: float = 2.0


Selection = Callable[[Sequence[int], int, Known, random.Random], list[int]]


def uniform(
    clients: Sequence[int], count: int, known: Known, generator: random.Random
) -> list[int]:
    """Each client as likely."""
    return generator.sample(sorted(clients), count)


def fastest(
    clients: Sequence[int], count: int, known: Known, generator: random.Random
) -> list[int]:
    """Those whose rounds take least; of equal ones the smaller id."""
    return sorted(clients, key=lambda p: (known.seconds(p), p))[:count]


def power_of_choice(
    clients: Sequence[int], count: int, known: Known, generator: random.Random
) -> list[int]:
    """Of ``candidates`` · count drawn uniformly those with the largest loss; the untried first."""
    drawn = generator.sample(
        sorted(clients), min(len(clients), math.ceil(known.candidates * count))
    )
    return sorted(drawn, key=lambda p: (-known.losses.get(p, math.inf), p))[:count]


EXPLORE, EXPLORE_DECAY, LEAST_EXPLORE = 0.9, 0.98, 0.2  # share of clients that are new
PREFERRED = 0.3  # quantile of the clients' seconds beyond which slowness counts
SLOWNESS = 2.0  # α
CLIP, CUTOFF = 0.95, 0.95  # quantile of utilities; share of the last one that would be chosen


def oort(clients: Sequence[int], count: int, known: Known, generator: random.Random) -> list[int]:
    """By utility, with exploration; its parameters are those of the authors' code.

    Uᵢ = nᵢ·lossᵢ, clipped at its 95th percentile and scaled to [0, 1], plus √(0.1·log r / rᵢ) for
    what was last tried in round rᵢ, times (T/tᵢ)² where tᵢ is above the preferred T. Of those near
    the best, clients are drawn by U; the share ε of new ones is drawn by speed.

    Deviations: of a client the mean loss is known, not each sample's; T stays where it is, as
    there is no pacer.
    """
    tried = sorted(p for p in clients if p in known.losses)
    new = sorted(p for p in clients if p not in known.losses)
    share = max(LEAST_EXPLORE, EXPLORE * EXPLORE_DECAY ** (known.round - 1))
    num_new = max(count - len(tried), min(len(new), round(share * count)))
    found = _drawn(new, [1 / max(known.seconds(p), 1e-9) for p in new], num_new, generator)
    if num_old := count - len(found):
        utilities = _utilities(tried, sorted(clients), known)
        cutoff = CUTOFF * sorted(utilities, reverse=True)[num_old - 1]
        near = [(p, u) for p, u in zip(tried, utilities, strict=True) if u >= cutoff]
        found += _drawn([p for p, _ in near], [u for _, u in near], num_old, generator)
    return found


def _utilities(tried: Sequence[int], clients: Sequence[int], known: Known) -> list[float]:
    worth = [known.samples[p] * known.losses[p] for p in tried]
    high, low = _quantile(worth, CLIP), min(worth)
    scaled = [(min(u, high) - low) / (high - low) if high > low else 1.0 for u in worth]
    preferred = _quantile([known.seconds(p) for p in clients], PREFERRED)
    found = []
    for p, value in zip(tried, scaled, strict=True):
        value += math.sqrt(0.1 * math.log(known.round) / known.rounds[p])
        if (seconds := known.seconds(p)) > preferred:
            value *= (preferred / seconds) ** SLOWNESS
        found.append(value)
    return found


def _quantile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of them do not exceed."""
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


def _drawn(
    clients: Sequence[int], weights: Sequence[float], count: int, generator: random.Random
) -> list[int]:
    """``count`` different clients, each by its weight (Efraimidis and Spirakis 2006)."""
    keys = {
        p: math.log(1 - generator.random()) / max(weight, 1e-12)
        for p, weight in zip(clients, weights, strict=True)
    }
    return sorted(clients, key=lambda p: (-keys[p], p))[:count]


UNIFORM, POWER_OF_CHOICE = "uniform", "power_of_choice"
SELECTIONS: Mapping[str, Selection] = {
    UNIFORM: uniform,
    "fastest": fastest,
    POWER_OF_CHOICE: power_of_choice,
    "oort": oort,
}
BY_LOSS = (POWER_OF_CHOICE, "oort")  # those that know the clients' losses


def check_selection(name: str, candidates: float) -> None:
    """Refuse a selection that there is not.

    Raises:
        ValueError: names fleet.selection or fleet.candidates.
    """
    if name not in SELECTIONS:
        raise ValueError(f"fleet.selection={name}: takes {', '.join(SELECTIONS)}")
    if not 1 <= candidates < math.inf:
        raise ValueError(f"fleet.candidates={candidates}: takes a factor of 1 or more")
