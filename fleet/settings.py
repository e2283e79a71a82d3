"""The settings of a fleet: what clients run on, when they are there, and how long a round lasts."""

from dataclasses import dataclass, field
from typing import Any

from fleet.availability import Sometimes
from fleet.cost import check_objective
from fleet.devices import tables
from fleet.plan import num_asked
from fleet.population import jitter, stays
from fleet.selection import POWER_OF_CHOICE, UNIFORM, check_selection

WORDS = ("always", "diurnal")


@dataclass(frozen=True)
class FleetSettings:
    """The group fleet of the configuration; `capacity_content`, `availability_content` are found.

    Whether the files of traces are there is for those who read them to say.
    """

    name: str = field(default="uniform", metadata={"help": "fleet, as in conf/fleet"})
    population: str | None = field(
        default="uniform",
        metadata={"help": "population of devices and links (fleet/tables/populations.yaml)"},
    )
    capacity: str | None = field(
        default=None, metadata={"help": "FedScale device trace (path), instead of a population"}
    )
    device: str = field(
        default="phone_mid", metadata={"help": "fleet=trace: device that gives memory and power"}
    )
    link: str = field(
        default="wifi", metadata={"help": "fleet=trace: link that gives latency and radio"}
    )
    availability: Any = field(
        default="always",
        metadata={"help": "always, a probability in (0, 1], diurnal, or the path of a trace"},
    )
    low: float = field(default=0.1, metadata={"help": "diurnal: availability at noon"})
    high: float = field(default=0.9, metadata={"help": "diurnal: availability at midnight"})
    spread_h: float = field(
        default=3.0, metadata={"help": "diurnal: spread of the clients' local time, in hours"}
    )
    deadline_s: float | None = field(
        default=None,
        metadata={"help": "round deadline in simulated seconds; null: none"},
    )
    over_select: float = field(
        default=1.0,
        metadata={"help": "over-selection factor; the fastest clients are kept"},
    )
    selection: str = field(
        default=UNIFORM,
        metadata={"help": "which clients take part: uniform, fastest, power_of_choice, oort"},
    )
    candidates: float = field(
        default=2.0,
        metadata={"help": "power_of_choice: clients drawn for each that takes part"},
    )
    jitter: float = field(
        default=0.0,
        metadata={"help": "sd of the log-normal noise on speeds, drawn in each round"},
    )
    dropout: float = field(
        default=0.0,
        metadata={"help": "probability that a client that began leaves before its end"},
    )
    tails: bool = field(default=False, metadata={"help": "include the tail energy of the radios"})
    objective: str = field(
        default="seconds", metadata={"help": "objective of split.cut=auto: seconds, joules"}
    )
    capacity_content: str = ""
    availability_content: str = ""

    def __post_init__(self) -> None:
        check_objective(self.objective)
        num_asked(1, self.over_select, 1)  # checks the factor
        jitter(self.jitter, 0, 0, 0)  # checks itself
        stays(self.dropout, 0, 0, 0)  # checks itself
        check_selection(self.selection, self.candidates)
        if (self.population is None) == (self.capacity is None):
            raise ValueError(
                f"fleet={self.name}: takes either fleet.population or fleet.capacity; "
                "fleet=trace needs fleet.capacity=<a FedScale file>"
            )
        if self.population is not None:
            tables().population(self.population)
        tables().device(self.device)
        tables().link(self.link)
        given = self.availability
        if isinstance(given, bool) or not isinstance(given, str | float | int):
            raise ValueError(self.takes_availability())
        if not isinstance(given, str):
            Sometimes(float(given))  # checks itself

    def unread(self) -> tuple[str, ...]:
        """Keys that change nothing, given the others."""
        found = [] if self.dropout else ["dropout"]
        if self.selection == UNIFORM:
            found.append("selection")
        if self.selection != POWER_OF_CHOICE:
            found.append("candidates")
        return tuple(found)

    def takes_availability(self) -> str:
        """Return what to say of an availability that is none."""
        return (
            f"fleet.availability={self.availability}: takes always, a probability, diurnal, or the "
            "path of a trace"
        )
