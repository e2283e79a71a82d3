"""From the clients' arrays to the next global model.

An `Average` combines one floating array of all clients. `combine` applies it to whole states:
integer arrays take the maximum, booleans are or-ed, a quantizer's step is combined by its logarithm
over the clients that initialised it. Types and shapes stay. What a client does not hold counts for
nothing: each array, or each entry of it, is combined over its holders, and what nobody holds stays
as it was. `Averaging` is the part of a method that does this, and then lets a server optimizer
step.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.functional import MIN_STEP
from quant.quantizer import initialised_flag, is_step
from strategies import messages
from strategies.blocks import means
from strategies.client.proximal import check_mu
from strategies.contract import Settings
from strategies.server.method import Arrays, Masks, Result, ServerState
from strategies.server.robust import ROBUST, Weights
from strategies.server.server_optimizer import (
    PREFIX,
    ServerOptimizer,
    ServerSettings,
    log_step,
)

# One floating array of each client, in partition order, and the clients' weights.
Average = Callable[[Iterable[NDArray[np.floating]], Sequence[float]], NDArray[np.floating]]


def mean(values: Iterable[NDArray[np.floating]], weights: Sequence[float]) -> NDArray[np.floating]:
    """Σ wᵢ·xᵢ with wᵢ = nᵢ/Σn, accumulated in float64 in the order given, one client at a time."""
    total = sum(weights)
    pairs = zip(values, weights, strict=True)
    value, weight = next(pairs)
    result: NDArray[np.floating] = np.multiply(value, weight / total, dtype=np.float64)
    for value, weight in pairs:
        result += np.multiply(value, weight / total, dtype=np.float64)
    return result


def median(
    values: Iterable[NDArray[np.floating]], weights: Sequence[float]
) -> NDArray[np.floating]:
    """Coordinate-wise median, every client alike (Yin et al. 2018, arXiv 1803.01498)."""
    result: NDArray[np.floating] = np.median(np.stack(list(values)), axis=0)
    return result


def trimmed_mean(
    values: Iterable[NDArray[np.floating]], weights: Sequence[float], share: float = 0.1
) -> NDArray[np.floating]:
    """Mean without the largest and smallest ``share`` of each coordinate (same paper)."""
    ordered = np.sort(np.stack(list(values)), axis=0)
    cut = int(share * len(ordered))
    result: NDArray[np.floating] = ordered[cut : len(ordered) - cut].mean(axis=0, dtype=np.float64)
    return result


AVERAGES: dict[str, Average] = {"mean": mean, "median": median, "trimmed_mean": trimmed_mean}


@dataclass(frozen=True)
class AverageSettings:
    """How clients are averaged: what the strategy group holds for every method."""

    average: str = field(
        default="mean", metadata={"help": f"aggregation: {', '.join([*AVERAGES, *ROBUST])}"}
    )
    num_malicious: int = field(
        default=1,
        metadata={"help": "krum, multi_krum: clients of a round that may be malicious"},
    )

    def __post_init__(self) -> None:
        if self.average not in {**AVERAGES, **ROBUST}:
            takes = ", ".join([*AVERAGES, *ROBUST])
            raise ValueError(f"strategy.average={self.average}: takes {takes}")
        if isinstance(self.num_malicious, bool) or self.num_malicious < 0:
            raise ValueError(f"strategy.num_malicious={self.num_malicious}: takes 0 or more")

    @property
    def function(self) -> Average:
        """What combines one array of all clients."""
        return AVERAGES.get(self.average, mean)

    @property
    def weigh(self) -> Weights | None:
        """What weighs clients by their distances, where anything does."""
        robust = ROBUST.get(self.average)
        return robust and partial(robust, num_malicious=self.num_malicious)

    def unread(self) -> tuple[str, ...]:
        """Keys that change nothing, given the others."""
        return () if self.average in ("krum", "multi_krum") else ("num_malicious",)


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

    def unread(self) -> tuple[str, ...]:
        """Keys that change nothing, given the others."""
        return (*ServerSettings.unread(self), *AverageSettings.unread(self))

    def client_settings(self) -> Settings:
        """What clients need of it."""
        return {messages.PROXIMAL_MU: self.proximal_mu} if self.proximal_mu else {}


@dataclass(frozen=True)
class Averaging:
    """The usual aggregate: an average over holders, then the server optimizer.

    Attributes:
        average: combines the clients' floating arrays.
        optimizer: what the server does with the average; its memory is in the state's ``extra``.
        weigh: gives clients other weights than their samples; who gets none is left out.
    """

    average: Average = mean
    optimizer: ServerSettings = field(default_factory=ServerSettings)
    weigh: Weights | None = None

    @staticmethod
    def of(settings: AverageSettings | None) -> "Averaging":
        """Return what the settings say; None is the mean."""
        if settings is None:
            return Averaging()
        if not isinstance(settings, AveragingSettings):
            return Averaging(settings.function, weigh=settings.weigh)
        return Averaging(settings.function, settings, settings.weigh)

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
        results, weights = self._weighed(results)
        averaged = combine(
            [result.arrays for result in results],
            weights,
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

    def _weighed(self, results: Sequence[Result]) -> tuple[Sequence[Result], list[float]]:
        """The results that are averaged, and their weights."""
        weights = [result.weight for result in results]
        if self.weigh is None:
            return results, weights
        # What somebody does not hold says nothing about others.
        compared = [
            name
            for name in results[0].arrays
            if all(result.masks.get(name, True) is True for result in results)
        ]
        states = [result.arrays for result in results]
        found = self.weigh(states, compared, weights)
        kept = [index for index, weight in enumerate(found) if weight > 0]
        return [results[index] for index in kept], [found[index] for index in kept]


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
    is_usual = average is mean and not any(masks)
    meant = means(states, weights) if is_usual else {}
    found = dict[str, NDArray[np.generic]]()
    for name in states[0]:
        if name in meant and not is_step(name):
            found[name] = meant[name]
            continue
        held = [mask.get(name, True) for mask in masks]
        if all(mask is True for mask in held):
            value = _combine_one(name, states, weights, average)
        else:
            assert before is not None, "masks need what was there before"
            value = _combine_held(name, states, weights, average, held, before[name])
        found[name] = value
    return found


def _combine_held(
    name: str,
    states: Sequence[Arrays],
    weights: Sequence[float],
    average: Average,
    held: Sequence[bool | NDArray[np.generic]],
    before: NDArray[np.generic],
) -> NDArray[np.generic]:
    """Each entry over the clients that hold it; entries with the same holders at once.

    Clients of one view share one mask: there are as many kinds of them as there are masks.
    """
    kinds = list({id(mask): mask for mask in held}.values())
    kind_of = {id(mask): kind for kind, mask in enumerate(kinds)}
    holds = np.stack([np.broadcast_to(np.asarray(mask, bool), before.shape) for mask in kinds])
    patterns, which = np.unique(holds.reshape(len(kinds), -1), axis=1, return_inverse=True)
    which = which.reshape(before.shape)
    result = np.array(before)
    for index, pattern in enumerate(patterns.T):
        holders = [i for i, mask in enumerate(held) if pattern[kind_of[id(mask)]]]
        entries = which == index
        if not holders:
            continue
        some = [states[i] for i in holders]
        result[entries] = _combine_one(name, some, [weights[i] for i in holders], average, entries)
    return result


def _combine_one(
    name: str,
    states: Sequence[Arrays],
    weights: Sequence[float],
    average: Average,
    entries: NDArray[np.bool_] | None = None,
) -> NDArray[np.generic]:
    """Combine one array of all clients, or those of its entries; its type stays.

    Steps are sizes: their mean is the geometric one, which stays positive and between them, and
    which one runaway among many moves little.
    """
    first = states[0][name]
    if is_step(name):
        flags = [bool(state[initialised_flag(name)]) for state in states]
        if not any(flags):
            return first if entries is None else first[entries]
        states = [state for state, flag in zip(states, flags, strict=True) if flag]
        weights = [weight for weight, flag in zip(weights, flags, strict=True) if flag]
    values = _read(name, states, first.shape, entries)
    value: NDArray[np.generic]
    if first.dtype.kind == "b":
        value = reduce(np.logical_or, values)
    elif first.dtype.kind in "iu":
        value = reduce(np.maximum, values)
    elif is_step(name):
        value = np.maximum(np.exp(average(map(log_step, values), weights)), MIN_STEP)
    else:
        value = average(values, weights)
    return np.asarray(value, dtype=first.dtype)


def _read(
    name: str,
    states: Iterable[Arrays],
    shape: tuple[int, ...],
    entries: NDArray[np.bool_] | None,
) -> Iterator[NDArray[Any]]:
    """Yield one client's array after another: together they may not fit into memory."""
    for state in states:
        value = state[name]
        if value.shape != shape:
            raise ValueError(f"clients returned arrays of different shapes: {name}")
        yield value if entries is None else value[entries]
