"""A bottleneck at the cut whose width changes between rounds.

The global model is the network's state with the encoder's and the decoder's, which have k channels
(`models.bottleneck`); k is a function of the round. Before a round whose k is another than the
last one's, the server takes the least important channels away, or puts new ones in; the clients
get k with their settings and the weights of that width with the model, and need no more.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fleet.clock import Rule
from models.bottleneck import (
    DECODER_WEIGHT,
    ENCODER_WEIGHT,
    FILTERS,
    SCALES,
    TAYLOR,
    Bottleneck,
    attach,
    grow,
    importance,
    most_important,
    shrink,
    unit,
    weight_before,
    with_bottleneck,
)
from models.cost import Cost, cost, joined
from models.inputs import Inputs, spec_of
from models.subnetwork import Part
from strategies import messages
from strategies.client.split_loop import CutAt, Halves, cut_as_told, halves
from strategies.client.training import load_arrays
from strategies.contract import Settings
from strategies.messages import unpack_settings
from strategies.server.cuts import CutNetwork, PartCosts
from strategies.server.cutting import (
    READS,
    Candidate,
    Cut,
    plain_costs,
)
from strategies.server.method import Clients, Network, Result, RoundSettings, ServerState

# Keys that methods with a bottleneck read.
NARROW_READS = (*READS, "prune.ratio", "prune.importance", "prune.rounds", "prune.stages")
SCHEDULES = ("fixed", "grow", "shrink")
IMPORTANCES = ("l1", "taylor", "bn")
CHANNELS = "channels"  # in a checkpoint: which of the network's channels each active one began as

# How many channels are active in a round, of so many.
Width = Callable[[int, int], int]


@dataclass(frozen=True)
class PruneSettings:
    """The group prune of the configuration; `source_content` is found at `source`."""

    ratio: float = field(
        default=0.75, metadata={"help": "share of the cut's channels removed at the end, below 1"}
    )
    schedule: str = field(
        default="grow",
        metadata={"help": "deprune: fixed, grow (from few to the target), shrink (from all to it)"},
    )
    importance: str = field(
        default="l1", metadata={"help": "importance of channels: l1, taylor, bn"}
    )
    rounds: Any = field(
        default=None,
        metadata={
            "help": "round at which the last stage ends, or a share such as 0.5; null: the last"
        },
    )
    stages: int = field(default=4, metadata={"help": "number of widths, including the target"})
    source: str | None = field(
        default=None, metadata={"help": "prune: folder of the finished run to start from"}
    )
    source_content: str = ""
    pretrain_rounds: int | None = field(
        default=None,
        metadata={
            "help": "prune: rounds before the first drop; null: half of prune.rounds, fewer with a "
            "source"
        },
    )

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"prune.ratio={self.ratio}: takes 0 or more, below 1")
        for key, accepted in (("schedule", SCHEDULES), ("importance", IMPORTANCES)):
            if getattr(self, key) not in accepted:
                raise ValueError(f"prune.{key}={getattr(self, key)}: takes {', '.join(accepted)}")
        for key, least in (("stages", 1), ("pretrain_rounds", 0)):
            if (value := getattr(self, key)) is not None and value < least:
                raise ValueError(f"prune.{key}={value}: takes {least} or more")

    def resolved(self, rounds: int) -> "PruneSettings":
        """Return the same with numbers in place of null, in an experiment of ``rounds`` rounds.

        Raises:
            ValueError: there is no such round; names prune.rounds.
        """
        value = rounds if self.rounds is None else self.rounds
        if isinstance(value, float) and 0 < value <= 1:
            last = max(1, round(value * rounds))
        elif isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= rounds:
            last = value
        else:
            raise ValueError(
                f"prune.rounds={value}: takes 1 to rounds={rounds}, a share of them in (0, 1], or "
                "null for all"
            )
        # Where nothing says how long: half of the way, or as little as the importance needs.
        default = last // 2 if not self.source else int(self.importance == "taylor")
        before = default if self.pretrain_rounds is None else self.pretrain_rounds
        return replace(self, rounds=last, pretrain_rounds=before)

    def target(self, channels: int) -> int:
        """Active channels of ``channels`` at the end."""
        return max(1, round(channels * (1 - self.ratio)))


def stage(number: int, rounds: int, stages: int) -> tuple[int, int]:
    """Return the stage of round ``number``, from 1, and of how many.

    ``rounds`` rounds are divided as evenly as can be; what comes after them is in the last stage.
    """
    stages = min(stages, rounds)
    return min(stages, -(-stages * number // rounds)), stages


def between(start: int, end: int, share: float) -> int:
    """Return the channels at ``share`` of the way, each stage times the same factor."""
    return round(start * math.pow(end / start, share))


@dataclass(frozen=True)
class Narrow:
    """Cuts the user's network and puts a bottleneck at the cut.

    Attributes:
        cut: how it is cut.
        prune: what happens to the bottleneck, with numbers for all its rounds.
        width: active channels of a round, given the round and all channels.
        begin: called with the user's network before it is quantized or cut.
    """

    cut: Cut
    prune: PruneSettings
    width: Width
    begin: Callable[[nn.Module], None] | None = None

    def check(self, rounds: RoundSettings) -> None:
        """As `Cut`; there is one cut, at which the bottleneck is.

        Raises:
            ValueError: names split.cut or split.tail.
        """
        if isinstance(self.cut.split.cut, Mapping):
            raise ValueError("split.cut: takes one cut for all clients: the bottleneck is at it")
        self.cut.check(rounds)

    def prepare(
        self,
        model: nn.Module,
        input_shape: Inputs,
        clients: Clients,
        rounds: RoundSettings,
        rule: Rule,
    ) -> "NarrowNetwork":
        """Cut the network and put the first round's bottleneck beside it.

        Raises:
            ValueError: as `Cut`, or the activation has no channels, or no layer before the cut can
                rank them; names the key.
        """
        if spec_of(input_shape).high is not None:
            raise ValueError(
                "strategy: a bottleneck takes activations with channels first; those of tokens "
                "have positions there, which it would mix"
            )
        if self.begin is not None:
            self.begin(model)
        priced = replace(self.cut, costs_at=functools.partial(narrow_costs, self.prune))
        network = priced.prepare(model, input_shape, clients, rounds, rule)
        place, ranks_by = network.only(), self.prune.importance
        cut, *_ = next(iter(network.places))
        shape = place.costs[0][0].output_shape
        if not 1 <= len(shape) <= 3:
            raise ValueError(
                f"split.cut={cut}: an activation of {shape} per sample has no channel "
                "axis; takes a cut of (C), (C, L) or (C, H, W)"
            )
        kinds = SCALES if ranks_by == "bn" else FILTERS
        scales = weight_before(place.parts.device[0], input_shape, kinds)
        if ranks_by == "bn" and scales is None:
            raise ValueError(
                f"prune.importance=bn: no normalisation of {shape[0]} channels comes before "
                f"split.cut={cut}; takes l1 or taylor there"
            )
        sizes = Bottleneck(shape[0], shape[0], len(shape) - 1, taylor=ranks_by == "taylor")
        try:
            attach(network.model, sizes)
        except ValueError as error:
            raise ValueError(f"model: {error}") from error
        return NarrowNetwork(network, sizes, self.width, scales)


@dataclass(frozen=True, eq=False)
class NarrowNetwork:
    """A network with a bottleneck at its cut, of another width in other rounds.

    Attributes:
        plain: the network without a bottleneck.
        sizes: of the bottleneck with all channels.
        width: active channels of a round.
        scales: name of the weight before the cut that ranks channels; None where there is none.
    """

    plain: CutNetwork
    sizes: Bottleneck
    width: Width
    scales: str | None
    made: dict[int, CutNetwork] = field(default_factory=dict, repr=False)

    def active(self, server_round: int) -> int:
        """Active channels of a round."""
        return self.width(server_round, self.sizes.channels)

    def in_round(self, server_round: int) -> CutNetwork:
        """The network with the channels of a round; one for each width."""
        active = self.active(server_round)
        if active not in self.made:
            self.made[active] = self._of_width(active)
        return self.made[active]

    def for_clients(self, clients: Clients) -> "NarrowNetwork":
        """The same network with other clients."""
        made = {active: network.for_clients(clients) for active, network in self.made.items()}
        return replace(self, plain=self.plain.for_clients(clients), made=made)

    def enter(self, state: ServerState, server_round: int) -> ServerState:
        """Change the bottleneck's width where the round has another one."""
        active = self.active(server_round)
        if len(state.arrays[ENCODER_WEIGHT]) == active:
            return self._with_channels(state)
        arrays = {name: torch.from_numpy(array) for name, array in state.arrays.items()}
        channels = self._channels(state)
        resized, channels = self.resized(arrays, channels, active)
        named = {name: tensor.detach().numpy() for name, tensor in resized.items()}
        return replace(
            state,
            arrays=named,
            extra={**state.extra, CHANNELS: np.array(channels, dtype=np.int64)},
        )

    def resized(
        self, arrays: Mapping[str, Tensor], channels: Sequence[int], active: int
    ) -> tuple[dict[str, Tensor], list[int]]:
        """Return a global model's arrays with ``active`` channels.

        Args:
            arrays: of the global model.
            channels: which of the network's channels each active one began as.
            active: how many there are to be.
        """
        encoder, decoder = arrays[ENCODER_WEIGHT], arrays[DECODER_WEIGHT]
        if active < len(encoder):
            keep = most_important(self._scores(arrays), active)
            encoder, decoder = shrink(encoder, decoder, keep)
            left = [channels[place] for place in keep]
        else:
            absent = sorted(set(range(self.sizes.channels)) - set(channels))
            first = most_important(self._own_sizes(arrays)[absent], active - len(encoder))
            new = [absent[place] for place in first]
            places = range(len(encoder), active)
            encoder, decoder = grow(encoder, decoder, *unit(new, encoder), places)
            left = [*channels, *new]
        changed = {ENCODER_WEIGHT: encoder, DECODER_WEIGHT: decoder}
        if self.sizes.taylor:
            changed[TAYLOR] = torch.zeros(active)  # of these channels nothing is known yet
        return {**arrays, **changed}, left

    @functools.cached_property
    def first(self) -> tuple[dict[str, Tensor], list[int]]:
        """The first round's arrays and channels."""
        whole = attach(self.plain.model, self.sizes).state_dict()
        return self.resized(whole, list(range(self.sizes.channels)), self.active(1))

    def _of_width(self, active: int) -> CutNetwork:
        sizes = replace(self.sizes, active=active)
        place = self.plain.only()
        parts = bottlenecked(place.parts, sizes)
        whole = attach(self.plain.model, sizes)
        if active == self.active(1):
            load_arrays(whole, self.first[0])
        narrow = self.plain.with_parts(
            whole,
            replace(place, parts=parts, names=parts.device_names()),
            settings={**self.plain.settings, **messages.pack_settings(bottleneck=sizes)},
            described={
                **self.plain.described,
                "cut_channels": sizes.channels,
                "active_channels": active,
            },
        )
        return replace(narrow, whole_cost=cost_of_parts)

    def _channels(self, state: ServerState) -> list[int]:
        found: list[int] = state.extra[CHANNELS].tolist()
        return found

    def _with_channels(self, state: ServerState) -> ServerState:
        """Note the first round's channels."""
        if CHANNELS in state.extra:
            return state
        channels = np.array(self.first[1], dtype=np.int64)
        return replace(state, extra={**state.extra, CHANNELS: channels})

    def _scores(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """(k,) worth of the active channels."""
        if self.sizes.taylor:
            return arrays[TAYLOR]
        return importance(arrays[ENCODER_WEIGHT], arrays[DECODER_WEIGHT], self._own_sizes(arrays))

    def _own_sizes(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """(C,) size of the network's own channels; all alike where nothing tells them apart."""
        if self.sizes.taylor or self.scales is None:
            return torch.ones(self.sizes.channels)
        return arrays[self.scales].detach().reshape(self.sizes.channels, -1).abs().sum(1)


def cost_of_parts(network: CutNetwork) -> Cost:
    """Of both parts, encoder and decoder among them."""
    device, server = network.only().costs
    return joined([*device, server])


def narrow_costs(prune: PruneSettings, candidate: Candidate) -> PartCosts:
    """What the parts would cost with the bottleneck as it is at the end.

    Raises:
        ValueError: the method takes no cut there.
    """
    (device,), server = plain_costs(candidate)
    channels, *rest = device.output_shape
    active = prune.target(channels)
    bottleneck = Bottleneck(channels, active, len(rest))
    if prune.importance == "bn":
        part = halves(candidate.model, CutAt(candidate.name)).device[0]
        if weight_before(part, candidate.input_shape, SCALES) is None:
            raise ValueError(f"no normalisation of {channels} channels comes before it")
    encoder = cost(bottleneck.encoder(), device.output_shape, input_grad=True)
    decoder = cost(bottleneck.decoder(), (active, *rest), input_grad=True)
    return [joined([device, encoder])], joined([decoder, server])


def active_channels(
    network: Network | None, results: Sequence[Result], alone: Sequence[int]
) -> dict[str, float]:
    """What every round's record says: the active channels."""
    assert isinstance(network, CutNetwork)
    return {"active_channels": network.described["active_channels"]}


def bottlenecked(parts: Halves, bottleneck: Bottleneck) -> Halves:
    """Return copies of the parts with encoder and decoder at the cut."""
    first, server = parts.device[0], parts.server
    assert isinstance(first, Part)
    assert isinstance(server, Part)
    device, decoder = with_bottleneck(first, server, bottleneck)
    return Halves((device,), decoder)


def cut_with_bottleneck(model: nn.Module, settings: Settings) -> Halves:
    """Cut the network as told, with the round's bottleneck between the parts."""
    bottleneck = unpack_settings(settings, "bottleneck", Bottleneck)
    return bottlenecked(cut_as_told(model, settings), bottleneck)
