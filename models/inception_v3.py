"""Inception v3 (Szegedy et al. 2015, arXiv 1512.00567), without the auxiliary classifier.

Weight names are those of torchvision's inception_v3. The auxiliary head is left out: it is a second
output in the middle of the network, so no place before it could be cut, and it only helps the
training of the whole. 23,834,568 parameters at 1000 classes, which are torchvision's 27,161,264
less the head's 3,326,696; `models.weights.load_weights` skips ``AuxLogits`` in a published file.
Other deviations: ReLUs are not in place; no ``transform_input``, so published weights expect
inputs normalised with mean 0.5 and deviation 0.5 per channel, not ImageNet's.

Made for 299×299 images; the smallest it takes is 75×75, where the last map is one pixel (then a
training batch must have two samples or more, for batch norm). Larger images of smaller data sets
have to be resized; there is no form for CIFAR.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.blocks import check_image

MINIMUM = 75


def inception_v3(
    in_channels: int = 3,
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (3, 299, 299),
) -> nn.Module:
    """Inception v3 for images of at least 75×75; see `Inception3`."""
    check_image("inception_v3", input_shape, MINIMUM)
    return Inception3(in_channels, num_classes)


class ConvNormReLU(nn.Module):
    """Convolution, batch norm, ReLU: (B, C, H, W) → (B, out_channels, H', W')."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, out_channels, H', W')."""
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out


class Unit(NamedTuple):
    """One `ConvNormReLU` of a branch, of the size-keeping padding at stride 1, else unpadded."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


class Branch(NamedTuple):
    """Units one after another, then possibly several side by side on the last one's output."""

    chain: Sequence[Unit]
    fork: Sequence[Unit] = ()


class Mixed(nn.Module):
    """Branches side by side on one input, and a pooling branch; outputs are concatenated.

    Args:
        in_channels: channels of the input.
        branches: in the order of their output channels.
        pool_channels: average-pool at stride 1 followed by a 1×1 unit ``branch_pool`` of so many
            channels; None: max-pool at stride 2, for modules that halve the map.

    Shapes: (B, C, H, W) → (B, out_channels, H', W'), H' = H or (H − 3) // 2 + 1.
    """

    def __init__(
        self, in_channels: int, branches: Sequence[Branch], pool_channels: int | None = None
    ) -> None:
        super().__init__()
        self.branches = tuple(branches)
        self.out_channels = 0
        for branch in self.branches:
            channels = in_channels
            for unit in branch.chain:
                self.add_module(unit.name, _unit(channels, unit))
                channels = unit.channels
            for unit in branch.fork:
                self.add_module(unit.name, _unit(channels, unit))
            self.out_channels += sum(unit.channels for unit in branch.fork) or channels
        if pool_channels is None:
            self.pool: nn.Module = nn.MaxPool2d(3, 2)
            self.branch_pool: nn.Module = nn.Identity()
            self.out_channels += in_channels
        else:
            self.pool = nn.AvgPool2d(3, 1, padding=1)
            self.branch_pool = ConvNormReLU(in_channels, pool_channels, 1)
            self.out_channels += pool_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, out_channels, H', W')."""
        outputs = []
        for branch in self.branches:
            y = x
            for unit in branch.chain:
                y = getattr(self, unit.name)(y)
            outputs += [getattr(self, unit.name)(y) for unit in branch.fork] or [y]
        return torch.cat([*outputs, self.branch_pool(self.pool(x))], 1)


class Inception3(nn.Module):
    """Five convolutions, eleven `Mixed` modules, dropout and one linear layer.

    Args:
        in_channels: channels of the input image.
        num_classes: width of the output.

    Shapes: (B, in_channels, H, W) → (B, num_classes).
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNormReLU(in_channels, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNormReLU(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNormReLU(32, 64, 3, padding=1)
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = ConvNormReLU(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNormReLU(80, 192, 3)
        self.maxpool2 = nn.MaxPool2d(3, 2)
        # Sizes in comments are those of a 299×299 image.
        self.Mixed_5b = _mixed_35(192, pool_channels=32)  # (B, 256, 35, 35)
        self.Mixed_5c = _mixed_35(256, pool_channels=64)  # (B, 288, 35, 35)
        self.Mixed_5d = _mixed_35(288, pool_channels=64)
        self.Mixed_6a = _mixed_35_to_17(288)  # (B, 768, 17, 17)
        self.Mixed_6b = _mixed_17(768, hidden=128)
        self.Mixed_6c = _mixed_17(768, hidden=160)
        self.Mixed_6d = _mixed_17(768, hidden=160)
        self.Mixed_6e = _mixed_17(768, hidden=192)
        self.Mixed_7a = _mixed_17_to_8(768)  # (B, 1280, 8, 8)
        self.Mixed_7b = _mixed_8(1280)  # (B, 2048, 8, 8)
        self.Mixed_7c = _mixed_8(2048)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(2048, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.1, a=-2, b=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, num_classes)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.maxpool1(x)
        x = self.maxpool2(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6a(x)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7a(x)
        x = self.Mixed_7c(self.Mixed_7b(x))
        x = torch.flatten(self.dropout(self.avgpool(x)), 1)
        logits: Tensor = self.fc(x)
        return logits


def _unit(in_channels: int, unit: Unit) -> ConvNormReLU:
    height, width = unit.kernel
    padding = (height // 2, width // 2) if unit.stride == 1 else (0, 0)
    return ConvNormReLU(in_channels, unit.channels, unit.kernel, unit.stride, padding)


def _mixed_35(in_channels: int, pool_channels: int) -> Mixed:
    return Mixed(
        in_channels,
        [
            Branch([Unit("branch1x1", 64)]),
            Branch([Unit("branch5x5_1", 48), Unit("branch5x5_2", 64, (5, 5))]),
            Branch(
                [
                    Unit("branch3x3dbl_1", 64),
                    Unit("branch3x3dbl_2", 96, (3, 3)),
                    Unit("branch3x3dbl_3", 96, (3, 3)),
                ]
            ),
        ],
        pool_channels,
    )


def _mixed_35_to_17(in_channels: int) -> Mixed:
    return Mixed(
        in_channels,
        [
            Branch([Unit("branch3x3", 384, (3, 3), stride=2)]),
            Branch(
                [
                    Unit("branch3x3dbl_1", 64),
                    Unit("branch3x3dbl_2", 96, (3, 3)),
                    Unit("branch3x3dbl_3", 96, (3, 3), stride=2),
                ]
            ),
        ],
    )


def _mixed_17(in_channels: int, hidden: int) -> Mixed:
    return Mixed(
        in_channels,
        [
            Branch([Unit("branch1x1", 192)]),
            Branch(
                [
                    Unit("branch7x7_1", hidden),
                    Unit("branch7x7_2", hidden, (1, 7)),
                    Unit("branch7x7_3", 192, (7, 1)),
                ]
            ),
            Branch(
                [
                    Unit("branch7x7dbl_1", hidden),
                    Unit("branch7x7dbl_2", hidden, (7, 1)),
                    Unit("branch7x7dbl_3", hidden, (1, 7)),
                    Unit("branch7x7dbl_4", hidden, (7, 1)),
                    Unit("branch7x7dbl_5", 192, (1, 7)),
                ]
            ),
        ],
        pool_channels=192,
    )


def _mixed_17_to_8(in_channels: int) -> Mixed:
    return Mixed(
        in_channels,
        [
            Branch([Unit("branch3x3_1", 192), Unit("branch3x3_2", 320, (3, 3), stride=2)]),
            Branch(
                [
                    Unit("branch7x7x3_1", 192),
                    Unit("branch7x7x3_2", 192, (1, 7)),
                    Unit("branch7x7x3_3", 192, (7, 1)),
                    Unit("branch7x7x3_4", 192, (3, 3), stride=2),
                ]
            ),
        ],
    )


def _mixed_8(in_channels: int) -> Mixed:
    return Mixed(
        in_channels,
        [
            Branch([Unit("branch1x1", 320)]),
            Branch(
                [Unit("branch3x3_1", 384)],
                fork=[Unit("branch3x3_2a", 384, (1, 3)), Unit("branch3x3_2b", 384, (3, 1))],
            ),
            Branch(
                [Unit("branch3x3dbl_1", 448), Unit("branch3x3dbl_2", 384, (3, 3))],
                fork=[Unit("branch3x3dbl_3a", 384, (1, 3)), Unit("branch3x3dbl_3b", 384, (3, 1))],
            ),
        ],
        pool_channels=192,
    )
