"""rounds.jsonl and clients.jsonl: one record a line, on disk when the round ends."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tracking.checksums import Stamp
from tracking.files import DamagedError, gone, whole, writing
from tracking.record import ClientRecord, RoundRecord, is_client, is_round

ROUNDS = "rounds.jsonl"
CLIENTS = "clients.jsonl"

log = logging.getLogger(__name__)


class JsonlSink:
    """Writes both files of a run.

    Args:
        folder: the run's folder.
        done: records of the rounds before this start. rounds.jsonl is written anew from them; of
            clients.jsonl the lines of those rounds are kept and any later ones dropped. Rows of
            theirs that are missing or damaged cannot be had again, and are said in a line.
        stamp: how clients.jsonl began after those rounds; None where that is not known.
    """

    def __init__(
        self, folder: Path, done: Sequence[RoundRecord] = (), stamp: Stamp | None = None
    ) -> None:
        kept, wrong = _kept(folder / CLIENTS, done, stamp)
        if wrong:
            log.warning("%s: %s", folder / CLIENTS, wrong)
        _write(folder / ROUNDS, "".join(json.dumps(record.to_dict()) + "\n" for record in done))
        _write(folder / CLIENTS, kept)
        self._folder = folder
        with writing(ROUNDS, folder):
            self._rounds = (folder / ROUNDS).open("a", encoding="utf-8")
            self._clients = (folder / CLIENTS).open("a", encoding="utf-8")

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Append a round.

        Raises:
            CannotWriteError: there is no room, or the files are gone.
        """
        self._append(self._clients, CLIENTS, (client.to_dict() for client in clients))
        self._append(self._rounds, ROUNDS, [record.to_dict()])

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Close both files."""
        self._rounds.close()
        self._clients.close()

    def _append(self, file: TextIO, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        path = self._folder / name
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise gone(self._folder)  # the system would write on to a file that nobody can open
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        with writing(name, self._folder, len(content)):
            while content:  # past Python's buffer, which would try again when it is closed
                content = content[os.write(file.fileno(), content) :]


def read(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file; a last line that was cut off is left out.

    Raises:
        DamagedError: another line is no JSON; names it.
    """
    rows, wrong = _parse(path, lambda row: True)
    if wrong:
        raise DamagedError(f"{path}: {wrong}")
    return rows


def readable(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Return the lines of rounds.jsonl or clients.jsonl that are what the file's name says.

    Beside them, what is wrong with the first other one: empty if nothing is.
    """
    return _parse(path, is_round if path.name == ROUNDS else is_client)


def _parse(path: Path, fits: Callable[[Any], bool]) -> tuple[list[dict[str, Any]], str]:
    if not path.exists():
        return [], ""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        return [], f"{path.name} cannot be read ({error.strerror})"
    try:
        rows = json.loads(b"[" + b",".join(filter(None, lines)) + b"]")  # all at once
        if all(map(fits, rows)):
            return rows, ""
    except (ValueError, RecursionError):
        pass
    rows, wrong = [], ""
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line else None
            if row is not None and fits(row):
                rows.append(row)
            elif line:
                raise ValueError(line)
        except (ValueError, RecursionError):
            wrong = wrong or f"{path.name} is damaged (line {number})"
    return rows, wrong


def _kept(path: Path, done: Sequence[RoundRecord], stamp: Stamp | None) -> tuple[bytes, str]:
    """Return the rows of the rounds that are done, and what is wrong with them, in a sentence."""
    if stamp is not None and stamp.fits(path):
        with path.open("rb") as file:
            return file.read(stamp.num_bytes), ""
    rows = [row for row in readable(path)[0] if row["round"] <= len(done)]
    there = Counter(row["round"] for row in rows)
    missing = [
        str(record.round)
        for record in done
        if there[record.round] != record.num_clients + record.num_failed + record.num_dropped
    ]
    kept = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if missing:
        return kept, f"was damaged: rows of round {', '.join(missing)} are missing"
    if stamp is not None:
        return kept, f"was changed since it was written: rows of rounds 1 to {len(done)} may differ"
    return kept, ""


def _write(path: Path, content: str | bytes) -> None:
    with whole(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
