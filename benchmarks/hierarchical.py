"""Simulated training time: hierarchical training beside training in the cloud on uploaded inputs.

    python -m benchmarks.hierarchical [--device jetson_nano] [--epochs 10] [--models vgg16 resnet18]
        [--rates 0.01 1 100]
    python -m benchmarks.hierarchical --plot docs/hierarchical.png x.html    # the curves instead

VGG-16 and ResNet-18 (imagenet stem) in full on CIFAR-10's shapes: 50,000 images of 3×32×32, batches
of 128, one device with the cloud to itself. Rates are the uplink's; no latency, which would be the
same on both sides. For each rate: seconds of an epoch, and the share saved against each baseline,
negative where hierarchical training takes longer. Nothing is trained: all follows from shapes and
fleet/tables (docs/FLEET.md).

    fp32, each epoch    what the paper is compared with: 4 bytes a value, uploaded anew each epoch
    uint8, each epoch   the bytes that images have
    …, once             the cloud keeps the inputs: the upload is divided by the epochs

`overlapped` waits for device and cloud after each batch, `pipelined` does not; both for both sides.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from benchmarks.cloud_round import cloud_round
from benchmarks.hierarchical_plot import figure
from benchmarks.picture import write
from benchmarks.table import table
from fleet.clock import Rule, overlapped, pipelined
from fleet.cost import cost as price
from fleet.devices import Device, Link, tables
from fleet.work import ClientWork
from models.blocks import by
from models.cost import Cost, cost
from models.exits import ExitSpec, exit_head
from models.resnet import resnet18
from models.split import cut_many, cut_points
from models.vgg import vgg16
from quant.codec import LinkSettings
from strategies.client.training import LocalTraining
from strategies.server.workload import hierarchical_round

SHAPE, CLASSES, SAMPLES = (3, 32, 32), 10, 50_000
RATES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
CURVE = [10 ** (k / 20) for k in range(-40, 61)]  # the same range, for the plot
TRAIN = LocalTraining(epochs=1, batch_size=128, momentum=0.0)
NETWORKS = {"vgg16": lambda: vgg16(), "resnet18": lambda: resnet18(stem="imagenet")}
WAYS: dict[str, Rule] = {"overlapped": overlapped, "pipelined": pipelined}
# Late enough for fewer values than the input has, early enough that the cloud's part is a network.
CUTS = {"vgg16": "features.33", "resnet18": "layer3"}
PAPER = {"vgg16": 0.29, "resnet18": 0.61}
BASELINES = {
    "fp32, each epoch": ("fp32", False),
    "uint8, each epoch": ("uint8", False),
    "fp32, once": ("fp32", True),
    "uint8, once": ("uint8", True),
}


@dataclass(frozen=True)
class Cut:
    """A cut point, and what the parts cost there.

    Attributes:
        name: of the cut point.
        device: the device's part.
        head: its exit.
        server: the cloud's part.
    """

    name: str
    device: Cost
    head: Cost
    server: Cost

    @property
    def device_share(self) -> float:
        """Share of the forward operations on the device, without the exit."""
        return self.device.flops_forward / (self.device.flops_forward + self.server.flops_forward)

    def epoch(self, link: LinkSettings) -> ClientWork:
        """One epoch."""
        return hierarchical_round(
            [self.device, self.head], self.server, SAMPLES, TRAIN, link, (0, 0)
        )


def cuts(model: nn.Module, names: Sequence[str] = ()) -> list[Cut]:
    """Return all cut points of ``model``, or those called ``names``, in execution order."""
    found = []
    for point in cut_points(model, SHAPE):
        if names and point.name not in names:
            continue
        device, server = cut_many(model, [point.name], SHAPE, check=False)
        head = exit_head(ExitSpec.of(point.shape, CLASSES), 0)
        found.append(
            Cut(
                point.name,
                cost(device, SHAPE),
                cost(head, point.shape, input_grad=True),
                cost(server, point.shape),  # its input needs no gradient
            )
        )
    return found


@dataclass(frozen=True)
class Clock:
    """What turns work into seconds of an epoch.

    Attributes:
        device: of the client.
        mbps: of its uplink.
        rule: how device and cloud take turns.
    """

    device: Device
    mbps: float
    rule: Rule = overlapped

    def seconds(self, work: ClientWork) -> float:
        """Seconds of ``work``."""
        link = Link(f"{self.mbps:g} Mbit/s", self.mbps, self.mbps)
        return price(work, self.device, link, tables().device("server"), self.rule).seconds

    def baseline(self, network: Cost, name: str, epochs: int) -> float:
        """Seconds of an epoch of training in the cloud, mean over ``epochs``."""
        pixels, is_once = BASELINES[name]
        num = 3 * 32 * 32
        first = self.seconds(cloud_round(network, num, SAMPLES, TRAIN, pixels))
        if not is_once:
            return first
        rest = self.seconds(cloud_round(network, num, SAMPLES, TRAIN, pixels, uploads=False))
        return (first + (epochs - 1) * rest) / epochs

    def best(self, choices: Sequence[Cut], link: LinkSettings) -> Cut:
        """The separation point that takes least, the first of several equals."""
        return min(choices, key=lambda cut: self.seconds(cut.epoch(link)))


def saved(seconds: float, baseline: float) -> float:
    """Share of ``baseline`` that is saved."""
    return 1 - seconds / baseline


def savings(
    choices: Sequence[Cut], network: Cost, clock: Clock, link: LinkSettings, epochs: int
) -> tuple[Cut, float, dict[str, float]]:
    """Return the best of ``choices``, seconds of an epoch, and the share saved by baseline."""
    best = clock.best(choices, link)
    seconds = clock.seconds(best.epoch(link))
    shares = {name: saved(seconds, clock.baseline(network, name, epochs)) for name in BASELINES}
    return best, seconds, shares


def curve(
    cut: Cut, network: Cost, device: Device, codec: str, epochs: int, rates: Sequence[float]
) -> dict[str, list[float]]:
    """Seconds of hierarchical training over those of each baseline, at each rate."""
    found: dict[str, list[float]] = {name: [] for name in BASELINES}
    for mbps in rates:
        clock = Clock(device, mbps)
        seconds = clock.seconds(cut.epoch(LinkSettings(up=codec)))
        for name, values in found.items():
            values.append(seconds / clock.baseline(network, name, epochs))
    return found


def plot(files: Sequence[Path], models: Sequence[str], device: Device, epochs: int) -> None:
    """Write the curves of all baselines at the fixed cuts, activations as fp32 and int8."""
    curves, paper = {}, {}
    for name in models:
        panel = f"{name} cut after {CUTS[name]}"
        paper[panel] = PAPER[name]
        model = NETWORKS[name]()
        (cut,), network = cuts(model, [CUTS[name]]), cost(model, SHAPE)
        curves[panel] = {
            codec: curve(cut, network, device, codec, epochs, CURVE) for codec in ("fp32", "int8")
        }
    title = (
        f"Simulated training time on {device.name} and a T4, against inputs uploaded as fp32 or "
        f"uint8, in each epoch or once in {epochs}"
    )
    drawn = figure(CURVE, curves, paper, title)
    for path in files:
        write(path, drawn)


def highest_rate(cut: Cut, network: Cost, device: Device, target: float) -> float | None:
    """Highest uplink rate, Mbit/s, at which ``target`` is saved against fp32 inputs each epoch.

    By bisection between 1 kbit/s and 10 Gbit/s: savings fall with the rate. None if at none.
    """

    def reaches(mbps: float) -> bool:
        clock = Clock(device, mbps)
        seconds = clock.seconds(cut.epoch(LinkSettings()))
        return saved(seconds, clock.baseline(network, "fp32, each epoch", 1)) >= target

    low, high = 1e-3, 1e4
    if not reaches(low):
        return None
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if reaches(middle) else (low, middle)
    return low


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="jetson_nano", choices=sorted(tables().devices))
    parser.add_argument("--epochs", type=int, default=10, help="over which one upload is divided")
    parser.add_argument("--models", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="Mbit/s")
    parser.add_argument("--plot", nargs="+", type=Path, help="write the curves: .html, .png")
    chosen = parser.parse_args(argv)
    device = tables().device(chosen.device)
    if chosen.plot:
        plot(chosen.plot, chosen.models, device, chosen.epochs)
        return
    for name in chosen.models:
        model = NETWORKS[name]()
        everywhere, network = cuts(model), cost(model, SHAPE)
        fixed = [cut for cut in everywhere if cut.name == CUTS[name]]
        for way, rule in WAYS.items():
            for codec in ("fp32", "int8"):
                for what, choices in (("fixed cut", fixed), ("best cut", everywhere)):
                    rows = []
                    for mbps in chosen.rates:
                        clock, link = Clock(device, mbps, rule), LinkSettings(up=codec)
                        cut, seconds, shares = savings(choices, network, clock, link, chosen.epochs)
                        rows.append((
                            f"{mbps:g}", f"{cut.name} {by(cut.device.output_shape)}",
                            f"{cut.device_share:.0%}", f"{seconds:,.1f}",
                            *(f"{share:+.1%}" for share in shares.values()),
                        ))  # fmt: skip
                    title = f"{name} on {device.name}, {way}, z as {codec}, {what}"
                    print(table(("Mbit/s", "cut", "on device", "s/epoch", *BASELINES), rows, title))
        rates = {
            row.name: highest_rate(fixed[0], network, row, PAPER[name])
            for row in tables().devices.values()
        }
        title = f"{name} cut after {CUTS[name]}: {PAPER[name]:.0%} less than fp32 each epoch, up to"
        limits = [(row, "–" if rate is None else f"{rate:.3g}") for row, rate in rates.items()]
        print(table(("device", "Mbit/s"), limits, title))


if __name__ == "__main__":
    main()
