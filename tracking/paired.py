"""Whether two settings differ by more than their seeds do: a paired t-test, corrected for many.

A seed draws the same clients, samples and first weights for every setting, so results are compared
seed by seed. d_i is the difference of two settings with seed i, of n seeds that both have:

    t = mean(d) / (sd(d) / √n), with n − 1 degrees of freedom,
    mean(d) ± t_{0.975} · sd(d) / √n, the 95 % interval of the difference.

Where all d_i are the same but not 0, sd(d) is 0 and the test has nothing to go by; then p is that
of the sign test, 2^(1−n). Where many settings are compared with one, p is corrected by Holm's step
down method (Scandinavian Journal of Statistics 6, 1979).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FEWEST = 3  # seeds that a test takes: with two it sees hardly any difference
LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """What one setting has more than another, over the seeds that both have.

    Attributes:
        mean: over the seeds; None without any.
        low: end of its 95 % interval; None with fewer than `FEWEST` seeds.
        high: the other end.
        p: probability of such a difference, or a greater one, if there were none; None with fewer
            than `FEWEST` seeds.
        n: seeds that both have.
    """

    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int


def difference(values: Mapping[Any, float], others: Mapping[Any, float]) -> Difference:
    """Compare ``values`` with ``others``, both by seed."""
    found = [values[seed] - others[seed] for seed in values if seed in others]
    n = len(found)
    if n < FEWEST:
        return Difference(statistics.fmean(found) if found else None, None, None, None, n)
    from scipy.special import stdtr, stdtrit  # half a second to import, so only where it is used

    mean = statistics.fmean(found)
    if not any(found):
        return Difference(0.0, 0.0, 0.0, 1.0, n)
    error = statistics.stdev(found) / math.sqrt(n)
    if error < 1e-9 * abs(mean):
        return Difference(mean, mean, mean, 2.0 ** (1 - n), n)
    half = float(stdtrit(n - 1, 0.975)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return Difference(mean, mean - half, mean + half, p, n)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Return probabilities corrected for how many there are, in their order."""
    corrected = [0.0] * len(probabilities)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(corrected)), key=probabilities.__getitem__)):
        largest = max(largest, min(1.0, probabilities[index] * (len(corrected) - rank)))
        corrected[index] = largest
    return corrected
