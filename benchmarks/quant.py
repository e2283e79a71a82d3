"""What a training step costs: fp32, OQFL per tensor, OQFL per channel.

    python -m benchmarks.quant [--steps 100]

Batch 32, one thread, SGD. The variants take turns, step by step, so that a noisy machine disturbs
them alike; the ratio is the median of the ratios to the fp32 step of the same turn. `contiguous` is
the fp32 network without channels_last, which is how PyTorch would lay it out.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from benchmarks.table import table
from models.cnn import CNN
from models.lenet5 import LeNet5
from quant.at_once import at_once
from quant.layers import QuantSpec, quantize

CASES = {
    "cnn 28×28": (lambda: CNN(), (1, 28, 28)),
    "cnn 8×8": (lambda: CNN(input_shape=(1, 8, 8)), (1, 8, 8)),
    "lenet5 28×28": (lambda: LeNet5(), (1, 28, 28)),
}


def step(
    model: Callable[..., torch.Tensor],
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
) -> float:
    started = time.perf_counter()
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return time.perf_counter() - started


def measure(case: str, steps: int) -> dict[str, tuple[float, float]]:
    """Return of each variant its milliseconds a step, and its ratio to the fp32 step."""
    make, shape = CASES[case]
    plain = make().to(memory_format=torch.channels_last)
    variants = {
        "fp32": plain,
        "fp32 contiguous": make(),
        "4 bits per tensor": quantize(plain, QuantSpec()),
        "4 bits per channel": quantize(plain, QuantSpec(per_channel=True)),
    }
    runs = {variant: at_once(model) for variant, model in variants.items()}  # as clients train
    optimizers = {v: torch.optim.SGD(m.parameters(), 0.01, fused=True) for v, m in variants.items()}
    x, y = torch.randn(32, *shape), torch.randint(10, (32,))
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for turn in range(steps + 5):
        for variant, run in runs.items():
            seconds = step(run, optimizers[variant], x, y)
            if turn >= 5:
                times[variant].append(seconds)
    return {
        variant: (
            1000 * statistics.median(own),
            statistics.median(s / base for s, base in zip(own, times["fp32"], strict=True)),
        )
        for variant, own in times.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [
        (case, variant, f"{milliseconds:.2f}", f"{ratio:.2f}")
        for case in CASES
        for variant, (milliseconds, ratio) in measure(case, chosen.steps).items()
    ]
    print(table(["network", "variant", "ms a step", "of fp32"], rows))


if __name__ == "__main__":
    main()
