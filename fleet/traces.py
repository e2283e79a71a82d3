"""Traces of real phones, in the file formats of FedScale and FLASH.

FedScale (Lai et al., ICML 2022), two pickles by client id:
    capacity      {id: {"computation": ms per sample, "communication": kbit/s}}
    availability  {id: {"active": [s, …], "inactive": [s, …], "finish_time": s, …}}
FLASH (Yang et al., WWW 2021), JSON by user:
    timers        {guid: {"isSuccess": bool, "trace_start": s, "trace_end": s,
                          "ready_time": [[s, s], …]}}
    states        {user: {"messages": "2020-01-02 00:00:00\\tbattery_charged_on\\n…", …}}; ready is
                  who is locked, charging and on Wi-Fi, as FLASH's timer.py has it

A pickle can run code. It is read by an unpickler that knows no classes and no functions, so that it
can hold dict, list, int, float, str, bool and None and nothing else (fleet/files.py).
"""

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from fleet.availability import Intervals
from fleet.devices import Device, Link
from fleet.files import read_json, read_pickle
from fleet.population import Client
from fleet.seeds import draw_uniform

log = logging.getLogger(__name__)

REFERENCE_FLOPS = 0.6e9
"""Operations of one inference behind FedScale's ms per sample. The file does not say which network
was run; assumption: MobileNet-V2 at 224², the one in AI-Benchmark, from whose phones they are."""


def read_capacity(path: Path, device: Device, link: Link) -> dict[str, Client]:
    """Return each client of a FedScale capacity file.

    A client that takes c ms per sample computes `REFERENCE_FLOPS` / c ms at fp32, and faster at
    other formats as ``device`` does. FedScale takes a training step for three inferences; here the
    work says how many operations it has. The rate is both up and down.

    Args:
        path: the pickle.
        device: whose memory and powers all clients get, which the file says nothing of.
        link: whose latency and powers all clients get.

    Raises:
        ValueError: names the file and the client.
    """
    clients = {}
    for name, row in _entries(path, read_pickle(path)):
        ms = _positive(path, name, row, "computation")
        mbps = _positive(path, name, row, "communication") / 1e3
        speedup = REFERENCE_FLOPS / (ms / 1e3) / device.speed("fp32")
        speeds = {key: speed * speedup for key, speed in device.flops_per_s.items()}
        own = Device(
            name="trace",
            flops_per_s=speeds,
            bytes_per_s=math.inf,  # the measured ms hold the memory's share already
            memory_bytes=device.memory_bytes,
            power_w=device.power_w,
            idle_w=device.idle_w,
        )
        clients[name] = Client(own, _at_rate(link, mbps))
    return clients


def read_availability(path: Path) -> dict[str, Intervals]:
    """Return when each client is there, from a FedScale pickle or either of FLASH's JSON forms.

    Users whose trace FLASH marked as unusable, or that is empty, are left out; so are users whose
    states cannot be followed, as FLASH does, and a warning says how many.

    Raises:
        ValueError: names the file and the client.
    """
    is_json = path.suffix == ".json"
    node = read_json(path) if is_json else read_pickle(path)
    found, odd = {}, list[str]()
    for name, row in _entries(path, node):
        try:
            intervals = _intervals(row)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else str(error)
            if "messages" not in row:
                raise ValueError(f"{path}: client {name}: {what}") from error
            odd.append(f"client {name}: {what}")
            continue
        if intervals is not None:
            found[name] = intervals
    if not found:
        raise ValueError("; ".join([f"{path}: no client of it is ever available", *odd[:1]]))
    if odd:
        log.warning("%s: %d clients left out; %s", path, len(odd), odd[0])
    return found


def match(
    names: Sequence[str], partitions: Sequence[int], seed: int, by_id: bool
) -> dict[int, str]:
    """Say which client of a trace each partition is.

    Args:
        names: of the trace's clients.
        partitions: ids.
        seed: of the experiment.
        by_id: whether a partition is the client that has its id; one that the trace lacks is left
            out. Else each partition draws a client by seed, so that a short trace serves many.
    """
    if by_id:
        known = set(names)
        return {p: str(p) for p in partitions if str(p) in known}
    ordered = sorted(names)
    return {p: ordered[int(draw_uniform(seed, "trace", 0, p) * len(ordered))] for p in partitions}


def _entries(path: Path, node: Any) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(node, dict) or not node:
        raise ValueError(f"{path}: takes entries by client")
    for name, row in node.items():
        if not isinstance(name, str | int) or not isinstance(row, dict):
            raise ValueError(f"{path}: client {brief(name)}: takes an id with a dict")
    return [(str(name), row) for name, row in node.items()]


def _positive(path: Path, name: str, row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    with contextlib.suppress(ValueError):
        if (number := _number(key, value)) > 0:
            return number
    raise ValueError(f"{path}: client {name}: {key}={brief(value)}: takes a positive number")


def _number(key: str, value: object) -> float:
    """A finite number.

    Raises:
        ValueError: names the key.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            if math.isfinite(number := float(value)):
                return number
    raise ValueError(f"{key}={brief(value)}: takes a number")


def _numbers(key: str, values: object) -> list[float]:
    """Finite numbers; raises as `_number`."""
    if not isinstance(values, list):
        raise ValueError(f"{key}={brief(values)}: takes a list of numbers")
    return [_number(key, value) for value in values]


def _at_rate(link: Link, mbps: float) -> Link:
    return Link(
        name="trace",
        down_mbps=mbps,
        up_mbps=mbps,
        latency_s=link.latency_s,
        down_w_per_mbps=link.down_w_per_mbps,
        up_w_per_mbps=link.up_w_per_mbps,
        radio_w=link.radio_w,
        tail_s=link.tail_s,
        tail_w=link.tail_w,
    )


def _intervals(row: Mapping[str, Any]) -> Intervals | None:
    if "messages" in row:
        return _flash_states(row["messages"])
    if "ready_time" in row:
        return _flash_timer(row)
    return _fedscale(row)


def _fedscale(row: Mapping[str, Any]) -> Intervals | None:
    begins, ends = (_numbers(key, row[key]) for key in ("active", "inactive"))
    period = _number("finish_time", row["finish_time"])
    if len(begins) == len(ends) + 1:
        ends = [*ends, period]  # still active when the trace ends
    if len(begins) != len(ends):
        raise ValueError(f"has {len(begins)} active and {len(ends)} inactive times")
    return _merged(list(zip(begins, ends, strict=True)), 0.0, period)


def _flash_timer(row: Mapping[str, Any]) -> Intervals | None:
    if not row["isSuccess"]:
        return None
    spans = [_numbers("ready_time", span) for span in row["ready_time"]]
    start, end = (_number(key, row[key]) for key in ("trace_start", "trace_end"))
    return _merged([(begin, stop) for begin, stop in spans], start, end)


_ON = {"battery_charged_on": "charged", "wifi": "wifi", "screen_lock": "locked"}
_OFF = {"battery_charged_off": "charged", "screen_unlock": "locked"}
_OFF |= dict.fromkeys(("unknown", "2g", "3g", "4g", "5g"), "wifi")
_NO_MATTER = ("screen_on", "screen_off", "phone_on", "phone_off", "battery_low", "battery_okay")


def _flash_states(messages: object) -> Intervals | None:
    if not isinstance(messages, str):
        raise ValueError(f"messages={brief(messages)}: takes lines of time and state")
    states: set[str] = set()
    spans: list[tuple[float, float]] = []
    times: list[float] = []
    begin: float | None = None
    for line in filter(None, (line.strip() for line in messages.split("\n"))):
        stamp, _, state = (part.strip() for part in line.partition("\t"))
        state = state.lower()
        times.append((datetime.fromisoformat(stamp) - _EPOCH).total_seconds())
        if state in _ON:
            states.add(_ON[state])
        elif state in _OFF:
            states.discard(_OFF[state])
        elif state not in _NO_MATTER and not state.endswith("%"):
            raise ValueError(f"state {brief(state)} is unknown")
        if len(states) == 3:
            begin = times[-1] if begin is None else begin
        elif begin is not None:
            spans.append((begin, times[-1]))
            begin = None
    if begin is not None:
        spans.append((begin, times[-1]))
    return _merged(spans, times[0], times[-1]) if times else None


_EPOCH = datetime(2020, 1, 2)


def _merged(spans: list[tuple[float, float]], start: float, end: float) -> Intervals | None:
    """Spans in order and without overlaps, from the trace's start; None if nothing is left."""
    joined: list[tuple[float, float]] = []
    for begin, stop in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((begin, stop))
    if not joined or end <= start:
        return None
    return Intervals(tuple((begin - start, stop - start) for begin, stop in joined), end - start)
