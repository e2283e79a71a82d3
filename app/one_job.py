"""One job: run, or copied from an identical one that has run, and what is said where it fails."""

import os
import shutil
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from app.experiment import Experiment
from app.run_folder import SOMETIMES, SUMMARY, FolderTakenError, claim, close, is_finished
from app.sinks import tracker_sink
from tracking.checksums import read_json
from tracking.files import CannotWriteError, FolderGoneError, whole
from tracking.jsonl import ROUNDS, read
from tracking.record import RoundRecord
from tracking.summary import summarise
from tracking.text import line

COPIED = ("rounds.jsonl", "clients.jsonl", "model.safetensors", "config.json")


def carry_out(
    chosen: Experiment,
    folder: Path,
    group: str,
    before: Callable[[], Path | None],
    run: Callable[[], object],
) -> str:
    """Run a job, or return why it need not be run.

    Args:
        chosen: the experiment.
        folder: of the job.
        group: the sweep that it is part of, for wandb.
        before: finds a finished run of the same experiment.
        run: runs it.

    Raises:
        FolderTakenError: the folder holds another run, or one that is not to be continued.
    """
    claim(folder, chosen)
    (folder / "error.txt").unlink(missing_ok=True)
    if chosen.resume and is_finished(folder, chosen):
        return "finished already"
    same = before()
    if same is None:
        run()
        return ""
    copy_results(same, folder, chosen.target_accuracy)
    publish(chosen, folder, group)
    job = f"job {same.name}" if same.parent == folder.parent else str(same)
    return f"the same experiment as {job}, not run again"


def copy_results(before: Path, folder: Path, target_accuracy: float | None) -> None:
    """Give an identical job the results of the one that ran; the target may be another."""
    for name in (*COPIED, *(name for name in SOMETIMES if (before / name).exists())):
        with whole(folder / name) as part:
            shutil.copy2(before / name, part)
    summary = read_json(before / SUMMARY)
    kept = {name: found for name, found in summary.items() if "target" not in name}
    same_as = os.path.relpath(before, folder.parent)
    found = summarise(folder, target_accuracy)
    target = {name: value for name, value in found.items() if "target" in name}
    close(folder, kept | target | {"same_as": same_as})


def publish(chosen: Experiment, folder: Path, group: str) -> None:
    """Give copied results a wandb run of their own, so that the sweep's group is whole."""
    done = [RoundRecord.from_dict(row) for row in read(folder / ROUNDS)]
    sink = tracker_sink(chosen, folder, group, done)
    sink.finish(read_json(folder / SUMMARY))


def said(error: BaseException, folder: Path) -> str:
    """Return one line for what ended a job, and leave its traceback in the job's folder."""
    first = line((str(error).strip().splitlines() or [""])[0])
    if isinstance(error, FolderGoneError | FolderTakenError):
        return first  # there is no folder, or what is there is not ours to mark
    with suppress(OSError):
        (folder / "error.txt").write_text("".join(traceback.format_exception(error)), "utf-8")
    if isinstance(error, CannotWriteError):
        return f"{first}; with that mended, the same command with resume=true continues"
    kind = "" if first and isinstance(error, Exception) else f"{type(error).__name__} "
    return f"{kind}{first} ({line(folder / 'error.txt')}, cutbit.log)"
