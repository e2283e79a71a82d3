"""Linear layers with ReLU between them, for rows of features: stage1 … stageN, head."""

import math

from torch import Tensor, nn


class MLP(nn.Module):
    """Flattens what it gets, then ``depth`` hidden layers.

    Args:
        num_classes: outputs.
        input_shape: of one sample.
        width: units of a hidden layer.
        depth: number of hidden layers.

    Raises:
        ValueError: an option is out of range; names the key.
    """

    def __init__(
        self, num_classes: int, input_shape: tuple[int, ...], width: int = 64, depth: int = 2
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("depth", depth)):
            if value < 1:
                raise ValueError(f"model.{name}={value}: takes 1 or more")
        inputs = math.prod(input_shape)
        self.stages = [f"stage{number}" for number in range(1, depth + 1)]
        for name in self.stages:
            self.add_module(name, nn.Sequential(nn.Linear(inputs, width), nn.ReLU()))
            inputs = width
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (B, outputs)."""
        x = x.flatten(1)
        for name in self.stages:
            x = getattr(self, name)(x)
        output: Tensor = self.head(x)
        return output
