"""Server steps of asynchronous training, by hand and against an exact simulation."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from machines import DEVICE, FEDERATED, LINK, SERVER, SLOW, SPLIT

from fleet.availability import Intervals, Traced
from fleet.clock import AtOnce, overlapped, parallel, pipelined
from fleet.flights import Flight, Service, Step, StepPlan
from fleet.phases import Phases
from fleet.plan import Fleet, Member
from fleet.population import Client, stays
from fleet.service import Queue, Shared

SHARED = Shared(parallel.pace)
FAST_AND_SLOW = {0: Client(DEVICE, LINK), 1: Client(SLOW, LINK), 2: Client(DEVICE, LINK)}


def step(
    fleet: Fleet,
    work,
    number: int = 1,
    flights: Sequence[Flight] = (),
    idle: Iterable[int] = (0, 1, 2),
    service: Service = SHARED,
    **options,
) -> StepPlan:
    parts = fleet.phases(dict.fromkeys(fleet.clients, work))
    chosen = {"now_s": 0.0, "concurrency": 3, "buffer": 1} | options
    made = Step(fleet, service, lambda began: parts, number, **chosen)
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
    found = step(fleet, work, service=Shared(rule.pace), buffer=3, now_s=0.1)
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
        fleet, parts = some_fleet(generator)
        concurrency = generator.randint(1, len(parts))
        buffer = generator.randint(1, concurrency)
        exact = Exact(parts, concurrency, buffer)
        compared(fleet, parts, SHARED, exact, generator)


def some_fleet(generator: random.Random, dropout: float = 0.0) -> tuple[Fleet, dict[int, Phases]]:
    """Up to 12 clients on a server of any speed, and what their work takes them."""
    total = generator.randint(1, 12)
    clients = dict.fromkeys(range(total), Client(DEVICE, LINK))
    fleet = Fleet(clients, SERVER, seed=total, dropout=dropout)
    plain = fleet.phases(dict.fromkeys(range(total), SPLIT))
    server = generator.choice([0.0, generator.uniform(0.1, 9)])  # of all, or federated
    return fleet, {
        p: one.slowed(generator.uniform(0.1, 9), generator.uniform(0, 9), server)
        for p, one in plain.items()
    }


def compared(
    fleet: Fleet,
    parts: dict[int, Phases],
    service: Service,
    exact: "Exact | ExactQueue",
    generator: random.Random,
) -> list[Member]:
    """Take five steps of both, and return what became of whom."""
    flights, now, members = (), 0.0, list[Member]()
    for number in range(1, 6):
        idle = [p for p in parts if p not in {f.partition for f in flights}]
        generator.shuffle(idle)
        made = Step(
            fleet, service, lambda began: parts, number, now, exact.concurrency, exact.buffer
        )
        found, expected = made.plan(flights, iter(idle)), exact.step(idle)
        order = [(m.partition, m.end_s) for m in found.members]
        # Whose ends are closer than rounding may change places.
        assert sorted(p for p, _ in order) == sorted(p for p, _ in expected)
        assert [end for _, end in order] == pytest.approx(
            [float(end) for _, end in expected], rel=1e-9, abs=1e-9
        )
        now, flights, members = now + found.sim_s, found.flights, [*members, *found.members]
    return members


def test_more_at_work_never_end_earlier() -> None:
    """A client's end rises with every other that shares the server."""
    fleet = Fleet(dict.fromkeys(range(6), Client(DEVICE, LINK)), SERVER)
    ends = [step(fleet, SPLIT, idle=range(n), concurrency=n).sim_s for n in range(1, 7)]
    assert ends == sorted(ends)
    assert ends == [20 + 8 * n for n in range(1, 7)]


# A queue for one server part ----------------------------------------------------------------------

# By hand, on the fast: 6 s until its first batch is there, 15 s with the server, 7 s until it is
# back, so that it holds the server for 22 s. On the slow: 8 s, 20 s and 10 s.
FAR = replace(SPLIT, bytes_down=40)  # 43 s until its first batch is there


@pytest.mark.parametrize("buffer", [3, 1])
def test_who_is_ready_first_is_served_first(buffer: int) -> None:
    """2 begins 28 s after 1, whose model has far to go, and overtakes it."""
    fleet = Fleet({0: Client(DEVICE, LINK), 1: Client(DEVICE, LINK), 2: Client(SLOW, LINK)}, SERVER)
    parts = fleet.phases({0: SPLIT, 1: FAR, 2: SPLIT})
    idle, flights, now, order = iter([1, 0, 2]), (), 0.0, []
    for number in range(1, 4 if buffer == 1 else 2):
        made = Step(fleet, Queue(), lambda began: parts, number, now, 2, buffer)
        found = made.plan(flights, idle)
        order += said(found)
        now, flights = now + found.sim_s, found.flights
    assert order == [(0, "ok", 0, 28), (2, "ok", 28, 36 + 30), (1, "ok", 0, 66 + 22)]
    assert (now, flights) == (88, ())


def test_who_waits_keeps_its_place_from_step_to_step() -> None:
    found = step(Fleet(FAST_AND_SLOW, SERVER), SPLIT, service=Queue(), concurrency=3)
    assert said(found) == [(0, "ok", 0, 28)]
    assert [(f.partition, f.begins_in_s) for f in found.flights] == [(2, -28), (1, -28)]
    # 0 begins again, behind the two that wait.
    second = step(Fleet(FAST_AND_SLOW, SERVER), SPLIT, 2, found.flights, [0], Queue(), now_s=28.0)
    assert said(second) == [(2, "ok", 0, 50)]
    third = step(Fleet(FAST_AND_SLOW, SERVER), SPLIT, 3, second.flights, [2], Queue(), now_s=50.0)
    assert said(third) == [(1, "ok", 0, 80)]
    assert third.energy_j == 0.5 * 80 + 1.5 * 20  # it idles while it waits
    fourth = step(Fleet(FAST_AND_SLOW, SERVER), SPLIT, 4, third.flights, [1], Queue(), now_s=80.0)
    assert said(fourth) == [(0, "ok", 28, 102)]


def test_who_leaves_in_the_queue_or_in_its_turn() -> None:
    """Served would be 0 from 6 to 28 s, 2 to 50 s, 1 to 80 s.

    2 leaves after a quarter of its time, at 12.5 s, as it waits. 0 leaves after half of its time,
    at 14 s, while it is served; then the server is free, and 1 has waited for it.
    """
    fleet = Fleet(FAST_AND_SLOW, SERVER)
    begun = {0: 0.5, 1: 1.0, 2: 0.25}
    flights = [Flight(p, 1, 0.0, 0.0, 0.0, 0, share) for p, share in begun.items()]
    found = step(fleet, SPLIT, 1, flights, [], Queue())
    assert said(found) == [(2, "left", 0, 12.5), (0, "left", 0, 14), (1, "ok", 0, 44)]
    waited, served, _ = found.members
    # Of its work 2 has done what comes before its turn: 6 of 28 s; 0 has not waited.
    assert (waited.share, served.share) == (6 / 28, 0.5)
    assert waited.energy_j == pytest.approx(0.5 * 12.5 + 1.5 * 10 * 6 / 28, rel=1e-12)
    assert served.energy_j == pytest.approx(0.5 * 14 + 1.5 * 10 / 2, rel=1e-12)
    assert waited.reason == "left after 21% of its work"
    # With three tenths it would be at 15 s, but the queue is shorter from 14 s on: it leaves then.
    flights[2] = replace(flights[2], share=0.3)
    found = step(fleet, SPLIT, 1, flights, [], Queue())
    assert said(found) == [(0, "left", 0, 14), (2, "left", 0, 14), (1, "ok", 0, 44)]


def test_a_queue_is_no_reason_to_be_late() -> None:
    """Alone the fast take 28 s and the slow one 38 s."""
    fleet = Fleet(FAST_AND_SLOW, SERVER, deadline_s=30)
    found = step(fleet, SPLIT, service=Queue(), buffer=2)
    assert [m.status for m in found.members] == ["late", "ok", "ok"]
    assert found.sim_s == 50


class ExactQueue:
    """The same in fractions, event by event: who comes, who is taken next, who is done or leaves.

    Who leaves does after its share of the time until the end that it has as things are.
    """

    def __init__(
        self, fleet: Fleet, phases: dict[int, Phases], concurrency: int, buffer: int
    ) -> None:
        self.fleet, self.concurrency, self.buffer = fleet, concurrency, buffer
        self.lead = {p: Fraction(one.lead_s) for p, one in phases.items()}
        self.whole = {
            p: sum(map(Fraction, (one.compute_s, one.transfer_s, one.server_s)))
            for p, one in phases.items()
        }
        self.begins: dict[int, Fraction] = {}
        self.shares: dict[int, Fraction] = {}
        self.served: tuple[int, Fraction] | None = None  # who, and until when
        self.now, self.number = Fraction(0), 0

    def ready(self, p: int) -> Fraction:
        return self.begins[p] + self.lead[p]

    def ends(self) -> dict[int, Fraction]:
        """When each would be back: who is served, then the others as they are ready."""
        found, free = dict[int, Fraction](), self.now
        if self.served is not None:
            found[self.served[0]] = free = self.served[1]
        waiting = [p for p in self.begins if p not in found]
        while waiting:
            p = min(waiting, key=lambda one: (max(free, self.ready(one)), self.ready(one), one))
            waiting.remove(p)
            free = found[p] = max(free, self.ready(p)) + self.whole[p] - self.lead[p]
        return found

    def step(self, idle: Iterable[int]) -> list[tuple[int, Fraction]]:
        self.number += 1
        waiting, gone, arrived = list(idle), list[tuple[int, Fraction]](), 0
        while arrived < self.buffer:
            while waiting and len(self.begins) < self.concurrency:
                p = waiting.pop(0)
                self.begins[p] = self.now
                self.shares[p] = Fraction(self.fleet.stays(p, self.number))
            if not self.begins:
                break
            ends = self.ends()
            leaves = {
                p: max(self.now, self.begins[p] + self.shares[p] * (end - self.begins[p]))
                for p, end in ends.items()
            }
            leaver = min(leaves, key=lambda p: (leaves[p], p))
            if self.served is None:  # the next event may be that the server takes somebody
                taken = min(self.begins, key=lambda p: (self.ready(p), p))
                begins = max(self.now, self.ready(taken))
                if begins <= leaves[leaver]:
                    self.now, self.served = begins, (taken, ends[taken])
                    continue
            self.now = leaves[leaver]
            arrived += self.shares[leaver] == 1
            if self.served is not None and self.served[0] == leaver:
                self.served = None
            del self.begins[leaver]
            gone.append((leaver, self.now))
        return gone


@pytest.mark.parametrize("part", range(2))
def test_the_queue_against_an_exact_simulation(part: int) -> None:
    """Four hundred random fleets in all; in every second some leave."""
    left = 0
    for seed in range(part * 200, (part + 1) * 200):
        generator = random.Random(seed)
        fleet, parts = some_fleet(generator, dropout=0.4 * (seed % 2))
        concurrency = generator.randint(1, len(parts))
        buffer = generator.randint(1, concurrency)
        exact = ExactQueue(fleet, parts, concurrency, buffer)
        members = compared(fleet, parts, Queue(), exact, generator)
        left += sum(member.status == "left" for member in members)
        # The server never serves two: whoever arrives has held it since the one before was back.
        backs = [m.end_s for m in members if m.status == "ok"]
        held = [parts[m.partition].held_s + parts[m.partition].tail_s for m in members
                if m.status == "ok"]  # fmt: skip
        for before, end, seconds in zip(backs, backs[1:], held[1:], strict=False):
            assert end - before >= seconds - 1e-9
    assert left > 100
