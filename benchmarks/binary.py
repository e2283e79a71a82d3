"""Binarized halves on MIT-BIH heartbeats: accuracy by arm, leakage, size and time of a packed half.

    python -m benchmarks.binary --data $CUTBIT_DATA|random [--epochs 40] [--seeds 0 1 2]
        [--arms cnn hybrid bnn] [--estimator clip] [--scale] [--lr 1e-3] [--client-lr 3e-3]
        [--decay 0.96] [--cosine] [--keep-optimizer]

--data random takes 256 random beats for each of training and test, to see that it runs.

ecg1d cut at stage2, split by beat, batch 32, Adam, one thread. Both halves train together, which is
what split learning with one client computes: a cut network trains as the whole one, bit for bit,
and ±1 crosses a one-bit link as it is. The optimizer is new in each epoch, as in rounds of one.

- cnn: both halves real. normalised: the same, each beat scaled to mean 0 and variance 1.
- hybrid: the client's half binarized, the server's real. plain: the same on beats as they are.
- bnn: everything binarized but the input and the logits, which pass a batch norm.

Accuracy in per cent on the test beats: after the last epoch, the mean over the last five, the best.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from data import mitbih
from data.cache import cached
from data.dataset import Dataset
from models.ecg1d import ecg1d
from models.split import cut
from privacy.attacks import reconstruct
from privacy.leakage import channel_leakage
from quant.binary import BinarySpec, binarize, clip_latent
from quant.binary_export import load_packed, pack_half, save_packed

ARMS = ("cnn", "normalised", "hybrid", "plain", "bnn")
CUT, SHAPE, BATCH = "stage2", (1, 128), 32
PROBES = 1000  # beats to measure leakage and bits on, at most half of the test beats


def beats(root: Path) -> Dataset:
    return Dataset.from_tensors(
        cached("benchmark-mitbih-beat", lambda: mitbih.load(root).tensors())
    )


def random_beats(count: int = 256) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * count, *SHAPE, generator=generator)
    y = torch.randint(5, (2 * count,), generator=generator)
    return Dataset(x[:count], y[:count], x[count:], y[count:], num_classes=5)


def probes(data: Dataset) -> int:
    return min(PROBES, len(data.test_y) // 2)


def halves(arm: str, seed: int, spec: BinarySpec) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    model = ecg1d()
    if arm == "bnn":
        return cut(binarize(model, spec, sign_output=False), CUT)
    client, server = cut(model, CUT)
    if arm == "normalised":
        return nn.Sequential(nn.GroupNorm(1, 1, affine=False), client), server
    if arm == "plain":
        spec = BinarySpec(spec.estimator, spec.scale, normalise_input=False)
    return (client if arm == "cnn" else binarize(client, spec)), server


def train(
    client: nn.Module, server: nn.Module, data: Dataset, seed: int, chosen: argparse.Namespace
) -> list[float]:
    """Train both halves in place; return the accuracy after each epoch."""
    net = nn.Sequential(client, server)
    generator = torch.Generator().manual_seed(seed)
    steps = chosen.epochs * math.ceil(len(data.train_y) / BATCH)
    step, accuracies = 0, []
    rates = (chosen.client_lr or chosen.lr, chosen.lr)

    def new_optimizer() -> torch.optim.Optimizer:
        groups = [
            {"params": list(half.parameters()), "lr": rate}
            for half, rate in zip((client, server), rates, strict=True)
        ]
        return torch.optim.Adam(groups, fused=True)

    optimizer = new_optimizer()
    for epoch in range(chosen.epochs):
        if not chosen.keep_optimizer:
            optimizer = new_optimizer()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * chosen.decay**epoch
        net.train()
        for rows in torch.randperm(len(data.train_y), generator=generator).split(BATCH):
            if chosen.cosine:
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
            step += 1
            optimizer.zero_grad()
            F.cross_entropy(net(data.train_x[rows]), data.train_y[rows]).backward()
            optimizer.step()
            clip_latent(net)
        accuracies.append(accuracy(net.eval(), data))
    return accuracies


@torch.no_grad()
def accuracy(net: nn.Module, data: Dataset) -> float:
    hits = [
        int((net(x).argmax(1) == y).sum())
        for x, y in zip(data.test_x.split(1024), data.test_y.split(1024), strict=True)
    ]
    return 100 * sum(hits) / len(data.test_y)


@torch.no_grad()
def leakage(client: nn.Module, data: Dataset) -> tuple[float, float, float, float]:
    """dCor of the leakiest channel and their mean, MSE of the attack and of the mean beat."""
    client.eval()
    order = torch.randperm(len(data.test_y), generator=torch.Generator().manual_seed(0))
    probe, own = data.test_x[order[: probes(data)]], data.test_x[order[probes(data) :]]
    found = channel_leakage(probe, client(probe))
    attack = reconstruct((client(own), own), (client(probe), probe), epochs=5)
    return float(found.max()), float(found.mean()), attack.mse, attack.mean_mse


def compare(client: nn.Module, plain: nn.Module, data: Dataset, turns: int) -> None:
    """Bits, bytes and seconds of the packed half beside the network's own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "half.safetensors"
        save_packed(pack_half(client), path)
        file_bytes = path.stat().st_size
        packed = load_packed(path)
        tensors = {name: t.contiguous() for name, t in plain.state_dict().items()}
        save_file(tensors, path)
        plain_bytes = path.stat().st_size
    client.eval(), plain.eval()
    order = torch.randperm(len(data.test_y), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        some = order[: probes(data)]
        for name, rows in ((f"{len(some)} test beats", some), ("all test beats", order)):
            x = data.test_x[rows]
            wrong = int((packed(x) != client(x)).sum())
            print(f"bits that differ, {name}: {wrong} of {client(x[:1]).numel() * len(x):,}")
        alone = torch.cat([packed(beat) for beat in data.test_x[some].split(1)])
        wrong = int((alone != client(data.test_x[some])).sum())
        print(f"bits that differ, packed beat by beat and network in one batch: {wrong}")
    weights = 32 * packed.weight_bytes()
    print("\n| | real half | packed | of the real half |\n|---|---|---|---|")
    print(f"| weights, bytes | {weights:,} | {packed.weight_bytes():,} | 1/32 |")
    print(f"| file, bytes | {plain_bytes:,} | {file_bytes:,} | 1/{plain_bytes / file_bytes:.1f} |")
    print("\n| batch | real half, µs a beat | binarized, in torch | packed | of the real half |")
    print("|---|---|---|---|---|")
    for size in (1, 32, min(1000, len(data.test_y))):
        real, binary, bits = seconds([plain, client, packed.bits], data.test_x[:size], turns)
        micro = " | ".join(f"{1e6 * t / size:.1f}" for t in (real, binary, bits))
        print(f"| {size} | {micro} | {bits / real:.2f} |")


@torch.no_grad()
def seconds(calls: list[Callable[[Tensor], object]], x: Tensor, turns: int) -> list[float]:
    """Median processor time of each, the calls taking turns: others may use the machine, too."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(turns + 3):
        for call, own in zip(calls, times, strict=True):
            started = time.process_time()
            call(x)
            if turn >= 3:
                own.append(time.process_time() - started)
    return [statistics.median(own) for own in times]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of mitbih/, or random")
    parser.add_argument("--turns", type=int, default=50, help="of timing the packed half")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["cnn", "hybrid", "bnn"], choices=ARMS)
    parser.add_argument("--estimator", default="clip")
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--client-lr", type=float, help="of the client's half; --lr where absent")
    parser.add_argument("--decay", type=float, default=1.0, help="of both rates, an epoch")
    parser.add_argument("--cosine", action="store_true")
    parser.add_argument("--keep-optimizer", action="store_true")
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    spec = BinarySpec(chosen.estimator, chosen.scale)
    data = random_beats() if chosen.data == "random" else beats(Path(chosen.data))
    plain, packable = halves("cnn", 0, spec)[0], None
    print("| arm | seed | last | mean of 5 | best | dCor max | dCor mean | attack | mean beat |")
    print("|---|---|---|---|---|---|---|---|---|")
    finals: dict[str, list[float]] = {}
    for seed in chosen.seeds:
        for arm in chosen.arms:
            client, server = halves(arm, seed, spec)
            found = train(client, server, data, seed, chosen)
            leaks = " | ".join(f"{value:.4f}" for value in leakage(client, data))
            last = statistics.mean(found[-5:])
            print(
                f"| {arm} | {seed} | {found[-1]:.2f} | {last:.2f} | {max(found):.2f} | {leaks} |",
                flush=True,
            )
            finals.setdefault(arm, []).append(last)
            packable = client if arm == "hybrid" else packable
    for arm, values in finals.items():
        print(f"{arm}: {statistics.mean(values):.2f}, mean of {len(values)} seeds")
    if packable is not None:
        compare(packable, plain, data, chosen.turns)


if __name__ == "__main__":
    main()
