"""The paired test, against scipy's and by hand."""

import pytest
from scipy import stats

from tracking.paired import Difference, difference, holm

A = {0: 0.91, 1: 0.93, 2: 0.90, 3: 0.95}
B = {0: 0.90, 1: 0.90, 2: 0.88, 3: 0.93}


def test_it_is_the_paired_t_test():
    found = difference(A, B)
    wanted = stats.ttest_rel(list(A.values()), list(B.values()))
    assert found.mean == pytest.approx(0.02)
    assert found.p == pytest.approx(wanted.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(wanted.confidence_interval(0.95)))
    assert found.n == 4
    turned = difference(B, A)
    assert (turned.mean, turned.p) == pytest.approx((-found.mean, found.p))


def test_by_hand():
    """d = 1, 2, 3: mean 2, sd 1, t = 2√3 with 2 degrees of freedom, p = 1 − t/√(2 + t²)."""
    found = difference({0: 1.0, 1: 2.0, 2: 3.0}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert found.p == pytest.approx(1 - 12**0.5 / 14**0.5)
    assert found.high - found.mean == pytest.approx(4.30265 / 3**0.5, rel=1e-5)


def test_only_seeds_that_both_have_are_compared():
    assert difference(A | {9: 0.0}, B | {8: 1.0}) == difference(A, B)
    assert difference({0: 0.5}, {1: 0.5}) == Difference(None, None, None, None, 0)


def test_two_seeds_are_too_few_for_a_test():
    found = difference({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.25})
    assert found == Difference(0.375, None, None, None, 2)


def test_equal_seed_by_seed():
    assert difference(A, A) == Difference(0.0, 0.0, 0.0, 1.0, 4)


def test_one_difference_for_all_seeds_is_a_sign_test():
    found = difference(dict.fromkeys(range(6), 1.0), dict.fromkeys(range(6), 0.75))
    assert (found.mean, found.low, found.high, found.p) == (0.25, 0.25, 0.25, 2**-5)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
