"""What a network's inputs look like, to make examples of."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_NAME = "_input_spec"
EXAMPLE_SEED = 0


@dataclass(frozen=True)
class InputSpec:
    """One sample of a network's input.

    Attributes:
        shape: without the batch.
        dtype: of its values.
        high: whole numbers lie in [0, high); None for 2, with which every embedding can be read.
            Other values are drawn from a normal distribution.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    high: int | None = None

    def example(self, batch: int = 2, seed: int = EXAMPLE_SEED) -> Tensor:
        """Random samples (batch, …), the same for the same seed; the global random state stays."""
        generator = torch.Generator().manual_seed(seed)
        size = (batch, *self.shape)
        if self.high is None and self.dtype.is_floating_point:
            values = torch.randn(size, generator=generator, device="cpu")
        else:
            values = torch.randint(self.high or 2, size, generator=generator, device="cpu")
        return values.to(self.dtype)


def remember(model: nn.Module, spec: InputSpec) -> None:
    """Have ``model``, and copies of it, know what its inputs look like."""
    vars(model)[_NAME] = spec


def forget(model: nn.Module) -> None:
    """Take that away again: a part of a network has other inputs."""
    vars(model).pop(_NAME, None)


def remembered(model: nn.Module) -> InputSpec | None:
    """What `remember` was told."""
    spec = vars(model).get(_NAME)
    return spec if isinstance(spec, InputSpec) else None
