"""Who trains when, and what one client hands on to the next.

    parallel   all at once from the same arrays; each has a copy of the server's part
    chain      one after another, in one of two kinds:
               `sequential`  both parts are handed on, in the order of partition ids
               `queued`      the server's part is handed on, in a random order of the round's own;
                             the devices' parts all begin as the round did

A client that fails in a chain hands on what it was given.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fleet import clock
from fleet.clock import Rule
from fleet.seeds import derive_seed
from strategies.server.method import Exchange, Network, Result, Schedule, ServerState


@dataclass(frozen=True)
class Parallel:
    """All clients at once.

    Attributes:
        rule: of the simulated clock.
    """

    rule: Rule = clock.parallel

    def busy(self, state: ServerState) -> tuple[int, ...]:
        """Nobody: a round ends with all of its clients."""
        return ()

    def order(self, chosen: Sequence[int], seed: int, server_round: int) -> list[int]:
        """As they were drawn: by partition id."""
        return list(chosen)

    def run(
        self, state: ServerState, network: Network | None, chosen: Sequence[int], exchange: Exchange
    ) -> tuple[ServerState, list[Result]]:
        """Nothing is handed on."""
        return state, exchange(state.arrays, chosen)


@dataclass(frozen=True)
class Chain:
    """One client after another.

    Attributes:
        rule: of the simulated clock.
        relays_device: whether the device's part is handed on as well as the server's.
        is_shuffled: whether the order is random, drawn by seed and round, or by partition id.
    """

    rule: Rule
    relays_device: bool
    is_shuffled: bool

    def busy(self, state: ServerState) -> tuple[int, ...]:
        """Nobody: a round ends with the last of its clients."""
        return ()

    def order(self, chosen: Sequence[int], seed: int, server_round: int) -> list[int]:
        """The order in which they hand on."""
        return shuffled(chosen, seed, server_round) if self.is_shuffled else list(chosen)

    def run(
        self, state: ServerState, network: Network | None, chosen: Sequence[int], exchange: Exchange
    ) -> tuple[ServerState, list[Result]]:
        """What is handed on is left out of the results: there is nothing to average."""
        current, left = dict(state.arrays), list[Result]()
        for partition in chosen:
            (result,) = exchange(current, [partition])
            stays = frozenset[str]()
            if not self.relays_device and network is not None:
                stays = network.on_device(partition) or frozenset()
            current |= {n: array for n, array in result.arrays.items() if n not in stays}
            kept = {n: array for n, array in result.arrays.items() if n in stays}
            left.append(replace(result, arrays=kept))
        return state.with_arrays(current), left


def shuffled(chosen: Sequence[int], seed: int, server_round: int) -> list[int]:
    """Return the clients in a random order of the round's own."""
    generator = random.Random(derive_seed(seed, "order", server_round))
    return generator.sample(sorted(chosen), len(chosen))


PARALLEL = Parallel()
SEQUENTIAL = Chain(clock.sequential, relays_device=True, is_shuffled=False)
QUEUED = Chain(clock.queued, relays_device=False, is_shuffled=True)
# Those of split learning's methods, for methods that change what happens at the cut.
BASES: dict[str, Schedule] = {
    "split": SEQUENTIAL,
    "splitfed_v1": PARALLEL,
    "splitfed_v2": QUEUED,
}


@dataclass(frozen=True)
class BaseSettings:
    """What the strategy group holds of who trains when, for methods at the cut."""

    base: str = field(
        default="splitfed_v1",
        metadata={"help": "schedule: split, splitfed_v1, splitfed_v2"},
    )

    def __post_init__(self) -> None:
        if self.base not in BASES:
            given = "null" if self.base is None else self.base
            raise ValueError(f"strategy.base={given}: takes {', '.join(BASES)}")

    @property
    def schedule(self) -> Schedule:
        """That of the base."""
        return BASES[self.base]
