"""Digits: the fixed stratified split of scikit-learn's images, and what a data set can do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from data import digits
from data.dataset import Dataset


@pytest.fixture(scope="module")
def dataset():
    return digits.load(Path("nowhere"))


def test_needs_no_files():
    assert digits.files(Path("nowhere")) == []


def test_shapes_and_types(dataset):
    assert dataset.train_x.shape == (1437, 1, 8, 8)
    assert dataset.test_x.shape == (360, 1, 8, 8)
    assert dataset.train_x.dtype == dataset.test_x.dtype == torch.float32
    assert dataset.train_y.dtype == dataset.test_y.dtype == torch.int64
    assert dataset.train_y.shape == (1437,)
    assert dataset.num_classes == 10
    assert dataset.input_shape == (1, 8, 8)
    assert dataset.train_group is None


def test_every_image_is_in_one_part_with_its_label(dataset):
    images, labels = load_digits(return_X_y=True)
    both = torch.cat([dataset.train_x, dataset.test_x]).flatten(1).double().numpy()
    # Undo the standardisation: pixels are whole numbers from 0 to 16.
    low, high = both.min(), both.max()
    pixels = np.rint((both - low) / (high - low) * 16).astype(int)
    y = torch.cat([dataset.train_y, dataset.test_y]).tolist()
    found = sorted((*row, label) for row, label in zip(pixels.tolist(), y, strict=True))
    whole = images.astype(int).tolist()
    assert found == sorted((*row, int(label)) for row, label in zip(whole, labels, strict=True))


def test_standardised_by_the_training_part_alone(dataset):
    assert dataset.train_x.mean().item() == pytest.approx(0, abs=1e-5)
    assert dataset.train_x.std().item() == pytest.approx(1, abs=1e-5)
    assert dataset.test_x.mean().item() != pytest.approx(0, abs=1e-5)


def test_stratified(dataset):
    for label in range(10):
        train, test = ((y == label).sum().item() for y in (dataset.train_y, dataset.test_y))
        assert abs(test - 0.2 * (train + test)) <= 1


def test_fixed_whatever_the_global_seeds(dataset):
    np.random.seed(5)
    torch.manual_seed(5)
    again = digits.load(Path("elsewhere"))
    for name, tensor in dataset.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name


# What every data set can do -----------------------------------------------------------------------


@pytest.mark.parametrize("group", [False, True])
def test_tensors_and_back(dataset, group):
    if group:
        owners = torch.arange(len(dataset.train_y)) % 7
        dataset = Dataset.from_tensors(dataset.tensors() | {"train_group": owners})
    back = Dataset.from_tensors(dataset.tensors())
    assert back.num_classes == 10
    assert type(back.num_classes) is int
    assert (back.train_group is not None) == group
    for name, tensor in dataset.tensors().items():
        assert torch.equal(back.tensors()[name], tensor)


@settings(deadline=None, max_examples=25)
@given(size=st.integers(1, 60), most=st.integers(1, 80), seed=st.integers(0, 2**63 - 1))
def test_limit_train_keeps_rows_together_and_in_order(size, most, seed):
    rows = torch.arange(size)
    whole = Dataset(rows.float()[:, None], rows, torch.ones(3, 1), torch.zeros(3), 10, rows * 2)
    kept = whole.limit_train(most, seed)
    expected = min(size, most)
    assert len(kept.train_y) == len(kept.train_y.unique()) == expected
    assert torch.equal(kept.train_y, kept.train_y.sort().values)
    assert torch.equal(kept.train_x[:, 0], kept.train_y.float())
    assert torch.equal(kept.train_group, kept.train_y * 2)
    assert torch.equal(kept.test_x, whole.test_x)
    assert torch.equal(kept.train_y, whole.limit_train(most, seed).train_y)


def test_limit_train_by_seed(dataset):
    assert dataset.limit_train(None, 0) is dataset
    one, other = (dataset.limit_train(100, seed) for seed in (0, 1))
    assert not torch.equal(one.train_x, other.train_x)
    assert len(dataset.train_y) == 1437


def test_a_smaller_test_set_and_larger_images():
    whole = digits.load(Path())
    few = whole.limit_test(50, seed=3)
    assert len(few.test_y) == 50
    assert len(few.train_y) == len(whole.train_y)
    assert torch.equal(few.test_x, whole.limit_test(50, seed=3).test_x)
    assert whole.limit_test(None, 0) is whole.limit_test(360, 0) is whole
    large = few.resized(20)
    assert large.test_x.shape == (50, 1, 20, 20)
    assert large.input_shape == (1, 20, 20)
    by_torch = F.interpolate(few.test_x, 20, mode="bilinear", antialias=True)
    assert torch.equal(large.test_x, by_torch)
    constant = replace(few, test_x=torch.full_like(few.test_x, 0.3))
    torch.testing.assert_close(constant.resized(5).test_x, torch.full((50, 1, 5, 5), 0.3))
