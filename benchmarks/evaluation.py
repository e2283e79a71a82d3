"""What the server's test of a network costs by the number of images in a batch.

    python -m benchmarks.evaluation [--turns 5]

One thread, processor time; the batches take turns, so that a noisy machine disturbs them alike.
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

from app.evaluation import EVALUATION_BATCH, measure
from benchmarks.table import table
from models.cnn import CNN
from models.lenet5 import LeNet5
from models.mobilenetv2 import mobilenetv2
from models.objective import Classification
from models.resnet import resnet8

BATCHES = (32, EVALUATION_BATCH, 128, 500)
CASES = {
    "cnn 8×8": (lambda: CNN(input_shape=(1, 8, 8)), (360, 1, 8, 8)),
    "cnn 28×28": (lambda: CNN(), (2000, 1, 28, 28)),
    "lenet5 28×28": (lambda: LeNet5(), (5000, 1, 28, 28)),
    "resnet8 32×32": (lambda: resnet8(3, 10), (1000, 3, 32, 32)),
    "mobilenetv2 32×32": (lambda: mobilenetv2(3, 10, input_shape=(3, 32, 32)), (500, 3, 32, 32)),
}


def seconds(network: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int) -> float:
    started = time.process_time()
    measure(network, x, y, Classification(), batch)
    return time.process_time() - started


def row(name: str, turns: int) -> list[object]:
    """Network, images, seconds with the batch that we take, and the others' ratios to it."""
    make, shape = CASES[name]
    network = make().to(memory_format=torch.channels_last)
    x, y = torch.randn(shape), torch.randint(10, shape[:1])
    times = {batch: [seconds(network, x, y, batch)] for batch in BATCHES}
    for _ in range(turns):
        for batch in BATCHES:
            times[batch].append(seconds(network, x, y, batch))
    ours = times[EVALUATION_BATCH][1:]
    ratios = (
        statistics.median(t / own for t, own in zip(times[batch][1:], ours, strict=True))
        for batch in BATCHES
    )
    return [name, len(x), f"{statistics.median(ours):.3f}", *(f"{one:.2f}" for one in ratios)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args(argv)
    heads = ["network", "images", f"s in batches of {EVALUATION_BATCH}", *map(str, BATCHES)]
    print(table(heads, [row(name, arguments.turns) for name in arguments.networks]))


if __name__ == "__main__":
    main()
