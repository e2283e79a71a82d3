"""A setting that may differ from client to client: by partition id, by device, or for the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fleet.plan import Fleet

AUTO, DEFAULT = "auto", "default"

T = TypeVar("T")


def each(key: str, given: Any, what: str) -> dict[str, Any]:
    """Return the values of a setting, one or a mapping, by the key that names each.

    Raises:
        ValueError: a mapping of nobody; names the key and ``what`` it takes.
    """
    if not isinstance(given, Mapping):
        return {key: given}
    if not given:
        raise ValueError(f"{key}={{}}: takes a {what}, or a mapping to {what}s")
    return {f"{key}.{name}": value for name, value in given.items()}


@dataclass(frozen=True)
class PerClient(Generic[T]):
    """One value for all clients, or a mapping.

    Attributes:
        key: of the configuration, for messages.
        values: by partition id, name of a device, or `DEFAULT`; the first of these that is there
            counts.
        is_mapping: whether the user gave a mapping.
    """

    key: str
    values: Mapping[str, T]
    is_mapping: bool = False

    @staticmethod
    def of(key: str, given: Any) -> "PerClient[Any]":
        """Return what the user gave: one value, or a mapping."""
        if isinstance(given, Mapping):
            return PerClient(key, {str(name): value for name, value in given.items()}, True)
        return PerClient(key, {DEFAULT: given})

    def of_client(self, partition: int | None, device: str) -> T:
        """Return a client's value; partition None stands for any with that device.

        Raises:
            ValueError: the mapping says nothing of it.
        """
        for name in (str(partition), device, DEFAULT):
            if name in self.values:
                return self.values[name]
        raise ValueError(f"{self.key}: says nothing of client {partition}, and has no {DEFAULT}")

    def check(self, fleet: Fleet | None, num_clients: int | None) -> None:
        """Refuse keys that stand for nobody, and a mapping that leaves somebody out.

        Args:
            fleet: whose devices keys may name.
            num_clients: as far as it is known.

        Raises:
            ValueError: names the key.
        """
        devices = fleet.device_names() if fleet else []
        for name, value in self.values.items():
            if not name.isdecimal() and name not in (DEFAULT, *devices):
                known = ", ".join(["partition ids", *devices, DEFAULT])
                raise ValueError(f"{self.key}.{name}: takes as keys {known}")
            if name.isdecimal() and num_clients is not None and int(name) >= num_clients:
                raise ValueError(f"{self.key}.{name}: there is no client {name} of {num_clients}")
            if value == AUTO and self.is_mapping:
                raise ValueError(
                    f"{self.key}.{name}={AUTO}: {AUTO} is for all clients, not for some"
                )
        if DEFAULT not in self.values:
            for partition in range(num_clients or 0):
                client = fleet.clients.get(partition) if fleet else None
                self.of_client(partition, client.device.name if client else "")
