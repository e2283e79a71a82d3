"""A run's state on disk, from which it can be continued as if it had never stopped.

There is no generator state to keep: every random stream is derived from (seed, purpose, round,
partition). A checkpoint is a folder named by its round, written aside and renamed, so that one that
has its name is whole. Its manifest has a checksum of each file, the run that it is of, and how
clients.jsonl began then: one that is damaged is passed over for the one before.
"""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from strategies.server.method import Arrays, ServerState
from tracking.checksums import Stamp, differing, digest, digest_of, read_json
from tracking.files import DamagedError, sync, writing
from tracking.record import RoundRecord

MODEL, EXTRA, RECORDS = "model.safetensors", "strategy.safetensors", "records.json"
MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointSettings:
    """The group checkpoint of the configuration."""

    every: int = field(default=5, metadata={"help": "rounds between checkpoints; 0: none"})
    keep: int = field(default=2, metadata={"help": "number of checkpoints that are kept"})

    def __post_init__(self) -> None:
        for key, least in (("every", 0), ("keep", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"checkpoint.{key}={getattr(self, key)}: takes {least} or more")


@dataclass(frozen=True)
class Found:
    """A checkpoint as it was read.

    Attributes:
        state: the run's.
        stamp: how clients.jsonl began then; None where the checkpoint does not say.
    """

    state: ServerState
    stamp: Stamp | None


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; the folder above it is the run's.
        every: rounds between two; 0 writes none.
        keep: how many of the newest stay.
        run: what the run is known by; those of another are not read. Empty reads any.
        clients: clients.jsonl, which grows beside them.
    """

    def __init__(
        self,
        folder: Path,
        every: int = 1,
        keep: int = 2,
        run: str = "",
        clients: Path | None = None,
    ) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self.run = run
        self.clients = clients
        self._unsaved: ServerState | None = None

    def is_due(self, server_round: int, num_rounds: int) -> bool:
        """Whether one is written after this round; the last round always has one."""
        return self.every > 0 and (server_round % self.every == 0 or server_round == num_rounds)

    def after(self, state: ServerState, num_rounds: int) -> None:
        """Take the state after a round: write it if it is due, else remember it."""
        self._unsaved = state if self.every > 0 else None
        if self.is_due(state.round, num_rounds):
            self.save(state)

    def save_rest(self) -> None:
        """Write the state after the last round, if it is not: for a run that ends early."""
        if self._unsaved is not None:
            self.save(self._unsaved)

    def save(self, state: ServerState) -> None:
        """Write the state after a round, and delete those that are too old.

        Raises:
            CannotWriteError: there is no room, no permission, or no folder any more.
        """
        size = sum(array.nbytes for part in (state.arrays, state.extra) for array in part.values())
        with writing(f"the checkpoint of round {state.round}", self.folder.parent, size):
            self.folder.mkdir(exist_ok=True)  # a run's folder that was deleted stays so
            target = self.folder / f"{state.round:06d}"
            part = self.folder / f"{state.round:06d}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            save_arrays(state.arrays, part / MODEL)
            save_arrays(state.extra, part / EXTRA)
            records = [record.to_dict() for record in state.records]
            (part / RECORDS).write_text(json.dumps(records), "utf-8")
            (part / MANIFEST).write_text(
                json.dumps(self._manifest(state, part), indent=2) + "\n", "utf-8"
            )
            for file in part.iterdir():
                sync(file)
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
            sync(self.folder)
            self._unsaved = None
            for old in self._folders()[: -self.keep]:
                shutil.rmtree(old)

    def latest(self) -> ServerState | None:
        """Return the state of what `find` finds."""
        found = self.find()
        return None if found is None else found.state

    def find(self) -> Found | None:
        """Return the newest that is whole, or None if there are none at all.

        What is passed over is said in a line.

        Raises:
            DamagedError: there are some, and none is whole; says what is wrong with each.
        """
        bad: list[str] = []
        for folder in reversed(self._folders()):
            try:
                found = self._read(folder)
            except DamagedError as error:
                bad.append(f"{folder.name}: {error}")
                continue
            if bad:
                wrong = "; ".join(bad)
                log.warning("%s: %s; continued from %s", self.folder, wrong, folder.name)
            return found
        if bad:
            raise DamagedError(
                f"{self.folder}: no checkpoint is whole: {'; '.join(bad)}; "
                f"deleting {self.folder.parent} starts anew"
            )
        return None

    def newest_round(self) -> int:
        """The round of the newest, whole or not; 0 without any."""
        return max((int(folder.name) for folder in self._folders()), default=0)

    def is_of_run(self) -> bool:
        """Whether one of them is whole and says that it is of this run."""
        for folder in self._folders():
            try:
                self._check(folder)
            except DamagedError:
                continue
            if (folder / MANIFEST).exists():
                return True
        return False

    def _manifest(self, state: ServerState, part: Path) -> dict[str, Any]:
        stamp = None
        if self.clients is not None and self.clients.exists():
            sync(self.clients)  # a power cut must not leave more rounds here than there
            stamp = asdict(Stamp.of(self.clients))
        manifest = {
            "round": state.round,
            "run": self.run,
            "files": {name: digest(part / name) for name in (MODEL, EXTRA, RECORDS)},
            "clients": stamp,
        }
        return manifest | {"checksum": _checksum(manifest)}

    def _read(self, folder: Path) -> Found:
        """Read one.

        Raises:
            DamagedError: says what is wrong with it.
        """
        stamp = self._check(folder)
        try:
            records = json.loads((folder / RECORDS).read_text("utf-8"))
            state = ServerState(
                round=int(folder.name),
                arrays=load_file(folder / MODEL),
                extra=load_file(folder / EXTRA),
                records=tuple(RoundRecord.from_dict(record) for record in records),
            )
        except FileNotFoundError as error:
            raise DamagedError(f"{Path(error.filename or '').name} is missing") from error
        except (SafetensorError, OSError, ValueError, TypeError, LookupError) as error:
            raise DamagedError(f"cannot be read ({str(error).splitlines()[0]})") from error
        return Found(state, stamp)

    def _check(self, folder: Path) -> Stamp | None:
        if not (folder / MANIFEST).exists():
            if not (folder / RECORDS).exists():
                raise DamagedError("its files are missing")
            log.warning("%s: no checksum, read as it is", folder)
            return None
        manifest = read_json(folder / MANIFEST)
        if manifest.pop("checksum", None) != _checksum(manifest):
            raise DamagedError(f"{MANIFEST} is damaged (its checksum differs)")
        if self.run not in ("", manifest["run"]) or manifest["round"] != int(folder.name):
            raise DamagedError("is of another run or round")
        if wrong := differing(folder, manifest["files"]):
            raise DamagedError(wrong)
        return None if manifest["clients"] is None else Stamp(**manifest["clients"])

    def _folders(self) -> list[Path]:
        """Those that have their name, oldest first."""
        return sorted(path for path in self.folder.glob("*") if path.name.isdigit())


def save_arrays(arrays: Arrays, path: Path) -> None:
    """Write arrays to a file of safetensors.

    Raises:
        OSError: the system's, which safetensors hides.
    """
    try:
        save_file(_plain(arrays), path)
    except SafetensorError as error:
        if code := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(code[1]), str(error)) from error
        raise


def _checksum(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest without its own."""
    return digest_of(json.dumps(manifest, sort_keys=True).encode())


def _plain(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """C order: safetensors writes memory as it lies, whatever the strides say."""
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}
