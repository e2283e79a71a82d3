"""A run's folder: who may write to it, and a finished one read back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from app.config.composition import from_stored
from app.experiment import Experiment, method_class, resolve
from strategies.client.training import load_arrays
from strategies.server.checkpoint import Checkpoints
from strategies.server.method import ServerState
from tracking.files import whole

CONFIG, MODEL, SUMMARY = "config.json", "model.safetensors", "summary.json"


class FolderTakenError(ValueError):
    """A run's folder holds something that this run must not touch."""


def claim(folder: Path, experiment: Experiment) -> ServerState | None:
    """Return the checkpoint in ``folder`` that this run continues from, if any.

    Raises:
        FolderTakenError: it holds a run that is not to be continued, or one of another
            configuration; names the differing keys.
    """
    path = folder / CONFIG
    if not path.exists() or not path.stat().st_size:  # killed in the moment of taking it
        return None
    if not experiment.resume:
        raise FolderTakenError(
            f"{folder}: holds a run already; resume=true continues it, another folder starts anew"
        )
    mine, theirs = experiment.identity, json.loads(path.read_text("utf-8"))
    different = [
        f"{key} (was {theirs.get(key)}, is {mine.get(key)})"
        for key in sorted(theirs.keys() | mine.keys())
        if key != "rounds" and theirs.get(key) != mine.get(key)
    ]
    if different:
        raise FolderTakenError(f"resume: {folder} holds another experiment: {', '.join(different)}")
    found = Checkpoints(folder / "checkpoint").latest()
    if found is not None and found.round > experiment.rounds:
        raise FolderTakenError(
            f"rounds={experiment.rounds}: {folder} is at round {found.round} already"
        )
    return found


def take(folder: Path, experiment: Experiment, is_continued: bool) -> None:
    """Mark the folder as this run's, and remove what an earlier, shorter run ended with.

    Args:
        folder: the run's folder.
        experiment: the run.
        is_continued: whether config.json was there already when `claim` allowed to go on.

    Raises:
        FolderTakenError: another process took it a moment ago.
    """
    path, identity = folder / CONFIG, dict(experiment.identity)
    if is_continued:
        write_json(path, identity)
    else:
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(identity, indent=2) + "\n")
        except FileExistsError as error:
            raise FolderTakenError(f"{folder}: another run just took it") from error
    for name in (SUMMARY, MODEL):
        (folder / name).unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all."""
    with whole(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


# A finished run -----------------------------------------------------------------------------------


def load_experiment(run: Path) -> Experiment:
    """Return the experiment that a run stored, without the weights that it began with.

    Raises:
        ValueError: there is no finished run.
    """
    for needed in (".hydra/config.yaml", MODEL, SUMMARY):  # the last that a run writes
        if not (run / needed).exists():
            raise ValueError(f"{run}: no finished run there, {needed} is missing")
    return resolve(from_stored(run / ".hydra" / "config.yaml"))


def refuse_private(experiment: Experiment, run: Path) -> None:
    """Refuse a run whose clients keep halves of their own: nobody has tested their average.

    Raises:
        ValueError: names the strategy.
    """
    kind = method_class(experiment)
    if kind.is_private:
        raise ValueError(
            f"{run}: strategy={experiment.method}: each client has a half of its own; takes "
            "a run that trains one network for all"
        )


def load_weights(run: Path) -> dict[str, Tensor]:
    """Return a run's final weights by their names.

    Raises:
        ValueError: the file is damaged.
    """
    path = run / MODEL
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: is damaged: {error}") from error


def fill(model: nn.Module, weights: Mapping[str, Tensor], run: Path) -> nn.Module:
    """Return ``model`` with a run's weights, in evaluation mode.

    Raises:
        ValueError: they are another network's, or there are more.
    """
    beside = sorted(weights.keys() - model.state_dict().keys())
    is_quantized = any("_quantizer." in name for name in beside)
    if beside and not is_quantized and model.state_dict().keys() <= weights.keys():
        raise ValueError(
            f"{run}: its method trains more than the network ({', '.join(beside[:3])}); takes "
            "a run of the network alone, as of fedavg, oqfl or splitfed_v1"
        )
    try:
        load_arrays(model, weights)
    except ValueError as error:
        raise ValueError(
            f"{run / MODEL}: not the model of this run's configuration: {error}"
        ) from error
    return model.eval()
