"""DenseNet-121 and -201 (Huang et al. 2016, arXiv 1608.06993): each layer sees all before it.

Weight names are those of torchvision. ``stem="cifar"`` is the paper's start for small images: a
3×3 convolution of stride 1 and no pooling (``pool0`` is an identity). A layer returns its input
with its new channels appended, where torchvision hands on a list: the sums, copies and results are
the same, but one tensor is live after each layer, so that each is a cut point. Other deviations:
ReLUs are not in place; no dropout and no checkpointing; ``width`` scales the growth rate (32) and
the first convolution (64).

Batch norm needs more than one value per channel: where the last map is one pixel (the smallest
sizes) a training batch must have two samples or more.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from models.blocks import check_image, initialise, is_cifar_stem, scaled

GROWTH = 32
FIRST_CHANNELS = 64
BOTTLENECK = 4
"""A layer's first convolution gives this many times the growth rate."""


def densenet121(
    in_channels: int = 3,
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (3, 32, 32),
    stem: str = "auto",
    width: float = 1.0,
) -> nn.Module:
    """DenseNet-121 for images of at least 8×8 (cifar) or 29×29 (imagenet); see `DenseNet`.

    7,978,856 parameters at 3×224×224 and 1000 classes.
    """
    is_cifar = is_cifar_stem(stem, input_shape)
    check_image("densenet121", input_shape, 8 if is_cifar else 29)
    return DenseNet((6, 12, 24, 16), in_channels, num_classes, is_cifar, width)


def densenet201(
    in_channels: int = 3,
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (3, 32, 32),
    stem: str = "auto",
    width: float = 1.0,
) -> nn.Module:
    """DenseNet-201 for images of at least 8×8 (cifar) or 29×29 (imagenet); see `DenseNet`.

    20,013,928 parameters at 3×224×224 and 1000 classes.
    """
    is_cifar = is_cifar_stem(stem, input_shape)
    check_image("densenet201", input_shape, 8 if is_cifar else 29)
    return DenseNet((6, 12, 48, 32), in_channels, num_classes, is_cifar, width)


class DenseNet(nn.Module):
    """Stem, four dense blocks with transitions between them, and a linear classifier.

    Args:
        depths: layers in each dense block.
        in_channels: channels of the input image.
        num_classes: width of the output.
        is_cifar: the stem for small images instead of the one for large ones.
        width: factor on the growth rate and the first channels, which become multiples of 8.

    Shapes: (B, in_channels, H, W) → (B, num_classes). Total stride 8 (cifar) or 32.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        in_channels: int,
        num_classes: int,
        is_cifar: bool = False,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        growth, channels = scaled(GROWTH, width), scaled(FIRST_CHANNELS, width)
        self.features = _stem(in_channels, channels, is_cifar)
        for number, depth in enumerate(depths, start=1):
            self.features.add_module(f"denseblock{number}", _dense_block(channels, growth, depth))
            channels += depth * growth
            if number < len(depths):
                self.features.add_module(f"transition{number}", _transition(channels))
                channels //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self, conv_mode="fan_in", zero_linear_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, num_classes)."""
        x = self.avgpool(self.relu(self.features(x)))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


class DenseLayer(nn.Module):
    """Norm, ReLU, 1×1 convolution, norm, ReLU, 3×3 convolution; the result joins the input.

    Shapes: (B, C, H, W) → (B, C + growth, H, W).
    """

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        hidden = BOTTLENECK * growth
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(hidden, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C + growth, H, W)."""
        y = self.conv1(self.relu1(self.norm1(x)))
        y = self.conv2(self.relu2(self.norm2(y)))
        return torch.cat([x, y], 1)


def _stem(in_channels: int, channels: int, is_cifar: bool) -> nn.Sequential:
    kernel, stride, padding = (3, 1, 1) if is_cifar else (7, 2, 3)
    return nn.Sequential(
        OrderedDict(
            conv0=nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False),
            norm0=nn.BatchNorm2d(channels),
            relu0=nn.ReLU(),
            pool0=nn.Identity() if is_cifar else nn.MaxPool2d(3, 2, padding=1),
        )
    )


def _dense_block(channels: int, growth: int, depth: int) -> nn.Sequential:
    """(B, C, H, W) → (B, C + depth·growth, H, W)."""
    return nn.Sequential(
        OrderedDict(
            (f"denselayer{index + 1}", DenseLayer(channels + index * growth, growth))
            for index in range(depth)
        )
    )


def _transition(channels: int) -> nn.Sequential:
    """(B, C, H, W) → (B, C/2, H/2, W/2)."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(),
            conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )
