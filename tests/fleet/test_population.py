"""Who gets what: by seed, in the right shares, whoever else there is."""

import statistics

import pytest

from fleet.devices import tables
from fleet.population import assign, jitter
from fleet.seeds import draw_uniform


def test_shares_are_those_of_the_table() -> None:
    found = assign(tables().population("mobile"), tables(), range(4000), seed=0)
    names = [client.device.name for client in found.values()]
    links = [client.link.name for client in found.values()]
    # Standard deviations: √(4000·0.5·0.5) = 32, √(4000·0.4·0.6) = 31, √(4000·0.0045) = 4.
    assert abs(names.count("phone_low") - 4000 * 0.5315) < 5 * 32
    assert abs(links.count("wifi") - 1600) < 5 * 31
    assert 0 < names.count("phone_high") < 18 + 5 * 4
    # Independent: of those on Wi-Fi as many have the low phone.
    wifi_low = sum(n == "phone_low" and w == "wifi" for n, w in zip(names, links, strict=True))
    assert abs(wifi_low - 1600 * 0.5315) < 5 * 29


def test_assignment_depends_on_seed_and_id_alone() -> None:
    population = tables().population("iot")
    all_of_them = assign(population, tables(), range(50), seed=3)
    assert assign(population, tables(), [49, 7], seed=3) == {
        49: all_of_them[49],
        7: all_of_them[7],
    }
    assert assign(population, tables(), range(50), seed=4) != all_of_them
    assert assign(population, tables(), [], seed=3) == {}


def test_a_fixed_draw_stays_what_it_is() -> None:
    """Written down from the first version: a change would make old runs incomparable."""
    found = assign(tables().population("mobile"), tables(), range(6), seed=0)
    assert [f"{client.device.name} {client.link.name}" for client in found.values()] == [
        "phone_low wifi",
        "phone_low wifi",
        "phone_low 4g",
        "phone_mid 5g",
        "phone_low wifi",
        "phone_mid wifi",
    ]
    assert jitter(0.5, 0, 1, 0) == pytest.approx((1.036948183808422, 1.2196176871530084))


def test_a_uniform_fleet_is_uniform() -> None:
    found = assign(tables().population("uniform"), tables(), range(20), seed=0)
    assert {client.device.name for client in found.values()} == {"ideal"}
    assert {client.link.name for client in found.values()} == {"ideal"}


def test_uniform_draws_are_uniform_and_never_an_edge() -> None:
    draws = [draw_uniform(0, "test", r, p) for r in range(40) for p in range(100)]
    assert len(set(draws)) == 4000
    assert 0 < min(draws) < 0.01 < 0.99 < max(draws) < 1
    assert abs(statistics.mean(draws) - 0.5) < 5 * 0.2887 / 4000**0.5


def test_jitter_is_lognormal_with_median_one() -> None:
    factors = [jitter(0.5, 0, r, p) for r in range(40) for p in range(50)]
    for side in (0, 1):
        ordered = sorted(f[side] for f in factors)
        assert abs(statistics.median(ordered) - 1) < 0.07
        assert ordered[round(0.8413 * 2000)] == pytest.approx(2.71828**0.5, rel=0.07)
    assert factors[0][0] != factors[0][1]
    assert jitter(0.5, 0, 3, 7) == jitter(0.5, 0, 3, 7) != jitter(0.5, 0, 4, 7)
    assert jitter(0, 0, 3, 7) == (1, 1)
    for wrong in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"fleet\.jitter="):
            jitter(wrong, 0, 1, 1)
