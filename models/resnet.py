"""Residual networks (He et al. 2015, arXiv 1512.03385): ResNet-8 for small images, ResNet-18, -50.

resnet18 and resnet50 have torchvision's weight names, so its published weights load by name
(`models.weights.load_weights`); the stride of a bottleneck is in its 3×3 convolution, as there.
``stem="cifar"`` is the usual form for small images: a 3×3 convolution of stride 1 and no
max-pooling (``maxpool`` is an identity, so that its name still is a cut point). Deviations from
torchvision: ReLUs are not in place, which would hide cut points; ``width`` scales all channels.

resnet8 is the paper's CIFAR network with n = 1 (6n + 2 = 8 layers; 16, 32, 64 channels), in
parts stage1 (stem and first block), stage2, stage3 and head. Deviation: where a block changes the
shape its shortcut is a 1×1 convolution with batch norm (the paper's option B), not zero padding.
78,042 parameters for three input channels and ten classes.

Batch norm needs more than one value per channel: at an input so small that the last map is one
pixel (the smallest size each function takes) a training batch must have two samples or more.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from models.blocks import check_image, initialise, is_cifar_stem, scaled


def resnet8(
    in_channels: int = 3,
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (3, 32, 32),
    width: float = 1.0,
) -> nn.Module:
    """ResNet-8 for images of at least 4×4; see `ResNet8`."""
    check_image("resnet8", input_shape, 4)
    return ResNet8(in_channels, num_classes, width)


def resnet18(
    in_channels: int = 3,
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (3, 32, 32),
    stem: str = "auto",
    width: float = 1.0,
) -> nn.Module:
    """ResNet-18 for images of at least 8×8 (cifar stem) or 32×32 (imagenet stem); see `ResNet`.

    11,689,512 parameters at 3×224×224 and 1000 classes.
    """
    is_cifar = is_cifar_stem(stem, input_shape)
    check_image("resnet18", input_shape, 8 if is_cifar else 32)
    return ResNet(BasicBlock, (2, 2, 2, 2), in_channels, num_classes, is_cifar, width)


def resnet50(
    in_channels: int = 3,
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (3, 32, 32),
    stem: str = "auto",
    width: float = 1.0,
) -> nn.Module:
    """ResNet-50 for images of at least 8×8 (cifar stem) or 32×32 (imagenet stem); see `ResNet`.

    25,557,032 parameters at 3×224×224 and 1000 classes.
    """
    is_cifar = is_cifar_stem(stem, input_shape)
    check_image("resnet50", input_shape, 8 if is_cifar else 32)
    return ResNet(Bottleneck, (3, 4, 6, 3), in_channels, num_classes, is_cifar, width)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: (B, C, H, W) → (B, channels, H/stride, W/stride)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, channels, H/stride, W/stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.downsample is not None:
            x = self.downsample(x)
        out: Tensor = self.relu(y + x)
        return out


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions and a shortcut; gives four times ``channels``."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, 4·channels, H/stride, W/stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            x = self.downsample(x)
        out: Tensor = self.relu(y + x)
        return out


class ResNet(nn.Module):
    """Stem, four groups of residual blocks, global average pooling, one linear layer.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``.
        depths: blocks in each of layer1 to layer4.
        in_channels: channels of the input image.
        num_classes: width of the output.
        is_cifar: the stem for small images instead of the one for large ones.
        width: factor on all channels, which become multiples of 8.

    Shapes: (B, in_channels, H, W) → (B, num_classes). Total stride 8 (cifar) or 32.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        in_channels: int,
        num_classes: int,
        is_cifar: bool = False,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        channels = [scaled(64 * 2**level, width) for level in range(4)]
        kernel, stride, padding = (3, 1, 1) if is_cifar else (7, 2, 3)
        self.conv1 = nn.Conv2d(in_channels, channels[0], kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if is_cifar else nn.MaxPool2d(3, 2, padding=1)
        outputs = [block.expansion * c for c in channels]
        self.layer1 = _layer(block, channels[0], channels[0], depths[0], stride=1)
        self.layer2 = _layer(block, outputs[0], channels[1], depths[1], stride=2)
        self.layer3 = _layer(block, outputs[1], channels[2], depths[2], stride=2)
        self.layer4 = _layer(block, outputs[2], channels[3], depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(outputs[3], num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


class ResNet8(nn.Module):
    """Three stages of one `BasicBlock` each and a head of global average pooling and one layer.

    Args:
        in_channels: channels of the input image.
        num_classes: width of the output.
        width: factor on the 16, 32 and 64 channels, which become multiples of 8.

    Shapes: (B, in_channels, H, W) → (B, num_classes). Total stride 4.
    """

    def __init__(self, in_channels: int, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        first, second, third = (scaled(channels, width) for channels in (16, 32, 64))
        self.stage1 = nn.Sequential(
            OrderedDict(
                conv=_conv3x3(in_channels, first),
                norm=nn.BatchNorm2d(first),
                relu=nn.ReLU(),
                block=BasicBlock(first, first),
            )
        )
        self.stage2 = BasicBlock(first, second, stride=2)
        self.stage3 = BasicBlock(second, third, stride=2)
        self.head = nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                linear=nn.Linear(third, num_classes),
            )
        )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, num_classes)."""
        x = self.stage1(x)
        x = self.stage2(x)
        x = self.stage3(x)
        logits: Tensor = self.head(x)
        return logits


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """A 1×1 convolution where the shape changes, else nothing."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


def _layer(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    channels: int,
    depth: int,
    stride: int,
) -> nn.Sequential:
    """``depth`` blocks, the first of which changes the shape."""
    rest = (block(block.expansion * channels, channels) for _ in range(depth - 1))
    return nn.Sequential(block(in_channels, channels, stride), *rest)
