"""Robust weights against the definitions written out, and against Flower's Krum."""

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.serverapp.strategy.multikrum import select_multikrum
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import messages
from strategies.contract import Update
from strategies.server.aggregation import Averaging, AveragingSettings
from strategies.server.method import Result, ServerState
from strategies.server.robust import geometric_median, inner_products, krum, multi_krum

modest = settings(deadline=None, max_examples=40)


def states(count, seed, scale=1.0):
    random = np.random.default_rng(seed)
    shapes = {"a.weight": (3, 2), "a.bias": (2,), "b": ()}
    return [
        {
            **{n: np.float32(scale * random.standard_normal(s)) for n, s in shapes.items()},
            "count": np.int64(random.integers(9)),
        }
        for _ in range(count)
    ]


def flat(state):
    parts = [np.ravel(a).astype(np.float64) for a in state.values() if a.dtype.kind == "f"]
    return np.concatenate(parts)


@modest
@given(st.integers(1, 8), st.integers(0, 10**6))
def test_inner_products_are_those_of_the_differences(count, seed):
    some = states(count, seed)
    apart = [flat(state) - flat(some[0]) for state in some]
    expected = [[float(np.dot(x, y)) for y in apart] for x in apart]
    np.testing.assert_allclose(inner_products(some, list(some[0])), expected, atol=1e-9)


@modest
@given(st.integers(5, 9), st.integers(0, 1), st.integers(0, 10**6))
def test_krum_selects_as_flower_does(count, num_malicious, seed):
    some = states(count, seed)
    floats = [{n: a for n, a in state.items() if a.dtype.kind == "f"} for state in some]
    contents = [RecordDict({"arrays": messages.to_record(state)}) for state in floats]
    for weigh, num_selected in ((krum, 1), (multi_krum, count - num_malicious)):
        chosen = select_multikrum(contents, num_malicious, num_selected)
        theirs = [float(any(content is one for one in chosen)) for content in contents]
        assert weigh(some, list(some[0]), [1] * count, num_malicious) == theirs


def test_krum_tells_close_clients_apart_where_float32_norms_cannot():
    """Far from zero, and near each other: two are a pair, the third is apart."""
    some = [{"w": np.float32([4096 + x, 0])} for x in (0, 2**-10, 1)]
    assert krum(some, ["w"], [1] * 3, 0)[2] == 0


@modest
@given(st.integers(2, 7), st.integers(0, 10**6))
def test_the_geometric_median_has_the_least_summed_distance(count, seed):
    some, random = states(count, seed), np.random.default_rng(seed)
    weights = random.integers(1, 50, count).tolist()
    points = np.stack([flat(state) for state in some])

    def summed(z):
        return float(np.dot(weights, np.linalg.norm(points - z, axis=1)))

    found = np.asarray(geometric_median(some, list(some[0]), weights, 0)) @ points
    least = summed(found)
    for _ in range(30):
        assert least <= summed(found + 0.1 * random.standard_normal(found.shape)) * (1 + 1e-5)
    assert least <= min(summed(point) for point in points) * (1 + 1e-3)


def results(some, masks=None):
    update = Update({}, 10, 0.0)
    return [
        Result(p, 10, update=update, arrays=state, masks=masks[p] if masks else {})
        for p, state in enumerate(some)
    ]


@pytest.mark.parametrize("average", ["krum", "multi_krum", "geometric_median"])
def test_a_client_far_off_hardly_counts(average):
    good = states(6, 0, scale=0.01)
    wild = {**good[5], "a.weight": np.full((3, 2), 1e4, np.float32), "count": np.int64(99)}
    aggregate = Averaging.of(AveragingSettings(average=average))
    new = aggregate(ServerState(), results([*good[:5], wild]), None)
    assert np.abs(new.arrays["a.weight"]).max() < 0.1
    if average != "geometric_median":  # who is left out is left out of the counts as well
        assert new.arrays["count"] < 99
    plain = Averaging()(ServerState(), results([*good[:5], wild]), None)
    assert np.abs(plain.arrays["a.weight"]).max() > 1000


@pytest.mark.parametrize("average", ["krum", "multi_krum", "geometric_median"])
def test_one_client_and_equal_clients_stay_bit_identical(average):
    aggregate = Averaging.of(AveragingSettings(average=average))
    (one,) = states(1, 3)
    for count in (1, 4):
        new = aggregate(ServerState(), results([one] * count), None)
        for name, array in one.items():
            np.testing.assert_allclose(new.arrays[name], array, rtol=1e-7)
            assert new.arrays[name].dtype == array.dtype


def test_what_somebody_keeps_to_himself_is_not_compared():
    """A private array, far off in one client, must not cost that client its say."""
    some = states(5, 1, scale=0.01)
    some[0] = {**some[0], "a.weight": np.full((3, 2), 1e6, np.float32)}
    masks = [{"a.weight": False}] * 5
    aggregate = Averaging.of(AveragingSettings(average="multi_krum", num_malicious=0))
    new = aggregate(ServerState(arrays=some[1]), results(some, masks), None)
    expected = np.mean([state["a.bias"] for state in some], axis=0, dtype=np.float64)
    np.testing.assert_allclose(new.arrays["a.bias"], expected, rtol=1e-6)
    np.testing.assert_array_equal(new.arrays["a.weight"], some[1]["a.weight"])


def test_too_few_clients_for_krums_promise_are_said(caplog):
    krum(states(4, 0), ["b"], [1] * 4, 1)
    assert "num_malicious=1: Krum needs 5 clients to keep them out, these are 4" in (caplog.text)
