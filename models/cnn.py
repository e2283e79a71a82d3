"""A small convolutional network for small images and small clients.

Three stages of 3×3 convolution, normalisation and ReLU, the first two followed by 2×2 max-pooling,
and a head of global average pooling and one linear layer. Group normalisation is the default: it
has no running statistics, so it works with a batch of one and does not mix what unequal clients
measured (Hsieh et al. 2020, arXiv 1910.00189). 24,058 parameters for one input channel.
"""

from collections import OrderedDict

from torch import Tensor, nn

from models.blocks import check_image

GROUPS = 4


class CNN(nn.Module):
    """Three convolutional stages and a global-pooling head.

    Args:
        in_channels: channels of the input image.
        num_classes: width of the output.
        input_shape: (C, H, W), to refuse images below 4×4.
        width: channels of the first stage; the others have twice and four times as many.
        norm: ``group`` or ``batch``.

    Shapes: (B, in_channels, H, W) → (B, num_classes).
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        input_shape: tuple[int, ...] = (1, 28, 28),
        width: int = 16,
        norm: str = "group",
    ) -> None:
        super().__init__()
        check_image("cnn", input_shape, 4)
        if norm not in ("group", "batch"):
            raise ValueError(f"model.norm={norm}: takes group, batch")
        if width < 1 or width % GROUPS:
            raise ValueError(f"model.width={width}: takes a positive multiple of {GROUPS}")
        self.stage1 = _stage(in_channels, width, norm, pool=True)
        self.stage2 = _stage(width, 2 * width, norm, pool=True)
        self.stage3 = _stage(2 * width, 4 * width, norm, pool=False)
        self.head = nn.Sequential(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                linear=nn.Linear(4 * width, num_classes),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, num_classes)."""
        x = self.stage1(x)
        x = self.stage2(x)
        x = self.stage3(x)
        logits: Tensor = self.head(x)
        return logits


def _stage(in_channels: int, out_channels: int, norm: str, pool: bool) -> nn.Sequential:
    """(B, in, H, W) → (B, out, H/2, W/2) with pooling, else (B, out, H, W)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        norm=nn.GroupNorm(GROUPS, out_channels)
        if norm == "group"
        else nn.BatchNorm2d(out_channels),
        relu=nn.ReLU(),
    )
    if pool:
        layers["pool"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)
