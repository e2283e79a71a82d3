"""A network of the zoo, and what it is given."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from models.inputs import InputSpec

CLASSES = 10
IMAGE = InputSpec((3, 16, 16))
SIGNAL = InputSpec((2, 32))
SEQUENCE = InputSpec((12, 8))
TOKENS = InputSpec((12,), torch.int64, 50)


@dataclass(frozen=True)
class Entry:
    """One network.

    Attributes:
        kind: what it is an example of.
        make: builds it.
        spec: of its input.
    """

    kind: str
    make: Callable[[], nn.Module]
    spec: InputSpec = IMAGE
