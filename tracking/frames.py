"""Runs as pandas frames, for notebooks.

>>> runs, rounds = tracking.load("runs/digits")
>>> runs[["strategy.name", "quant.bits", "seed", "final_accuracy"]]
>>> rounds.join(runs[["quant.bits"]], on="run").groupby(["quant.bits", "round"]).accuracy.mean()
>>> clients = tracking.load_clients("runs/digits")
>>> tracking.columns(clients)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tracking.collect import Run, find
from tracking.columns import meaning_of, unit_of
from tracking.jsonl import CLIENTS, ROUNDS, readable

if TYPE_CHECKING:  # half a second to import, so only where it is used
    import pandas as pd


class Frames(NamedTuple):
    """What `load` returns.

    Attributes:
        runs: one row per run. The index, ``run``, is its folder relative to those given; columns
            are ``folder``, ``status``, ``error``, ``overrides``, the configuration's flat keys
            (NaN where a method does not read one) and the fields of summary.json (NaN where a
            run did not finish; of ``rounds`` the configuration's then).
        rounds: one row per round of each run: ``run`` and the fields of rounds.jsonl, which are
            the round's own, besides ``total_bytes``, up and down until and with this round.
    """

    runs: "pd.DataFrame"
    rounds: "pd.DataFrame"


def load(*folders: str | Path) -> Frames:
    """Read the runs in or under ``folders``.

    Raises:
        FileNotFoundError: there is no run.
    """
    import pandas as pd

    rows, rounds = [], []
    for run in _found(folders):
        row = run.row()
        row["run"] = row.pop("job")
        rows.append({"folder": str(run.folder), "error": "", **run.config, **row})
        total = 0
        for record in readable(run.folder / ROUNDS)[0]:
            total += record["bytes_up"] + record["bytes_down"]
            rounds.append({"run": run.job, **record, "total_bytes": total})
    return Frames(
        pd.DataFrame(rows).set_index("run"), pd.DataFrame(rounds, columns=_columns(rounds))
    )


def load_clients(*folders: str | Path) -> "pd.DataFrame":
    """Read what every client did in every round: one row each, ``run`` and clients.jsonl's fields.

    Raises:
        FileNotFoundError: there is no run.
    """
    import pandas as pd

    rows = [
        {"run": run.job, **row}
        for run in _found(folders)
        for row in readable(run.folder / CLIENTS)[0]
    ]
    return pd.DataFrame(rows, columns=_columns(rows))


def columns(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return unit and meaning of a frame's columns; both empty for keys of the configuration."""
    import pandas as pd

    of_client = "partition" in frame.columns
    said = {n: (unit_of(str(n)), meaning_of(str(n), of_client)) for n in frame.columns}
    return pd.DataFrame.from_dict(said, orient="index", columns=["unit", "meaning"])


def _found(folders: Sequence[str | Path]) -> list[Run]:
    found = find([Path(folder) for folder in folders])
    if not found:
        raise FileNotFoundError(f"{', '.join(map(str, folders))}: no run there")
    return found


def _columns(rows: list[dict[str, object]]) -> list[str]:
    """The columns in the order they come, also where no run has finished a round."""
    return list(dict.fromkeys(["run", "round", *(name for row in rows for name in row)]))
