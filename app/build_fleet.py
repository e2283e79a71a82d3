"""The fleet that a configuration describes: devices, links, availability, the rules of a round."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from app.data_sources import absolute, file_digest
from fleet.availability import Always, Availability, Diurnal, Intervals, Sometimes, Traced
from fleet.devices import tables
from fleet.plan import Fleet
from fleet.population import Client, assign
from fleet.settings import WORDS, FleetSettings
from fleet.traces import match, read_availability, read_capacity

Read = TypeVar("Read")


def completed(fleet: FleetSettings) -> FleetSettings:
    """Make the paths of traces that are there absolute, and name what they hold."""
    if fleet.capacity is not None:
        path = absolute(fleet.capacity)
        fleet = replace(fleet, capacity=path, capacity_content=_content(path))
    if isinstance(fleet.availability, str) and fleet.availability not in WORDS:
        path = absolute(fleet.availability)
        fleet = replace(fleet, availability=path, availability_content=_content(path))
    return fleet


def _content(path: str) -> str:
    """Digest of a file; empty where there is none, which `make` says."""
    return file_digest(path) if Path(path).is_file() else ""


def make(fleet: FleetSettings, num_clients: int, seed: int) -> Fleet:
    """Draw the clients' devices and links, and read traces.

    Raises:
        ValueError: names the key.
        FileNotFoundError: there is no such trace.
    """
    return Fleet(
        clients=_clients(fleet, num_clients, seed),
        server=tables().device("server"),
        seed=seed,
        availability=_availability(fleet, num_clients, seed),
        deadline_s=math.inf if fleet.deadline_s is None else fleet.deadline_s,
        jitter=fleet.jitter,
        tails=fleet.tails,
        dropout=fleet.dropout,
        selection=fleet.selection,
        candidates=fleet.candidates,
        kinds=_kinds(fleet),
    )


def _clients(fleet: FleetSettings, num_clients: int, seed: int) -> dict[int, Client]:
    partitions = range(num_clients)
    if fleet.population is not None:
        return assign(tables().population(fleet.population), tables(), partitions, seed)
    assert fleet.capacity is not None  # checked
    if not Path(fleet.capacity).is_file():
        raise FileNotFoundError(f"fleet.capacity={fleet.capacity}: no such file")
    found = _read(_capacity, fleet.capacity, fleet.device, fleet.link)
    names = match(list(found), partitions, seed, by_id=False)
    return {partition: found[name] for partition, name in names.items()}


def _kinds(fleet: FleetSettings) -> frozenset[str]:
    if fleet.population is None:
        return frozenset({fleet.device})
    return frozenset(tables().population(fleet.population).devices)


def _availability(fleet: FleetSettings, num_clients: int, seed: int) -> Availability:
    given = fleet.availability
    if given == "always":
        return Always()
    if given == "diurnal":
        return Diurnal(fleet.low, fleet.high, fleet.spread_h)
    if not isinstance(given, str):
        return Sometimes(float(given))
    if not Path(given).is_file():
        raise FileNotFoundError(fleet.takes_availability())
    if fleet.deadline_s is None:
        raise ValueError(
            f"fleet.availability={given}: a trace needs fleet.deadline_s, so that time passes in a "
            "round that nobody attends"
        )
    spans = _read(_spans, given)
    names = match(list(spans), range(num_clients), seed, by_id=False)
    return Traced({partition: spans[name] for partition, name in names.items()})


# Traces, which can be large, are read once for all seeds ------------------------------------------


def _read(reader: Callable[..., dict[str, Read]], path: str, *options: str) -> dict[str, Read]:
    status = Path(path).stat()
    return reader(path, (status.st_size, status.st_mtime_ns), *options)


@functools.lru_cache(maxsize=2)
def _capacity(path: str, state: tuple[int, int], device: str, link: str) -> dict[str, Client]:
    return read_capacity(Path(path), tables().device(device), tables().link(link))


@functools.lru_cache(maxsize=2)
def _spans(path: str, state: tuple[int, int]) -> dict[str, Intervals]:
    return read_availability(Path(path))
