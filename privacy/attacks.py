"""Reconstruction attack: a decoder that learns to draw the input from what crosses the cut.

The attacker has pairs of activations and inputs (it owns data and can query the client's half) and
trains a small network on them. How well that does on unseen pairs is what the cut gives away; how
well the mean of all inputs does (`mean_mse`) is what anybody knows without it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import eager

SSIM_MIN_SIDE = 6
"""Sides below it are less than the reach of SSIM's window of 11×11."""


@dataclass(frozen=True)
class Reconstruction:
    """How well the attack does on unseen pairs.

    Attributes:
        mse: mean squared error per value.
        mean_mse: that of the training inputs' mean.
        ssim: mean structural similarity of images, 1 for equal ones; None for signals and images
            below 6×6.
    """

    mse: float
    mean_mse: float
    ssim: float | None


class Decoder(nn.Module):
    """Activations (B, …) → inputs (B, *input_shape), by one hidden layer.

    Args:
        num_features: values of one activation.
        input_shape: of one input.
        hidden: width of the hidden layer.
    """

    def __init__(self, num_features: int, input_shape: tuple[int, ...], hidden: int = 256) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.layers = nn.Sequential(
            nn.Linear(num_features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, torch.Size(self.input_shape).numel()),
        )

    def forward(self, z: Tensor) -> Tensor:
        """(B, …) → (B, *input_shape)."""
        x: Tensor = self.layers(z.flatten(1))
        return x.view(len(z), *self.input_shape)


def reconstruct(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    epochs: int = 5,
    seed: int = 0,
    batch_size: int = 64,
    lr: float = 1e-3,
    hidden: int = 256,
) -> Reconstruction:
    """Train a `Decoder` by Adam on pairs, and measure it on others.

    Args:
        train: activations (N, …) and inputs (N, C, L) or (N, C, H, W), float32.
        test: the same, unseen.
        epochs: passes over the pairs.
        seed: of initial weights and batches; torch's default generator is left as it was.
        batch_size: pairs per step.
        lr: learning rate.
        hidden: width of the decoder.

    Raises:
        ValueError: no pairs, or activations without inputs.
    """
    (z, x), (test_z, test_x) = train, test
    if not len(z) or not len(test_z) or len(z) != len(x) or len(test_z) != len(test_x):
        sizes = ", ".join(str(len(t)) for t in (z, x, test_z, test_x))
        raise ValueError(f"reconstruct takes pairs of activations and inputs, got {sizes} of them")
    z, test_z = z.detach(), test_z.detach()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(z[0].numel(), tuple(x.shape[1:]), hidden)
    optimizer = eager.Adam(decoder.parameters(), lr, fused=True)
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.randperm(len(z), generator=generator).split(batch_size):
                loss = F.mse_loss(decoder(z[rows]), x[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    with torch.no_grad():
        drawn = torch.cat([decoder(batch) for batch in test_z.split(1000)])
        mean = x.mean(0).expand_as(test_x)
        return Reconstruction(
            float(F.mse_loss(drawn, test_x)), float(F.mse_loss(mean, test_x)), _ssim(drawn, test_x)
        )


def _ssim(drawn: Tensor, x: Tensor) -> float | None:
    if x.dim() != 4 or min(x.shape[2:]) < SSIM_MIN_SIDE:
        return None
    from torchmetrics.functional.image import structural_similarity_index_measure

    span = float(x.max() - x.min()) or 1.0
    similarity = structural_similarity_index_measure(drawn, x, data_range=span)
    assert isinstance(similarity, Tensor)
    return float(similarity)
