"""What a link codec costs: bytes, a simulated transfer, and packing and unpacking.

    python -m benchmarks.codec [--shape 32 16 14 14] [--turns 100]

Processor time of one thread, channels_last where there are four dimensions, as activations are. The
codecs take turns, so that a noisy machine disturbs them alike; medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from quant.codec import CODECS, Codec, LinkSettings, make_codec


def seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", type=int, nargs="+", default=[32, 16, 14, 14])
    parser.add_argument("--turns", type=int, default=100)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(chosen.shape, generator=generator).relu_()
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    codecs: dict[str, Codec] = {name: make_codec(name) for name in CODECS}
    codecs["int8 per channel"] = make_codec("int8", LinkSettings(per_channel=True))
    codecs["int8 stochastic"] = make_codec("int8", LinkSettings(rounding="stochastic"))
    transfers: dict[str, list[float]] = {name: [] for name in codecs}
    packings: dict[str, list[float]] = {name: [] for name in codecs}
    for turn in range(chosen.turns + 5):
        for name, codec in codecs.items():
            transfer = seconds(lambda codec=codec: codec.transmit(x, generator))
            packing = seconds(lambda codec=codec: codec.decode(codec.encode(x, generator)))
            if turn >= 5:
                transfers[name].append(transfer)
                packings[name].append(packing)
    print(f"shape {tuple(x.shape)}, {x.numel():,} values")
    print("| codec | bytes a value | µs transmit | µs encode + decode |")
    print("|---|---|---|---|")
    for name, codec in codecs.items():
        print(
            f"| {name} | {codec.num_bytes(x.shape) / x.numel():.3f} "
            f"| {1e6 * statistics.median(transfers[name]):.0f} "
            f"| {1e6 * statistics.median(packings[name]):.0f} |"
        )


if __name__ == "__main__":
    main()
