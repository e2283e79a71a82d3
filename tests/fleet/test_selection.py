"""Seeds that do not collide, and a selection that depends on nothing but seed, round and ids."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.seeds import derive_seed
from fleet.selection import SELECTIONS, Known, check_selection, num_selected, select

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


# Other selections than uniform --------------------------------------------------------------------

SLOW = {0: 5.0, 1: 1.0, 2: 3.0, 3: 1.0, 4: 9.0}


def known(number: int = 5, losses: dict[int, float] | None = None, **options: Any) -> Known:
    losses = losses or {}
    rounds = dict.fromkeys(losses, number - 1)
    clients = max([4, *losses])
    seconds = SLOW.__getitem__ if clients == 4 else lambda p: 1.0
    return Known(
        number, dict.fromkeys(range(clients + 1), 10), seconds, losses, rounds, **options
    )  # fmt: skip


def drawn(kind: str, clients: Sequence[int], count: int, given: Known, seed: int = 0) -> list[int]:
    return SELECTIONS[kind](clients, count, given, random.Random(seed))


def test_fastest_takes_those_whose_rounds_take_least() -> None:
    assert drawn("fastest", range(5), 3, known()) == [1, 3, 2]
    assert drawn("fastest", [0, 2, 4], 1, known()) == [2]


def test_power_of_choice_takes_the_largest_losses_of_some() -> None:
    losses = {0: 0.1, 1: 0.5, 2: 0.9, 3: 0.3, 4: 0.7}
    assert drawn("power_of_choice", range(5), 2, known(losses=losses, candidates=9)) == [2, 4]
    del losses[3]  # not tried yet: first
    assert drawn("power_of_choice", range(5), 2, known(losses=losses, candidates=9)) == [3, 2]
    # As many candidates as are taken is a uniform draw.
    for seed in range(5):
        given = known(losses=losses, candidates=1)
        expected = random.Random(seed).sample(range(5), 2)
        assert set(drawn("power_of_choice", range(5), 2, given, seed)) == set(expected)


def test_oort_tries_new_clients_first_and_ever_fewer_of_them() -> None:
    assert sorted(drawn("oort", range(5), 5, known(1))) == list(range(5))
    losses = dict.fromkeys(range(50), 1.0)
    for number, share in ((2, 0.9 * 0.98), (40, 0.9 * 0.98**39), (500, 0.2)):
        given = known(number, {**losses, 99: 1.0})
        found = drawn("oort", range(100), 40, given)
        assert len(set(found)) == 40
        assert sum(p >= 50 and p != 99 for p in found) == round(share * 40)


def test_oort_takes_what_is_worth_most_unless_it_is_slow() -> None:
    """Of equal speed the largest losses; of equal losses the fast ones."""
    losses = {p: 0.1 + p / 100 for p in range(100)}
    often = Counter(
        p for s in range(50) for p in drawn("oort", range(100), 10, known(9, losses), s)
    )
    assert set(often) <= set(range(85, 100))  # within 95 % of the tenth best
    slow = {0: 10.0, 1: 1.0, 2: 10.0, 3: 1.0, 4: 10.0}
    given = Known(9, dict.fromkeys(range(5), 10), slow.__getitem__, dict.fromkeys(range(5), 1.0),
                  dict.fromkeys(range(5), 8))  # fmt: skip
    assert {frozenset(drawn("oort", range(5), 2, given, s)) for s in range(20)} == {
        frozenset({1, 3})
    }


def test_oort_comes_back_to_who_was_long_away() -> None:
    """By hand: two clients of the same worth, of which one was last tried in round 1 of 100."""
    given = replace(known(100, {0: 1.0, 1: 1.0}), seconds=lambda p: 1.0, rounds={0: 99, 1: 1})
    utilities = [1 + math.sqrt(0.1 * math.log(100) / last) for last in (99, 1)]
    assert utilities[0] < 0.95 * utilities[1]  # too far below to be drawn
    assert [drawn("oort", [0, 1], 1, given, s) for s in range(9)] == [[1]] * 9


@properties
@pytest.mark.parametrize("kind", SELECTIONS)
@given(st.data())
def test_any_selection_draws_as_many_different_clients(kind: str, data: st.DataObject) -> None:
    clients = data.draw(st.lists(st.integers(0, 30), min_size=1, unique=True))
    count = data.draw(st.integers(1, len(clients)))
    number = data.draw(st.integers(1, 300))
    tried = data.draw(st.lists(st.sampled_from(clients), unique=True)) if number > 1 else []
    losses = {p: data.draw(st.floats(0, 1e3)) for p in tried}
    rounds = {p: data.draw(st.integers(1, number - 1)) for p in tried}
    seconds = {p: data.draw(st.floats(0, 1e6)) for p in clients}
    samples = {p: data.draw(st.integers(1, 100)) for p in clients}
    given_ = Known(number, samples, seconds.__getitem__, losses, rounds)
    found = drawn(kind, clients, count, given_)
    assert len(found) == len(set(found)) == count
    assert set(found) <= set(clients)
    assert found == drawn(kind, clients, count, given_)


@pytest.mark.parametrize(
    ("name", "candidates", "message"),
    [("best", 2, r"fleet\.selection=best: takes uniform, fastest, power_of_choice, oort"),
     ("oort", 0.5, r"fleet\.candidates=0\.5: takes a factor of 1 or more")],
)  # fmt: skip
def test_a_selection_that_there_is_not(name: str, candidates: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_selection(name, candidates)
