"""A network that cannot be built, or not be trained, where it is told so."""

from torch import Tensor, nn


class Fails(nn.Module):
    """One linear layer.

    Args:
        kind: fine; impossible, which its constructor refuses; breaks, which training does.
    """

    def __init__(self, num_classes: int, kind: str = "fine") -> None:
        super().__init__()
        if kind == "impossible":
            raise ValueError("impossible as it is")
        self.kind = kind
        self.head = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "breaks" and self.training and x.shape[0] > 2:
            raise RuntimeError("breaks as it is")
        return self.head(x.flatten(1))
