"""Division of samples among clients: nobody shares, nothing is lost, the seed decides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.partition import SCHEMES, SHARDS_PER_CLIENT, _apply, _partitioner, deal_users
from data.partition import partition as divide

properties = settings(deadline=None, max_examples=25)
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


NUM_USERS = 20


def partition(y, scheme, num_clients, seed, *args, **options):
    """The function under test; where it asks for users, sample i is user i % 20's."""
    users = np.arange(len(y)) % NUM_USERS if scheme == "natural" else None
    return divide(y, scheme, num_clients, seed, *args, users=users, **options)


def labels(num_samples, num_classes=10, seed=0):
    return np.random.default_rng(seed).integers(0, num_classes, num_samples)


def assert_disjoint(parts, num_samples):
    rows = np.concatenate(parts)
    assert len(np.unique(rows)) == len(rows)
    assert all(part.dtype == np.int64 and part.ndim == 1 for part in parts)
    if len(rows):
        assert rows.min() >= 0
        assert rows.max() < num_samples
    return rows


def assert_equal(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def differ(one, other):
    return any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@properties
@given(
    num_samples=st.integers(1, 120),
    num_clients=st.integers(1, 40),
    num_classes=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
)
def test_iid_is_complete_even_and_leaves_clients_past_the_samples_empty(
    num_samples, num_clients, num_classes, seed
):
    parts = partition(labels(num_samples, num_classes), "iid", num_clients, seed)
    assert len(parts) == num_clients
    assert len(assert_disjoint(parts, num_samples)) == num_samples
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@properties
@given(
    num_clients=st.integers(1, 20),
    extra=st.integers(0, 100),
    num_classes=st.integers(1, 12),
    alpha=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**63 - 1),
)
def test_dirichlet_is_complete(num_clients, extra, num_classes, alpha, seed):
    num_samples = num_clients + extra
    parts = partition(labels(num_samples, num_classes), "dirichlet", num_clients, seed, alpha)
    assert len(parts) == num_clients
    assert len(assert_disjoint(parts, num_samples)) == num_samples


@properties
@given(
    num_clients=st.integers(1, 20),
    extra=st.integers(0, 100),
    num_classes=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
)
def test_shards_are_two_runs_of_the_sorted_samples(num_clients, extra, num_classes, seed):
    num_samples = SHARDS_PER_CLIENT * num_clients + extra
    y = labels(num_samples, num_classes)
    parts = partition(y, "shards", num_clients, seed)
    assert len(parts) == num_clients
    assert_disjoint(parts, num_samples)
    # Equal shards: what does not fill one more is left over.
    shard = num_samples // (SHARDS_PER_CLIENT * num_clients)
    assert [len(part) for part in parts] == [SHARDS_PER_CLIENT * shard] * num_clients
    # A shard is a run of the samples sorted by class, so it spans a range of classes.
    counts = np.bincount(y, minlength=num_classes)
    if (counts % shard == 0).all():
        assert all(len(np.unique(y[part])) <= SHARDS_PER_CLIENT for part in parts)


@every_scheme
def test_shares_that_come_out_even_use_every_sample(scheme):
    y = np.arange(200) % 10
    parts = partition(y, scheme, 10, seed=1)
    assert sorted(np.concatenate(parts)) == list(range(200))


def test_shards_give_two_classes_at_most_and_mix_clients():
    y = np.random.default_rng(5).permutation(np.arange(1000) % 10)
    parts = partition(y, "shards", 20, seed=3)  # shards of 25, classes of 100
    kinds = [tuple(np.unique(y[part])) for part in parts]
    assert all(1 <= len(kind) <= 2 for kind in kinds)
    assert len(set(kinds)) > 5
    assert {label for kind in kinds for label in kind} == set(range(10))


def test_alpha_decides_how_unequal_clients_are():
    y = np.arange(5000) % 10

    def spread(alpha):
        parts = partition(y, "dirichlet", 10, seed=0, alpha=alpha)
        counts = np.stack([np.bincount(y[part], minlength=10) for part in parts])
        return counts.std(0).mean()  # of a class over the clients, 50 each on average

    equal, some, unequal = spread(1e5), spread(1.0), spread(0.01)
    assert equal < 2
    assert equal < some / 10
    assert some < unequal / 2


@every_scheme
def test_the_seed_decides_and_the_global_generator_does_not(scheme):
    y = labels(300)
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    one = partition(y, scheme, 7, seed=11)
    assert np.array_equal(np.random.get_state()[1], state)
    np.random.seed(1)
    assert_equal(one, partition(y, scheme, 7, seed=11))
    assert differ(one, partition(y, scheme, 7, seed=12))
    # Also above 32 bits, where flwr-datasets' own generators see the same seed.
    assert differ(one, partition(y, scheme, 7, seed=11 + 2**32))
    assert_equal(partition(y, scheme, 7, seed=2**63 - 1), partition(y, scheme, 7, seed=2**63 - 1))


def test_the_seed_draws_the_proportions_and_the_shards_too():
    y = np.arange(1000) % 10
    sizes = {tuple(len(p) for p in partition(y, "dirichlet", 5, seed)) for seed in range(4)}
    assert len(sizes) == 4
    owners = {
        tuple(tuple(np.unique(y[p])) for p in partition(y, "shards", 5, seed)) for seed in range(4)
    }
    assert len(owners) == 4


@every_scheme
def test_labels_are_left_alone(scheme):
    y = labels(100)
    before = y.copy()
    partition(y, scheme, 5, seed=0)
    np.testing.assert_array_equal(y, before)


def test_iid_shuffles():
    y = np.repeat(np.arange(10), 50)  # sorted by class, as files often are
    for part in partition(y, "iid", 5, seed=0):
        assert len(np.unique(y[part])) == 10


@every_scheme
def test_one_client_gets_everything(scheme):
    (part,) = partition(labels(50), scheme, 1, seed=0)
    assert sorted(part) == list(range(50))


def test_one_sample():
    parts = partition(np.array([3]), "iid", 4, seed=0)
    assert [part.tolist() for part in parts] == [[0], [], [], []]
    (part,) = partition(np.array([3]), "dirichlet", 1, seed=0)
    assert part.tolist() == [0]
    with pytest.raises(ValueError, match=r"data\.partition=shards: 1 clients need at least 2"):
        partition(np.array([3]), "shards", 1, seed=0)


def test_one_class_only():
    for scheme in SCHEMES:
        parts = partition(np.full(40, 7), scheme, 4, seed=0)
        assert len(assert_disjoint(parts, 40)) == 40


def test_as_many_clients_as_there_can_be():
    y = labels(30)
    assert [len(p) for p in partition(y, "iid", 30, seed=0)] == [1] * 30
    assert [len(p) for p in partition(y, "shards", 15, seed=0)] == [2] * 15
    assert sum(len(p) for p in partition(y, "dirichlet", 30, seed=0)) == 30


# By user ------------------------------------------------------------------------------------------


@properties
@given(
    num_users=st.integers(1, 30),
    num_clients=st.integers(1, 30),
    num_samples=st.integers(1, 200),
    seed=st.integers(0, 2**63 - 1),
)
def test_users_stay_whole_and_all_are_dealt(num_users, num_clients, num_samples, seed):
    users = np.random.default_rng(seed).integers(0, num_users, num_samples) * 7  # with gaps
    there = len(np.unique(users))
    if num_clients > there:
        message = rf"clients\.total={num_clients}: data\.partition=natural divides {there} users"
        with pytest.raises(ValueError, match=message):
            divide(labels(num_samples), "natural", num_clients, seed, users=users)
        return
    parts = divide(labels(num_samples), "natural", num_clients, seed, users=users)
    assert len(assert_disjoint(parts, num_samples)) == num_samples
    owned = [set(users[part]) for part in parts]
    assert sum(len(own) for own in owned) == there  # nobody's samples are on two clients
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


def test_as_many_clients_as_users_are_the_users_in_order():
    users = np.array([30, 10, 20, 10, 30])
    for seed in range(3):
        parts = divide(labels(5), "natural", 3, seed, users=users)
        assert [sorted(part.tolist()) for part in parts] == [[1, 3], [2], [0, 4]]


def test_the_seed_deals_users_that_share_a_client():
    users = np.arange(12)
    dealt = [[sorted(own.tolist()) for own in deal_users(users, 4, seed)] for seed in (0, 0, 1)]
    assert dealt[0] == dealt[1] != dealt[2]
    assert [len(own) for own in dealt[0]] == [3, 3, 3, 3]


def test_data_without_users_name_the_sources_that_have_some():
    with pytest.raises(
        ValueError, match=r"data\.partition=natural: these data have no users; .*mi"
    ):
        divide(labels(20), "natural", 2, seed=0)


# samples_per_client -------------------------------------------------------------------------------


@properties
@given(
    scheme=st.sampled_from(SCHEMES),
    num_clients=st.integers(1, 15),
    most=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_samples_per_client_is_a_limit_and_exact_for_iid(scheme, num_clients, most, seed):
    y = labels(180)
    parts = partition(y, scheme, num_clients, seed, samples_per_client=most)
    assert len(parts) == num_clients
    assert_disjoint(parts, 180)
    sizes = [len(part) for part in parts]
    assert max(sizes) <= most
    if scheme == "iid":
        assert sizes == [most] * num_clients
    else:
        whole = partition(y, scheme, num_clients, seed)
        assert sizes == [min(most, len(part)) for part in whole]
        assert_equal(parts, [part[:most] for part in whole])


@pytest.mark.parametrize("scheme", ["dirichlet", "shards"])
def test_what_samples_per_client_keeps_is_no_single_class(scheme):
    """Partitions are shuffled within, so that the first rows stand for all of them."""
    y = np.arange(2000) % 10
    whole = partition(y, scheme, 4, seed=2, alpha=100.0)
    kept = partition(y, scheme, 4, seed=2, alpha=100.0, samples_per_client=60)
    for part, first in zip(whole, kept, strict=True):
        assert set(y[first]) == set(y[part])


# Errors name the key ------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "needed"), [("dirichlet", 30), ("shards", 60)])
def test_more_clients_than_samples(scheme, needed):
    message = rf"data\.partition={scheme}: 30 clients need at least {needed} samples.*have 29"
    with pytest.raises(ValueError, match=message):
        partition(labels(29), scheme, 30, seed=0)


def test_more_samples_per_client_than_there_are():
    with pytest.raises(ValueError, match=r"data\.samples_per_client=11: 10 clients need 110 sampl"):
        partition(labels(109), "iid", 10, seed=0, samples_per_client=11)
    assert partition(labels(110), "iid", 10, seed=0, samples_per_client=11)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("data.alpha", {"scheme": "dirichlet", "alpha": 0.0}),
        ("data.alpha", {"scheme": "dirichlet", "alpha": float("nan")}),
        # All proportions would be NaN, and the last client would get every sample.
        ("data.alpha", {"scheme": "dirichlet", "alpha": float("inf")}),
        ("data.partition", {"scheme": "random"}),
        ("data.samples_per_client", {"scheme": "iid", "samples_per_client": 0}),
        ("data.samples_per_client", {"scheme": "iid", "samples_per_client": -1}),
        ("clients.total", {"scheme": "iid", "num_clients": 0}),
    ],
)
def test_impossible_values_name_their_key(key, wrong):
    with pytest.raises(ValueError, match=key):
        partition(labels(20), **{"num_clients": 3, "seed": 0} | wrong)


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "shards"])
@pytest.mark.parametrize("seed", range(3))
def test_the_parts_are_those_that_partitioners_make_of_a_dataset(scheme: str, seed: int) -> None:
    """Of `datasets` itself, which takes milliseconds for each part."""
    import datasets

    rng = np.random.default_rng(seed)
    y, clients = labels(int(rng.integers(30, 200)), seed=seed), int(rng.integers(1, 12))
    order = rng.permutation(len(y))
    plain = _partitioner(scheme, clients, seed, 0.5)
    plain.dataset = datasets.Dataset.from_dict({"row": order, "label": y[order]})
    expected = [np.asarray(plain.load_partition(i)["row"][:]) for i in range(clients)]
    assert_equal(_apply(_partitioner(scheme, clients, seed, 0.5), order, y[order]), expected)


@every_scheme
def test_no_part_is_made_by_datasets(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes milliseconds for each, and 0.1 ms for each value of a column."""
    from datasets import Dataset
    from datasets.arrow_dataset import Column

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("made by datasets")

    monkeypatch.setattr(Column, "__iter__", refused)
    monkeypatch.setattr(Dataset, "select", refused)
    monkeypatch.setattr(Dataset, "__getitem__", refused)
    assert_disjoint(partition(labels(200), scheme, 5, 0), 200)
