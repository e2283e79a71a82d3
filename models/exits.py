"""Early exits: a small classifier on the activation at a cut.

    z (B, C, …) → [3-wide convolution of stride 2, group norm, ReLU] → mean over positions → linear
    of tokens, z (B, T, D) → mean over positions → linear; or a linear layer at each position

BranchyNet (Teerapittayanon et al. 2016, arXiv 1709.01686) has convolutions in its exits, too; here
one is an option. Global pooling keeps the exit small wherever the cut is: C·classes + classes
numbers. Group norm with one group has no running
statistics, so a batch of one and the average over unequal devices are no special cases.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NAME = "exit"
MAX_DIMS = 2
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}


@dataclass(frozen=True)
class ExitSpec:
    """What an exit is made of.

    Attributes:
        in_channels: C of the activation (B, C, …), or its features (B, C).
        dims: of its positions: 0 flat, 1 for (B, C, L), 2 for (B, C, H, W).
        num_classes: width of the output.
        width: channels of a convolution before the pooling (flat: of a hidden layer); 0 for none.
        is_last: whether features are the last axis, as of tokens (B, T, D).
        per_place: whether there is an output for each of T positions: (B, T, classes).
    """

    in_channels: int
    dims: int
    num_classes: int
    width: int = 0
    is_last: bool = False
    per_place: bool = False

    def __post_init__(self) -> None:
        if (self.is_last or self.per_place) and (self.dims != 1 or not self.is_last):
            raise ValueError(f"an exit for tokens takes (B, T, D), got {2 + self.dims} dimensions")
        if self.is_last and self.width:
            raise ValueError(f"strategy.exit_width={self.width}: takes 0 where inputs are tokens")
        if not 0 <= self.dims <= MAX_DIMS:
            accepted = "(B, C), (B, C, L) or (B, C, H, W)"
            raise ValueError(f"an exit takes {accepted}, got {2 + self.dims} dimensions")
        if self.width < 0 or self.width == 1:  # one value of one channel cannot be normalised
            raise ValueError(f"strategy.exit_width={self.width}: takes 0, or 2 or more channels")

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        num_classes: int,
        width: int = 0,
        is_tokens: bool = False,
        places: int = 0,
    ) -> "ExitSpec":
        """The exit for activations of ``shape``, without the batch.

        Args:
            shape: of the activations.
            num_classes: width of the output.
            width: of the exit.
            is_tokens: whether the network's input is tokens.
            places: T, where there is an output for each of them; 0 where there is one in all.

        Raises:
            ValueError: they have no shape that an exit takes.
        """
        if not shape:
            raise ValueError("an exit takes (B, C, …), got one number per sample")
        if places and shape[0] != places:
            raise ValueError(f"an exit for {places} tokens takes as many, got {tuple(shape)}")
        is_last = places > 0 or (is_tokens and len(shape) > 1)
        channels = shape[-1] if is_last else shape[0]
        return cls(channels, len(shape) - 1, num_classes, width, is_last, places > 0)


class ExitHead(nn.Module):
    """An exit: (B, C, …) → (B, classes), or (B, T, D) → (B, T, classes)."""

    def __init__(self, spec: ExitSpec) -> None:
        super().__init__()
        channels = spec.in_channels
        self.is_last, self.per_place = spec.is_last, spec.per_place
        self.block = nn.Sequential()
        if spec.width:
            if spec.dims:
                kind = _CONVOLUTIONS[spec.dims]
                first: nn.Module = kind(channels, spec.width, 3, stride=2, padding=1, bias=False)
            else:
                first = nn.Linear(channels, spec.width, bias=False)
            self.block = nn.Sequential(first, nn.GroupNorm(1, spec.width), nn.ReLU())
            channels = spec.width
        self.linear = nn.Linear(channels, spec.num_classes)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, …) → (B, classes), or (B, T, D) → (B, T, classes)."""
        if self.is_last:
            outputs: Tensor = self.linear(z if self.per_place else z.mean(1))
            return outputs
        z = self.block(z)
        logits: Tensor = self.linear(z.flatten(2).mean(2) if z.dim() > 2 else z)
        return logits


def exit_head(spec: ExitSpec, seed: int) -> ExitHead:
    """Build an exit with initial weights drawn by ``seed``; the global random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = ExitHead(spec)
    return head.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def exit_name(model: nn.Module) -> str:
    """Name of the child that an exit becomes: ``exit``, with underscores until nothing has it."""
    name = NAME
    while hasattr(model, name):
        name += "_"
    return name
