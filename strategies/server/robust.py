"""Weights that keep malicious or broken clients out of a mean, by the distances between updates.

    krum              the client closest to its n − f − 2 nearest others (Blanchard et al. 2017,
                      arXiv 1703.02757)
    multi_krum        the mean of the n − f clients that Krum ranks first (same paper)
    geometric_median  the point of least summed distance to all clients, by the smoothed Weiszfeld
                      algorithm (Pillutla et al. 2019, arXiv 1912.13445)

f is how many clients of a round may be malicious. All distances come of one pass over the clients'
arrays. Flower's `select_multikrum` is Krum too; it concatenates all clients' arrays, and subtracts
large norms in float32, which loses the distances of clients that are close.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from strategies.server.method import Arrays

log = logging.getLogger(__name__)

# (clients' arrays, names of those to compare, samples) → weights of the mean.
Weights = Callable[[Sequence[Arrays], Sequence[str], Sequence[float]], list[float]]

ITERATIONS = 1000
SMALLEST = 1e-6  # of the distance between two clients, as a share of the largest


def krum(
    states: Sequence[Arrays], names: Sequence[str], weights: Sequence[float], num_malicious: int
) -> list[float]:
    """1 for the client that Krum selects, 0 for the others."""
    return _first(_ranked(states, names, num_malicious), 1)


def multi_krum(
    states: Sequence[Arrays], names: Sequence[str], weights: Sequence[float], num_malicious: int
) -> list[float]:
    """1 for the n − f clients that Krum ranks first, 0 for the others."""
    order = _ranked(states, names, num_malicious)
    return _first(order, max(1, len(order) - num_malicious))


def geometric_median(
    states: Sequence[Arrays], names: Sequence[str], weights: Sequence[float], num_malicious: int
) -> list[float]:
    """Weights of the mean that is the geometric median, clients counted by their samples."""
    inner = inner_products(states, names)
    alpha = np.asarray(weights, np.float64) / sum(weights)
    beta = alpha
    for _ in range(ITERATIONS):
        # ‖xᵢ − z‖² with z = Σ βⱼxⱼ
        squared = np.diag(inner) - 2 * inner @ beta + beta @ inner @ beta
        distance = np.sqrt(np.maximum(squared, 0))
        if not distance.max() > 0:
            break
        new = alpha / np.maximum(distance, SMALLEST * distance.max())
        new /= new.sum()
        is_settled, beta = np.allclose(new, beta, rtol=1e-9, atol=0), new
        if is_settled:
            break
    return [float(weight) for weight in beta]


def inner_products(states: Sequence[Arrays], names: Sequence[str]) -> NDArray[np.float64]:
    """Return ⟨xᵢ − x₀, xⱼ − x₀⟩ over floating arrays, in float64; (clients, clients).

    One array of all clients is in memory at a time.
    """
    total = np.zeros((len(states), len(states)))
    for name in names:
        first = states[0][name]
        if first.dtype.kind == "f":
            zero = first.astype(np.float64)
            apart = np.stack([(state[name] - zero).reshape(-1) for state in states])
            total += apart @ apart.T
    return total


def _ranked(states: Sequence[Arrays], names: Sequence[str], num_malicious: int) -> list[int]:
    """Clients by Krum's score, the best first; of equal ones the first."""
    if len(states) < 2 * num_malicious + 3:
        log.warning(
            "strategy.num_malicious=%d: Krum needs %d clients to keep them out, these are %d",
            num_malicious, 2 * num_malicious + 3, len(states),
        )  # fmt: skip
    inner = inner_products(states, names)
    norms = np.diag(inner)
    distances = norms[:, None] + norms[None, :] - 2 * inner
    nearest = max(1, len(states) - num_malicious - 2)
    np.fill_diagonal(distances, np.inf)  # not to itself
    scores = np.sort(distances, axis=1)[:, : min(nearest, len(states) - 1)].sum(axis=1)
    return [int(index) for index in np.argsort(scores, kind="stable")]


def _first(order: Sequence[int], count: int) -> list[float]:
    chosen = set(order[:count])
    return [float(index in chosen) for index in range(len(order))]


ROBUST: dict[str, Callable[..., list[float]]] = {
    "krum": krum,
    "multi_krum": multi_krum,
    "geometric_median": geometric_median,
}
