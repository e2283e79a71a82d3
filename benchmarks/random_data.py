"""60,000 random 28×28 images: a data source for timing, given as `data.source=`."""

from pathlib import Path

import torch

from data.dataset import Dataset


def files(root: Path) -> list[Path]:
    """None."""
    return []


def load(root: Path) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return Dataset(
        train_x=torch.randn(60_000, 1, 28, 28, generator=generator),
        train_y=torch.randint(10, (60_000,), generator=generator),
        test_x=torch.randn(100, 1, 28, 28, generator=generator),
        test_y=torch.randint(10, (100,), generator=generator),
        num_classes=10,
    )
