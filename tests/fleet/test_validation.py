"""The tables against measured rows: those they are calibrated on, and others to predict.

Operations and bytes are counted here by hand from the layers' shapes, without torch. As in
`fleet.work.traffic_bytes` a forward pass moves 2 × what a training step keeps + the weights. Kept
are, in 4 bytes each, the input, the outputs of convolutions before a norm, of activations, of
poolings and of additions. docs/FLEET.md shows the same figures.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from fleet.devices import tables
from fleet.phases import compute_seconds
from fleet.work import Compute, traffic_bytes

DEVICES = tables().devices


@dataclass
class Count:
    """Operations of a forward pass, and values kept and read, layer after layer, per sample."""

    channels: int
    size: int
    flops: int = 0
    kept: int = 0
    weights: int = 0
    marks: list[Compute] = field(default_factory=list)

    def keep(self) -> None:
        self.kept += self.channels * self.size**2

    def conv(
        self, channels: int, kernel: int, stride: int = 1, groups: int = 1, norm=True, relu=True
    ) -> None:
        inputs = self.channels // groups * kernel**2
        self.channels, self.size = channels, -(-self.size // stride)
        self.flops += 2 * channels * self.size**2 * inputs
        self.weights += channels * inputs
        for is_kept in (norm, relu):
            if is_kept:
                self.keep()

    def pool(self, size: int) -> None:
        self.size = size
        self.keep()

    def linear(self, inputs: int, outputs: int) -> None:
        self.flops += 2 * inputs * outputs
        self.weights += inputs * outputs
        self.kept += outputs

    def mark(self) -> None:
        """A place where the network was cut."""
        traffic = traffic_bytes(4 * self.kept, 4 * self.weights)
        self.marks.append(Compute({"fp32": self.flops}, traffic))


def image(channels: int, size: int) -> Count:
    count = Count(channels, size)
    count.keep()
    return count


def resnet18() -> Count:
    """Cut before layer1, layer2[1], layer3[1], layer4[1], and whole; 101 classes."""
    net = image(3, 224)
    net.conv(64, 7, 2)
    net.pool(56)
    net.mark()
    for channels in (64, 128, 256, 512):
        for stride in (1 if channels == 64 else 2, 1):
            inputs, size = net.channels, net.size
            net.conv(channels, 3, stride)
            net.conv(channels, 3, relu=False)
            if stride == 2:
                net.channels, net.size = inputs, size
                net.conv(channels, 1, 2, relu=False)
            net.keep()  # the sum, through its ReLU
            if stride == 2:
                net.mark()
    net.pool(1)
    net.linear(512, 101)
    net.mark()
    return net


def vgg11() -> Count:
    """Without norms; cut after each of the first four poolings, and whole."""
    net = image(3, 224)
    for widths in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for channels in widths:
            net.conv(channels, 3, norm=False)
        net.pool(net.size // 2)
        net.mark()
    net.marks.pop()
    for inputs, outputs in ((512 * 49, 4096), (4096, 4096), (4096, 101)):
        net.linear(inputs, outputs)
    net.mark()
    return net


def mobilenetv2() -> Count:
    """Cut before features 2, 3, 5 and 8, and whole."""
    net = image(3, 224)
    net.conv(32, 3, 2)
    block = 0
    for expansion, channels, repeats, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for repeat in range(repeats):
            if expansion > 1:
                net.conv(net.channels * expansion, 1)
            net.conv(net.channels, 3, stride if repeat == 0 else 1, groups=net.channels)
            net.conv(channels, 1, relu=False)
            net.keep()  # the norm's output, or the sum: the next block's input
            block += 1
            if block + 1 in (2, 3, 5, 8):
                net.mark()
    net.conv(1280, 1)
    net.pool(1)
    net.linear(1280, 101)
    net.mark()
    return net


# MAHPPO (Hao et al. 2022), env/data.py: Jetson Nano in its 5 W mode, batch 1, 3×224×224: ms and mJ.
MAHPPO_MS = {
    resnet18: (4.359, 16.47, 25.477, 36.78, 45.887),
    vgg11: (15.589, 45.0, 100.595, 136.817, 189.3),
    mobilenetv2: (5.392, 9.008, 15.418, 24.955, 52.676),
}
MAHPPO_MJ = {
    resnet18: (9.976, 43.362, 73.412, 110.818, 98.446),
    vgg11: (34.358, 118.548, 287.883, 415.075, 488.299),
    mobilenetv2: (10.143, 22.344, 39.416, 54.936, 77.945),
}


def femnist() -> Count:
    net = image(1, 28)
    net.conv(32, 5, norm=False)
    net.pool(14)
    net.conv(64, 5, norm=False)
    net.pool(7)
    net.linear(64 * 49, 2048)
    net.linear(2048, 62)
    return net


def celeba() -> Count:
    net = image(3, 84)
    for size in (42, 21, 11, 6):
        net.conv(32, 3, relu=False)
        net.pool(size)
        net.keep()  # the ReLU comes after the pooling
    net.linear(32 * 36, 2)
    return net


def reddit() -> Count:
    """Two LSTM layers of 256 over 10 words, and a softmax over 10,000 words for each."""
    words, hidden, vocabulary = 10, 256, 10_000
    weights = 2 * 4 * hidden * (hidden + hidden) + hidden * vocabulary
    kept = words * (hidden + 2 * 6 * hidden + vocabulary)
    return Count(0, 0, flops=2 * words * weights, kept=kept, weights=weights)


# FLASH (Yang et al. 2021), device_util.py: ms per training batch of 10.
FLASH_MS = {
    femnist: {"phone_low": 1642, "phone_mid": 588, "phone_high": 179},
    celeba: {"phone_low": 5392, "phone_mid": 1355, "phone_high": 561},
    reddit: {"phone_low": 2596, "phone_mid": 916, "phone_high": 527.7},
}
BATCH = 10


def training_step(net: Count) -> Compute:
    """Three times a forward pass: itself, gradients of inputs, gradients of weights."""
    forward = Compute(
        {"fp32": BATCH * net.flops}, traffic_bytes(4 * BATCH * net.kept, 4 * net.weights)
    )
    return forward * 3


def factor(predicted: float, measured: float) -> float:
    return max(predicted / measured, measured / predicted)


def test_counts_by_hand() -> None:
    # conv1: 64·112² outputs of 147 products. `models.cost` gives the same for the two wholes below.
    assert resnet18().marks[0].flops["fp32"] == 2 * 64 * 112**2 * 147
    assert resnet18().flops == 3_627_226_112
    assert mobilenetv2().flops == 599_247_104
    assert vgg11().flops == 15_210_815_488
    assert femnist().flops == 2 * (28**2 * 32 * 25 + 14**2 * 64 * 800 + 3136 * 2048 + 2048 * 62)
    assert celeba().flops == 2 * 32 * (84**2 * 27 + (42**2 + 21**2 + 11**2) * 288 + 36 * 2)
    assert reddit().flops == 2 * 10 * (2 * 4 * 256 * 512 + 256 * 10_000)


@pytest.mark.parametrize("name", ["phone_low", "phone_mid", "phone_high"])
def test_phones_are_calibrated_on_flash_cnns_and_predict_its_lstm(name: str) -> None:
    device = DEVICES[name]
    rates = []
    for net in (femnist, celeba):
        step, seconds = training_step(net()), FLASH_MS[net][name] / 1e3
        rates.append(step.flops["fp32"] / (seconds - step.traffic_bytes / device.bytes_per_s))
    assert device.flops_per_s["fp32"] == pytest.approx(math.sqrt(rates[0] * rates[1]), rel=0.01)
    for net in (femnist, celeba):
        predicted = compute_seconds(training_step(net()), device)
        assert factor(predicted, FLASH_MS[net][name] / 1e3) < 1.5
    # Held out:
    predicted = compute_seconds(training_step(reddit()), device)
    assert factor(predicted, FLASH_MS[reddit][name] / 1e3) < 2


def test_jetson_is_calibrated_on_resnet18() -> None:
    """Least squares of the relative errors of its five rows, for speed and bandwidth together."""
    marks = resnet18().marks
    rows = zip(marks, MAHPPO_MS[resnet18], strict=True)
    per_ms = np.array([[m.flops["fp32"] / ms, m.traffic_bytes / ms] for m, ms in rows])
    (per_flop, per_byte), *_ = np.linalg.lstsq(per_ms / 1e6, np.ones(5))  # ns
    device = DEVICES["jetson_nano_5w"]
    assert device.flops_per_s["fp32"] == pytest.approx(1e9 / per_flop, rel=0.01)
    assert device.bytes_per_s == pytest.approx(1e9 / per_byte, rel=0.01)
    powers = np.array(MAHPPO_MJ[resnet18]) / np.array(MAHPPO_MS[resnet18])
    assert device.power_w == pytest.approx(np.exp(np.log(powers).mean()), rel=0.01)
    for mark, ms in zip(marks, MAHPPO_MS[resnet18], strict=True):
        assert factor(compute_seconds(mark, device), ms / 1e3) < 1.1


@pytest.mark.parametrize("net", [vgg11, mobilenetv2])
def test_jetson_predicts_cuts_of_other_networks(net) -> None:
    """Ten rows that it is not calibrated on: seconds within 2.5, joules within 2.5."""
    device = DEVICES["jetson_nano_5w"]
    rows = zip(net().marks, MAHPPO_MS[net], MAHPPO_MJ[net], strict=True)
    for mark, ms, mj in rows:
        seconds = compute_seconds(mark, device)
        assert factor(seconds, ms / 1e3) < 2.5
        assert factor(device.power_w * seconds, mj / 1e3) < 2.5


@pytest.mark.parametrize("net", [resnet18, vgg11, mobilenetv2])
def test_later_cuts_take_longer_as_measured(net) -> None:
    device = DEVICES["jetson_nano_5w"]
    predicted = [compute_seconds(mark, device) for mark in net().marks]
    assert predicted == sorted(predicted)
    assert list(MAHPPO_MS[net]) == sorted(MAHPPO_MS[net])


def test_boards_predict_what_others_measured() -> None:
    """Held out for the Raspberry Pi; the Jetson TX2 has its efficiency from the first of them."""
    step = Compute({"fp32": 1e9})
    nano, tx2, pi = (
        compute_seconds(step, DEVICES[name])
        for name in ("jetson_nano", "jetson_tx2", "raspberry_pi_4")
    )
    assert nano / tx2 == pytest.approx(
        1.81, rel=0.01
    )  # training, TX2 : Nano : Pi = 1 : 1.81 : 11.6
    assert factor(pi / nano, 11.6 / 1.81) < 2.5
    # MobileNet-V2 on a Raspberry Pi 4, EasyFL mobile_ratio.py from AI-Benchmark: 173 ms.
    assert factor(compute_seconds(mobilenetv2().marks[-1], DEVICES["raspberry_pi_4"]), 0.173) < 2.5
