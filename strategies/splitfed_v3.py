"""SplitFed V3 (Gawali et al. 2020, arXiv 2012.12591).

Each client keeps a device's half of its own, which is never averaged and never leaves it; the
copies of the server's half are averaged. The halves lie in this object between rounds, and in
checkpoints: that is the simulation's doing, and does not count as traffic.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from fleet.selection import select
from strategies import messages
from strategies.client.split_loop import SplitClient
from strategies.server.checkpoint import Arrays
from strategies.server.cuts import SplitStrategy
from strategies.server.loop import Test
from strategies.server.private_halves import by_owner, flattened, replaced
from strategies.server.results import Outcome

INITIAL = "initial"


class SplitFedV3(SplitStrategy):
    """Server half.

    In the global model the device's part is the average of the round's clients. Nobody trains from
    it but clients that take part for the first time, who begin with the initial one.

    Args:
        evaluate_clients: how many clients' halves are tested with the global server's half.
        common: arguments of `SplitStrategy`.
    """

    client = SplitClient()
    reads: ClassVar[tuple[str, ...]] = (*SplitStrategy.reads, "evaluate.clients")
    takes_mapping: ClassVar[bool] = True
    is_private: ClassVar[bool] = True

    def __init__(self, *, evaluate_clients: int = 10, **common: object) -> None:
        super().__init__(**common)  # type: ignore[arg-type]
        self.evaluate_clients = evaluate_clients
        self._initial: Arrays = {}
        self._private: dict[int, Arrays] = {}  # partition id → its half
        self._before: Arrays = {}  # the round's global model

    def state(self) -> Arrays:
        """Every client's half, and the one that newcomers begin with."""
        return flattened(self._private) | flattened({INITIAL: self._initial})

    def load_state(self, state: Arrays) -> None:
        """Take the halves back."""
        halves = by_owner(state)
        self._initial = halves.pop(INITIAL, {})
        self._private = {int(partition): half for partition, half in halves.items()}

    def begin(self) -> None:
        """Everybody is a newcomer."""
        self._initial, self._private = {}, {}

    def requests(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, chosen: Sequence[int]
    ) -> list[Message]:
        """A message of its own for each client, with the client's own half in it."""
        self._before = messages.to_arrays(arrays)
        self._initial = self._initial or self._before
        return self.requests_each(server_round, arrays, config, chosen, self.own)

    def exchange(self, grid: Grid, sent: Sequence[Message], timeout: float) -> list[Outcome]:
        """Keep each client's half; the copies of the server's go on to be averaged."""
        outcomes = super().exchange(grid, sent, timeout)
        for outcome in outcomes:
            names = self.device_names(outcome.partition)
            if outcome.update is not None:
                mine = {name: outcome.state[name] for name in outcome.state if name in names}
                self._private[outcome.partition] = mine
        return outcomes

    def evaluate(self, arrays: Mapping[str, Tensor], test: Test) -> dict[str, float]:
        """Mean over some clients' halves, the same in each round, with the global server's."""
        found = []
        for partition in select(self.with_data(), self.evaluate_clients, self.seed, 0):
            own = replaced(arrays, self.own(partition))
            found.append(self.tested(self.split_of(partition), own, test))
        return {name: sum(one[name] for one in found) / len(found) for name in found[0]}

    def combine(
        self, outcomes: Sequence[Outcome]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average each array over the clients whose server half it is in; else over all.

        What no client of the round has there, but others have, stays as it was.
        """
        everyone, loss = super().combine(outcomes)
        if everyone is None:
            return None, None
        averaged = messages.to_arrays(everyone)
        useful = [outcome for outcome in outcomes if outcome.update is not None]
        for names, holders in self._held_by(useful, averaged):
            some = [replace(o, state={name: o.state[name] for name in names}) for o in holders]
            part, _ = super().combine(some)
            averaged |= messages.to_arrays(part) if part is not None else {}
        always = frozenset.intersection(*(self._names[split] for split in self.in_use()))
        here = frozenset.intersection(*(self.device_names(o.partition) for o in useful))
        averaged |= {name: self._before[name] for name in here - always}
        return messages.to_record(averaged), loss

    def _held_by(
        self, outcomes: Sequence[Outcome], names: Iterable[str]
    ) -> list[tuple[list[str], list[Outcome]]]:
        """Names that only some clients have in their server half, with those clients."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for name in names:
            holders = [
                i for i, o in enumerate(outcomes) if name not in self.device_names(o.partition)
            ]
            if 0 < len(holders) < len(outcomes):
                groups.setdefault(tuple(holders), []).append(name)
        return [(mine, [outcomes[i] for i in holders]) for holders, mine in groups.items()]

    def own(self, partition: int) -> Arrays:
        """Return a client's device half, the initial one where it has not taken part yet."""
        names = self.device_names(partition)
        half = self._private.get(partition, self._initial)
        return {name: array for name, array in half.items() if name in names}
