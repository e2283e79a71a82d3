"""What a network takes: the shape of a sample, its type, and how many tokens there are.

A plain tuple of sizes stands for one input of real numbers, as images and signals are. Text is
integers below a vocabulary's size; several inputs are given to ``forward`` one after the other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

EXAMPLE_SEED = 0
_NAME = "_input_spec"


@dataclass(frozen=True)
class InputSpec:
    """One input.

    Attributes:
        shape: of one sample, such as (64,).
        dtype: of its values.
        high: how many tokens there are, 0 to ``high`` - 1; None where values are real.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    high: int | None = None

    def zeros(self, count: int) -> Tensor:
        """Return (count, …) zeros, which are tokens, too."""
        return torch.zeros(count, *self.shape, dtype=self.dtype)

    def example(self, count: int = 2, seed: int = EXAMPLE_SEED) -> Tensor:
        """Return (count, …) random values, the same for the same seed: normal, or tokens.

        Whole numbers without a ``high`` are 0 and 1, with which every embedding can be read.
        """
        generator = torch.Generator().manual_seed(seed)
        size = (count, *self.shape)
        if self.high is None and self.dtype.is_floating_point:
            values = torch.randn(size, generator=generator, device="cpu")
        else:
            values = torch.randint(self.high or 2, size, generator=generator, device="cpu")
        return values.to(self.dtype)


@dataclass(frozen=True)
class Several:
    """Several inputs, given to ``forward`` as so many arguments."""

    specs: tuple[InputSpec, ...]

    @property
    def shape(self) -> tuple[tuple[int, ...], ...]:
        """Of one sample of each."""
        return tuple(spec.shape for spec in self.specs)


Inputs = tuple[int, ...] | InputSpec | Several


def spec_of(inputs: Inputs) -> InputSpec:
    """Return the one input.

    Raises:
        ValueError: there are several.
    """
    if isinstance(inputs, Several):
        raise ValueError(
            f"a network that is cut takes one input, the data have {len(inputs.specs)}; "
            "strategy=fedavg and strategy=oqfl take several"
        )
    return inputs if isinstance(inputs, InputSpec) else InputSpec(tuple(inputs))


def specs_of(inputs: Inputs) -> tuple[InputSpec, ...]:
    """Return each of the inputs."""
    return inputs.specs if isinstance(inputs, Several) else (spec_of(inputs),)


def example_of(inputs: Inputs) -> Tensor | tuple[int, ...]:
    """Return what `models.split` takes: the shape of real numbers, or two samples of tokens."""
    spec = spec_of(inputs)
    return spec.shape if spec.high is None else spec.example()


def zeros_for(inputs: Inputs, count: int) -> tuple[Tensor, ...]:
    """Return ``count`` samples of zeros, as the arguments of ``forward``."""
    return tuple(spec.zeros(count) for spec in specs_of(inputs))


def first_sizes(inputs: Inputs) -> dict[str, Any]:
    """Return what a network's constructor may ask for: channels, shape, tokens."""
    specs = specs_of(inputs)
    first = specs[0]
    shape = first.shape if len(specs) == 1 else tuple(spec.shape for spec in specs)
    tokens = next((spec.high for spec in specs if spec.high is not None), None)
    sizes: dict[str, Any] = {"in_channels": first.shape[0], "input_shape": shape}
    return sizes if tokens is None else sizes | {"vocab_size": tokens}


def examples_of(inputs: Inputs) -> tuple[Tensor, ...]:
    """Return two random samples, as the arguments of ``forward``."""
    return tuple(spec.example() for spec in specs_of(inputs))


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


def call(model: Callable[..., Any], x: Tensor | tuple[Tensor, ...]) -> Any:
    """Run ``model`` on one input, or on several."""
    return model(x) if isinstance(x, Tensor) else model(*x)


class FromFlat(nn.Module):
    """A network of several inputs that takes them as one row of numbers, for `models.cost`.

    Args:
        model: the network.
        specs: of its inputs.
    """

    def __init__(self, model: nn.Module, specs: Sequence[InputSpec]) -> None:
        super().__init__()
        self.model = model
        self._specs = tuple(specs)
        self._sizes = [math.prod(spec.shape) for spec in specs]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        return (sum(self._sizes),)

    def forward(self, x: Tensor) -> Any:
        """(B, sum of sizes) → what the network gives."""
        parts = zip(self._specs, x.split(self._sizes, 1), strict=True)
        return self.model(*(part.reshape(-1, *s.shape).to(s.dtype) for s, part in parts))
