"""LeNet-5 (LeCun et al. 1998, doi 10.1109/5.726791) with ReLU and max-pooling, sized by the input.

The first convolution pads by 2, so that 28×28 images give the classic 61,706 parameters. Deviations
from 1998: ReLU for tanh, max-pooling for trainable subsampling, full connections in the second
convolution, a linear output layer.
"""

from collections import OrderedDict

from torch import Tensor, nn

from models.blocks import check_image


class LeNet5(nn.Module):
    """Two convolutional stages and a head of three linear layers.

    Args:
        in_channels: channels of the input image.
        num_classes: width of the output.
        input_shape: (C, H, W); the first linear layer is sized by it. At least 12×12.

    Shapes: (B, in_channels, H, W) → (B, num_classes).
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        input_shape: tuple[int, ...] = (1, 28, 28),
    ) -> None:
        super().__init__()
        check_image("lenet5", input_shape, 12)
        height, width = ((size // 2 - 4) // 2 for size in input_shape[1:])
        self.stage1 = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(in_channels, 6, 5, padding=2), relu=nn.ReLU(), pool=nn.MaxPool2d(2)
            )
        )
        self.stage2 = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(6, 16, 5), relu=nn.ReLU(), pool=nn.MaxPool2d(2))
        )
        self.stage3 = nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(), linear=nn.Linear(16 * height * width, 120), relu=nn.ReLU()
            )
        )
        self.stage4 = nn.Sequential(OrderedDict(linear=nn.Linear(120, 84), relu=nn.ReLU()))
        self.head = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, num_classes)."""
        x = self.stage1(x)
        x = self.stage2(x)
        x = self.stage3(x)
        x = self.stage4(x)
        logits: Tensor = self.head(x)
        return logits
