"""Who is there when."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.availability import Always, Diurnal, Intervals, Sometimes, Traced

properties = settings(deadline=None, max_examples=100)


def share(kind, rounds=range(1, 41), now_s=0.0) -> float:
    absences = [kind.absence(p, r, now_s, seed=0) for r in rounds for p in range(50)]
    return absences.count(None) / len(absences)


def test_always_and_never() -> None:
    assert share(Always()) == share(Sometimes(1.0)) == 1
    assert share(Sometimes(0.0)) == 0


def test_sometimes_in_the_right_share_and_anew_each_round() -> None:
    kind = Sometimes(0.3)
    assert abs(share(kind) - 0.3) < 5 * (0.3 * 0.7 / 2000) ** 0.5
    there = [kind.absence(5, r, 0, 0) is None for r in range(1, 50)]
    assert any(there)
    assert not all(there)
    assert there == [kind.absence(5, r, 99, 0) is None for r in range(1, 50)]
    assert "30%" in next(a for r in range(9) if (a := kind.absence(5, r, 0, 0)))


def test_diurnal_by_hand() -> None:
    kind = Diurnal(low=0.2, high=0.8, spread_h=0)
    day = 86400
    found = [kind.probability(3, t, 0) for t in (0, day / 4, day / 2, day, 2.5 * day)]
    assert found == pytest.approx([0.8, 0.5, 0.2, 0.8, 0.2])
    assert abs(share(kind, now_s=day / 2) - 0.2) < 0.05
    assert abs(share(kind, now_s=day) - 0.8) < 0.05
    spread = Diurnal(0.0, 1.0, spread_h=24)
    assert abs(share(spread, now_s=0) - 0.5) < 0.15  # somewhere it is always midnight


@properties
@given(now_s=st.floats(0, 1e7), partition=st.integers(0, 1000))
def test_diurnal_stays_between_its_ends(now_s: float, partition: int) -> None:
    assert 0.1 - 1e-9 <= Diurnal().probability(partition, now_s, 1) <= 0.9 + 1e-9


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sometimes(1.1),
        lambda: Sometimes(-0.1),
        lambda: Sometimes(float("nan")),
        lambda: Diurnal(0.9, 0.1),
        lambda: Diurnal(spread_h=25),
        lambda: Diurnal(high=1.1),
    ],
)
def test_impossible_probabilities_are_refused(make) -> None:
    with pytest.raises(ValueError, match=r"fleet\.availability"):
        make()


def test_intervals_by_hand() -> None:
    spans = Intervals(((10, 20), (30, 40)), 100)
    assert [spans.covers(t) for t in (0, 10, 19.9, 20, 30, 40, 110, 125, 1035)] == [
        False, True, True, False, True, False, True, False, True,
    ]  # fmt: skip
    assert not Intervals((), 5).covers(3)
    assert Intervals(((0, 5),), 5).covers(5)


@pytest.mark.parametrize(
    ("spans", "period"),
    [(((5, 3),), 10), (((5, 8), (7, 9)), 10), (((5, 11),), 10), (((-1, 3),), 10), ((), 0)],
)
def test_impossible_intervals_are_refused(spans, period) -> None:
    with pytest.raises(ValueError, match="take"):
        Intervals(spans, period)


def test_traced_clients() -> None:
    kind = Traced({4: Intervals(((0, 10),), 100)})
    assert kind.absence(4, 1, 105, 0) is None
    assert kind.absence(4, 1, 50, 0) == "not available at this time of the trace"
    assert kind.absence(5, 1, 5, 0) == "the trace has no such client"
