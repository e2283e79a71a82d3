"""Samples that are kept from training: which, how many, and that no other way leads to them."""

from dataclasses import replace

import pytest
import torch

from data.dataset import Dataset
from data.settings import DataSettings


def numbered(count: int) -> Dataset:
    """Samples whose input, label and owner are their number."""
    rows = torch.arange(count)
    return Dataset(
        rows[:, None].float(), rows, torch.zeros(3, 1), torch.zeros(3).long(), count, rows
    )


@pytest.mark.parametrize(("share", "count"), [(0.2, 20), (0.5, 50), (0.004, 1), (0.994, 99)])
def test_every_sample_is_on_one_side_in_its_order(share: float, count: int) -> None:
    # 0.4 and 0.6 of a sample are rounded to 0 and 1.
    whole = numbered(250 if share == 0.004 else 100)
    kept = whole.with_validation(share, seed=1)
    assert kept.valid_y is not None and isinstance(kept.valid_x, torch.Tensor)
    assert kept.train_group is not None and isinstance(kept.train_x, torch.Tensor)
    assert len(kept.valid_y) == count
    together = torch.cat([kept.train_y, kept.valid_y])
    assert together.sort().values.equal(whole.train_y)
    assert kept.train_y.equal(kept.train_y.sort().values)
    assert kept.train_x[:, 0].equal(kept.train_y.float())
    assert kept.valid_x[:, 0].equal(kept.valid_y.float())
    assert kept.train_group.equal(kept.train_y)
    assert kept.test_y.equal(whole.test_y)


def test_the_seed_draws_them() -> None:
    first, again, other = (numbered(100).with_validation(0.3, seed).valid_y for seed in (1, 1, 2))
    assert first is not None and again is not None and other is not None
    assert first.equal(again)
    assert not first.equal(other)


def test_several_inputs_stay_together() -> None:
    x = torch.arange(10.0)[:, None]
    kept = replace(numbered(10), train_x=(x, -x)).with_validation(0.5, 0)
    assert isinstance(kept.valid_x, tuple) and kept.valid_y is not None
    assert kept.valid_x[0].equal(-kept.valid_x[1])
    assert kept.valid_x[0][:, 0].equal(kept.valid_y.float())


@pytest.mark.parametrize(("share", "total"), [(0.01, 10), (0.99, 10), (0.5, 1), (0.5, 0)])
def test_one_sample_is_on_either_side(share: float, total: int) -> None:
    with pytest.raises(ValueError, match=rf"data.validation={share}: is \d+ of {total} training"):
        numbered(total).with_validation(share, 0)


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0, float("nan")])
def test_it_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match=r"data.validation=.*: takes a share"):
        DataSettings(validation=share)
