"""A run's folder: who may write to it, and a finished one read back."""

import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from app.config.composition import LENGTH, but_length, from_stored, hash_of
from app.config.errors import explain
from app.experiment import Experiment, method_class, resolve
from strategies.client.training import load_arrays
from strategies.server.checkpoint import Checkpoints
from strategies.server.ending import NEVER
from tracking import checksums
from tracking.checksums import CHECKSUMS, read_json
from tracking.files import DamagedError, whole, writing
from tracking.jsonl import CLIENTS, ROUNDS, readable
from tracking.metrics_file import METRICS

CONFIG, MODEL, SUMMARY = "config.json", "model.safetensors", "summary.json"
MODEL_BEST = "model_best.safetensors"  # with data.validation
SOMETIMES = (MODEL_BEST, METRICS)  # what only some runs end with
LOCK = ".lock"

log = logging.getLogger(__name__)


class FolderTakenError(ValueError):
    """A run's folder holds something that this run must not touch."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from working on a folder, which is made where it is not there.

    The system gives the lock back however this process ends.

    Raises:
        FolderTakenError: another process works on it; names it.
        CannotWriteError: the folder cannot be written to.
    """
    with writing(f"{folder.name}/{LOCK}", folder.parent):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    lock = FileLock(path, timeout=0)
    with writing(LOCK, folder):
        try:
            lock.acquire()
        except Timeout as error:
            with suppress(OSError):
                raise FolderTakenError(
                    f"{folder}: {path.read_text('utf-8')} works on it"
                ) from error
            raise FolderTakenError(f"{folder}: another process works on it") from error
    try:
        with writing(LOCK, folder):
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
        yield
    finally:
        lock.release()


def claim(folder: Path, experiment: Experiment) -> None:
    """Refuse to write to a folder that holds what this run must not touch.

    Raises:
        FolderTakenError: it holds a run that is not to be continued, or one of another
            configuration; names the differing keys.
    """
    theirs, wrong = _identity(folder)
    if theirs is None and not (wrong or _begun(folder)):
        return
    if not experiment.resume:
        raise FolderTakenError(
            f"{folder}: holds a run already; resume=true continues it, another folder starts anew"
        )
    if theirs is None:
        wrong = wrong or f"{CONFIG} is missing"
        if not checkpoints(folder, experiment).is_of_run():
            raise FolderTakenError(
                f"resume: {folder}: {wrong}, so nothing says whose rounds these are; "
                "deleting the folder starts anew"
            )
        log.warning("%s: %s; written anew, as its checkpoints are of this run", folder, wrong)
        theirs = dict(experiment.identity)
    mine = experiment.identity
    different = [
        f"{key} (was {theirs.get(key)}, is {mine.get(key)})"
        for key in sorted(theirs.keys() | mine.keys())
        if key not in LENGTH and theirs.get(key) != mine.get(key)
    ]
    if different:
        raise FolderTakenError(f"resume: {folder} holds another experiment: {', '.join(different)}")
    newest = checkpoints(folder, experiment).newest_round()
    if newest > experiment.rounds:
        raise FolderTakenError(f"rounds={experiment.rounds}: {folder} is at round {newest} already")
    last, key = end(folder, experiment, newest)
    if 0 < last < newest:
        raise FolderTakenError(
            f"{key}={experiment.identity[key]}: {folder} is at round {newest} already, past round "
            f"{last}, which would have been its last"
        )


def checkpoints(folder: Path, experiment: Experiment) -> Checkpoints:
    """Return the checkpoints of a run; those that another experiment left there are not read."""
    run = hash_of(but_length(experiment.identity))
    every, keep = experiment.checkpoint.every, experiment.checkpoint.keep
    return Checkpoints(folder / "checkpoint", every, keep, run, folder / CLIENTS)


def take(folder: Path, experiment: Experiment) -> None:
    """Mark the folder as this run's, and remove what an earlier, shorter run ended with."""
    for name in (CHECKSUMS, SUMMARY, MODEL, *SOMETIMES):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / CONFIG, dict(experiment.identity))


def close(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary, last of all, and before it the checksums of the run's files and of it."""
    text = _json(summary)
    there = [name for name in SOMETIMES if (folder / name).exists()]
    names = (CONFIG, ROUNDS, CLIENTS, MODEL, *there)
    checksums.write(folder, names, {SUMMARY: text.encode()})
    with whole(folder / SUMMARY) as part:
        part.write_text(text, "utf-8")


def is_finished(folder: Path, wanted: Experiment | None = None) -> bool:
    """Whether the folder's run has ended and is as it was written.

    Args:
        folder: the run's.
        wanted: what it is to be; then it also has the rounds of this one.
    """
    try:
        summary = read_json(folder / SUMMARY)
        stored = checksums.stored(folder)
    except DamagedError:
        return False
    if wanted is not None and summary.get("rounds") != _last_round(folder, wanted):
        return False
    if stored:
        return not checksums.differing(folder, stored)
    there = [(folder / name).is_file() for name in (CONFIG, ROUNDS, CLIENTS, MODEL)]
    rows, wrong = readable(folder / ROUNDS)  # of a run from before there were checksums
    return all(there) and not wrong and len(rows) == summary.get("rounds")


def is_of(folder: Path, experiment: Experiment) -> bool:
    """Whether the folder holds this experiment, of however many rounds."""
    theirs, wrong = _identity(folder)
    if theirs is None:
        return bool(wrong) and checkpoints(folder, experiment).is_of_run()
    return but_length(theirs) == but_length(experiment.identity)


def _last_round(folder: Path, wanted: Experiment) -> int:
    """The last round of an experiment, given the rounds that are in a folder."""
    return end(folder, wanted, wanted.rounds)[0] or wanted.rounds


def end(folder: Path, experiment: Experiment, rounds: int) -> tuple[int, str]:
    """What ends an experiment, given the first ``rounds`` that are in a folder (`Ending.end`)."""
    if experiment.ending == NEVER:
        return 0, ""
    rows = readable(folder / ROUNDS)[0][:rounds]
    return experiment.ending.end([row["accuracy"] for row in rows])


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all."""
    with whole(path) as part:
        part.write_text(_json(content), "utf-8")


def _json(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"


def _identity(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Return what config.json holds, or None and what is wrong with it, if it is there."""
    path = folder / CONFIG
    if not path.exists():
        return None, f"{CONFIG} is missing" if _begun(folder) else ""
    try:
        return read_json(path), ""
    except DamagedError as error:
        return None, str(error) if _begun(folder) else ""  # killed in the moment of taking it


def _begun(folder: Path) -> bool:
    """Whether a run has left anything in the folder that would be lost."""
    rounds = folder / ROUNDS
    return (rounds.is_file() and rounds.stat().st_size > 0) or any(folder.glob("checkpoint/*"))


# A finished run -----------------------------------------------------------------------------------


def load_experiment(run: Path, trust: bool = False) -> Experiment:
    """Return the experiment that a run stored, without the weights that it began with.

    Args:
        run: its folder, which may be anybody's.
        trust: whether code that it names may run; without it ours alone does.

    Raises:
        ValueError: there is no finished run, it names code, or its configuration is damaged.
        OmegaConfBaseException: a key or a type that the schema has not.
    """
    for needed in (".hydra/config.yaml", MODEL, SUMMARY):  # the last that a run writes
        if not (run / needed).is_file():
            raise ValueError(f"{run}: no finished run there, {needed} is missing")
    path = run / ".hydra" / "config.yaml"
    try:
        return resolve(from_stored(path, trust))
    except OmegaConfBaseException:  # among them are KeyErrors and TypeErrors
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        # A value of a kind that no check expects, such as a mapping in the place of a number.
        raise ValueError(f"{path}: is damaged: {explain(error)}") from error


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
