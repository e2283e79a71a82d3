"""Settings that differ between clients, and what is best for a client of several choices."""

import pytest

from fleet.cost import RoundCost, largest_in_time, least
from fleet.per_client import PerClient
from fleet.plan import Fleet
from fleet.population import Client
from tests.fleet.machines import DEVICE, LINK, SERVER

FLEET = Fleet({0: Client(DEVICE, LINK), 1: Client(DEVICE, LINK)}, SERVER)


def test_the_partition_counts_before_the_device_and_that_before_the_rest() -> None:
    given = PerClient.of("quant.bits", {1: 2, "d": 4, "default": 8})
    assert [given.of_client(p, d) for p, d in ((1, "d"), (0, "d"), (0, ""))] == [2, 4, 8]
    assert PerClient.of("quant.bits", 4).of_client(7, "anything") == 4
    assert not PerClient.of("quant.bits", 4).is_mapping


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"0": 4}, "key: says nothing of client 1, and has no default"),
        ({"5": 4, "default": 2}, "key.5: there is no client 5 of 2"),
        ({"tablet": 4, "default": 2}, "key.tablet: takes as keys partition ids, "),
        ({"0": "auto", "default": 2}, "key.0=auto: auto is for all clients, not for some"),
    ],
)
def test_what_a_mapping_must_say(given: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=r"^key") as error:
        PerClient.of("key", given).check(FLEET, 2)
    assert str(error.value).startswith(says)
    PerClient.of("key", {DEVICE.name: 4}).check(FLEET, 2)  # the device of both


# From the least capacity to the most.
COSTS = [
    RoundCost(1.0, 5.0, fits=True),
    RoundCost(2.0, 3.0, fits=True),
    RoundCost(2.0, 4.0, fits=True),
    RoundCost(4.0, 1.0, fits=False),
]
CAPACITIES = [0.1, 0.3, 0.5, 1.0]


@pytest.mark.parametrize(
    ("objective", "floor", "deadline", "index"),
    [
        ("seconds", 0.0, 9.0, 0),
        ("seconds", 0.2, 9.0, 2),  # of two that take as long the larger
        ("joules", 0.2, 9.0, 1),
        ("joules", 0.9, 9.0, 2),  # the largest that fits, where none has the capacity
        ("seconds", 0.2, 1.5, 0),
        ("seconds", 0.2, 0.5, 0),  # none is in time
    ],
)
def test_least(objective: str, floor: float, deadline: float, index: int) -> None:
    assert least(COSTS, CAPACITIES, objective, floor, deadline) == index


def test_largest_in_time() -> None:
    assert [largest_in_time(COSTS, deadline) for deadline in (9.0, 1.5, 0.5)] == [2, 0, 0]
