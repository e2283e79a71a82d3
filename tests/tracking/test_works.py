"""Bars of clients on simulated time: which clients, how many bars, how stale."""

from runs import client_row, round_row
from tracking.works import sample, staleness, works


def work(number, partition, begin_s, end_s, **changes):
    return client_row(number, partition, begin_s=begin_s, end_s=end_s, **changes)


def test_the_columns_of_the_bars():
    clients = [
        work(1, 4, 0.0, 2.0, device="phone", loss=0.5),
        work(1, 7, 0.0, 5.0, status="left", loss=None),
        client_row(1, 5, status="absent"), work(2, 7, 2.0, 6.0, status="stale", loss=0.25),
        work(2, 4, 2.0, 3.0, device="phone", status="failed", loss=None),
    ]  # fmt: skip
    found = works(clients, [round_row(r, None, sim_s=2.0) for r in (1, 2)], most=9)
    assert found == {
        "clients": ["7", "4 phone"], "num_clients": 2, "num_idle": 1, "num_works": 4,
        "client": [0, 1, 0, 1],
        "begin_s": [0.0, 0.0, 2.0, 2.0], "end_s": [5.0, 2.0, 6.0, 3.0], "state": "2034",
        "round": [1, 1, 2, 2], "loss": [None, 0.5, 0.25, None],
    }  # fmt: skip


def test_without_times_there_are_none():
    rounds = [round_row(1, None)]
    assert works([client_row(1, 0), client_row(1, 1, status="late")], rounds, most=9) == {}
    assert works([], [], most=9) == {}
    assert works([work(1, 0, 0.0, 1.0)], rounds, most=0) == {}


def test_of_too_many_works_those_that_began_first_are_drawn():
    clients = [work(r, p, float(r), r + 1.0 + p / 9) for r in (1, 2, 3) for p in range(4)]
    found = works(clients[::-1], [round_row(r, None, sim_s=1.0) for r in (1, 2, 3)], most=6)
    assert (found["num_works"], len(found["state"])) == (12, 6)
    assert found["clients"] == ["3", "2", "1", "0"]
    assert found["begin_s"] == [1.0] * 4 + [2.0] * 2
    assert found["client"] == [0, 1, 2, 3, 0, 1]


def test_the_sample_is_the_slowest_the_fastest_and_some_between():
    clients = [work(1, p, 0.0, 100.0 - p) for p in range(60)]
    assert sample(clients, most=6) == [0, 1, 16, 44, 58, 59]
    assert sample(clients[::-1], most=6) == sample(clients, most=6)
    assert sample(clients, most=60) == list(range(60))
    assert len(set(sample(clients))) == 30
    assert sample([]) == []


def test_how_fast_a_client_is_only_whole_works_say():
    clients = [
        work(1, 0, 0.0, 3.0), work(2, 0, 3.0, 3.1, status="left"), work(1, 1, 0.0, 2.0),
        work(1, 2, 0.0, 0.1, status="left"),
    ]  # fmt: skip
    assert sample(clients) == [0, 1, 2]
    assert sample(clients, most=2) == [0, 1]  # who always left has no speed
    assert sample([work(1, 5, 0.0, 1.0), work(1, 4, 0.0, 1.0)]) == [4, 5]


def test_staleness_is_the_rounds_that_ended_since_the_begin():
    seconds = [0.1, 0.2, 0.3, 0.4]  # whose sums are not exact
    rounds = [round_row(r, None, sim_s=s) for r, s in enumerate(seconds, 1)]
    timed = [
        work(1, 0, 0.0, 0.1), work(2, 0, 0.1, 0.3), work(4, 1, 0.05, 0.9), work(4, 2, 0.3, 1.0),
        work(4, 3, 0.6, 1.0),
    ]  # fmt: skip
    assert staleness(timed, rounds) == [0, 0, 3, 1, 0]
    assert works(timed, rounds, most=5)["staleness"] == [0, 3, 0, 1, 0]
    assert staleness(timed, [round_row(r, None) for r in range(1, 5)]) == [0] * 5
