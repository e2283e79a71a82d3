"""Asynchronous averaging, as a method of the user's own: one file, and nothing else touched.

After FedBuff (Nguyen et al. 2022, arXiv 2106.06639) and FedAsync (Xie et al. 2019, arXiv
1903.03934). A client starts from the model of step t and its update arrives in step t + k, where k
is its delay; until then it is not asked again, and the server steps on without it:

    Δᵢ = wᵢ − w(t)       w(t+k) = Σ λᵢ·(w(t+k−1) + Δᵢ)       λᵢ ∝ nᵢ·(1 + k)^−a

over the updates that arrive in that step. For k = 0 the bracket is wᵢ itself, so with equally fast
clients this is FedAvg, bit for bit. Updates on their way are in the state's ``extra``.

Deviations: delays are counted in server steps and follow from the partition id, and a step is taken
in each round, not when a buffer is full. The simulated clock sees a round of those that started.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from strategies.fedavg import FedAvgClient
from strategies.server.aggregation import Averaging, AveragingSettings
from strategies.server.loop import FederatedStrategy
from strategies.server.method import (
    Aggregate,
    Arrays,
    Method,
    Result,
    RoundArguments,
    ServerState,
)
from strategies.server.networks import Whole
from strategies.server.schedules import Parallel
from strategies.server.wires import Latent

PREFIX = "arriving/"
# (m, 3) int64, one row for each update on its way: partition, step in which it began, samples.
INDEX = "index"


@dataclass(frozen=True)
class AsynchronousSettings:
    """The method's own keys of the group strategy."""

    slow_every: int = field(
        default=0, metadata={"help": "every how many clients one is slow; 0: none"}
    )
    delay: int = field(default=1, metadata={"help": "steps by which a slow client comes later"})
    staleness: float = field(default=0.5, metadata={"help": "a in the weight n·(1 + delay)^−a"})

    def __post_init__(self) -> None:
        for key, kinds in (("slow_every", int), ("delay", int), ("staleness", int | float)):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, kinds) or value < 0:
                raise ValueError(f"strategy.{key}={value}: expected 0 or more")

    def delay_of(self, partition: int) -> int:
        """Steps by which a client's update comes later."""
        is_slow = self.slow_every > 0 and (partition + 1) % self.slow_every == 0
        return self.delay if is_slow else 0


class Asynchronous(FederatedStrategy):
    """FedAvg that does not wait for slow clients.

    Args:
        settings: who is slow, by how much, and what late updates count.
        averaging: as FedAvg's.
        rounds: as `RoundSettings`.
    """

    client = FedAvgClient()

    def __init__(
        self,
        *,
        settings: AsynchronousSettings | None = None,
        averaging: AveragingSettings | None = None,
        **rounds: Unpack[RoundArguments],
    ) -> None:
        averaging = averaging or AveragingSettings()
        average = Averaging.of(averaging)
        method = Method(
            network=Whole(),
            schedule=Buffered(),
            wire=Latent(),
            aggregate=AsTheyArrive(settings or AsynchronousSettings(), average),
            settings=averaging.client_settings(),
            needs_prepare=average.needs_prepare,
        )
        super().__init__(method, **rounds)


@dataclass(frozen=True)
class Buffered(Parallel):
    """All that are free, at once; whoever is at a task of an earlier step goes on with it."""

    def busy(self, state: ServerState) -> tuple[int, ...]:
        """The clients whose updates are on their way."""
        return tuple(partition for partition, _, _ in on_their_way(state))


@dataclass(frozen=True)
class AsTheyArrive:
    """An `Aggregate` of the updates that arrive in a step.

    Attributes:
        settings: when each arrives, and what it counts.
        average: aggregates them.
    """

    settings: AsynchronousSettings
    average: Aggregate

    def __call__(
        self, state: ServerState, results: Sequence[Result], trained: Sequence[str] | None
    ) -> ServerState:
        """Take the step, from what comes now; keep the rest for later."""
        step, kept = state.round + 1, state.kept(PREFIX)
        arrived, rows, later = list[Result](), list[list[int]](), dict[str, NDArray[Any]]()
        for partition, began, samples in on_their_way(state):
            own = {name: kept[f"{partition}/{name}"] for name in state.arrays}
            if began + self.settings.delay_of(partition) <= step:
                arrays = moved(own, state.arrays, 1)
                discount = (1.0 + step - began) ** -self.settings.staleness
                arrived.append(Result(partition, samples, arrays=arrays, discount=discount))
            else:
                rows.append([partition, began, samples])
                later |= {f"{partition}/{name}": array for name, array in own.items()}
        for result in results:
            if not self.settings.delay_of(result.partition):
                arrived.append(result)
                continue
            rows.append([result.partition, step, int(result.weight)])
            delta = moved(result.arrays, state.arrays, -1)
            later |= {f"{result.partition}/{name}": array for name, array in delta.items()}
        if rows:
            later[INDEX] = np.array(sorted(rows), dtype=np.int64)
        state = state.keeping(PREFIX, later)
        return self.average(state, sorted(arrived, key=lambda one: one.partition), trained)


def on_their_way(state: ServerState) -> list[tuple[int, int, int]]:
    """Partition, step of its beginning, and samples of each update that has not arrived yet."""
    rows = state.kept(PREFIX).get(INDEX, np.empty((0, 3), np.int64))
    return [(int(p), int(began), int(samples)) for p, began, samples in rows]


def moved(arrays: Arrays, by: Arrays, sign: int) -> dict[str, NDArray[Any]]:
    """``arrays`` + sign · ``by`` where they are floating; counters and flags as they are."""
    return {
        name: (array + sign * by[name]).astype(array.dtype) if array.dtype.kind == "f" else array
        for name, array in arrays.items()
    }
