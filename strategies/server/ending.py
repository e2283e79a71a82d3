"""When a run ends before its last round: its accuracy is reached, no longer rises, or is too low.

All are functions of the rounds' accuracies alone, so a run that was killed and is continued ends
where one that was not does, and a run that has ended says so wherever it is looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# The keys that end a run.
TARGET, PATIENCE, PRUNED = "target_accuracy", "evaluate.patience", "sweep.search.prune"


@dataclass(frozen=True)
class Ending:
    """What ends a run.

    Attributes:
        target_accuracy: the accuracy with which it ends; None for none.
        patience: rounds after the best one without a better; None for any number.
        floors: by round, from the first, what the best accuracy until then must not be below; None
            for none, as after the last of them.
    """

    target_accuracy: float | None = None
    patience: int | None = None
    floors: tuple[float | None, ...] = ()

    def end(self, accuracies: Sequence[float | None]) -> tuple[int, str]:
        """Return the round that is the last one, and the key that says so; (0, "") for none yet.

        Args:
            accuracies: of the rounds from the first on; None and NaN are not looked at.
        """
        best, best_round = float("-inf"), 0
        for number, accuracy in enumerate(accuracies, start=1):
            if accuracy is None or accuracy != accuracy:
                continue
            if self.target_accuracy is not None and accuracy >= self.target_accuracy:
                return number, TARGET
            if accuracy > best:
                best, best_round = accuracy, number
            elif self.patience is not None and number - best_round >= self.patience:
                return number, PATIENCE
            floor = self.floors[number - 1] if number <= len(self.floors) else None
            if floor is not None and best < floor:
                return number, PRUNED
        return 0, ""


NEVER = Ending()  # nothing but the number of rounds ends a run
