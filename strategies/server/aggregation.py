"""From the clients' arrays to the next global model.

An `Average` combines one floating array of all clients. `combine` applies it to whole states:
integer arrays take the maximum, booleans are or-ed, a quantizer's step is combined over the clients
that initialised it and stays ≥ 1e-8. Types and shapes stay. What a client does not hold counts for
nothing: each array, or each entry of it, is combined over its holders, and what nobody holds stays
as it was. `Averaging` is the part of a method that does this, and then lets a server optimizer
step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from quant.functional import MIN_STEP
from quant.layers import initialised_flag, is_step
from strategies import messages
from strategies.client.proximal import check_mu
from strategies.contract import Settings
from strategies.server.method import Arrays, Masks, Result, ServerState
from strategies.server.server_optimizer import PREFIX, ServerOptimizer, ServerSettings

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

    average: str = field(
        default="mean", metadata={"help": "aggregation: mean, median, trimmed_mean"}
    )

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


@dataclass(frozen=True)
class AveragingSettings(ServerSettings, AverageSettings):
    """What methods that train the whole network take for averaging: keys of the group strategy."""

    proximal_mu: float = field(
        default=0.0,
        metadata={"help": "FedProx: weight of the proximal term, mu/2·‖w − w_global‖²"},
    )

    def __post_init__(self) -> None:
        ServerSettings.__post_init__(self)
        AverageSettings.__post_init__(self)
        check_mu(self.proximal_mu)

    def client_settings(self) -> Settings:
        """What clients need of it."""
        return {messages.PROXIMAL_MU: self.proximal_mu} if self.proximal_mu else {}


@dataclass(frozen=True)
class Averaging:
    """The usual aggregate: an average over holders, then the server optimizer.

    Attributes:
        average: combines the clients' floating arrays.
        optimizer: what the server does with the average; its memory is in the state's ``extra``.
    """

    average: Average = mean
    optimizer: ServerSettings = field(default_factory=ServerSettings)

    @staticmethod
    def of(settings: AverageSettings | None) -> "Averaging":
        """Return what the settings say; None is the mean."""
        if settings is None:
            return Averaging()
        if not isinstance(settings, AveragingSettings):
            return Averaging(settings.function)
        return Averaging(settings.function, settings)

    @property
    def needs_prepare(self) -> str:
        """What cannot go without knowing which parameters train."""
        return "strategy.server_optimizer" if self.optimizer.is_used else ""

    @staticmethod
    def over_a_cut(settings: AverageSettings | None) -> "Averaging":
        """The same for a network that is cut.

        Raises:
            ValueError: there is a server optimizer or a proximal term, which need the whole of it.
        """
        averaging = Averaging.of(settings)
        is_proximal = isinstance(settings, AveragingSettings) and settings.proximal_mu > 0
        if averaging.optimizer.is_used or is_proximal:
            raise ValueError(
                "strategy.server_optimizer, strategy.proximal_mu: are for fedavg and oqfl; methods "
                "over a cut take neither"
            )
        return averaging

    def __call__(
        self, state: ServerState, results: Sequence[Result], trained: Sequence[str] | None
    ) -> ServerState:
        """Return the state with the new global model; as it is where nobody came back."""
        if not results:
            return state
        averaged = combine(
            [result.arrays for result in results],
            [result.weight for result in results],
            self.average,
            [result.masks for result in results],
            state.arrays,
        )
        new = {**state.arrays, **averaged}
        if not self.optimizer.is_used:
            return state.with_arrays(new)
        assert trained is not None, "a server optimizer needs prepare()"
        optimizer = ServerOptimizer(self.optimizer)
        optimizer.load_state(state.extra)
        stepped = optimizer.step(state.round + 1, state.arrays, new, trained)
        others = {name: a for name, a in state.extra.items() if not name.startswith(PREFIX)}
        return replace(state, arrays=stepped, extra=others | optimizer.state())


def combine(
    states: Sequence[Arrays],
    weights: Sequence[float],
    average: Average = mean,
    masks: Sequence[Masks] = (),
    before: Arrays | None = None,
) -> dict[str, NDArray[np.generic]]:
    """Combine client states into one.

    Args:
        states: arrays by name, all with the same names and shapes, in partition order.
        weights: of the clients, their samples.
        average: how floating arrays are combined.
        masks: what each client holds; empty where all hold everything.
        before: what stays where nobody holds it.

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
    found = {}
    for name, first in states[0].items():
        held = [mask.get(name, True) for mask in masks]
        if all(mask is True for mask in held):
            value = _combine_one(name, states, weights, average)
        else:
            assert before is not None, "masks need what was there before"
            value = _combine_held(name, states, weights, average, held, before[name])
        found[name] = np.asarray(value, dtype=first.dtype)
    return found


def _combine_held(
    name: str,
    states: Sequence[Arrays],
    weights: Sequence[float],
    average: Average,
    held: Sequence[bool | NDArray[np.generic]],
    before: NDArray[np.generic],
) -> NDArray[np.generic]:
    """Each entry over the clients that hold it; entries with the same holders at once."""
    holds = np.stack([np.broadcast_to(np.asarray(mask, bool), before.shape) for mask in held])
    patterns, which = np.unique(holds.reshape(len(held), -1), axis=1, return_inverse=True)
    which = which.reshape(before.shape)
    result = np.array(before)
    for index, pattern in enumerate(patterns.T):
        holders, entries = np.flatnonzero(pattern).tolist(), which == index
        if not len(holders):
            continue
        some = [{**states[i], name: states[i][name][entries]} for i in holders]
        combined = _combine_one(name, some, [weights[i] for i in holders], average)
        result[entries] = combined
    return result


def _combine_one(
    name: str, states: Sequence[Arrays], weights: Sequence[float], average: Average
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
        return average(values, weights)
    flags = [bool(state[initialised_flag(name)]) for state in states]
    known = [(v, n) for v, n, flag in zip(values, weights, flags, strict=True) if flag]
    if not known:
        return values[0]
    step = average([v for v, _ in known], [n for _, n in known])
    return np.maximum(step, MIN_STEP)
