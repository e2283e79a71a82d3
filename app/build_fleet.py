"""The fleet that a configuration describes: devices, links, availability, the rules of a round."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from app.data_sources import absolute, file_digest
from fleet.availability import Always, Availability, Diurnal, Intervals, Sometimes, Traced
from fleet.cost import check_objective
from fleet.devices import tables
from fleet.plan import Fleet, num_asked
from fleet.population import Client, assign
from fleet.traces import match, read_availability, read_capacity

if TYPE_CHECKING:
    from app.config.schema import Config, FleetConfig

Read = TypeVar("Read")
WORDS = ("always", "diurnal")


def complete(fleet: "FleetConfig") -> None:
    """Make the paths of traces that are there absolute, and name what they hold."""
    if fleet.capacity is not None:
        fleet.capacity = absolute(fleet.capacity)
        fleet.capacity_content = fleet.capacity_content or _content(fleet.capacity)
    if isinstance(fleet.availability, str) and fleet.availability not in WORDS:
        fleet.availability = absolute(fleet.availability)
        fleet.availability_content = fleet.availability_content or _content(fleet.availability)


def _content(path: str) -> str:
    """Digest of a file; empty where there is none, which `make` says."""
    return file_digest(path) if Path(path).is_file() else ""


def make(config: "Config") -> Fleet:
    """Draw the clients' devices and links, and read traces.

    Raises:
        ValueError: names the key.
        FileNotFoundError: there is no such trace.
    """
    return Fleet(
        clients=_clients(config),
        server=tables().device("server"),
        seed=config.seed,
        availability=_availability(config),
        deadline_s=math.inf if config.fleet.deadline_s is None else config.fleet.deadline_s,
        jitter=config.fleet.jitter,
        tails=config.fleet.tails,
        kinds=_kinds(config.fleet),
    )


def check(fleet: "FleetConfig") -> None:
    """Check values; whether traces are there is for `make` to say, which alone reads them.

    Raises:
        ValueError: names the key.
    """
    check_objective(fleet.objective)
    num_asked(1, fleet.over_select, 1)  # checks the factor
    if (fleet.population is None) == (fleet.capacity is None):
        raise ValueError(
            f"fleet={fleet.name}: takes either fleet.population or fleet.capacity; "
            "fleet=trace needs fleet.capacity=<a FedScale file>"
        )
    if fleet.population is not None:
        tables().population(fleet.population)
    tables().device(fleet.device)
    tables().link(fleet.link)
    given = fleet.availability
    if isinstance(given, bool) or not isinstance(given, str | float | int):
        raise ValueError(_takes(given))
    if not isinstance(given, str):
        Sometimes(float(given))  # checks itself


def _takes(given: object) -> str:
    return (
        f"fleet.availability={given}: takes always, a probability, diurnal, or the path of a trace"
    )


def _clients(config: "Config") -> dict[int, Client]:
    fleet, partitions = config.fleet, range(config.clients.total)
    if fleet.population is not None:
        return assign(tables().population(fleet.population), tables(), partitions, config.seed)
    assert fleet.capacity is not None  # checked
    if not Path(fleet.capacity).is_file():
        raise FileNotFoundError(f"fleet.capacity={fleet.capacity}: no such file")
    found = _read(_capacity, fleet.capacity, fleet.device, fleet.link)
    names = match(list(found), partitions, config.seed, fleet.by_id)
    return {partition: found[name] for partition, name in names.items()}


def _kinds(fleet: "FleetConfig") -> frozenset[str]:
    if fleet.population is None:
        return frozenset({fleet.device})
    return frozenset(tables().population(fleet.population).devices)


def _availability(config: "Config") -> Availability:
    fleet = config.fleet
    given = fleet.availability
    if given == "always":
        return Always()
    if given == "diurnal":
        return Diurnal(fleet.low, fleet.high, fleet.spread_h)
    if not isinstance(given, str):
        return Sometimes(float(given))
    if not Path(given).is_file():
        raise FileNotFoundError(_takes(given))
    if fleet.deadline_s is None:
        raise ValueError(
            f"fleet.availability={given}: a trace needs fleet.deadline_s, so that time passes in a "
            "round that nobody attends"
        )
    spans = _read(_spans, given)
    names = match(list(spans), range(config.clients.total), config.seed, fleet.by_id)
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
