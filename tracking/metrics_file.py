"""metrics.json: values per class and per client at the end of a run that has them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracking.checksums import read_json
from tracking.files import DamagedError

METRICS = "metrics.json"
MOST_CLASSES = 100  # whose values, or matrix, have room in what shows them


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return what a run's folder has; empty where there is none.

    Raises:
        DamagedError: it is not what was written.
    """
    path = folder / METRICS
    if not path.exists():
        return {}
    found = read_json(path)
    if not isinstance(found.get("final"), Mapping):
        raise DamagedError(f"{METRICS} is damaged")
    return found


def tested(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what it says of clients, by partition."""
    clients = found.get("final", {}).get("clients")
    rows = clients.items() if isinstance(clients, Mapping) else ()
    return {name: row for name, row in rows if isinstance(row, Mapping)}


def per_class(found: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return its values per class by measure: ``recall``, ``edge recall`` …"""
    return {
        name.removesuffix("per_class").replace("_", " ") + measure: values
        for name, content in found.get("final", {}).items()
        if name.endswith("per_class") and isinstance(content, Mapping)
        for measure, values in content.items()
        if isinstance(values, list)
    }
