"""What is evaluated after the last round: the test set, where rounds were evaluated on something
else, and what is said per class."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.evaluation import in_rounds, on_test_set
from app.experiment import Experiment, dataset
from app.run_folder import METRICS, MODEL_BEST, write_json
from models.metrics import AT_END, PER_CLASS
from strategies.server.best import best_of
from strategies.server.checkpoint import save_arrays
from strategies.server.loop import Federation
from strategies.server.method import ServerState
from tracking.files import whole
from tracking.record import finite

_DETAIL = re.compile(rf"(\w*?(?:{'|'.join(AT_END)}))/(.+)")  # with a method's prefix, if it has one


def look(
    chosen: Experiment, folder: Path, federation: Federation, state: ServerState
) -> dict[str, Any]:
    """Test the last round's model and the best round's; write the latter, and metrics.json.

    Args:
        chosen: what ran.
        folder: the run's.
        federation: of the run.
        state: after the last round.

    Returns:
        what summary.json says of it; with data.validation ``final_`` and ``best_`` are then of the
        test set.
    """
    data, objective, metrics = dataset(chosen), chosen.task.objective(), chosen.metrics
    if not chosen.keeps_best:
        said: dict[str, Any] = {"evaluated_on": "test"}
        if metrics.is_detailed:
            test = in_rounds(data, objective, metrics, detailed=True)
            found = federation.evaluate(state, federation.alone(state), test)
            said |= _write(chosen, folder, {"final": (state.round, found)})
        return said
    test, best = on_test_set(data, objective, metrics, detailed=True), best_of(state)
    final = federation.evaluate(state, federation.alone(state), test)
    found = final
    if best.round != state.round:
        found = federation.evaluate(best, federation.alone(best), test)
    with whole(folder / MODEL_BEST) as part:
        save_arrays(best.arrays, part)
    said = {"evaluated_on": "validation", "best_round": best.round}
    if metrics.is_detailed:
        said |= _write(chosen, folder, {"final": (state.round, final), "best": (best.round, found)})
    known = [accuracy for accuracy in state.accuracies if accuracy is not None]
    return finite(
        {
            **said,
            **_named("final", final),
            **_named("best", found),
            "final_validation_accuracy": known[-1] if known else None,
            "best_validation_accuracy": best.accuracies[-1],
        }
    )


def _named(which: str, found: Mapping[str, float]) -> dict[str, Any]:
    """What a test found, as summary.json names it, but for the loss and for what is per class."""
    return {
        f"{which}_{name}": value
        for name, value in found.items()
        if name != "loss" and not _DETAIL.fullmatch(name)
    }


def _write(
    chosen: Experiment, folder: Path, models: Mapping[str, tuple[int, Mapping[str, float]]]
) -> dict[str, Any]:
    """Write what was found of models, by name with their round, and return what the summary has."""
    content = {name: {"round": number, **nested(found)} for name, (number, found) in models.items()}
    names = chosen.data.settings.label_names
    write_json(folder / METRICS, {"evaluated_on": "test", "labels": names or None, **content})
    per_class = content["final"].get(PER_CLASS)
    return {} if per_class is None else {PER_CLASS: per_class}


def nested(found: Mapping[str, float]) -> dict[str, Any]:
    """Return what a test found as JSON has it: what is per class as lists, null for NaN.

    >>> nested({"accuracy": 0.5, "per_class/recall/0": 1.0, "confusion_matrix/0/0": 3.0})
    {'accuracy': 0.5, 'per_class': {'recall': [1]}, 'confusion_matrix': [[3]]}
    """
    known: dict[str, Any] = {}
    for name, value in found.items():
        number = None if not math.isfinite(value) else int(value) if value == int(value) else value
        detail = _DETAIL.fullmatch(name)
        if detail is None:
            known[name] = value if math.isfinite(value) else None
        elif detail[1].endswith(PER_CLASS):
            measure = detail[2].partition("/")[0]
            known.setdefault(detail[1], {}).setdefault(measure, []).append(number)
        else:
            rows = known.setdefault(detail[1], [])
            if detail[2].endswith("/0"):
                rows.append([])
            rows[-1].append(number)
    return known
