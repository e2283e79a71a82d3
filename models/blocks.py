"""What the backbones share: reading options, refusing small inputs, drawing initial weights."""

from collections.abc import Iterable
from typing import Literal

from torch import nn

STEMS = ("auto", "cifar", "imagenet")
IMAGENET_FROM = 64
"""Side in pixels from which ``stem="auto"`` is ``imagenet``."""


def is_cifar_stem(stem: str, input_shape: tuple[int, ...]) -> bool:
    """Whether ``stem`` means the form for small images; ``auto`` decides by the shorter side.

    Raises:
        ValueError: ``stem`` is none of auto, cifar, imagenet.
    """
    if stem not in STEMS:
        raise ValueError(f"model.stem={stem}: takes {', '.join(STEMS)}")
    if stem == "auto":
        return min(input_shape[1:], default=0) < IMAGENET_FROM
    return stem == "cifar"


def check_image(name: str, input_shape: tuple[int, ...], minimum: int) -> None:
    """Refuse what is no (C, H, W) image with both sides of at least ``minimum`` pixels.

    Raises:
        ValueError: one line with the model's name, the smallest size and what it got.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < minimum:
        smallest = by((minimum, minimum))
        raise ValueError(f"{name} takes images of at least {smallest}, got {by(input_shape)}")


def by(sizes: Iterable[int]) -> str:
    """Sizes as a person writes them: 3×32×32."""
    return "\N{MULTIPLICATION SIGN}".join(str(size) for size in sizes)


def scaled(channels: float, width: float, divisor: int = 8) -> int:
    """``channels × width`` rounded to a multiple of ``divisor``, never more than 10 % below it.

    The rule of MobileNet's width multiplier (arXiv 1801.04381), which every family here uses.

    Raises:
        ValueError: ``width`` is not positive.
    """
    if not width > 0:
        raise ValueError(f"model.width={width}: takes a positive number")
    exact = channels * width
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * exact else rounded


def initialise(
    model: nn.Module,
    conv_mode: Literal["fan_in", "fan_out"] = "fan_out",
    linear_std: float | None = None,
    zero_linear_bias: bool = False,
) -> None:
    """Draw initial weights in place: He's normal convolutions, batch norm 1 and 0.

    Args:
        model: modules are visited in order, so the draws depend on the random state alone.
        conv_mode: fan of He's normal initialisation (arXiv 1502.01852); biases become 0.
        linear_std: standard deviation of normal linear weights with biases 0; None keeps PyTorch's
            uniform ones.
        zero_linear_bias: set linear biases to 0 without ``linear_std``.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=conv_mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            if linear_std is not None:
                nn.init.normal_(module.weight, 0.0, linear_std)
            if linear_std is not None or zero_linear_bias:
                nn.init.zeros_(module.bias)
