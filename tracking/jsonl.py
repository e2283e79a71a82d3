"""rounds.jsonl and clients.jsonl: one record a line, on disk when the round ends."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracking.files import whole
from tracking.record import ClientRecord, RoundRecord

ROUNDS = "rounds.jsonl"
CLIENTS = "clients.jsonl"


class JsonlSink:
    """Writes both files of a run.

    Args:
        folder: the run's folder.
        done: records of the rounds before this start. rounds.jsonl is written anew from them; of
            clients.jsonl the lines of those rounds are kept and any later ones dropped.
    """

    def __init__(self, folder: Path, done: Sequence[RoundRecord] = ()) -> None:
        kept = [row for row in read(folder / CLIENTS) if row["round"] <= len(done)]
        _write(folder / ROUNDS, (record.to_dict() for record in done))
        _write(folder / CLIENTS, kept)
        self._rounds = (folder / ROUNDS).open("a", encoding="utf-8")
        self._clients = (folder / CLIENTS).open("a", encoding="utf-8")

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        """Append a round."""
        self._clients.writelines(json.dumps(client.to_dict()) + "\n" for client in clients)
        self._clients.flush()
        self._rounds.write(json.dumps(record.to_dict()) + "\n")
        self._rounds.flush()

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Close both files."""
        self._rounds.close()
        self._clients.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file; a last line that was cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    found: list[dict[str, Any]] = json.loads(f"[{','.join(filter(None, lines))}]")  # all at once
    return found


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with whole(path) as part:
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
