"""Server steps of asynchronous training, by hand and against an exact simulation."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from machines import DEVICE, FEDERATED, LINK, SERVER, SLOW, SPLIT

from fleet.availability import Intervals, Traced
from fleet.clock import AtOnce, overlapped, parallel, pipelined
from fleet.flights import Flight, Step, StepPlan
from fleet.phases import Phases
from fleet.plan import Fleet
from fleet.population import Client, stays

FAST_AND_SLOW = {0: Client(DEVICE, LINK), 1: Client(SLOW, LINK), 2: Client(DEVICE, LINK)}


def step(
    fleet: Fleet,
    work,
    number: int = 1,
    flights: Sequence[Flight] = (),
    idle: Iterable[int] = (0, 1, 2),
    rule: AtOnce = parallel,
    **options,
) -> StepPlan:
    parts = fleet.phases(dict.fromkeys(fleet.clients, work))
    chosen = {"now_s": 0.0, "concurrency": 3, "buffer": 1} | options
    made = Step(fleet, rule.pace, lambda began: parts, number, **chosen)
    return made.plan(flights, iter(idle))


def said(found: StepPlan) -> list[tuple]:
    return [(m.partition, m.status, m.begin_s, m.end_s) for m in found.members]


def test_a_step_ends_with_the_arrival_that_fills_the_buffer() -> None:
    """Federated: 17 s on the fast ones, 27 s on the slow one, whoever else is at work."""
    fleet = Fleet(FAST_AND_SLOW, SERVER)
    first = step(fleet, FEDERATED)
    assert said(first) == [(0, "ok", 0, 17)]
    assert (first.sim_s, first.participants) == (17, [0])
    assert [(f.partition, f.began, f.ends_in_s) for f in first.flights] == [(1, 1, 10), (2, 1, 0)]
    # Both fast ones ended at once: the second makes a step of no time. Its place is taken by 0.
    second = step(fleet, FEDERATED, 2, first.flights, [0], now_s=17.0)
    assert said(second) == [(2, "ok", 0, 17)]
    assert (second.sim_s, [f.partition for f in second.flights]) == (0, [1, 0])
    third = step(fleet, FEDERATED, 3, second.flights, [2], now_s=17.0)
    assert said(third) == [(1, "ok", 0, 27)]
    assert third.sim_s == 10
    fourth = step(fleet, FEDERATED, 4, third.flights, [1], now_s=27.0, buffer=2)
    assert said(fourth) == [(0, "ok", 17, 34), (2, "ok", 17, 34)]
    assert (fourth.arrived[0].began, fourth.arrived[1].began, fourth.sim_s) == (2, 3, 7)
    # idle 0.5 W all the time, 1.5 W more while computing
    assert fourth.energy_j == 2 * (0.5 * 17 + 1.5 * 10)


def test_another_begins_where_one_ended_in_the_middle_of_a_step() -> None:
    found = step(Fleet(FAST_AND_SLOW, SERVER), FEDERATED, concurrency=1, buffer=3)
    assert said(found) == [(0, "ok", 0, 17), (1, "ok", 17, 44), (2, "ok", 44, 61)]
    assert (found.sim_s, found.flights) == (61, ())


def test_the_server_is_shared_by_those_who_are_at_it() -> None:
    """20 s without the server and 8 s of it: 28 s for one, 36 s for each of two, 44 s of three.

    The slow one computes for 10 s longer. Two fast and a slow one: after 44 s the fast ones are
    done, 44/54 of the slow one; alone it would need 38 s, so 10/54 of that is left.
    """
    fleet = Fleet(FAST_AND_SLOW, SERVER)
    found = step(fleet, SPLIT, buffer=3)
    ends = [member.end_s for member in found.members]
    assert ends == pytest.approx([44, 44, 44 + 10 / 54 * 38], rel=1e-12)
    # One after another, 1 begins alone when 0 is gone.
    found = step(fleet, SPLIT, buffer=2, concurrency=1)
    assert said(found) == [(0, "ok", 0, 28), (1, "ok", 28, 66)]
    # 2 joins 1, who has done half of its work in 22 s: it has 23 s to go with two, not 19.
    half = Flight(1, 1, -19.0, 19.0, 38.0, 1)
    found = step(fleet, SPLIT, 2, [half], [2], concurrency=2, now_s=19.0, buffer=1)
    assert said(found) == [(1, "ok", 0, 19 + 23)]
    assert found.flights[0].ends_in_s == 36 - 23


@pytest.mark.parametrize("rule", [parallel, overlapped, pipelined])
def test_a_step_of_all_is_a_round(rule: AtOnce) -> None:
    """Where all are as fast, to the last bit."""
    fleet = Fleet(dict.fromkeys(range(3), Client(DEVICE, LINK)), SERVER)
    work = replace(SPLIT, bytes_down=7)
    parts = fleet.phases(dict.fromkeys(range(3), work))
    whole = fleet.plan((0, 1, 2), parts, rule, 1, 0.1)
    found = step(fleet, work, rule=rule, buffer=3, now_s=0.1)
    assert found.sim_s == whole.sim_s
    assert [replace(m, began=0) for m in found.members] == list(whole.members)


def test_who_cannot_begin_makes_room_for_the_next() -> None:
    traced = Traced({1: Intervals(((0, 5),), 10), 2: Intervals(((0, 9),), 10)})
    fleet = Fleet(FAST_AND_SLOW, SERVER, availability=traced, deadline_s=20)
    found = step(fleet, FEDERATED, concurrency=1)
    assert [m.status for m in found.members] == ["absent", "late", "ok"]
    assert found.members[1].reason == "would end after the deadline of 20 s"
    small = {p: Client(replace(DEVICE, memory_bytes=1), LINK) for p in range(3)}
    nobody = step(Fleet(small, SERVER), replace(FEDERATED, peak_bytes=2))
    assert [m.status for m in nobody.members] == ["unfit"] * 3
    assert (nobody.sim_s, nobody.arrived, nobody.flights) == (0, (), ())
    waits = Fleet(small, SERVER, deadline_s=20)
    assert step(waits, replace(FEDERATED, peak_bytes=2)).sim_s == 20
    # Fewer than the buffer takes: the step ends with the last.
    few = step(Fleet(FAST_AND_SLOW, SERVER), FEDERATED, idle=[0, 1], buffer=3)
    assert (len(few.arrived), few.sim_s) == (2, 27)


def test_who_leaves_is_counted_and_fills_no_buffer() -> None:
    fleet = Fleet(FAST_AND_SLOW, SERVER, seed=16, dropout=0.6)
    shares = [stays(0.6, 16, 1, p) for p in range(3)]
    assert [share < 1 for share in shares] == [False, True, True]
    found = step(fleet, FEDERATED, buffer=2)
    status = {m.partition: m for m in found.members}
    assert {p: m.status for p, m in status.items()} == {0: "ok", 1: "left", 2: "left"}
    assert status[1].sim_s == pytest.approx(27 * shares[1], rel=1e-12)
    assert status[1].energy_j == pytest.approx((0.5 * 27 + 1.5 * 20) * shares[1], rel=1e-12)
    assert status[1].reason == f"left after {shares[1]:.0%} of its work"
    assert found.participants == [0]
    assert found.sim_s == max(m.end_s for m in found.members)


def test_an_update_that_comes_too_late_is_left_out() -> None:
    fleet = Fleet(FAST_AND_SLOW, SERVER)
    old = Flight(1, 1, -20.0, 7.0, 27.0, 3)
    found = step(fleet, FEDERATED, 4, [old], [0, 2], is_stale=lambda began: began < 2)
    assert [(m.partition, m.status) for m in found.members] == [(1, "stale"), (0, "ok")]
    assert found.members[0].reason == "began 3 steps before"
    assert found.members[0].energy_j == 0.5 * 27 + 1.5 * 20


class Exact:
    """The same in fractions: how much of its work each has left, going down at the pace of all."""

    def __init__(self, phases: dict[int, Phases], concurrency: int, buffer: int) -> None:
        self.whole = {
            p: (Fraction(one.compute_s) + Fraction(one.transfer_s), Fraction(one.server_s))
            for p, one in phases.items()
        }
        self.concurrency, self.buffer = concurrency, buffer
        self.left: dict[int, Fraction] = {}
        self.now = Fraction(0)

    def step(self, idle: Iterable[int]) -> list[tuple[int, Fraction]]:
        waiting, arrived = list(idle), list[tuple[int, Fraction]]()
        while len(arrived) < self.buffer:
            while waiting and len(self.left) < self.concurrency:
                self.left[waiting.pop(0)] = Fraction(1)
            if not self.left:
                break
            n = len(self.left)
            takes = {p: self.whole[p][0] + n * self.whole[p][1] for p in self.left}
            first = min(self.left, key=lambda p: (self.left[p] * takes[p], p))
            passed = self.left[first] * takes[first]
            self.now += passed
            for p in self.left:
                self.left[p] -= passed / takes[p]
            del self.left[first]
            arrived.append((first, self.now))
        return arrived


@pytest.mark.parametrize("part", range(4))
def test_the_clock_against_an_exact_simulation(part: int) -> None:
    """A thousand random fleets in all, of up to 12 clients, some steps each."""
    for seed in range(part * 250, (part + 1) * 250):
        generator = random.Random(seed)
        total = generator.randint(1, 12)
        clients = dict.fromkeys(range(total), Client(DEVICE, LINK))
        fleet = Fleet(clients, SERVER)
        plain = fleet.phases(dict.fromkeys(range(total), SPLIT))
        server = generator.choice([0.0, generator.uniform(0.1, 9)])  # of all, or federated
        parts = {
            p: one.slowed(generator.uniform(0.1, 9), generator.uniform(0, 9), server)
            for p, one in plain.items()
        }
        concurrency = generator.randint(1, total)
        buffer = generator.randint(1, concurrency)
        exact, flights, now = Exact(parts, concurrency, buffer), (), 0.0
        for number in range(1, 6):
            idle = [p for p in range(total) if p not in {f.partition for f in flights}]
            generator.shuffle(idle)
            made = Step(
                fleet, parallel.pace, lambda began, parts=parts: parts, number, now,
                concurrency, buffer,
            )  # fmt: skip
            found, expected = made.plan(flights, iter(idle)), exact.step(idle)
            order = [(m.partition, m.end_s) for m in found.members]
            # Whose ends are closer than rounding may change places.
            assert sorted(p for p, _ in order) == sorted(p for p, _ in expected)
            assert [end for _, end in order] == pytest.approx(
                [float(end) for _, end in expected], rel=1e-9, abs=1e-9
            )
            now, flights = now + found.sim_s, found.flights


def test_more_at_work_never_end_earlier() -> None:
    """A client's end rises with every other that shares the server."""
    fleet = Fleet(dict.fromkeys(range(6), Client(DEVICE, LINK)), SERVER)
    ends = [step(fleet, SPLIT, idle=range(n), concurrency=n).sim_s for n in range(1, 7)]
    assert ends == sorted(ends)
    assert ends == [20 + 8 * n for n in range(1, 7)]
