"""VGG-16 and -19 with batch norm (Simonyan, Zisserman 2014, arXiv 1409.1556), sized by the input.

Weight names are those of torchvision's vgg16_bn and vgg19_bn. ``stem="imagenet"`` (by default from
64 pixels on) is torchvision's network: the last map is pooled to 7×7 and classified by layers
25088 → 4096 → 4096 → classes with dropout. ``stem="cifar"`` is the usual form for small images: the
last map is averaged to 1×1 and one linear layer, ``classifier.0``, classifies its 512 channels
(14,728,266 parameters for VGG-16 with three input channels and ten classes). Its five poolings
round up, so that 28 pixels, or 8, reach the last one with a map of at least one pixel; at a
multiple of 32 that changes nothing. No torchvision weights fit that head: load them with
``replace_head=True``.

Deviations from the paper: batch norm; from torchvision: ReLUs are not in place; ``width`` scales
all channels and the hidden linear layers.

Batch norm needs more than one value per channel in a training batch. With the cifar head that
holds for a batch of one from 17 pixels on (the last block sees 2×2), with two samples at any size.
"""

import torch
from torch import Tensor, nn

from models.blocks import check_image, initialise, is_cifar_stem, scaled

CHANNELS = (64, 128, 256, 512, 512)


def vgg16(
    in_channels: int = 3,
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (3, 32, 32),
    stem: str = "auto",
    width: float = 1.0,
) -> nn.Module:
    """VGG-16 with batch norm for images of at least 8×8 (cifar) or 32×32 (imagenet); see `VGG`.

    138,365,992 parameters at 3×224×224 and 1000 classes.
    """
    is_cifar = is_cifar_stem(stem, input_shape)
    check_image("vgg16", input_shape, 8 if is_cifar else 32)
    return VGG((2, 2, 3, 3, 3), in_channels, num_classes, is_cifar, width)


def vgg19(
    in_channels: int = 3,
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (3, 32, 32),
    stem: str = "auto",
    width: float = 1.0,
) -> nn.Module:
    """VGG-19 with batch norm for images of at least 8×8 (cifar) or 32×32 (imagenet); see `VGG`.

    143,678,248 parameters at 3×224×224 and 1000 classes.
    """
    is_cifar = is_cifar_stem(stem, input_shape)
    check_image("vgg19", input_shape, 8 if is_cifar else 32)
    return VGG((2, 2, 4, 4, 4), in_channels, num_classes, is_cifar, width)


class VGG(nn.Module):
    """Five blocks of 3×3 convolutions, each followed by max-pooling, and a classifier.

    Args:
        depths: convolutions in each block.
        in_channels: channels of the input image.
        num_classes: width of the output.
        is_cifar: the head for small images instead of the one for large ones.
        width: factor on all channels and hidden layers, which become multiples of 8.

    Shapes: (B, in_channels, H, W) → (B, num_classes). Total stride 32.
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
        layers: list[nn.Module] = []
        channels = in_channels
        for depth, full in zip(depths, CHANNELS, strict=True):
            for _ in range(depth):
                out_channels = scaled(full, width)
                layers += [
                    nn.Conv2d(channels, out_channels, 3, padding=1),
                    nn.BatchNorm2d(out_channels),
                    nn.ReLU(),
                ]
                channels = out_channels
            layers.append(nn.MaxPool2d(2, ceil_mode=is_cifar))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1 if is_cifar else 7)
        if is_cifar:
            self.classifier = nn.Sequential(nn.Linear(channels, num_classes))
        else:
            self.classifier = _imagenet_classifier(49 * channels, scaled(4096, width), num_classes)
        initialise(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, num_classes)."""
        x = self.avgpool(self.features(x))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def _imagenet_classifier(in_features: int, hidden: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, hidden),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden, num_classes),
    )
