"""Random 28×28 images: a data source for timing; data.path says how many.

data=mnist data.name=random data.source=benchmarks.random_data data.path=60000
"""

import torch

from data.dataset import Dataset, Description


def describe(path: str) -> Description:
    return Description((1, 28, 28), 10, content=path)


def load(path: str, shape: tuple[int, ...], num_classes: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return Dataset(
        train_x=torch.randn(int(path), *shape, generator=generator),
        train_y=torch.randint(num_classes, (int(path),), generator=generator),
        test_x=torch.randn(100, *shape, generator=generator),
        test_y=torch.randint(num_classes, (100,), generator=generator),
        num_classes=num_classes,
    )


def overrides(samples: int) -> list[str]:
    """What a configuration says to train on ``samples`` of them."""
    return [
        "data=mnist", "data.source=benchmarks.random_data", "data.name=random",
        f"data.path={samples}",
    ]  # fmt: skip
