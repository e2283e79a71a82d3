"""The real Fashion-MNIST, where it is on this machine."""

import os
from pathlib import Path

import pytest
import torch

from data import fashion_mnist

BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "data"
ROOT = Path(os.environ.get("CUTBIT_DATA") or BESIDE).expanduser()


@pytest.fixture(scope="module")
def dataset():
    try:
        fashion_mnist.files(ROOT)
    except FileNotFoundError as error:
        pytest.skip(f"no real data: {error}")
    return fashion_mnist.load(ROOT)


def test_sizes_and_classes(dataset):
    assert dataset.train_x.shape == (60_000, 1, 28, 28)
    assert dataset.test_x.shape == (10_000, 1, 28, 28)
    assert torch.bincount(dataset.train_y).tolist() == [6000] * 10
    assert torch.bincount(dataset.test_y).tolist() == [1000] * 10


def test_mean_and_spread_are_those_written_down(dataset):
    """MEAN and STD have four digits, so the result is off by half of the last one at most."""
    pixels = dataset.train_x.double().mul_(fashion_mnist.STD).add_(fashion_mnist.MEAN)
    assert pixels.mean().item() == pytest.approx(fashion_mnist.MEAN, abs=6e-5)
    assert pixels.std().item() == pytest.approx(fashion_mnist.STD, abs=6e-5)
    assert pixels.min().item() == pytest.approx(0, abs=1e-6)
    assert pixels.max().item() == pytest.approx(1, abs=1e-6)


def test_images_lie_beside_their_labels(dataset):
    """Nearest class mean: chance is 10 %, right pairs give two thirds."""
    means = torch.stack([dataset.train_x[dataset.train_y == c].mean(0) for c in range(10)])
    guess = torch.cdist(dataset.test_x.flatten(1), means.flatten(1)).argmin(1)
    assert (guess == dataset.test_y).float().mean().item() == pytest.approx(0.6768, abs=0.01)
