"""Networks of four kinds that take images (B, 1, H, W): rows as a sequence, or as a volume."""

import torch
from torch import Tensor, nn


class Transformer(nn.Module):
    """torch.nn's encoder over the rows."""

    def __init__(self, input_shape: tuple[int, ...] = (1, 28, 28), num_classes: int = 10) -> None:
        super().__init__()
        height, width = input_shape[1:]
        self.embed = nn.Linear(width, 32)
        self.places = nn.Parameter(torch.zeros(height, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(self.embed(x.flatten(1, 2)) + self.places)
        return self.head(x.mean(1))


class _Recurrent(nn.Module):
    kind: type[nn.LSTM] | type[nn.GRU]

    def __init__(self, input_shape: tuple[int, ...] = (1, 28, 28), num_classes: int = 10) -> None:
        super().__init__()
        self.rows = self.kind(input_shape[2], 48, batch_first=True)
        self.head = nn.Linear(48, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rows(x.flatten(1, 2))[0][:, -1])


class LSTM(_Recurrent):
    """One layer over the rows; its last output decides."""

    kind = nn.LSTM


class GRU(_Recurrent):
    """The same with a GRU."""

    kind = nn.GRU


class Volumes(nn.Module):
    """3-D convolutions over the image as a volume of four slices."""

    def __init__(self, input_shape: tuple[int, ...] = (1, 28, 28), num_classes: int = 10) -> None:
        super().__init__()
        self.slice = input_shape[1] // 4
        self.a, self.b = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, 16, 3, padding=1, stride=2)
        self.norm, self.c = nn.GroupNorm(4, 16), nn.Conv3d(16, 32, (2, 3, 3), padding=(0, 1, 1))
        self.head = nn.Linear(32 * 4 * 14, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(2, (4, self.slice))  # (B, 1, 4, H/4, W)
        x = self.norm(self.b(self.a(x).relu())).relu()
        return self.head(self.c(x).relu().flatten(1))
