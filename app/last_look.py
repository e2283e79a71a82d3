"""What is evaluated after the last round: the test set, where rounds were evaluated on something
else, and what is said per class."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.client_evaluation import ClientTest
from app.device import Where
from app.evaluation import HERE, on_test_set
from app.experiment import Experiment, dataset
from app.run_folder import MODEL_BEST, write_json
from models.metrics import AT_END, PER_CLASS
from strategies.server.best import best_of
from strategies.server.checkpoint import save_arrays
from strategies.server.method import ServerState
from strategies.server.watch import Evaluating
from tracking.files import whole
from tracking.metrics_file import METRICS
from tracking.record import finite

CLIENTS = "clients"
_DETAIL = re.compile(rf"(\w*?(?:{'|'.join(AT_END)}))/(.+)")  # with a method's prefix, if it has one


def look(
    chosen: Experiment,
    folder: Path,
    federation: Evaluating,
    state: ServerState,
    test_clients: ClientTest | None = None,
    where: Where = HERE,
) -> dict[str, Any]:
    """Test the last round's model and the best round's; write the latter, and metrics.json.

    Args:
        chosen: what ran.
        folder: the run's.
        federation: what tests its states.
        state: after the last round.
        test_clients: what tests on clients' own samples, if anything does.
        where: networks run, and in which precision.

    Returns:
        what summary.json says of it; with data.validation ``final_`` and ``best_`` are then of the
        test set.
    """
    data, objective, metrics = dataset(chosen), chosen.task.objective(), chosen.metrics
    on = "test" if chosen.keeps_best else chosen.evaluated_on
    is_told = metrics.is_detailed or test_clients is not None

    def tested(state: ServerState) -> dict[str, Any]:
        """All that is found of a state, with each client's accuracy under ``clients``."""
        found: dict[str, Any] = {}
        if on != "clients":
            test = on_test_set(data, objective, metrics, detailed=True, where=where)
            found = dict(federation.evaluate(state, federation.alone(state), test))
        if test_clients is not None:
            said, own = test_clients(federation, state, detailed=True)
            clients = {
                str(partition): {
                    "device": federation.clients.device(partition) or None,
                    "held_out": place.stop - place.start,
                    "accuracy": own.get(partition),
                }
                for partition, place in test_clients.held.places.items()
            }
            found |= {**said, CLIENTS: clients}
        return found

    said: dict[str, Any] = {"evaluated_on": chosen.evaluated_on}
    models = {"final": (state.round, tested(state))} if is_told or chosen.keeps_best else {}
    if chosen.keeps_best:
        best = best_of(state)
        is_last = best.round == state.round
        models["best"] = (best.round, models["final"][1] if is_last else tested(best))
        with whole(folder / MODEL_BEST) as part:
            save_arrays(best.arrays, part)
        known = [accuracy for accuracy in state.accuracies if accuracy is not None]
        said |= {
            "best_round": best.round,
            **{k: v for which, (_, found) in models.items() for k, v in _named(which, found)},
            "final_validation_accuracy": known[-1] if known else None,
            "best_validation_accuracy": best.accuracies[-1] if best.accuracies else None,
        }
    if is_told:
        content = {which: {"round": n, **nested(found)} for which, (n, found) in models.items()}
        names = chosen.data.settings.label_names or None
        write_json(folder / METRICS, {"evaluated_on": on, "labels": names, **content})
        if PER_CLASS in content["final"]:
            said[PER_CLASS] = content["final"][PER_CLASS]
    return finite(said)


def _named(which: str, found: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What a test found, as summary.json names it, but for the loss and for what is per class."""
    for name, value in found.items():
        if name not in ("loss", CLIENTS) and not _DETAIL.fullmatch(name):
            yield f"{which}_{name}", value


def nested(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a test found as JSON has it: what is per class as lists, null for NaN.

    >>> nested({"accuracy": 0.5, "per_class/recall/0": 1.0, "confusion_matrix/0/0": 3.0})
    {'accuracy': 0.5, 'per_class': {'recall': [1]}, 'confusion_matrix': [[3]]}
    """
    known: dict[str, Any] = {}
    for name, value in found.items():
        if name == CLIENTS:
            known[name] = value
            continue
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
