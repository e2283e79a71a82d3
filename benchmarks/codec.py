"""What a link codec costs: bytes, a simulated transfer, and packing and unpacking.

    python -m benchmarks.codec [--shape 32 16 14 14] [--turns 100]

Processor time of one thread, channels_last where there are four dimensions, as activations are. The
codecs take turns, so that a noisy machine disturbs them alike; medians.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.table import table
from quant.codec import CODECS, Codec, LinkSettings, make_codec


def seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def measure(shape: Sequence[int], turns: int) -> list[tuple[str, float, float, float]]:
    """Return of each codec its bytes a value, and microseconds to transmit and to pack."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator).relu_()
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    codecs: dict[str, Codec] = {name: make_codec(name) for name in CODECS}
    codecs["int8 per channel"] = make_codec("int8", LinkSettings(per_channel=True))
    codecs["int8 stochastic"] = make_codec("int8", LinkSettings(rounding="stochastic"))
    transfers: dict[str, list[float]] = {name: [] for name in codecs}
    packings: dict[str, list[float]] = {name: [] for name in codecs}
    for turn in range(turns + 5):
        for name, codec in codecs.items():
            transfer = seconds(lambda codec=codec: codec.transmit(x, generator))
            packing = seconds(lambda codec=codec: codec.decode(codec.encode(x, generator)))
            if turn >= 5:
                transfers[name].append(1e6 * transfer)
                packings[name].append(1e6 * packing)
    return [
        (
            name,
            codec.num_bytes(x.shape) / x.numel(),
            statistics.median(transfers[name]),
            statistics.median(packings[name]),
        )
        for name, codec in codecs.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", type=int, nargs="+", default=[32, 16, 14, 14])
    parser.add_argument("--turns", type=int, default=100)
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [
        (name, f"{size:.3f}", f"{transfer:.0f}", f"{packing:.0f}")
        for name, size, transfer, packing in measure(chosen.shape, chosen.turns)
    ]
    title = f"shape {tuple(chosen.shape)}, {math.prod(chosen.shape):,} values"
    print(table(["codec", "bytes a value", "µs transmit", "µs encode + decode"], rows, title))


if __name__ == "__main__":
    main()
