"""Which arrays of the model cross beside the cut. A codec of their own is the method's.

A message of the simulation holds all arrays that a client needs. Those that `names` leaves out do
not cross a real network and are not counted.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from strategies.blocks import arrays_of
from strategies.contract import Settings
from strategies.server.method import Arrays, Masks, Network

Names = Callable[[Network | None, int], frozenset[str] | None]


def everything(network: Network | None, partition: int) -> None:
    """All arrays cross."""


def device_part(network: Network | None, partition: int) -> frozenset[str] | None:
    """The device's arrays cross; the server's stay where they are."""
    assert network is not None, "a network that is cut needs prepare()"
    return network.on_device(partition)


def nothing(network: Network | None, partition: int) -> frozenset[str]:
    """No array crosses: clients keep their own."""
    return frozenset()


@dataclass(frozen=True)
class Latent:
    """Arrays cross as they are.

    Attributes:
        names: which; `everything`, `device_part` or `nothing`.
        settings: nothing that a client must know.
    """

    names: Names = everything
    settings: Settings = field(default_factory=dict)

    def encode(
        self, network: Network | None, arrays: Arrays, partition: int, server_round: int, seed: int
    ) -> Arrays:
        """What the client holds, as it is."""
        return arrays if network is None else network.view(partition).of(arrays)

    def decode(
        self,
        network: Network | None,
        arrays: Mapping[str, Tensor],
        partition: int,
        began: Arrays,
    ) -> tuple[Arrays, Masks]:
        """As they came."""
        if network is not None:
            return network.view(partition).back(arrays)
        return arrays_of(arrays), {}

    def num_bytes(self, network: Network, partition: int) -> tuple[int, int]:
        """The same both ways."""
        size = state_bytes(network.view(partition).model, self.names(network, partition))
        return size, size


def state_bytes(model: nn.Module, names: frozenset[str] | None) -> int:
    """Bytes of a model's arrays of these names; None for all."""
    return sum(
        math.prod(tensor.shape) * tensor.element_size()
        for name, tensor in model.state_dict().items()
        if names is None or name in names
    )
