"""Rounds: who takes part, how long they last, what they cost; nobody at all."""

from dataclasses import replace

import pytest
from machines import DEVICE, FEDERATED, LINK, SERVER, SLOW, SPLIT, flops

from fleet.availability import Intervals, Sometimes, Traced
from fleet.clock import overlapped, parallel, pipelined, queued, sequential
from fleet.devices import tables
from fleet.plan import Fleet, RoundPlan, Shorter, num_asked
from fleet.population import Client, assign
from fleet.work import ClientWork

FAST_AND_SLOW = {0: Client(DEVICE, LINK), 1: Client(SLOW, LINK), 2: Client(DEVICE, LINK)}


def plan(fleet: Fleet, work: ClientWork, rule=parallel, asked=(0, 1, 2), **options) -> RoundPlan:
    parts = fleet.phases(dict.fromkeys(range(3), work))
    return fleet.plan(asked, parts, rule, server_round=1, now_s=0.0, **options)


def statuses(found: RoundPlan) -> list[str]:
    return [member.status for member in found.members]


def test_a_round_lasts_until_its_slowest_participant() -> None:
    found = plan(Fleet(FAST_AND_SLOW, SERVER), FEDERATED)
    assert found.participants == [0, 1, 2]
    assert [member.sim_s for member in found.members] == [17, 27, 17]
    assert found.sim_s == 27
    # idle 0.5 W all the time, 1.5 W more while computing
    energies = [0.5 * 17 + 1.5 * 10, 0.5 * 27 + 1.5 * 20, 0.5 * 17 + 1.5 * 10]
    assert [member.energy_j for member in found.members] == energies
    assert found.energy_j == sum(energies)
    assert [member.device for member in found.members] == ["d", "slow", "d"]


def test_order_is_the_order_asked() -> None:
    fleet = Fleet(FAST_AND_SLOW, SERVER)
    found = plan(fleet, SPLIT, sequential, asked=(2, 1, 0))
    assert found.participants == [2, 1, 0]
    assert [member.sim_s for member in found.members] == [28, 38, 28]  # from each one's own turn
    assert found.sim_s == 94
    assert plan(fleet, SPLIT, queued, asked=(1, 0)).sim_s == 50


def test_a_deadline_ends_the_round_and_leaves_late_ones_out() -> None:
    found = plan(Fleet(FAST_AND_SLOW, SERVER, deadline_s=20), FEDERATED)
    assert statuses(found) == ["ok", "late", "ok"]
    assert found.sim_s == 20
    late = found.members[1]
    assert (late.sim_s, late.energy_j) == (None, None)
    assert late.reason == "would end after the deadline of 20 s"
    assert found.energy_j == 2 * (0.5 * 17 + 1.5 * 10)
    assert plan(Fleet(FAST_AND_SLOW, SERVER, deadline_s=27), FEDERATED).sim_s == 27


def test_over_selection_takes_the_first_to_end() -> None:
    found = plan(Fleet(FAST_AND_SLOW, SERVER), FEDERATED, wanted=2)
    assert statuses(found) == ["ok", "surplus", "ok"]
    assert found.sim_s == 17
    assert found.members[1].reason == "would end at 27 s, after 2 others"
    # Equal times: the smaller partition first. Enough are there: nobody waits for the deadline.
    found = plan(Fleet(FAST_AND_SLOW, SERVER, deadline_s=20), FEDERATED, wanted=1)
    assert statuses(found) == ["ok", "late", "surplus"]
    assert found.sim_s == 17
    assert num_asked(10, 1.3, 100) == 13
    assert num_asked(10, 1.0, 100) == 10
    assert num_asked(10, 1.25, 12) == 12
    assert num_asked(1, 1.3, 100) == 2
    with pytest.raises(ValueError, match=r"fleet\.over_select=0.9"):
        num_asked(10, 0.9, 100)


@pytest.mark.parametrize("rule", [parallel, queued, sequential, overlapped, pipelined])
def test_a_deadline_that_nobody_meets(rule) -> None:
    found = plan(Fleet(FAST_AND_SLOW, SERVER, deadline_s=1), SPLIT, rule)
    assert statuses(found) == ["late"] * 3
    assert (found.participants, found.sim_s, found.energy_j) == ([], 1, 0)


def test_a_fleet_in_which_nothing_fits() -> None:
    small = replace(DEVICE, memory_bytes=899)
    fleet = Fleet(dict.fromkeys(range(3), Client(small, LINK)), SERVER)
    found = plan(fleet, replace(SPLIT, peak_bytes=2**20))
    assert statuses(found) == ["unfit"] * 3
    assert found.members[0].reason == "needs 1.0 MiB, d has 0.0"
    assert (found.participants, found.sim_s) == ([], 0)
    with_deadline = plan(replace(fleet, deadline_s=5), SPLIT)
    assert with_deadline.sim_s == 5


def test_the_absent_and_the_unfit_take_no_share_of_the_server() -> None:
    clients = {**FAST_AND_SLOW, 1: Client(replace(SLOW, memory_bytes=1), LINK)}
    found = plan(Fleet(clients, SERVER), SPLIT)
    assert statuses(found) == ["ok", "unfit", "ok"]
    assert found.sim_s == 36  # two share it
    traced = Traced({0: Intervals(((0, 5),), 10), 1: Intervals(((5, 9),), 10)})
    found = plan(Fleet(FAST_AND_SLOW, SERVER, availability=traced, deadline_s=99), SPLIT)
    assert statuses(found) == ["ok", "absent", "absent"]
    assert found.sim_s == 28
    assert [member.reason for member in found.members[1:]] == [
        "not available at this time of the trace",
        "the trace has no such client",
    ]


def test_who_is_not_there_may_train_alone() -> None:
    """It takes no share of the server, does not count to those wanted, and is waited for."""
    traced = Traced({0: Intervals(((0, 5),), 10), 2: Intervals(((0, 5),), 10)})
    fleet = Fleet(FAST_AND_SLOW, SERVER, availability=traced, deadline_s=99)
    alone = fleet.phases(dict.fromkeys(range(3), FEDERATED))  # 1 takes 27 s of it, transfers too
    found = plan(fleet, SPLIT, alone=alone)
    assert statuses(found) == ["ok", "alone", "ok"]
    assert (found.participants, found.alone) == ([0, 1, 2], [1])
    assert [member.sim_s for member in found.members] == [36, 27, 36]  # two share the server
    assert found.members[1].energy_j == 0.5 * 27 + 1.5 * 20
    assert found.members[1].reason == "the trace has no such client"
    found = plan(replace(fleet, clients={1: FAST_AND_SLOW[1]}), SPLIT, asked=[1], alone=alone)
    assert (statuses(found), found.sim_s) == (["alone"], 27)
    found = plan(fleet, SPLIT, alone=alone, wanted=1)
    assert statuses(found) == ["ok", "alone", "surplus"]
    found = plan(replace(fleet, deadline_s=26), FEDERATED, alone=alone)
    assert (statuses(found), found.sim_s) == (["ok", "late", "ok"], 26)
    cramped = {p: replace(phases, peak_bytes=1, memory_bytes=0) for p, phases in alone.items()}
    assert statuses(plan(fleet, SPLIT, alone=cramped)) == ["ok", "unfit", "ok"]
    assert statuses(plan(fleet, SPLIT)) == ["ok", "absent", "ok"]


def test_a_trace_with_a_missing_client() -> None:
    clients = {0: FAST_AND_SLOW[0]}
    found = plan(Fleet(clients, SERVER), FEDERATED)
    assert statuses(found) == ["ok", "absent", "absent"]
    assert found.members[1].device is None
    assert found.members[1].reason == "the trace has no such client"


def test_nobody_asked_and_nobody_there() -> None:
    fleet = Fleet(FAST_AND_SLOW, SERVER)
    assert plan(fleet, SPLIT, asked=()) == RoundPlan((), 0)
    found = plan(replace(fleet, availability=Sometimes(0)), SPLIT)
    assert statuses(found) == ["absent"] * 3
    assert found.sim_s == 0


def test_jitter_varies_by_round_and_repeats() -> None:
    fleet = Fleet(FAST_AND_SLOW, SERVER, jitter=0.3)
    parts = fleet.phases(dict.fromkeys(range(3), FEDERATED))
    rounds = [fleet.plan((0, 1, 2), parts, parallel, r, 0.0) for r in (1, 1, 2)]
    assert rounds[0] == rounds[1] != rounds[2]
    seconds = [member.sim_s for member in rounds[0].members]
    assert seconds[0] != seconds[2]
    alone = fleet.plan((2,), parts, parallel, 1, 0.0)
    assert alone.members[0] == rounds[0].members[2]


def test_a_real_population_end_to_end() -> None:
    population = tables().population("mobile")
    fleet = Fleet(assign(population, tables(), range(100), 0), tables().device("server"))
    work = ClientWork(400_000, FEDERATED.local * 1e9, (), 400_000, 50 * 2**20)
    parts = fleet.phases(dict.fromkeys(range(100), work))
    found = fleet.plan(range(100), parts, parallel, 1, 0.0)
    assert len(found.participants) == 100
    by_device = {member.device: member.sim_s for member in found.members}
    # 1e10 operations at 0.486 GFLOP/s are 20.6 s, at 1.514 GFLOP/s 6.6 s; up to 2.5 s up on 3G.
    assert 20.5 < by_device["phone_low"] < 24
    assert 6.5 < by_device["phone_mid"] < 10
    assert found.sim_s == max(member.sim_s for member in found.members)


def test_impossible_deadlines_are_refused() -> None:
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=r"fleet\.deadline_s="):
            Fleet({}, SERVER, deadline_s=wrong)
    with pytest.raises(ValueError, match=r"fleet\.deadline_s=null: takes a number where"):
        Fleet({}, SERVER, availability=Traced())
    with pytest.raises(ValueError, match=r"fleet\.jitter="):
        Fleet({}, SERVER, jitter=-1)


def shorter(num_batches: int) -> Shorter:
    """Of ten seconds of computing a batch takes its part; the device's way down and up is 7 s."""
    fleet = Fleet(FAST_AND_SLOW, SERVER)

    def phases_of(partition: int, count: int):
        work = replace(FEDERATED, local=flops(10 * count / num_batches))
        return fleet.phases({partition: work})[partition]

    return Shorter(parallel.pace, lambda p: num_batches, phases_of, lambda p, n: n / num_batches)


def test_who_would_be_late_does_what_it_can() -> None:
    """Of five batches of 4 s the slow one does three in 12 + 7 s by a deadline of 20 s."""
    fleet = Fleet(FAST_AND_SLOW, SERVER, deadline_s=20)
    found = plan(fleet, FEDERATED, shorter=shorter(5))
    assert statuses(found) == ["ok"] * 3
    assert [member.batches for member in found.members] == [0, 3, 0]
    assert [member.share for member in found.members] == [1, 0.6, 1]
    assert [member.sim_s for member in found.members] == [17, 19, 17]
    assert found.sim_s == 19  # nobody has more to wait for
    assert found.members[1].reason == "3 of 5 batches by the deadline"
    assert found.members[1].energy_j == 0.5 * 19 + 1.5 * 12
    # Exactly in time is in time; where one batch takes too long, it is late.
    for deadline, batches in ((19, 3), (18.9, 2), (23, 4), (26.9, 4), (27, 0)):
        found = plan(replace(fleet, deadline_s=deadline), FEDERATED, shorter=shorter(5))
        assert (found.members[1].batches, found.members[1].status) == (batches, "ok")
    found = plan(replace(fleet, deadline_s=17), FEDERATED, shorter=shorter(1))
    assert statuses(found) == ["ok", "late", "ok"]
    assert found.sim_s == 17


@pytest.mark.parametrize("rule", [parallel, queued, sequential])
def test_who_leaves_ends_its_turn_earlier(rule) -> None:
    """Of the clients 1 and 2 leave; what they cost is counted, and nobody waits for them longer."""
    whole = plan(Fleet(FAST_AND_SLOW, SERVER, seed=16), SPLIT, rule)
    found = plan(Fleet(FAST_AND_SLOW, SERVER, seed=16, dropout=0.6), SPLIT, rule)
    assert statuses(found) == ["ok", "left", "left"]
    assert found.participants == [0]
    for before, member in zip(whole.members, found.members, strict=True):
        assert member.begin_s == before.begin_s
        assert member.sim_s == pytest.approx(before.sim_s * member.share)
        assert member.energy_j == pytest.approx(before.energy_j * member.share)
        assert member.end_s == pytest.approx(member.begin_s + member.sim_s)
    assert found.sim_s == max(member.end_s for member in found.members)


def test_who_would_leave_after_the_round_is_over_is_surplus() -> None:
    """Client 1 would leave after 12 % of its 27 s, client 2 after 97 %; 0 ends at 17 s."""
    fleet = Fleet({**FAST_AND_SLOW, 2: Client(SLOW, LINK)}, SERVER, seed=16, dropout=0.6)
    found = plan(fleet, FEDERATED, wanted=1)
    assert statuses(found) == ["ok", "left", "surplus"]
    assert found.sim_s == 17
