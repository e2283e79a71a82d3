"""Averages against references written without numpy's reductions."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quant.functional import MIN_STEP
from strategies.server.aggregation import AVERAGES, combine, mean, median, trimmed_mean

STEP, FLAG = "head.weight_quantizer.step", "head.weight_quantizer.initialised"

finite = st.floats(-1e6, 1e6, width=32)
modest = settings(deadline=None, max_examples=40)


@st.composite
def clients(draw, low=1, high=9):
    """(values, weights): one float32 array per client, with ties, and their sample counts."""
    count = draw(st.integers(low, high))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))
    values = [draw(hnp.arrays(np.float32, shape, elements=finite)) for _ in range(count)]
    weights = draw(st.lists(st.integers(1, 10_000), min_size=count, max_size=count))
    return values, weights


def coordinates(values):
    """The clients' values of each coordinate as plain Python floats."""
    return list(zip(*[value.reshape(-1).tolist() for value in values], strict=True))


def step_states(steps, flags, dtype=np.float32):
    return [
        {STEP: np.array(step, dtype), FLAG: np.array(flag)}
        for step, flag in zip(steps, flags, strict=True)
    ]


@modest
@given(clients())
def test_mean_equals_an_exactly_rounded_float64_reference(drawn):
    values, weights = drawn
    total = sum(weights)
    expected = [
        math.fsum(x * (n / total) for x, n in zip(point, weights, strict=True))
        for point in coordinates(values)
    ]
    got = mean(values, weights)
    assert got.dtype == np.float64
    assert got.shape == values[0].shape
    # Accumulated in float64: a float32 sum would miss this by nine digits.
    scale = max(float(np.abs(value).max(initial=0)) for value in values)
    np.testing.assert_allclose(got.reshape(-1), expected, rtol=0, atol=4e-15 * max(scale, 1e-30))


@modest
@given(clients())
def test_mean_of_a_state_is_the_float64_mean_rounded_once(drawn):
    values, weights = drawn
    combined = combine([{"w": value} for value in values], weights)["w"]
    np.testing.assert_array_equal(combined, mean(values, weights).astype(np.float32))
    assert combined.dtype == np.float32
    assert combined.shape == values[0].shape


@modest
@given(clients(), st.randoms(use_true_random=False))
def test_mean_lies_between_the_clients_and_hardly_depends_on_their_order(drawn, random):
    values, weights = drawn
    order = random.sample(range(len(values)), len(values))
    got = mean(values, weights)
    turned = mean([values[i] for i in order], [weights[i] for i in order])
    scale = max(float(np.abs(value).max(initial=0)) for value in values)
    np.testing.assert_allclose(got, turned, rtol=0, atol=1e-14 * scale)
    slack = 1e-14 * scale
    assert np.all(got >= np.min(values, axis=0).astype(np.float64) - slack)
    assert np.all(got <= np.max(values, axis=0).astype(np.float64) + slack)


def test_mean_accumulates_in_the_order_given():
    values = [np.float64(x).reshape(1) for x in (0.1, 0.7, 1e16, -1e16)]
    by_hand = 0.1 * 0.25
    for x in (0.7, 1e16, -1e16):
        by_hand += x * 0.25
    assert mean(values, [1, 1, 1, 1])[0] == by_hand
    assert mean(values[::-1], [1, 1, 1, 1])[0] != by_hand  # else the order would not matter


def test_weights_count():
    a, b = np.float32([0.0, 4.0]), np.float32([10.0, 0.0])
    np.testing.assert_array_equal(mean([a, b], [1, 3]), [7.5, 1.0])


def any_array():
    dtypes = st.sampled_from(["f2", "f4", "f8", "i1", "i4", "i8", "u1", "u2", "?"])
    return dtypes.flatmap(
        lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=3))
    )


@pytest.mark.parametrize("name", sorted(AVERAGES))
@modest
@given(array=any_array(), weight=st.integers(1, 100_000))
def test_one_client_is_bit_identical(name, array, weight):
    if array.dtype.kind == "f":
        array = np.nan_to_num(array)  # what a NaN's payload becomes is not promised
    got = combine([{"w": array}], [weight], AVERAGES[name])["w"]
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    if name == "mean":
        assert got.tobytes() == array.tobytes()
    else:  # the other two add 0.0 to it, which loses the sign of -0.0 and nothing else
        np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("special", [-0.0, math.inf, -math.inf, math.nan, 5e-324])
def test_special_values_of_one_client_keep_their_bits(special):
    array = np.array([special, 1.0], np.float64)
    assert combine([{"w": array}], [7])["w"].tobytes() == array.tobytes()


def test_minus_zero_of_one_client_loses_its_sign_in_the_robust_averages():
    """What happens, not what must: nothing may compare these two bit for bit with one client."""
    for name in ("median", "trimmed_mean"):
        got = combine([{"w": np.float32([-0.0])}], [1], AVERAGES[name])["w"]
        assert not np.signbit(got[0])


@pytest.mark.parametrize("weights", [[1, 1, 1], [3, 7, 90], [10**9, 1, 2]])
def test_clients_that_agree_give_what_they_agree_on(weights):
    array = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    got = combine([{"w": array}] * 3, weights)["w"]
    np.testing.assert_array_equal(got, array)


def test_minus_zero_of_all_clients_stays_minus_zero():
    got = combine([{"w": np.float32([-0.0])}] * 3, [1, 2, 3])["w"]
    assert np.signbit(got[0])


def test_clients_are_not_written_to():
    states = [{"w": np.float32([i]), "n": np.int64([i]), "b": np.array([i > 0])} for i in range(3)]
    kept = [{name: array.copy() for name, array in state.items()} for state in states]
    combine(states, [1, 2, 3])
    for state, before in zip(states, kept, strict=True):
        for name in state:
            np.testing.assert_array_equal(state[name], before[name])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i2", "i4", "i8", "u1", "u8", "?"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3)])
@pytest.mark.parametrize("name", sorted(AVERAGES))
def test_types_and_shapes_stay(name, dtype, shape):
    states = [{"w": np.full(shape, i, dtype)} for i in range(3)]
    got = combine(states, [1, 2, 3], AVERAGES[name])["w"]
    assert (got.dtype, got.shape) == (np.dtype(dtype), shape)


@modest
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=6))
def test_integers_take_the_maximum_exactly(values):
    got = combine([{"n": np.array(value)} for value in values], [1] * len(values))["n"]
    assert got.dtype == np.int64
    assert int(got) == max(values)


def test_unsigned_integers_take_the_maximum():
    states = [{"n": np.array([v, 0], np.uint64)} for v in (3, 2**64 - 1)]
    assert combine(states, [9, 1])["n"].tolist() == [2**64 - 1, 0]


@modest
@given(hnp.arrays(bool, (4, 5)))
def test_booleans_are_ored(rows):
    got = combine([{"b": row} for row in rows], [1, 1, 1, 1])["b"]
    assert got.tolist() == [any(column) for column in rows.T.tolist()]
    assert got.dtype == bool


@pytest.mark.parametrize("name", sorted(AVERAGES))
def test_a_step_is_averaged_over_the_clients_that_initialised_it(name):
    states = step_states([0.5, 1.0, 0.25], [True, False, True])
    got = combine(states, [1, 1000, 3], AVERAGES[name])
    # Geometric means; median and trimmed mean do not weigh.
    expected = 0.5**0.25 * 0.25**0.75 if name == "mean" else (0.5 * 0.25) ** 0.5
    assert got[STEP] == pytest.approx(expected, rel=1e-6)
    assert got[STEP].dtype == np.float32
    assert got[STEP].shape == ()
    assert bool(got[FLAG])


@modest
@given(
    st.lists(
        st.tuples(st.floats(-1, 1, width=32), st.booleans(), st.integers(1, 50)),
        min_size=1,
        max_size=8,
    )
)
def test_steps_by_reference(drawn):
    steps, flags, weights = zip(*drawn, strict=True)
    got = combine(step_states(steps, flags), weights)
    known = [(s, n) for s, f, n in drawn if f]
    if not known:
        assert got[STEP].tobytes() == np.float32(steps[0]).tobytes()
        assert not got[FLAG]
        return
    total = sum(n for _, n in known)
    expected = math.prod(max(s, MIN_STEP) ** (n / total) for s, n in known)
    np.testing.assert_allclose(float(got[STEP]), expected, rtol=1e-5)
    assert got[STEP] >= np.float32(MIN_STEP)
    assert bool(got[FLAG])


@pytest.mark.parametrize("name", sorted(AVERAGES))
@pytest.mark.parametrize("step", [-3.0, 0.0, 1e-12])
def test_a_step_stays_at_least_the_smallest(name, step):
    got = combine(step_states([step, step], [True, True]), [1, 1], AVERAGES[name])
    assert got[STEP] == np.float32(MIN_STEP)


def test_steps_per_channel():
    shape = (3, 1, 1, 1)
    steps = [np.float32([1, -1, 3]).reshape(shape), np.float32([3, -1, 5]).reshape(shape)]
    states = [{STEP: step, FLAG: np.array(True)} for step in steps]
    got = combine(states, [1, 1])[STEP]
    assert got.shape == shape
    np.testing.assert_allclose(got.reshape(-1), [3**0.5, MIN_STEP, 15**0.5], rtol=1e-6)


positive = st.floats(2**-20, 2**10, width=32)


@modest
@given(
    st.lists(st.tuples(positive, st.integers(1, 10_000)), min_size=1, max_size=8),
    st.sampled_from(sorted(AVERAGES)),
    st.integers(-10, 10),
)
def test_a_step_is_averaged_between_the_clients_and_in_any_unit(drawn, name, power):
    """Steps of weights that are twice as large are twice as large, and so is their average."""
    steps, weights = zip(*drawn, strict=True)
    flags = [True] * len(steps)
    got = combine(step_states(steps, flags), weights, AVERAGES[name])[STEP]
    assert min(steps) * (1 - 1e-6) <= got <= max(steps) * (1 + 1e-6)
    scaled = [step * 2.0**power for step in steps]
    other = combine(step_states(scaled, flags), weights, AVERAGES[name])[STEP]
    if min(scaled) >= MIN_STEP:  # below it steps are not told apart
        assert float(other) == pytest.approx(float(got) * 2.0**power, rel=1e-6)


@modest
@given(positive, st.lists(st.integers(1, 10_000), min_size=1, max_size=50))
def test_equal_steps_average_to_themselves_bit_for_bit(step, weights):
    states = step_states([step] * len(weights), [True] * len(weights))
    for average in AVERAGES.values():
        assert combine(states, weights, average)[STEP] == np.float32(step)


def test_one_runaway_step_moves_the_mean_little():
    """As measured: 19 clients near 0.06 and one at 10.2; the arithmetic mean is 0.57."""
    states = step_states([0.06] * 19 + [10.2], [True] * 20)
    assert combine(states, [1000] * 20)[STEP] == pytest.approx(0.06 * (10.2 / 0.06) ** 0.05)
    assert combine(states, [1000] * 20)[STEP] < 0.078


def test_a_step_that_is_a_buffer_counts_the_same_and_weights_beside_it_are_not_masked():
    states = step_states([0.5, 9.0], [True, False])
    for state, value in zip(states, (1.0, 3.0), strict=True):
        state["head.weight"] = np.float32([value])
    got = combine(states, [1, 1])
    assert got[STEP] == np.float32(0.5)
    assert got["head.weight"][0] == 2.0


@modest
@given(clients())
def test_median_by_reference(drawn):
    values, weights = drawn
    expected = [np.float32(statistics.median(point)) for point in coordinates(values)]
    got = combine([{"w": value} for value in values], weights, median)["w"].reshape(-1)
    np.testing.assert_allclose(got, expected, rtol=3e-7, atol=1e-44)
    if len(values) % 2:  # no rounding at all where the median is one of the clients
        np.testing.assert_array_equal(got, np.float32(expected))


@modest
@given(clients(high=12), st.sampled_from([0.0, 0.1, 0.2, 0.34, 0.49]))
def test_trimmed_mean_by_reference(drawn, share):
    values, weights = drawn
    cut = int(share * len(values))
    expected = []
    for point in coordinates(values):
        middle = sorted(point)[cut : len(point) - cut]
        expected.append(math.fsum(middle) / len(middle))
    got = trimmed_mean(values, weights, share)
    scale = max(float(np.abs(value).max(initial=0)) for value in values)
    np.testing.assert_allclose(got.reshape(-1), expected, rtol=0, atol=1e-14 * max(scale, 1e-30))


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
def test_robust_averages_shrug_off_one_wild_client_and_all_weigh_alike(name):
    calm = [np.float32([i / 10]) for i in range(11)]
    wild = [np.float32([1e30])]
    got = combine([{"w": v} for v in calm + wild], [1] * 11 + [10**9], AVERAGES[name])["w"]
    assert 0 <= got[0] <= 1
    assert mean(calm + wild, [1] * 12)[0] > 1e28


def test_other_names_are_refused_by_name():
    with pytest.raises(ValueError, match=r"different arrays: a, c"):
        combine(
            [{"a": np.zeros(1), "b": np.zeros(1)}, {"b": np.zeros(1), "c": np.zeros(1)}], [1, 1]
        )


def test_names_in_another_order_are_the_same_names():
    got = combine(
        [{"a": np.ones(1), "b": np.zeros(1)}, {"b": np.ones(1), "a": np.zeros(1)}], [1, 1]
    )
    assert list(got) == ["a", "b"]
    assert got["a"][0] == got["b"][0] == 0.5


@pytest.mark.parametrize("kind", ["f4", "i8", "?"])
def test_other_shapes_are_refused(kind):
    states = [{"w": np.zeros((2, 3), kind)}, {"w": np.zeros((4, 3), kind)}]
    with pytest.raises(ValueError):
        combine(states, [1, 1])


@pytest.mark.parametrize("kind", ["f4", "i8", "?"])
@pytest.mark.parametrize("shapes", [((3,), (1,)), ((2, 3), (3,)), ((3,), ())])
def test_shapes_that_broadcast_are_refused_too(kind, shapes):
    states = [{"w": np.ones(shape, kind)} for shape in shapes]
    with pytest.raises(ValueError):
        combine(states, [1, 1])


# Holders ------------------------------------------------------------------------------------------


def test_each_entry_is_averaged_over_its_holders_by_hand():
    states = [{"w": np.float32([[1, 2], [3, 4]])}, {"w": np.float32([[5, 6], [7, 8]])}]
    masks = [{"w": np.array([[True, True], [False, False]])}, {"w": np.array([[True, False]] * 2)}]
    before = {"w": np.float32([[-1, -1], [-1, -1]])}
    found = combine(states, [1, 3], mean, masks, before)
    # Both, the first alone; the second alone, nobody.
    assert found["w"].tolist() == [[(1 + 3 * 5) / 4, 2], [7, -1]]
    assert found["w"].dtype == np.float32


def test_an_array_that_a_client_does_not_hold_counts_for_the_others():
    states = [{"w": np.float32([1]), "n": np.array(9)}, {"w": np.float32([3]), "n": np.array(4)}]
    before = {"w": np.float32([7]), "n": np.array(1)}
    assert combine(states, [1, 1], mean, [{"w": False, "n": False}, {}], before) == {"w": 3, "n": 4}
    nobody = [{"w": False}, {"w": False}]
    assert combine(states, [1, 1], mean, nobody, before) == {"w": 7, "n": 9}


@modest
@given(clients(), st.sampled_from(sorted(AVERAGES)), st.data())
def test_holders_by_reference(drawn, name, data):
    """Entry by entry the average of those who hold it, and where nobody does what there was."""
    values, weights = drawn
    shape = values[0].shape
    held = [data.draw(hnp.arrays(bool, shape)) for _ in values]
    before = np.full(shape, -7, np.float32)
    states, masks = [{"w": value} for value in values], [{"w": mask} for mask in held]
    found = combine(states, weights, AVERAGES[name], masks, {"w": before})["w"]
    for entry in np.ndindex(shape):
        holders = [i for i, mask in enumerate(held) if mask[entry]]
        some = [values[i][entry].reshape(1) for i in holders]
        expected = AVERAGES[name](some, [weights[i] for i in holders]) if some else before[entry]
        np.testing.assert_allclose(found[entry], np.float32(expected).item(), rtol=1e-6, atol=1e-30)


@modest
@given(clients(), st.sampled_from(sorted(AVERAGES)))
def test_masks_of_all_are_no_masks_bit_for_bit(drawn, name):
    values, weights = drawn
    states = [{"w": value} for value in values]
    masks = [{"w": np.ones(value.shape, bool)} for value in values]
    plain = combine(states, weights, AVERAGES[name])["w"]
    masked = combine(states, weights, AVERAGES[name], masks, states[0])["w"]
    assert plain.tobytes() == masked.tobytes()
