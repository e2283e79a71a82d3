"""Twelve small networks of the families that use depthwise convolutions and squeeze-excitation.

Each is a stem, two or three blocks as its paper draws them, and a pooling head, at the width of a
test. Blocks of stride 2 have no shortcut. (B, 3, 16, 16) → (B, 10).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


class Hardswish(nn.Module):
    """x · relu6(x + 3) / 6."""

    def forward(self, x: Tensor) -> Tensor:
        return x * F.relu6(x + 3) / 6


def conv(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: Activation | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, batch normalisation and an activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))


def depthwise(
    channels: int, kernel: int = 3, stride: int = 1, activation: Activation | None = nn.ReLU
) -> nn.Sequential:
    return conv(channels, channels, kernel, stride, channels, activation)


class SqueezeExcite(nn.Module):
    """Channels scaled by what a bottleneck makes of their means."""

    def __init__(
        self, channels: int, activation: Activation = nn.ReLU, gate: Activation = nn.Sigmoid
    ) -> None:
        super().__init__()
        self.reduce, self.expand = (
            nn.Conv2d(channels, channels // 4, 1),
            nn.Conv2d(channels // 4, channels, 1),
        )
        self.activation, self.gate = activation(), gate()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.expand(self.activation(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * self.gate(scale)


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


def inverted(
    channels: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    expansion: int = 3,
    activation: Activation = nn.ReLU6,
    squeeze: nn.Module | None = None,
) -> nn.Module:
    """Expand, depthwise, squeeze-excite, project: MobileNetV2's block and its descendants'."""
    wide = expansion * channels
    body = [
        conv(channels, wide, activation=activation),
        depthwise(wide, kernel, stride, activation),
        *([squeeze] if squeeze else []),
        conv(wide, outputs, activation=None),
    ]
    if stride == 1 and channels == outputs:
        return Residual(*body)
    return nn.Sequential(*body)


class Shuffle(nn.Module):
    """ShuffleNetV2's unit: half of the channels pass, and both halves are interleaved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv(half, half), depthwise(half, activation=None), conv(half, half)
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, 1)
        x = torch.stack([kept, self.branch(changed)], 2)
        return x.flatten(1, 2)


class Ghost(nn.Module):
    """GhostNet's module: half of the channels are cheap functions of the other half."""

    def __init__(self, inputs: int, outputs: int, activation: Activation | None = nn.ReLU) -> None:
        super().__init__()
        self.primary = conv(inputs, outputs // 2, activation=activation)
        self.cheap = depthwise(outputs // 2, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], 1)


class Mixed(nn.Module):
    """MixNet's depthwise convolution: kernels of 3, 5 and 7 over thirds of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            depthwise(channels // 3, k, activation=nn.SiLU) for k in (3, 5, 7)
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = x.chunk(3, 1)
        return torch.cat([self.parts[0](a), self.parts[1](b), self.parts[2](c)], 1)


class Grown(nn.Module):
    """ReXNet's shortcut: the block has more channels, and the first ones get x."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.channels = channels
        self.body = nn.Sequential(
            conv(channels, 3 * channels, activation=nn.SiLU),
            depthwise(3 * channels, activation=None),
            SqueezeExcite(3 * channels),
            nn.ReLU6(),
            conv(3 * channels, outputs, activation=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return torch.cat([y[:, : self.channels] + x, y[:, self.channels :]], 1)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def mobilenet_v1() -> nn.Module:
    """Howard et al. 2017, arXiv 1704.04861."""
    return nn.Sequential(
        conv(3, 8, 3), depthwise(8), conv(8, 16), depthwise(16, 3, 2), conv(16, 24), head(24)
    )


def mobilenet_v2() -> nn.Module:
    """Sandler et al. 2018, arXiv 1801.04381."""
    return nn.Sequential(
        conv(3, 8, 3, activation=nn.ReLU6), inverted(8, 8), inverted(8, 12, stride=2),
        inverted(12, 12), head(12),
    )  # fmt: skip


def mobilenet_v3() -> nn.Module:
    """Howard et al. 2019, arXiv 1905.02244."""
    return nn.Sequential(
        conv(3, 8, 3, activation=Hardswish),
        inverted(8, 8, activation=nn.ReLU, squeeze=SqueezeExcite(24, gate=nn.Hardsigmoid)),
        inverted(8, 12, 5, 2, activation=Hardswish, squeeze=SqueezeExcite(24, gate=nn.Hardsigmoid)),
        conv(12, 24, activation=Hardswish), head(24),
    )  # fmt: skip


def mnasnet() -> nn.Module:
    """Tan et al. 2019, arXiv 1807.11626."""
    return nn.Sequential(
        conv(3, 8, 3), depthwise(8), conv(8, 8, activation=None),
        inverted(8, 12, 3, 2, activation=nn.ReLU),
        inverted(12, 12, 5, activation=nn.ReLU, squeeze=SqueezeExcite(36)), head(12),
    )  # fmt: skip


def efficientnet() -> nn.Module:
    """Tan and Le 2019, arXiv 1905.11946."""
    return nn.Sequential(
        conv(3, 8, 3, activation=nn.SiLU),
        inverted(8, 8, activation=nn.SiLU, squeeze=SqueezeExcite(24, nn.SiLU)),
        inverted(8, 12, 5, 2, activation=nn.SiLU, squeeze=SqueezeExcite(24, nn.SiLU)),
        conv(12, 24, activation=nn.SiLU), head(24),
    )  # fmt: skip


def rexnet() -> nn.Module:
    """Han et al. 2021, arXiv 2007.00992."""
    return nn.Sequential(
        conv(3, 8, 3, activation=nn.SiLU), Grown(8, 12), Grown(12, 16),
        conv(16, 24, activation=nn.SiLU), head(24),
    )  # fmt: skip


def shufflenet() -> nn.Module:
    """Ma et al. 2018, arXiv 1807.11164."""
    return nn.Sequential(conv(3, 16, 3, 2), Shuffle(16), Shuffle(16), Shuffle(16), head(16))


def ghostnet() -> nn.Module:
    """Han et al. 2020, arXiv 1911.11907."""
    return nn.Sequential(
        conv(3, 8, 3, 2),
        Residual(Ghost(8, 24), SqueezeExcite(24, gate=nn.Hardsigmoid), Ghost(24, 8, None)),
        Residual(Ghost(8, 24), Ghost(24, 8, None)), conv(8, 24), head(24),
    )  # fmt: skip


def mixnet() -> nn.Module:
    """Tan and Le 2019, arXiv 1907.09595."""
    return nn.Sequential(
        conv(3, 8, 3),
        Residual(
            conv(8, 24, activation=nn.SiLU), Mixed(24), SqueezeExcite(24, nn.SiLU),
            conv(24, 8, activation=None),
        ),
        conv(8, 24, activation=nn.SiLU), head(24),
    )  # fmt: skip


def squeezenext() -> nn.Module:
    """Gholami et al. 2018, arXiv 1803.10615: separable convolutions, here with excitation."""

    def row_and_column(channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), groups=channels, bias=False),
            nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), groups=channels, bias=False),
            nn.BatchNorm2d(channels), nn.ReLU(),
        )  # fmt: skip

    return nn.Sequential(
        conv(3, 16, 3, 2),
        Residual(conv(16, 8), row_and_column(8), SqueezeExcite(8), conv(8, 16)),
        Residual(conv(16, 8), row_and_column(8), conv(8, 16)), head(16),
    )  # fmt: skip


def mobilenet_v4() -> nn.Module:
    """Qin et al. 2024, arXiv 2404.10518: universal inverted bottlenecks, depthwise twice."""

    def universal(channels: int) -> nn.Module:
        return Residual(
            depthwise(channels, 3, activation=None), conv(channels, 3 * channels),
            depthwise(3 * channels, 5), conv(3 * channels, channels, activation=None),
        )  # fmt: skip

    return nn.Sequential(conv(3, 8, 3, 2), universal(8), universal(8), conv(8, 24), head(24))


def convnext() -> nn.Module:
    """Liu et al. 2022, arXiv 2201.03545: depthwise 7×7, layer normalisation, GELU."""

    def block(channels: int) -> nn.Module:
        return Residual(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels), ChannelNorm(channels),
            nn.Conv2d(channels, 4 * channels, 1), nn.GELU(), nn.Conv2d(4 * channels, channels, 1),
        )  # fmt: skip

    return nn.Sequential(
        nn.Conv2d(3, 12, 2, 2), ChannelNorm(12), block(12), block(12), ChannelNorm(12), head(12)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    make.__name__: make
    for make in (
        mobilenet_v1, mobilenet_v2, mobilenet_v3, mnasnet, efficientnet, rexnet, shufflenet,
        ghostnet, mixnet, squeezenext, mobilenet_v4, convnext,
    )
}  # fmt: skip
