"""The look at the test set after the last round, where rounds were evaluated on something else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.evaluation import on_test_set
from app.experiment import Experiment, dataset
from app.run_folder import MODEL_BEST
from strategies.server.best import best_of
from strategies.server.checkpoint import save_arrays
from strategies.server.loop import Federation
from strategies.server.method import ServerState
from tracking.files import whole
from tracking.record import finite


def look(
    chosen: Experiment, folder: Path, federation: Federation, state: ServerState
) -> dict[str, Any]:
    """Test the last round's model and the best round's, and write the latter.

    Args:
        chosen: what ran.
        folder: the run's.
        federation: of the run.
        state: after the last round.

    Returns:
        what summary.json says of it; ``final_`` and ``best_`` are then of the test set.
    """
    if not chosen.keeps_best:
        return {"evaluated_on": "test"}
    test = on_test_set(dataset(chosen), chosen.task.objective())
    best = best_of(state)
    final = federation.evaluate(state, federation.alone(state), test)
    found = final
    if best.round != state.round:
        found = federation.evaluate(best, federation.alone(best), test)
    with whole(folder / MODEL_BEST) as part:
        save_arrays(best.arrays, part)
    known = [accuracy for accuracy in state.accuracies if accuracy is not None]
    return finite(
        {
            "evaluated_on": "validation",
            "best_round": best.round,
            **_named("final", final),
            **_named("best", found),
            "final_validation_accuracy": known[-1] if known else None,
            "best_validation_accuracy": best.accuracies[-1],
        }
    )


def _named(which: str, found: Mapping[str, float]) -> dict[str, Any]:
    """What a test found, as summary.json names it, but for the loss."""
    return {f"{which}_{name}": v for name, v in found.items() if name != "loss"}
