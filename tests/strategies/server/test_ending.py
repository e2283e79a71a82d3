"""When a run ends, by accuracies written out by hand."""

import math

import pytest

from strategies.server.ending import PATIENCE, PRUNED, TARGET, Ending
from tracking.summary import best_round

RISING = [None, 0.4, 0.7, None, 0.6, 0.7, 0.8]


@pytest.mark.parametrize(
    ("target", "end"), [(0.4, 2), (0.41, 3), (0.7, 3), (0.71, 7), (0.8, 7), (0.81, 0)]
)
def test_the_first_round_that_reaches_the_target_is_the_last(target: float, end: int) -> None:
    assert Ending(target_accuracy=target).end(RISING) == (end, TARGET if end else "")


@pytest.mark.parametrize(("patience", "end"), [(1, 5), (2, 5), (3, 6), (4, 0)])
def test_patience_counts_rounds_after_the_best(patience: int, end: int) -> None:
    """Round 3 is the best until round 7; rounds 5 and 6 are no better, round 4 says nothing."""
    assert Ending(patience=patience).end(RISING) == (end, PATIENCE if end else "")


def test_nothing_ends_a_run_without_a_setting() -> None:
    assert Ending().end([1.0] * 50) == (0, "")


def test_the_target_comes_before_patience() -> None:
    assert Ending(0.7, 1).end([0.6, 0.7]) == (2, TARGET)


def test_every_longer_run_ends_in_the_same_round() -> None:
    for more in range(len(RISING)):
        assert Ending(0.7).end(RISING[: 3 + more])[0] == 3
    assert Ending(0.7).end(RISING[:2]) == (0, "")


def test_what_is_no_number_is_not_looked_at() -> None:
    """A record in memory has NaN where the one read back has None: both must end alike."""
    for nothing in (None, math.nan):
        accuracies = [nothing, 0.5, nothing, 0.5]
        assert Ending(patience=2).end(accuracies) == (4, PATIENCE)
        assert best_round(accuracies) == 2


def test_the_best_round_is_the_first_of_equals() -> None:
    assert best_round([0.1, 0.9, 0.9]) == 2
    assert best_round([0.0, 0.0]) == 1
    assert best_round([]) is best_round([None]) is None


def test_a_run_ends_where_its_best_accuracy_is_below_what_others_had() -> None:
    floors = Ending(floors=(None, 0.5, 0.6))
    assert floors.end([0.1]) == (0, "")  # the first round is not judged
    assert floors.end([0.1, 0.4]) == (2, PRUNED)
    assert floors.end([0.55, 0.4, 0.55]) == (3, PRUNED)  # the best until then counts
    assert floors.end([0.55, 0.5, 0.6, 0.1, 0.1]) == (0, "")
    assert floors.end([0.1, None, 0.7]) == (0, "")  # what was not evaluated is not judged
