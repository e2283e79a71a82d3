"""A reader of wandb's offline files, of which wandb 0.31 has none in Python.

A .wandb file is a LevelDB log behind a header of its own: ``:W&B``, 0xBEE1 little-endian, version
0; blocks of 32 KiB; records ``<IHB`` crc, length, type (1 whole, 2 first, 3 middle, 4 last). crc
is zlib's over the type's byte and the data. A whole record is a `wandb_internal_pb2.Record`.
"""

import json
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
HEADER = struct.Struct("<4sHB")
RECORD = struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


class CutOffError(AssertionError):
    """The file ends within its header or a record: damaged, or still being written."""


@dataclass
class OfflineRun:
    """What an offline run would upload."""

    history: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    name: str = ""
    project: str = ""
    entity: str = ""
    tags: tuple[str, ...] = ()
    exit_code: int | None = None
    artifacts: dict[str, dict[str, str]] = field(default_factory=dict)  # kind: name: local path
    id: str = ""
    notes: str = ""
    job_type: str = ""
    collections: dict[str, str] = field(default_factory=dict)  # kind: name, of what it made
    aliases: dict[str, list[str]] = field(default_factory=dict)  # kind: …
    digests: dict[str, str] = field(default_factory=dict)  # kind: …
    inputs: dict[str, str] = field(default_factory=dict)  # kind: name, of what it used
    input_digests: dict[str, str] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)  # of records
    alerts: list[tuple[str, str, str]] = field(default_factory=list)  # level, title, text


def offline_runs(folder: Path) -> list[Path]:
    """The .wandb files under a run's folder, oldest first; the link to the latest is no run."""
    return sorted(path for path in folder.glob("wandb/offline-run-*/*.wandb"))


def payloads(data: bytes) -> list[bytes]:
    """The records of a file's bytes, with every checksum checked.

    Raises:
        CutOffError: the bytes end in the middle.
        AssertionError: they are damaged.
    """
    if len(data) < HEADER.size:
        raise CutOffError("cut off")
    assert HEADER.unpack_from(data) == (b":W&B", 0xBEE1, 0), "not a wandb file"
    found, parts, at = [], [], HEADER.size
    while at < len(data):
        if BLOCK - at % BLOCK < RECORD.size:  # padding at the end of a block
            at += BLOCK - at % BLOCK
            continue
        if len(data) < at + RECORD.size:
            raise CutOffError("cut off")
        crc, length, kind = RECORD.unpack_from(data, at)
        at += RECORD.size
        piece = data[at : at + length]
        if len(piece) < length:
            raise CutOffError("cut off")
        assert zlib.crc32(piece, zlib.crc32(bytes([kind]))) == crc, "checksum"
        at += length
        parts = [piece] if kind in (WHOLE, FIRST) else [*parts, piece]
        if kind in (WHOLE, LAST):
            found.append(b"".join(parts))
    return found


def read_run(path: Path) -> OfflineRun:
    """Read one .wandb file."""
    from wandb.proto.wandb_internal_pb2 import Record

    run = OfflineRun()
    for payload in payloads(path.read_bytes()):
        record = Record.FromString(payload)
        kind = record.WhichOneof("record_type")
        run.kinds.add(kind)
        if kind == "run":
            _take_run(run, record.run)
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "metric":
            run.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "request" and record.request.HasField("log_artifact"):
            _take_artifact(run, record.request.log_artifact.artifact)
        elif kind == "artifact":
            _take_artifact(run, record.artifact)
        elif kind == "alert":
            run.alerts.append((record.alert.level, record.alert.title, record.alert.text))
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def has_ended(run: OfflineRun) -> bool:
    """Whether the run's last record is there."""
    return run.exit_code is not None


def read_only_run(
    folder: Path, timeout_s: float = 30.0, enough: Callable[[OfflineRun], bool] = has_ended
) -> OfflineRun:
    """Read the one run under a folder once there is enough: wandb-core writes in its own process.

    Read at once, a run was found without its history, or a record cut off, once in some forty
    times.

    Raises:
        CutOffError: the file still ends in the middle after ``timeout_s``.
    """
    (path,) = offline_runs(folder)
    deadline = time.monotonic() + timeout_s
    while True:
        late = time.monotonic() > deadline
        try:
            run = read_run(path)
        except CutOffError:
            if late:
                raise
        else:
            if late or enough(run):
                return run
        time.sleep(0.05)


def _take_run(run: OfflineRun, record: Any) -> None:
    run.group, run.name = record.run_group, record.display_name
    run.project, run.entity = record.project, record.entity
    run.tags = tuple(record.tags)
    run.id, run.notes, run.job_type = record.run_id, record.notes, record.job_type
    run.config |= _items(record.config.update)


def _take_artifact(run: OfflineRun, record: Any) -> None:
    run.artifacts[record.type] = {e.path: e.local_path for e in record.manifest.contents}
    if record.use_after_commit:
        run.inputs[record.type] = record.name
        run.input_digests[record.type] = record.digest
    else:
        run.collections[record.type], run.digests[record.type] = record.name, record.digest
        run.aliases[record.type] = list(record.aliases)


def _items(items: Any) -> dict[str, Any]:
    """Keys, nested ones joined by dots, and values from JSON."""
    return {
        ".".join(item.nested_key) if item.nested_key else item.key: json.loads(item.value_json)
        for item in items
    }


def table_of(run: OfflineRun, folder: Path, key: str) -> dict[str, Any]:
    """A table of a run's summary, from the file that is uploaded with it."""
    (file,) = offline_runs(folder)[0].parent.glob(f"files/{run.summary[key]['path']}")
    found: dict[str, Any] = json.loads(file.read_text())
    return found
