"""What a round takes a client that is alone with the server, and the cut that makes it least."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fleet.clock import Rule, parallel
from fleet.devices import Device, Link
from fleet.phases import phases
from fleet.work import ClientWork

OBJECTIVES = ("seconds", "joules")


@dataclass(frozen=True)
class RoundCost:
    """What a round takes a client that has the server to itself.

    Attributes:
        seconds: from the model's way down to its way up.
        joules: of the device and its radio.
        fits: whether training fits into the device's memory.
    """

    seconds: float
    joules: float
    fits: bool


def cost(
    work: ClientWork,
    device: Device,
    link: Link,
    server: Device,
    rule: Rule = parallel,
    participants: int = 1,
) -> RoundCost:
    """What a round takes a client.

    Args:
        work: the client's round.
        device: the client's device.
        link: its link.
        server: what runs the server halves.
        rule: how device and server take turns; one of `fleet.clock`.
        participants: how many share the server evenly.
    """
    parts = phases(work, device, link, server).slowed(server=participants)
    (turn,) = rule([parts], math.inf)
    assert turn is not None  # nobody is late without a deadline
    return RoundCost(turn.end_s, parts.joules(turn.end_s), parts.fits)


def choose_cut(
    works: Sequence[ClientWork],
    device: Device,
    link: Link,
    server: Device,
    objective: str = "seconds",
    rule: Rule = parallel,
    participants: int = 1,
) -> int | None:
    """Return the index of the best cut for a device on a link, the first of several equals.

    Args:
        works: the client's round for each cut.
        device: the client's device.
        link: its link.
        server: what runs the server halves.
        objective: ``seconds`` or ``joules``, whichever should be least.
        rule: how device and server take turns; one of `fleet.clock`.
        participants: how many share the server evenly.

    Returns:
        None if no cut fits the device's memory.

    Raises:
        ValueError: no such objective.
    """
    check_objective(objective)
    costs = [cost(work, device, link, server, rule, participants) for work in works]
    fitting = [index for index, found in enumerate(costs) if found.fits]
    return min(fitting, key=lambda index: getattr(costs[index], objective), default=None)


def largest_in_time(costs: Sequence[RoundCost], deadline_s: float) -> int:
    """Return the index of the last that fits and ends by the deadline; 0 where none does."""
    in_time = [i for i, one in enumerate(costs) if one.fits and one.seconds <= deadline_s]
    return in_time[-1] if in_time else 0


def least(
    costs: Sequence[RoundCost],
    capacities: Sequence[float],
    objective: str,
    floor: float,
    deadline_s: float = math.inf,
) -> int:
    """Return the index of what takes least with enough capacity, memory and time.

    Of equal ones the one of most capacity. Where none has all three it is the one of most capacity
    that has memory and time, where none has these, index 0.

    Args:
        costs: of each choice, from the least capacity to the most.
        capacities: shares of the largest.
        objective: ``seconds`` or ``joules``.
        floor: least capacity.
        deadline_s: when a round ends at the latest.

    Raises:
        ValueError: no such objective.
    """
    check_objective(objective)
    in_time = [i for i, one in enumerate(costs) if one.fits and one.seconds <= deadline_s]
    enough = [i for i in in_time if capacities[i] >= floor]
    if not enough:
        return max(in_time, key=lambda i: capacities[i], default=0)
    return min(enough, key=lambda i: (getattr(costs[i], objective), -capacities[i]))


def check_objective(objective: str) -> None:
    """Refuse what is no objective.

    Raises:
        ValueError: names fleet.objective.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"fleet.objective={objective}: takes {', '.join(OBJECTIVES)}")
