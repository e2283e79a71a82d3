"""Averaging of client states, as a function of arrays.

An `Average` combines one floating array of all clients. `combine` applies it to whole states:
integer arrays take the maximum, booleans are or-ed, a quantizer's step is combined over the clients
that initialised it and stays ≥ 1e-8. Types and shapes stay.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quant.functional import MIN_STEP
from quant.layers import initialised_flag, is_step

Arrays = Mapping[str, NDArray[np.generic]]
Average = Callable[[Sequence[NDArray[np.floating]], Sequence[float]], NDArray[np.floating]]


def mean(values: Sequence[NDArray[np.floating]], weights: Sequence[float]) -> NDArray[np.floating]:
    """Σ wᵢ·xᵢ with wᵢ = nᵢ/Σn, accumulated in float64 in the order given."""
    total = sum(weights)
    result: NDArray[np.floating] = np.multiply(values[0], weights[0] / total, dtype=np.float64)
    for value, weight in zip(values[1:], weights[1:], strict=True):
        result += np.multiply(value, weight / total, dtype=np.float64)
    return result


def median(
    values: Sequence[NDArray[np.floating]], weights: Sequence[float]
) -> NDArray[np.floating]:
    """Coordinate-wise median, every client alike (Yin et al. 2018, arXiv 1803.01498)."""
    result: NDArray[np.floating] = np.median(np.stack(values), axis=0)
    return result


def trimmed_mean(
    values: Sequence[NDArray[np.floating]], weights: Sequence[float], share: float = 0.1
) -> NDArray[np.floating]:
    """Mean without the largest and smallest ``share`` of each coordinate (same paper)."""
    ordered = np.sort(np.stack(values), axis=0)
    cut = int(share * len(values))
    result: NDArray[np.floating] = ordered[cut : len(values) - cut].mean(axis=0, dtype=np.float64)
    return result


AVERAGES: dict[str, Average] = {"mean": mean, "median": median, "trimmed_mean": trimmed_mean}


@dataclass(frozen=True)
class AverageSettings:
    """How clients are averaged: what the strategy group holds for every method."""

    average: str = field(default="mean", metadata={"help": "mean, median, trimmed_mean"})

    def __post_init__(self) -> None:
        if self.average not in AVERAGES:
            raise ValueError(f"strategy.average={self.average}: takes {', '.join(AVERAGES)}")

    @property
    def function(self) -> Average:
        """What combines one array of all clients."""
        return AVERAGES[self.average]

    def unread(self) -> tuple[str, ...]:
        """Keys that change nothing, given the others: none."""
        return ()


def combine(
    states: Sequence[Arrays], num_examples: Sequence[int], average: Average = mean
) -> dict[str, NDArray[np.generic]]:
    """Combine client states into one.

    Args:
        states: arrays by name, all with the same names and shapes, in partition order.
        num_examples: each client's weight.
        average: how floating arrays are combined.

    Raises:
        ValueError: the states do not have the same names and shapes.
    """
    for state in states[1:]:
        if state.keys() != states[0].keys():
            odd = sorted(state.keys() ^ states[0].keys())
            raise ValueError(f"clients returned different arrays: {', '.join(odd[:5])}")
        wrong = [name for name, array in states[0].items() if state[name].shape != array.shape]
        if wrong:
            raise ValueError(f"clients returned arrays of different shapes: {', '.join(wrong[:5])}")
    return {
        name: np.asarray(_combine_one(name, states, num_examples, average), dtype=first.dtype)
        for name, first in states[0].items()
    }


def _combine_one(
    name: str, states: Sequence[Arrays], num_examples: Sequence[int], average: Average
) -> NDArray[np.generic]:
    values = [state[name] for state in states]
    kind = values[0].dtype.kind
    if kind == "b":
        either: NDArray[np.generic] = np.logical_or.reduce(values)
        return either
    if kind in "iu":
        largest: NDArray[np.generic] = np.maximum.reduce(values)
        return largest
    if not is_step(name):
        return average(values, num_examples)  # type: ignore[arg-type]
    flags = [bool(state[initialised_flag(name)]) for state in states]
    known = [(v, n) for v, n, flag in zip(values, num_examples, flags, strict=True) if flag]
    if not known:
        return values[0]
    step = average([v for v, _ in known], [n for _, n in known])  # type: ignore[misc]
    return np.maximum(step, MIN_STEP)
