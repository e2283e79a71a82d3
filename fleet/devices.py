"""Devices, links and populations, from the tables beside this file.

A figure in a table says what it is: `{value, unit, precision, source}`. `precision` says how good
it is (measured, calibrated, nominal, derived, assumed), `source` where it is from. The number
format of a computing speed is its key (fp32, int8, …). A figure that lacks one of the four, or has
another unit than its place needs, is refused.
"""

import functools
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as brief
from typing import Any, TypeVar

from fleet.files import read_yaml

Row = TypeVar("Row")

TABLES = Path(__file__).resolve().parent / "tables"
FORMATS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "int1": 1}
"""Number formats of the tables, and their bits."""
PRECISIONS = ("measured", "calibrated", "nominal", "derived", "assumed")


@dataclass(frozen=True)
class Device:
    """What computes.

    Attributes:
        name: its row in the table.
        flops_per_s: sustained operations per second by number format; peak × efficiency.
        bytes_per_s: sustained bytes per second between memory and processor.
        memory_bytes: most memory that training may use.
        power_w: while it computes.
        idle_w: while it is awake and waits.
    """

    name: str
    flops_per_s: Mapping[str, float]
    bytes_per_s: float
    memory_bytes: float
    power_w: float
    idle_w: float = 0.0

    def __post_init__(self) -> None:
        if odd := self.flops_per_s.keys() - FORMATS.keys():
            raise ValueError(
                f"device {self.name}: {min(odd)}: takes speeds at {', '.join(FORMATS)}"
            )
        for number_format in ("fp32", *self.flops_per_s):
            if not self.flops_per_s.get(number_format, 0) > 0:
                raise ValueError(f"device {self.name}: takes a positive speed at {number_format}")
        if not (self.bytes_per_s > 0 and self.memory_bytes > 0):
            raise ValueError(f"device {self.name}: takes a positive bandwidth and memory")
        if not 0 <= self.idle_w <= self.power_w < math.inf:
            raise ValueError(
                f"device {self.name}: takes 0 ≤ idle_power ≤ power, got {self.idle_w} and "
                f"{self.power_w}"
            )

    def speed(self, number_format: str) -> float:
        """Operations per second at ``number_format``.

        A format that the device has no figure for runs as the next wider one that it has.

        Raises:
            ValueError: no such number format.
        """
        if (found := self.flops_per_s.get(number_format)) is not None:
            return found
        bits = format_bits(number_format)
        wider = [name for name in self.flops_per_s if FORMATS[name] >= bits]
        return self.flops_per_s[min(wider, key=FORMATS.__getitem__)]


@dataclass(frozen=True)
class Link:
    """What a device and the server send through.

    Attributes:
        name: its row in the table.
        down_mbps: megabits per second to the device.
        up_mbps: megabits per second from the device.
        latency_s: before a message's first bit arrives; half a round trip.
        down_w_per_mbps: slope of the radio's power while it receives.
        up_w_per_mbps: slope of the radio's power while it sends.
        radio_w: the radio's power at rest within a transfer.
        tail_s: how long the radio stays up after the last transfer.
        tail_w: its power then.
    """

    name: str
    down_mbps: float
    up_mbps: float
    latency_s: float = 0.0
    down_w_per_mbps: float = 0.0
    up_w_per_mbps: float = 0.0
    radio_w: float = 0.0
    tail_s: float = 0.0
    tail_w: float = 0.0

    def __post_init__(self) -> None:
        if not (self.down_mbps > 0 and self.up_mbps > 0):
            raise ValueError(f"link {self.name}: takes positive down and up")
        slopes = (self.down_w_per_mbps, self.up_w_per_mbps)
        rest = (self.latency_s, self.radio_w, self.tail_s, self.tail_w)
        if not all(0 <= value < math.inf for value in (*slopes, *rest)):
            raise ValueError(f"link {self.name}: takes latency and powers of 0 or more")


@dataclass(frozen=True)
class Population:
    """Who is out there: names of devices and links with their shares, which sum to 1."""

    name: str
    devices: Mapping[str, float]
    links: Mapping[str, float]
    server: str = "server"


@dataclass(frozen=True)
class Tables:
    """All rows, by name."""

    devices: Mapping[str, Device] = field(default_factory=dict)
    links: Mapping[str, Link] = field(default_factory=dict)
    populations: Mapping[str, Population] = field(default_factory=dict)

    def device(self, name: str) -> Device:
        """A device by name; ValueError says which there are."""
        return _named("device", name, self.devices)

    def link(self, name: str) -> Link:
        """A link by name; ValueError says which there are."""
        return _named("link", name, self.links)

    def population(self, name: str) -> Population:
        """A population by name; ValueError says which there are."""
        return _named("fleet", name, self.populations)


def format_bits(number_format: str) -> int:
    """Bits of a number format such as ``fp32``, ``int8`` or ``int3``.

    Raises:
        ValueError: no such number format.
    """
    if number_format in FORMATS:
        return FORMATS[number_format]
    found = re.fullmatch(r"int(\d+)", number_format)
    if not found or not 1 <= int(found[1]) <= FORMATS["fp32"]:
        raise ValueError(f"flops at {number_format}: takes {', '.join(FORMATS)} or int<bits>")
    return int(found[1])


@functools.cache
def tables() -> Tables:
    """Return the tables that come with the package, read once."""
    return load_tables(TABLES)


def load_tables(folder: Path) -> Tables:
    """Read devices.yaml, links.yaml and populations.yaml of ``folder``.

    Raises:
        ValueError: names the file, the row, and what is wrong with it.
        FileNotFoundError: one of the files is not there.
    """
    devices = _rows(folder / "devices.yaml", _device)
    links = _rows(folder / "links.yaml", _link)
    populations = _rows(folder / "populations.yaml", _population)
    for population in populations.values():
        for kind, named, known in (
            ("device", population.devices, devices),
            ("link", population.links, links),
            ("server", {population.server: 1.0}, devices),
        ):
            if missing := sorted(set(named) - set(known)):
                path = folder / "populations.yaml"
                raise ValueError(f"{path}: {population.name}: there is no {kind} {missing[0]}")
    return Tables(devices, links, populations)


# Rows -------------------------------------------------------------------------------------------

_DEVICE_UNITS = {
    "efficiency": "share of peak",
    "bandwidth": "GB/s",
    "bandwidth_efficiency": "share of peak",
    "memory": "MiB",
    "memory_share": "share of memory",
    "power": "W",
    "idle_power": "W",
}
_LINK_UNITS = {
    "down": "Mbit/s",
    "up": "Mbit/s",
    "round_trip": "ms",
    "power_down": "mW per Mbit/s",
    "power_up": "mW per Mbit/s",
    "power_base": "mW",
    "tail": "s",
    "power_tail": "mW",
}
_OPTIONAL = ("tail", "power_tail")
_COMPUTE_UNIT = "GFLOP/s"


def figure(node: Any, unit: str) -> float:
    """Return the value of a figure that says what it is.

    Raises:
        ValueError: it lacks value, unit, precision or source, or has the wrong unit.
    """
    if not isinstance(node, Mapping):
        raise ValueError(f"takes a figure {{value, unit, precision, source}}, got {brief(node)}")
    wanted = {"value", "unit", "precision", "source"}
    if node.keys() != wanted:
        odd = ", ".join(sorted(str(key) for key in node.keys() ^ wanted))
        raise ValueError(f"a figure has exactly value, unit, precision and source: {odd}")
    value, source = node["value"], node["source"]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not value >= 0 or (value > sys.float_info.max and value != math.inf):
        raise ValueError(f"value={brief(value)}: takes a number of 0 or more")
    if node["unit"] != unit:
        raise ValueError(f"unit={node['unit']}: takes {unit}")
    if node["precision"] not in PRECISIONS:
        raise ValueError(f"precision={node['precision']}: takes {', '.join(PRECISIONS)}")
    if not isinstance(source, str) or len(source.split()) < 2:
        raise ValueError(f"source={brief(source)}: says where the figure is from")
    return float(value)


def _device(name: str, row: Mapping[str, Any]) -> Device:
    compute = row.get("compute")
    if not isinstance(compute, Mapping) or not compute.keys() <= FORMATS.keys():
        raise ValueError(f"compute: takes speeds at {', '.join(FORMATS)}")
    if missing := FORMATS.keys() - compute.keys():
        raise ValueError(f"compute: has no figure at {', '.join(sorted(missing))}")
    rest = {key: value for key, value in row.items() if key not in ("about", "compute")}
    figures = _figures(rest, _DEVICE_UNITS)
    peaks = {key: _at(key, compute[key], _COMPUTE_UNIT) for key in compute}
    for key in ("efficiency", "bandwidth_efficiency", "memory_share"):
        if not 0 < figures[key] <= 1:
            raise ValueError(f"{key}: takes a share in (0, 1], got {figures[key]}")
    return Device(
        name=name,
        flops_per_s={key: 1e9 * peak * figures["efficiency"] for key, peak in peaks.items()},
        bytes_per_s=1e9 * figures["bandwidth"] * figures["bandwidth_efficiency"],
        memory_bytes=2**20 * figures["memory"] * figures["memory_share"],
        power_w=figures["power"],
        idle_w=figures["idle_power"],
    )


def _link(name: str, row: Mapping[str, Any]) -> Link:
    figures = _figures({key: value for key, value in row.items() if key != "about"}, _LINK_UNITS)
    return Link(
        name=name,
        down_mbps=figures["down"],
        up_mbps=figures["up"],
        latency_s=figures["round_trip"] / 2 / 1e3,
        down_w_per_mbps=figures["power_down"] / 1e3,
        up_w_per_mbps=figures["power_up"] / 1e3,
        radio_w=figures["power_base"] / 1e3,
        tail_s=figures.get("tail", 0.0),
        tail_w=figures.get("power_tail", 0.0) / 1e3,
    )


def _population(name: str, row: Mapping[str, Any]) -> Population:
    if unknown := row.keys() - {"about", "devices", "links", "server"}:
        raise ValueError(f"{min(map(str, unknown))}: takes about, devices, links, server")
    shares = {}
    for kind in ("devices", "links"):
        node = row.get(kind)
        if not isinstance(node, Mapping) or not node:
            raise ValueError(f"{kind}: takes names with their weights")
        weights = {str(key): _at(str(key), value, "weight") for key, value in node.items()}
        total = sum(weights.values())
        if not 0 < total < math.inf:
            raise ValueError(f"{kind}: takes weights with a positive sum")
        shares[kind] = {key: weight / total for key, weight in weights.items()}
    return Population(name, shares["devices"], shares["links"], str(row.get("server", "server")))


def _figures(row: Mapping[str, Any], units: Mapping[str, str]) -> dict[str, float]:
    if unknown := row.keys() - units.keys():
        raise ValueError(f"{min(map(str, unknown))}: takes {', '.join(units)}")
    if missing := [key for key in units if key not in row and key not in _OPTIONAL]:
        raise ValueError(f"{missing[0]}: is missing")
    return {key: _at(key, value, units[key]) for key, value in row.items()}


def _at(key: str, node: Any, unit: str) -> float:
    try:
        return figure(node, unit)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def _rows(path: Path, make: Callable[[str, Mapping[str, Any]], Row]) -> dict[str, Row]:
    node = read_yaml(path)
    if not isinstance(node, Mapping) or not node:
        raise ValueError(f"{path}: takes rows by name")
    rows = {}
    for name, row in node.items():
        try:
            if not isinstance(row, Mapping):
                raise ValueError("takes a row of figures")
            rows[str(name)] = make(str(name), row)
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from error
    return rows


def _named(kind: str, name: str, rows: Mapping[str, Row]) -> Row:
    if name not in rows:
        raise ValueError(f"{kind}={name}: takes {', '.join(rows)}")
    return rows[name]
