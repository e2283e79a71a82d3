"""Seeds that do not collide, and a selection that depends on nothing but seed, round and ids."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.seeds import derive_seed
from fleet.selection import num_selected, select

properties = settings(deadline=None, max_examples=100)
per_rounds = st.one_of(st.integers(1, 60), st.floats(0.01, 1.0))


@pytest.mark.parametrize(
    ("per_round", "num_clients", "wanted"),
    [
        (1, 100, 1),
        (1.0, 100, 100),
        (100, 100, 100),
        (101, 100, 100),
        (0.1, 100, 10),
        (0.001, 100, 1),
        (0.999, 10, 10),
        (0.29, 100, 29),  # 0.29 · 100 is 28.999999999999996
        (3, 1, 1),
        (0.5, 1, 1),
    ],
)
def test_an_integer_counts_and_a_float_is_a_share(per_round, num_clients, wanted):
    assert num_selected(per_round, num_clients) == wanted


@properties
@given(per_round=per_rounds, num_clients=st.integers(1, 500))
def test_num_selected_is_within_half_of_the_share(per_round, num_clients):
    count = num_selected(per_round, num_clients)
    assert type(count) is int
    assert 1 <= count <= num_clients
    if isinstance(per_round, float) and per_round * num_clients >= 1:
        assert abs(count - per_round * num_clients) <= 0.5


@properties
@given(
    partitions=st.sets(st.integers(0, 10**6), min_size=1, max_size=60),
    per_round=per_rounds,
    seed=st.integers(0, 2**62),
    server_round=st.integers(1, 10**4),
    shuffle=st.randoms(use_true_random=False),
)
def test_selection_is_distinct_sorted_and_blind_to_order(
    partitions, per_round, seed, server_round, shuffle
):
    given_order = list(partitions)
    shuffle.shuffle(given_order)
    handed_over = list(given_order)
    state = random.getstate()
    chosen = select(given_order, per_round, seed, server_round)
    assert random.getstate() == state
    assert given_order == handed_over
    assert chosen == select(sorted(partitions), per_round, seed, server_round)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= partitions
    assert len(chosen) == num_selected(per_round, len(partitions))


def test_rounds_and_seeds_draw_differently_and_evenly():
    draws = {(s, r): tuple(select(range(100), 10, s, r)) for s in range(5) for r in range(1, 101)}
    assert len(set(draws.values())) == len(draws)
    # Each of 100 clients is taken 500 · 0.1 = 50 times on average, with standard deviation
    # √(500 · 0.1 · 0.9) = 6.7: seven of them are 47.
    counts = [sum(client in chosen for chosen in draws.values()) for client in range(100)]
    assert sum(counts) == 5000
    assert min(counts) > 3
    assert max(counts) < 97


def test_all_clients_are_all_clients():
    assert select([5, 3, 9], 1.0, 0, 1) == [3, 5, 9]
    assert select([5, 3, 9], 7, 0, 1) == [3, 5, 9]


@pytest.mark.parametrize("per_round", [1, 1.0])
def test_no_clients_are_an_error(per_round):
    with pytest.raises(ValueError, match="no clients"):
        select([], per_round, 0, 1)


def test_a_fixed_draw_stays_what_it_is():
    """Written down from the first version: a change would make old runs incomparable."""
    assert derive_seed(0, "selection", 1) == 7499959421001240996
    assert select(range(20), 5, 0, 1) == [0, 3, 13, 16, 18]


keys = st.tuples(
    st.integers(-(2**63), 2**63),
    st.sampled_from(["selection", "batches", "dropout", "a/1", "a", "1/2", ""]),
    st.integers(0, 10**4),
    st.integers(0, 10**4),
)


@properties
@given(one=keys, other=keys)
def test_streams_differ_unless_they_are_named_alike(one, other):
    assert (derive_seed(*one) == derive_seed(*other)) == (one == other)


def test_no_two_of_many_streams_share_a_seed():
    seeds = {
        derive_seed(seed, purpose, server_round, partition)
        for seed in (0, 1, 11)
        for purpose in ("batches", "dropout")
        for server_round in range(112)
        for partition in range(112)
    }
    assert len(seeds) == 3 * 2 * 112 * 112
    # 63 bits, each of them used; numpy, torch and random all take such seeds.
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    used = always = min(seeds)
    for seed in seeds:
        used, always = used | seed, always & seed
    assert used == 2**63 - 1
    assert always == 0


def test_round_and_partition_default_to_what_happens_once():
    assert derive_seed(3, "model") == derive_seed(3, "model", 0, 0)
    assert derive_seed(3, "model") != derive_seed(3, "model", 0, 1)
