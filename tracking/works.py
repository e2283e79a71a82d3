"""Works of clients on the simulated clock, as the page draws them: a bar from begin to end.

A work is what a client did for one round: a line of clients.jsonl that has ``begin_s`` and
``end_s``. Of many clients a sample is drawn, of many works those that began first.
"""

import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from tracking.simulated import CLOSE
from tracking.text import line

STATES = ("ok", "alone", "left", "stale", "failed")
MOST_CLIENTS = 30


def works(
    clients: Sequence[Mapping[str, Any]], rounds: Sequence[Mapping[str, Any]], most: int
) -> dict[str, Any]:
    """Return bars for a sample of the clients, as columns.

    Args:
        clients: lines of clients.jsonl.
        rounds: lines of rounds.jsonl.
        most: bars; of more, those that began first are there.

    Returns:
        Empty where no client has times. Else ``clients``, the names of the sample, slowest first;
        ``num_clients``, how many worked at all; ``num_idle``, how many were asked and never did;
        ``num_works`` of the sample; and a value per bar:
        ``client`` (index), ``begin_s``, ``end_s``, ``state`` (one text, a digit per bar: index into
        `STATES`), ``round`` in which it counted, ``loss``, ``staleness`` (rounds that ended between
        begin and arrival; not there where all are 0).
    """
    timed = [row for row in clients if _is_timed(row)]
    chosen = sample(timed)
    if not chosen or most < 1:
        return {}
    place = {partition: index for index, partition in enumerate(chosen)}
    devices = {row["partition"]: row["device"] for row in timed}
    num_idle = len({row["partition"] for row in clients} - devices.keys())
    own = [row for row in timed if row["partition"] in place]
    own.sort(key=lambda row: (row["begin_s"], place[row["partition"]]))
    drawn = own[:most]
    late = staleness(drawn, rounds)
    found = {
        "clients": [line(f"{p} {devices[p]}" if devices[p] else p) for p in chosen],
        "num_clients": len(devices),
        "num_idle": num_idle,
        "num_works": len(own),
        "client": [place[row["partition"]] for row in drawn],
        "begin_s": [row["begin_s"] for row in drawn],
        "end_s": [row["end_s"] for row in drawn],
        "state": "".join(str(STATES.index(row["status"])) for row in drawn),
        "round": [row["round"] for row in drawn],
        "loss": [row["loss"] for row in drawn],
    }
    return found | {"staleness": late} if any(late) else found


def sample(timed: Sequence[Mapping[str, Any]], most: int = MOST_CLIENTS) -> list[int]:
    """Return partitions by falling mean seconds of a work: all, or ``most`` of them.

    These are a third of the slowest, a third of the fastest, and between them every so many. How
    fast a client is only whole works say; who left each time comes last, where there is room.
    """
    whole: dict[int, list[float]] = {}
    for row in timed:
        if row["status"] != "left":
            whole.setdefault(row["partition"], []).append(row["end_s"] - row["begin_s"])
    pace = {p: statistics.fmean(seconds) for p, seconds in whole.items()}
    ranked = sorted(pace, key=lambda p: (-pace[p], p))
    if len(ranked) <= most:
        leavers = sorted({row["partition"] for row in timed} - pace.keys())
        return [*ranked, *leavers][:most]
    ends = most // 3
    between, num = ranked[ends:-ends], most - 2 * ends
    picked = [between[(2 * i + 1) * len(between) // (2 * num)] for i in range(num)]
    return [*ranked[:ends], *picked, *ranked[-ends:]]


def staleness(timed: Sequence[Mapping[str, Any]], rounds: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return for each work how many rounds ended after its begin and before the one it counts in.

    All 0 where rounds have no simulated seconds.
    """
    seconds = [row["sim_s"] for row in rounds]
    if None in seconds:
        return [0] * len(timed)
    ends = list(accumulate(seconds))
    return [
        max(0, row["round"] - 1 - bisect_right(ends, row["begin_s"] * (1 + CLOSE))) for row in timed
    ]


def _is_timed(row: Mapping[str, Any]) -> bool:
    has_times = row.get("begin_s") is not None and row.get("end_s") is not None
    return has_times and row["status"] in STATES
