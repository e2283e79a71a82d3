"""Server optimizers: a round's average as a gradient (Reddi et al. 2021, arXiv 2003.00295).

With the server's model w, the clients' average a, and Δ = a − w in round t = 1, 2, …:

    fedavgm   u ← β·u − Δ                                        w ← w − η·u
    fedadam   m ← β₁·m + (1−β₁)·Δ   v ← β₂·v + (1−β₂)·Δ²         w ← w + ηₜ·m / (√v + τ)
    fedyogi   m as above            v ← v − (1−β₂)·Δ²·sgn(v−Δ²)  w ← w + η·m / (√v + τ)

FedAvgM is of Hsu et al. 2019, arXiv 1909.06335. In code η is `server_learning_rate` and β is
`server_momentum`.

The arithmetic is that of Flower's own classes, called by their `aggregate_train`; only the average
below them is ours, so that nothing is sampled, weighted or logged twice. Beyond that method we set
`current_arrays` (w) and carry `momentum_vector`, `m_t` and `v_t` to and from checkpoints: public
attributes, but not documented ones. Where Flower is not the paper: m and v start at 0 (the paper's
v at τ² or more), and FedAdam corrects for that by ηₜ = η·√(1−β₂ᵗ⁺¹)/(1−β₁ᵗ⁺¹), one round ahead of
Adam's own correction.

Only what trains is stepped, see `ServerOptimizer.step`. Of a quantizer's step w is the logarithm,
so that η is relative: FedAdam's 0.1 is more than most steps are.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray

from quant.functional import MIN_STEP
from quant.quantizer import initialised_flag, is_step
from strategies import messages
from strategies.server.method import Arrays

NONE = "none"
# The settings that each one reads.
SERVER_OPTIMIZERS: dict[str, tuple[str, ...]] = {
    NONE: (),
    "fedavgm": ("server_learning_rate", "server_momentum"),
    "fedadam": ("server_learning_rate", "beta_1", "beta_2", "tau"),
    "fedyogi": ("server_learning_rate", "beta_1", "beta_2", "tau"),
}
# Flower's defaults.
LEARNING_RATES = {"fedavgm": 1.0, "fedadam": 0.1, "fedyogi": 0.01}
PREFIX = "server_optimizer."  # of its arrays in a checkpoint
MOST_LOG_CHANGE = math.log(10)  # of a quantizer's step in a round


@dataclass(frozen=True)
class ServerSettings:
    """What the server does with the average: keys of the group strategy."""

    server_optimizer: str = field(
        default=NONE, metadata={"help": "server optimizer: none, fedavgm, fedadam, fedyogi"}
    )
    server_learning_rate: float | None = field(
        default=None, metadata={"help": "learning rate of the server optimizer; null: 1, 0.1, 0.01"}
    )
    server_momentum: float = field(default=0.9, metadata={"help": "fedavgm: server momentum"})
    beta_1: float = field(
        default=0.9, metadata={"help": "fedadam, fedyogi: decay rate of the first moment"}
    )
    beta_2: float = field(
        default=0.99, metadata={"help": "fedadam, fedyogi: decay rate of the second moment"}
    )
    tau: float = field(
        default=1e-3,
        metadata={"help": "fedadam, fedyogi: degree of adaptivity; smaller is more adaptive"},
    )

    def __post_init__(self) -> None:
        if self.server_optimizer not in SERVER_OPTIMIZERS:
            takes = ", ".join(SERVER_OPTIMIZERS)
            raise ValueError(f"strategy.server_optimizer={self.server_optimizer}: takes {takes}")
        rate = self.server_learning_rate
        if rate is not None and not (is_number(rate) and 0 < rate < math.inf):
            raise ValueError(
                f"strategy.server_learning_rate={rate}: takes a finite number above 0, or null"
            )
        for name in ("server_momentum", "beta_1", "beta_2"):
            if not (is_number(value := getattr(self, name)) and 0 <= value < 1):
                raise ValueError(f"strategy.{name}={value}: takes 0 or more, and less than 1")
        if not (is_number(self.tau) and 0 < self.tau < math.inf):
            raise ValueError(f"strategy.tau={self.tau}: takes a finite number above 0")

    @property
    def is_used(self) -> bool:
        """Whether there is an optimizer at all."""
        return self.server_optimizer != NONE

    def unread(self) -> tuple[str, ...]:
        """Settings that the chosen optimizer does not read."""
        read = ("server_optimizer", *SERVER_OPTIMIZERS[self.server_optimizer])
        return tuple(f.name for f in fields(ServerSettings) if f.name not in read)


def is_number(value: object) -> bool:
    """Whether ``value`` is an int or a float; a bool is neither here."""
    return isinstance(value, int | float) and not isinstance(value, bool)


class ServerOptimizer:
    """One of Flower's optimizers, with its memory.

    Args:
        settings: which, and its constants; not ``none``.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._flower = _flower(settings)
        self._names: list[str] = []  # in the order of FedAvgM's list

    def step(
        self, server_round: int, before: Arrays, average: Arrays, trained: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Return the new global model.

        Args:
            server_round: from 1.
            before: the global model of the round's start.
            average: of the clients, same names; what is not stepped keeps its values.
            trained: names of the trainable parameters, the same in every round.

        A quantizer's step that was not initialised before the round takes the average, and the
        optimizer sees no change of it: how far it is from a placeholder says nothing. A round
        changes a step by a factor of 10 at most. Types stay what they are.
        """
        self._names = sorted(trained)
        stepped = {name: _to_space(name, average[name]) for name in self._names}
        current = {
            name: _to_space(name, before[name]) if _is_set(name, before) else stepped[name]
            for name in self._names
        }
        if isinstance(self._flower, flower.FedAvgM):
            self._flower.current_arrays = messages.to_record(current)
        else:
            self._flower.current_arrays = current
        self._flower.average = messages.to_record(stepped)
        record, _ = self._flower.aggregate_train(server_round, [])
        assert record is not None
        new = messages.to_arrays(record)
        return {
            name: _finish(name, new[name], current[name], old.dtype) if name in new else old
            for name, old in average.items()
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the memory: one array per kind and parameter, shaped like it; at first none."""
        if isinstance(self._flower, flower.FedAvgM):
            vector = self._flower.momentum_vector
            kinds = (
                {"momentum_vector": dict(zip(self._names, vector, strict=True))} if vector else {}
            )
        else:
            kinds = {"m_t": self._flower.m_t or {}, "v_t": self._flower.v_t or {}}
        return {
            f"{PREFIX}{kind}.{name}": np.asarray(array)
            for kind, arrays in kinds.items()
            for name, array in arrays.items()
        }

    def load_state(self, state: Arrays) -> None:
        """Take back what `state` returned; nothing in ``state`` begins anew."""
        self._flower = _flower(self.settings)
        if isinstance(self._flower, flower.FedAvgM):
            vector = _under(f"{PREFIX}momentum_vector.", state)
            self._names = sorted(vector)
            self._flower.momentum_vector = [vector[name] for name in self._names] or None
        else:
            self._flower.m_t = _under(f"{PREFIX}m_t.", state) or None
            self._flower.v_t = _under(f"{PREFIX}v_t.", state) or None


def _is_set(name: str, before: Arrays) -> bool:
    return not is_step(name) or bool(before[initialised_flag(name)])


def log_step(step: NDArray[Any]) -> NDArray[np.float64]:
    """Logarithm of quantizers' steps in float64; below 1e-8 that of 1e-8."""
    logarithm: NDArray[np.float64] = np.log(np.maximum(step, MIN_STEP, dtype=np.float64))
    return logarithm


def _to_space(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """What the optimizer sees of a parameter."""
    return log_step(array) if is_step(name) else array


def _finish(
    name: str, array: NDArray[Any], before: NDArray[Any], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Back from `_to_space`; FedAdam returns float64 for float32."""
    if is_step(name):
        change = np.clip(array - before, -MOST_LOG_CHANGE, MOST_LOG_CHANGE)
        array = np.maximum(np.exp(before + change), MIN_STEP)
    return np.asarray(array, dtype=dtype)


def _under(prefix: str, state: Arrays) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


# Flower's classes over an average that is given ---------------------------------------------------


class _Averaged(flower.FedAvg):
    """Stands below Flower's optimizers where its FedAvg does."""

    average: ArrayRecord

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the average that was given; there are no replies."""
        return self.average, None


class _FedAvgM(flower.FedAvgM, _Averaged):
    pass


class _FedAdam(flower.FedAdam, _Averaged):
    pass


class _FedYogi(flower.FedYogi, _Averaged):
    pass


def _flower(settings: ServerSettings) -> _FedAvgM | _FedAdam | _FedYogi:
    kind, rate = settings.server_optimizer, settings.server_learning_rate
    rate = LEARNING_RATES[kind] if rate is None else rate
    if kind == "fedavgm":
        return _FedAvgM(server_learning_rate=rate, server_momentum=settings.server_momentum)
    adaptive = _FedAdam if kind == "fedadam" else _FedYogi
    return adaptive(eta=rate, beta_1=settings.beta_1, beta_2=settings.beta_2, tau=settings.tau)
