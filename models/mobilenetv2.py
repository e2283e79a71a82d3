"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381): inverted residuals for phones.

Weight names are those of torchvision's mobilenet_v2. ``stem="cifar"``, the usual form for small
images, has stride 1 in the first convolution and in the first 24-channel block, for a total stride
of 8 instead of 32; no weight changes shape, so published weights load into either form. ``width``
is the paper's multiplier; as in torchvision the last 1280 channels do not shrink with it.
Deviation from torchvision: ReLU6 is not in place.

Batch norm needs more than one value per channel: where the last map is one pixel (the smallest
sizes) a training batch must have two samples or more.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.blocks import check_image, initialise, is_cifar_stem, scaled


class Group(NamedTuple):
    """A row of the paper's table 2: ``num_blocks`` blocks, the first of them with ``stride``."""

    expansion: int
    channels: int
    num_blocks: int
    stride: int


GROUPS = (
    Group(1, 16, 1, 1),
    Group(6, 24, 2, 2),
    Group(6, 32, 3, 2),
    Group(6, 64, 4, 2),
    Group(6, 96, 3, 1),
    Group(6, 160, 3, 2),
    Group(6, 320, 1, 1),
)


def mobilenetv2(
    in_channels: int = 3,
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (3, 32, 32),
    stem: str = "auto",
    width: float = 1.0,
) -> nn.Module:
    """MobileNetV2 for images of at least 8×8 (cifar) or 32×32 (imagenet); see `MobileNetV2`.

    3,504,872 parameters for three input channels and 1000 classes.
    """
    is_cifar = is_cifar_stem(stem, input_shape)
    check_image("mobilenetv2", input_shape, 8 if is_cifar else 32)
    return MobileNetV2(in_channels, num_classes, is_cifar, width)


class MobileNetV2(nn.Module):
    """A convolution, 17 inverted residuals, a 1×1 convolution, and a linear classifier.

    Args:
        in_channels: channels of the input image.
        num_classes: width of the output.
        is_cifar: the strides for small images.
        width: the paper's width multiplier.

    Shapes: (B, in_channels, H, W) → (B, num_classes). Total stride 8 (cifar) or 32.
    """

    def __init__(
        self, in_channels: int, num_classes: int, is_cifar: bool = False, width: float = 1.0
    ) -> None:
        super().__init__()
        first, last = scaled(32, width), scaled(1280, max(1.0, width))
        blocks = list(_blocks(first, is_cifar, width))
        self.features = nn.Sequential(
            _conv_norm_relu(in_channels, first, 3, stride=1 if is_cifar else 2),
            *blocks,
            _conv_norm_relu(scaled(GROUPS[-1].channels, width), last, 1),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))
        initialise(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, num_classes)."""
        x = self.avgpool(self.features(x))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


class InvertedResidual(nn.Module):
    """Widen by 1×1, filter each channel by 3×3, narrow by 1×1; add the input where shapes agree.

    Shapes: (B, C, H, W) → (B, out_channels, H/stride, W/stride).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        widen = [_conv_norm_relu(in_channels, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *widen,
            _conv_norm_relu(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, out_channels, H/stride, W/stride)."""
        y: Tensor = self.conv(x)
        return x + y if self.adds_input else y


def _blocks(in_channels: int, is_cifar: bool, width: float) -> Iterator[InvertedResidual]:
    for index, group in enumerate(GROUPS):
        channels = scaled(group.channels, width)
        stride = 1 if is_cifar and index == 1 else group.stride
        for block in range(group.num_blocks):
            yield InvertedResidual(
                in_channels, channels, stride if block == 0 else 1, group.expansion
            )
            in_channels = channels


def _conv_norm_relu(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution padded to keep the size at stride 1, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )
