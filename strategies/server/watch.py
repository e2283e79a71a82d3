"""What is watched of a run beside the test after each round, and what that decides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from strategies.server.ending import NEVER, Ending
from strategies.server.method import Clients, ServerState, Test, TestOf


class Evaluating(Protocol):
    """What tests the states of a run: `loop.Federation`."""

    @property
    def clients(self) -> Clients:
        """Who there is."""

    def alone(self, state: ServerState) -> Sequence[int]:
        """The clients that trained without a network in the last round of a state."""

    def evaluate(self, state: ServerState, alone: Sequence[int], test: Test) -> dict[str, float]:
        """Accuracy, loss and the method's own of the state after a round."""

    def evaluate_each(
        self, state: ServerState, partitions: Sequence[int], test_of: TestOf
    ) -> list[dict[str, float]]:
        """Test clients on their own samples, in one pass or one for each."""


# What a round's record says of clients' own samples, and the accuracy of each by its partition.
TestClients = Callable[[Evaluating, ServerState], tuple[dict[str, float], dict[int, float]]]


@dataclass(frozen=True, eq=False)
class Watch:
    """What is watched of a run.

    Attributes:
        evaluated_on: what the rounds are tested on, for their records.
        test_clients: where clients are tested on samples of their own, as often as the server is.
        ending: what ends the run before its last round.
        keeps_best: keep the state of the round with the highest accuracy (`best.best_of`).
        at_end: called with the state after the last round.
    """

    evaluated_on: str = "test"
    test_clients: TestClients | None = None
    ending: Ending = NEVER
    keeps_best: bool = False
    at_end: Callable[[Evaluating, ServerState], None] = lambda evaluating, state: None

    def is_over(self, state: ServerState) -> bool:
        """Whether the run has ended before its last round."""
        return any(self.ending.end(state.accuracies))


NOTHING = Watch()
