"""Whole runs of networks that ask for something: their own layout, random numbers, a dict."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_arrays, assert_same_run, rounds, simulate
from safetensors.torch import load_file
from torch import Tensor, nn

TINY = ("clients.total=3", "train.max_batches=2", "rounds=2")


class Viewed(nn.Module):
    """PyTorch's own tutorial network, smaller: view() after a convolution."""

    def __init__(self, in_channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(in_channels, 6, 3), nn.Conv2d(6, 8, 3)
        self.fc1, self.fc2 = nn.Linear(8 * 16, 16), nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.fc2(self.fc1(x.view(-1, 8 * 16)).relu())


class Results(Viewed):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"features": x, "logits": super().forward(x)}


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (0.5 + random.random()) + float(np.random.rand()) + torch.rand(x.shape[1])


class Noisy(nn.Module):
    """Draws all random numbers there are: for its weights, in training and in evaluation."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.a, self.noise, self.b = nn.Linear(64, 16), Noise(), nn.Linear(16, num_classes)
        with torch.no_grad():
            self.b.weight.mul_(random.random())

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.noise(self.a(x.flatten(1)).relu()))


def run(folder: Path, network: type[nn.Module], *overrides: str) -> Path:
    simulate(folder, f"model._target_={__name__}.{network.__name__}", *TINY, *overrides)
    assert all(record["num_failed"] == 0 for record in rounds(folder))
    return folder


@pytest.mark.parametrize("network", [Viewed, Results])
def test_a_network_of_another_layout_or_output_trains_whole_and_cut(
    network: type[nn.Module], tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", network, "strategy=fedavg")
    cut = run(tmp_path / "cut", network, "strategy=splitfed_v1", "split.cut=conv2")
    weights = [load_file(folder / "model.safetensors") for folder in (whole, cut)]
    assert_same_arrays(*weights)
    run(tmp_path / "bits", network, "strategy=oqfl", "quant.bits=4")


@pytest.mark.parametrize("method", ["strategy=fedavg", "strategy=splitfed_v1"])
def test_a_network_that_draws_gives_the_same_numbers_twice(method: str, tmp_path: Path) -> None:
    chosen = (method, "split.cut=a")
    random.seed(1)
    one = run(tmp_path / "one", Noisy, *chosen)
    random.seed(2)
    np.random.seed(3)
    torch.manual_seed(4)
    assert_same_run(one, run(tmp_path / "two", Noisy, *chosen))
    other = run(tmp_path / "other", Noisy, *chosen, "seed=1")
    assert rounds(one) != rounds(other)


def test_a_network_that_draws_resumes_where_it_was(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", Noisy, "strategy=fedavg", "rounds=3")
    run(tmp_path / "parts", Noisy, "strategy=fedavg", "rounds=2", "checkpoint.every=1")
    run(tmp_path / "parts", Noisy, "strategy=fedavg", "rounds=3", "resume=true")
    assert rounds(whole) == rounds(tmp_path / "parts")
