"""A run's state on disk, from which it can be continued as if it had never stopped.

There is no generator state to keep: every random stream is derived from (seed, purpose, round,
partition). A checkpoint is a folder named by its round, written aside and renamed, so that one that
has its name is whole.
"""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from strategies.server.method import Arrays, ServerState
from tracking.record import RoundRecord


@dataclass(frozen=True)
class CheckpointSettings:
    """The group checkpoint of the configuration."""

    every: int = field(default=5, metadata={"help": "rounds between checkpoints; 0: none"})
    keep: int = field(default=2, metadata={"help": "number of checkpoints that are kept"})

    def __post_init__(self) -> None:
        for key, least in (("every", 0), ("keep", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"checkpoint.{key}={getattr(self, key)}: takes {least} or more")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie.
        every: rounds between two; 0 writes none.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, every: int = 1, keep: int = 2) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep

    def is_due(self, server_round: int, num_rounds: int) -> bool:
        """Whether one is written after this round; the last round always has one."""
        return self.every > 0 and (server_round % self.every == 0 or server_round == num_rounds)

    def save(self, state: ServerState) -> None:
        """Write the state after a round, and delete those that are too old."""
        target = self.folder / f"{state.round:06d}"
        part = self.folder / f"{state.round:06d}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_file(_plain(state.arrays), part / "model.safetensors")
        save_file(_plain(state.extra), part / "strategy.safetensors")
        records = [record.to_dict() for record in state.records]
        (part / "records.json").write_text(json.dumps(records), "utf-8")
        for file in part.iterdir():
            _sync(file)
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        _sync(self.folder)
        for old in self._folders()[: -self.keep]:
            shutil.rmtree(old)

    def latest(self) -> ServerState | None:
        """The newest state, or None."""
        folders = self._folders()
        if not folders:
            return None
        records = json.loads((folders[-1] / "records.json").read_text("utf-8"))
        return ServerState(
            round=int(folders[-1].name),
            arrays=load_file(folders[-1] / "model.safetensors"),
            extra=load_file(folders[-1] / "strategy.safetensors"),
            records=tuple(RoundRecord.from_dict(record) for record in records),
        )

    def _folders(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("*") if path.name.isdigit())


def _plain(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """C order: safetensors writes memory as it lies, whatever the strides say."""
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}


def _sync(path: Path) -> None:
    """Ask the system to have ``path`` on disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
