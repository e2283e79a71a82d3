"""When a run ends before its last round: where its accuracy is reached, or no longer rises.

Both are functions of the rounds' accuracies alone, so a run that was killed and is continued ends
where one that was not does, and a run that has ended says so wherever it is looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

TARGET, PATIENCE = "target_accuracy", "evaluate.patience"  # the keys that end a run


@dataclass(frozen=True)
class Ending:
    """What ends a run.

    Attributes:
        target_accuracy: the accuracy with which it ends; None for none.
        patience: rounds after the best one without a better; None for any number.
    """

    target_accuracy: float | None = None
    patience: int | None = None

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
        return 0, ""


NEVER = Ending()  # nothing but the number of rounds ends a run
