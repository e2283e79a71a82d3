"""What an activation says about the input it comes from: distance correlation, and noise on it.

Székely, Rizzo, Bakirov 2007 (doi 10.1214/009053607000000505). For samples x₁ … xₙ and y₁ … yₙ:

    a_ij = ‖x_i − x_j‖        A = a with its row, column and overall means taken out; B likewise
    dCov²(x, y) = mean(A·B)   dCor = √(dCov²(x, y) / √(dCov²(x, x)·dCov²(y, y)))

in [0, 1]; 0 for large n exactly where x and y are independent, 1 where one is the other moved,
turned and scaled. It is never 0 for few samples: compare values of equal n only.

As Abuadbba et al. 2020 (arXiv 2003.12365) measure the leakage of a cut, each channel is compared
with the input average-pooled to the channel's size; their noise, too, is here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.precision import in_fp32


def distance_correlation(x: Tensor, y: Tensor) -> Tensor:
    """dCor of paired samples, differentiable; 0 with gradient 0 where either is constant.

    Args:
        x: (…, n, p) float; leading axes are independent cases.
        y: (…, n, q) float; leading axes broadcast against those of ``x``.

    Returns:
        (…), in [0, 1] up to rounding.

    Raises:
        ValueError: fewer than two samples, or different numbers of them.
    """
    if x.dim() < 2 or y.dim() < 2 or x.shape[-2] != y.shape[-2] or x.shape[-2] < 2:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"distance correlation takes two or more pairs, got {shapes}")
    a, b = _centred_distances(x), _centred_distances(y)
    variances = a.square().mean((-2, -1)) * b.square().mean((-2, -1))
    squared = (a * b).mean((-2, -1)) / _positive(variances).sqrt()
    is_zero = (variances <= 0) | (squared <= 0)
    # The inner `where` keeps the root's infinite derivative at 0 out of the gradient.
    root = torch.where(is_zero, torch.ones_like(squared), squared).sqrt()
    return torch.where(is_zero, torch.zeros_like(root), root)


def channel_leakage(x: Tensor, z: Tensor) -> Tensor:
    """dCor of each channel of a cut activation with the input.

    Args:
        x: (B, C, L) or (B, C, H, W) inputs, average-pooled here to the sizes of ``z``.
        z: (B, C', L') or (B, C', H', W') activations, or (B, F), which counts as one channel and is
            compared with the whole input.

    Returns:
        (C',), or (1,).

    Raises:
        ValueError: ``x`` and ``z`` have different numbers of samples, or sizes to compare.
    """
    if z.dim() == 2:
        return distance_correlation(x.flatten(1), z).reshape(1)
    if x.dim() != z.dim() or x.dim() not in (3, 4):
        raise ValueError(f"takes maps of equal dimensions, got {x.dim()} and {z.dim()}")
    pool = F.adaptive_avg_pool1d if x.dim() == 3 else F.adaptive_avg_pool2d
    pooled: Tensor = pool(x, z.shape[2:])  # type: ignore[arg-type]
    return distance_correlation(pooled.flatten(1), z.transpose(0, 1).flatten(2))


def laplace_noise(z: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """``z`` plus Laplace noise of scale (max − min over the batch) / ε, per channel and position.

    The base paper's mechanism. It is no proof of differential privacy: the sensitivity is that of
    the batch at hand, and where a batch does not vary, as one sample does not, nothing is added.
    The gradient passes as if nothing had been. On bits the sign of the result flips a ±1 that
    varies with probability exp(−ε/2)/2.

    Args:
        z: (B, …) float.
        epsilon: > 0; less is noisier.
        generator: of the noise.

    Raises:
        ValueError: ``epsilon`` is not positive.
    """
    if not epsilon > 0:
        raise ValueError(f"privacy.epsilon={epsilon}: takes a positive number")
    if not len(z):
        return z
    z = in_fp32(z)
    with torch.no_grad():
        scale = (z.amax(0) - z.amin(0)) / epsilon
        # The difference of two exponential variables is a Laplace variable.
        one, other = (
            torch.empty(z.shape, dtype=z.dtype).exponential_(generator=generator).to(z.device)
            for _ in range(2)
        )
        noise = (one - other) * scale
    return z + noise


def _centred_distances(x: Tensor) -> Tensor:
    """(…, n, p) → (…, n, n) distances with row, column and overall means taken out."""
    x = in_fp32(x)
    x = x - x.mean(-2, keepdim=True)  # distances of large values would lose their digits
    # Not by matrix products, which do the same.
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    rows = distances.mean(-1, keepdim=True)
    return distances - rows - rows.transpose(-2, -1) + rows.mean(-2, keepdim=True)


def _positive(x: Tensor) -> Tensor:
    """``x`` with 1 in the place of what is not above 0."""
    return torch.where(x > 0, x, torch.ones_like(x))
