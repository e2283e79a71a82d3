"""A slice of each layer on each client: a method of the user's own, one file, nothing else touched.

After HeteroFL (Diao et al. 2021, arXiv 2010.01264). Client p trains the first ⌈sₚ·C⌉ of the C
channels of every layer; the network's input and its classes stay whole. The server averages each
entry of each array over the clients whose slice has it, and leaves alone what nobody has:

    w[e] = Σ (nᵢ/Σn)·wᵢ[e]   over i with e in slice sᵢ

Slices alone cross the network, both ways, and are what records and the simulated clock count.

Deviations: a client's share follows from its partition id and is the same in all rounds; no scaler
after the layers, no masked loss. Networks must be chains of layers: what a layer puts out is what
the next one takes, channel by channel.
"""

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fleet.clock import Rule
from fleet.work import ClientWork
from models.cost import cost
from strategies.client.training import LocalTraining
from strategies.contract import Settings
from strategies.fedavg import FedAvgClient
from strategies.server.aggregation import Averaging, AveragingSettings
from strategies.server.loop import FederatedStrategy
from strategies.server.method import (
    Arrays,
    Clients,
    Masks,
    Method,
    Network,
    RoundArguments,
    RoundSettings,
    Sizes,
    Variant,
)
from strategies.server.networks import WholeNetwork
from strategies.server.results import check_shapes
from strategies.server.schedules import PARALLEL
from strategies.server.workload import local_round

SHARE = "slices.share"  # of the channels, in a client's settings


@dataclass(frozen=True)
class SlicesSettings:
    """The method's own keys of the group strategy."""

    shares: Any = field(default=(1.0,), metadata={"help": "of the channels, clients in turn"})

    def __post_init__(self) -> None:
        shares = self.shares if isinstance(self.shares, Sequence) else ()
        if not shares or not all(isinstance(s, int | float) and 0 < s <= 1 for s in shares):
            raise ValueError(f"strategy.shares={self.shares}: expected a list of numbers in (0, 1]")

    def share(self, partition: int) -> float:
        """What of each layer a client trains."""
        return float(self.shares[partition % len(self.shares)])


class SlicesClient(FedAvgClient):
    """A `ClientHalf` that trains the narrow network of its share as FedAvg does."""

    def prepare(self, model: nn.Module, settings: Settings) -> nn.Module:
        """The client's slice of the network."""
        return narrow(model, float(settings[SHARE]))


class Slices(FederatedStrategy):
    """FedAvg in which each client trains a slice of each layer.

    Args:
        settings: how much of the network each client trains.
        averaging: as FedAvg's; what it says is done entry by entry.
        rounds: as `RoundSettings`.
    """

    client = SlicesClient()

    def __init__(
        self,
        *,
        settings: SlicesSettings | None = None,
        averaging: AveragingSettings | None = None,
        **rounds: Unpack[RoundArguments],
    ) -> None:
        averaging = averaging or AveragingSettings()
        method = Method(
            network=Sliced(settings or SlicesSettings()),
            schedule=PARALLEL,
            wire=OfSlices(),
            aggregate=Averaging.of(averaging),
            settings=averaging.client_settings(),
            needs_prepare="a network in slices",
        )
        super().__init__(method, **rounds)


def narrow(model: nn.Module, share: float) -> nn.Module:
    """Return a copy with the first channels of each layer alone.

    Raises:
        ValueError: a layer's channels cannot be divided so.
    """
    small = copy.deepcopy(model)
    layers = [m for m in small.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for module in small.modules():
        # Axis 0 is what comes out of a layer, axis 1 what goes in, and the others are a kernel's.
        is_whole = {0: module is layers[-1], 1: module is layers[0]}
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            kept = tuple(
                size if is_whole.get(axis, True) else math.ceil(share * size)
                for axis, size in enumerate(tensor.shape)
            )
            part = tensor.detach()[corner(kept)].clone()
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(module, name, nn.Parameter(part) if is_parameter else part)
        if isinstance(module, nn.GroupNorm):
            module.num_channels = math.ceil(share * module.num_channels)
            if module.num_channels % module.num_groups:
                raise ValueError(
                    f"strategy.shares: {share:g} leaves {module.num_channels} channels for "
                    f"{module.num_groups} groups"
                )
    return small


@dataclass(frozen=True)
class Sliced:
    """The user's network, of which each client has a slice."""

    own: SlicesSettings

    def check(self, rounds: RoundSettings) -> None:
        """Any rounds will do."""

    def prepare(
        self,
        model: nn.Module,
        input_shape: tuple[int, ...],
        clients: Clients,
        rounds: RoundSettings,
        rule: Rule,
    ) -> "SlicedNetwork":
        """Return it, and its slices."""
        slices = {float(share): narrow(model, float(share)) for share in self.own.shares}
        return SlicedNetwork(model, input_shape, clients, own=self.own, slices=slices)


@dataclass(frozen=True, eq=False)
class SlicedNetwork(WholeNetwork):
    """A network of which each client trains a slice.

    Attributes:
        own: who has which share.
        slices: the network of each share.
    """

    own: SlicesSettings = field(default_factory=SlicesSettings)
    slices: Mapping[float, nn.Module] = field(default_factory=dict)

    def variant(self, partition: int) -> Variant:
        """The client's share."""
        return ((SHARE, self.own.share(partition)),)

    def shapes(self, partition: int) -> dict[str, tuple[int, ...]]:
        """Of the client's arrays: its slice of each begins at 0 and ends there, on each axis."""
        state = self.slices[self.own.share(partition)].state_dict()
        return {name: tuple(tensor.shape) for name, tensor in state.items()}

    def works(self, train: LocalTraining, sent: Sizes) -> dict[int, ClientWork]:
        """A round of each client's own narrow network."""
        costs = {share: cost(model, self.input_shape) for share, model in self.slices.items()}
        work = functools.cache(
            lambda samples, share, sizes: local_round(costs[share], samples, train, sizes)
        )
        samples, share = self.clients.num_examples, self.own.share
        return {p: work(samples[p], share(p), sent(p)) for p in self.clients.with_data()}


@dataclass(frozen=True)
class OfSlices:
    """A `Wire` on which each client's slice crosses, both ways."""

    settings: Settings = field(default_factory=dict)

    def names(self, network: Network | None, partition: int) -> None:
        """All arrays of a slice cross."""

    def encode(
        self, network: Network | None, arrays: Arrays, partition: int, server_round: int, seed: int
    ) -> Arrays:
        """The client's slice of each array."""
        assert isinstance(network, SlicedNetwork)
        shapes = network.shapes(partition)
        return {name: array[corner(shapes[name])] for name, array in arrays.items()}

    def decode(
        self,
        network: Network | None,
        arrays: Mapping[str, Tensor],
        partition: int,
        began: Arrays,
    ) -> tuple[Arrays, Masks]:
        """The slices where they belong, and masks of where that is.

        Raises:
            ValueError: the arrays are not the client's slices.
        """
        assert isinstance(network, SlicedNetwork)
        shapes = network.shapes(partition)
        check_shapes({name: tensor.numpy() for name, tensor in arrays.items()}, shapes)
        whole, masks = dict[str, NDArray[Any]](), dict[str, NDArray[Any]]()
        for name, full in network.model.state_dict().items():
            part = arrays[name].numpy()
            if part.shape == tuple(full.shape):
                whole[name] = part
                continue
            whole[name] = np.zeros(tuple(full.shape), part.dtype)
            whole[name][corner(shapes[name])] = part
            masks[name] = np.zeros(tuple(full.shape), bool)
            masks[name][corner(shapes[name])] = True
        return whole, masks

    def num_bytes(self, network: Network, partition: int) -> tuple[int, int]:
        """Bytes of a slice, the same both ways."""
        assert isinstance(network, SlicedNetwork)
        state = network.slices[network.own.share(partition)].state_dict()
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        return size, size


def corner(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The entries of a slice of this shape in the whole array."""
    return tuple(slice(size) for size in shape)
