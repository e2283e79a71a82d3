"""What methods share that put a bottleneck at the cut and change its width between rounds.

The global model is the network's state with the encoder's and the decoder's, which have k channels
(`models.bottleneck`); k is a function of the round. Before a round whose k is another than the
last one's, the server takes the least important channels away, or puts new ones in; the clients
get k with their settings and the weights of that width with the model, and need no more.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from torch import Tensor, nn

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
from models.subnetwork import Part
from strategies import messages
from strategies.client import split_loop as split_learning
from strategies.client.split_loop import Halves, Split, halves
from strategies.client.training import load_arrays
from strategies.messages import unpack_settings
from strategies.server.checkpoint import Arrays
from strategies.server.cuts import DEFAULT, SplitStrategy
from strategies.server.loop import FederatedStrategy, Test
from strategies.server.results import Outcome
from strategies.server.workload import Pieces

SCHEDULES = ("fixed", "grow", "shrink")
IMPORTANCES = ("l1", "taylor", "bn")


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
    importance: str = field(default="l1", metadata={"help": "which channels go: l1, taylor, bn"})
    rounds: Any = field(
        default=None,
        metadata={"help": "when the last stage ends: a round, a share of all as 0.5, or null: all"},
    )
    stages: int = field(default=4, metadata={"help": "widths on the way, the target among them"})
    source: str | None = field(
        default=None, metadata={"help": "prune: folder of a finished run to begin with"}
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


class BottleneckStrategy(SplitStrategy):
    """Base of the methods with a bottleneck; a subclass says how many channels are active when.

    Args:
        prune: what happens to the bottleneck.
        common: arguments of `SplitStrategy`.
    """

    reads: ClassVar[tuple[str, ...]] = (
        *SplitStrategy.reads, "prune.ratio", "prune.importance", "prune.rounds", "prune.stages",
    )  # fmt: skip
    takes_mapping: ClassVar[bool] = False

    def __init__(self, *, prune: PruneSettings | None = None, **common: Any) -> None:
        if isinstance(common.get("cut"), Mapping):
            raise ValueError("split.cut: takes one cut for all clients: the bottleneck is at it")
        super().__init__(**common)
        self.prune = prune or PruneSettings().resolved(10)
        self.bottleneck = Bottleneck()  # as of the latest round, once prepared
        self._network: nn.Module | None = None  # without a bottleneck, and the next one its parts
        self._plain: Halves | None = None
        self._scales: str | None = None  # name of the weight before the cut that ranks channels
        self._channels: list[int] = []  # which of the network's each active one began as
        self._first: list[int] = []  # the same of the first round

    @abstractmethod
    def active(self, server_round: int) -> int:
        """Return how many of `self.bottleneck.channels` are active in a round."""

    def state(self) -> Arrays:
        """Which of the network's channels each active one began as."""
        return {"channels": np.array(self._channels, dtype=np.int64)}

    def load_state(self, state: Arrays) -> None:
        """Take them back."""
        self._channels = state["channels"].tolist()
        self._widen(len(self._channels))

    def begin(self) -> None:
        """Go back to the first round's channels."""
        self.whole_model()  # says if prepare() is missing
        if self._channels != self._first:
            self._channels = list(self._first)
            self._widen(len(self._channels))

    def prepare(self, model: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
        """Cut the network and return it with the first round's bottleneck beside it.

        Raises:
            ValueError: as `SplitStrategy`, or the activation has no channels, or no layer before
                the cut can rank them; names the key.
        """
        self._costs = {}
        network = super().prepare(model, input_shape)
        ((split, plain),) = self._halves.items()
        cut, ranks_by = self.cut[DEFAULT], self.prune.importance
        shape = self.costs()[split][0][0].output_shape
        if not 1 <= len(shape) <= 3:
            raise ValueError(
                f"split.cut={cut}: an activation of {shape} per sample has no channel "
                "axis; takes a cut of (C), (C, L) or (C, H, W)"
            )
        kinds = SCALES if ranks_by == "bn" else FILTERS
        self._scales = weight_before(plain.device[0], input_shape, kinds)
        if ranks_by == "bn" and self._scales is None:
            raise ValueError(
                f"prune.importance=bn: no normalisation of {shape[0]} channels comes before "
                f"split.cut={cut}; takes l1 or taylor there"
            )
        self._network, self._plain = network, plain
        self._channels = list(range(shape[0]))
        self.bottleneck = Bottleneck(
            channels=shape[0],
            active=shape[0],
            dims=len(shape) - 1,
            taylor=ranks_by == "taylor",
        )
        try:
            state = attach(network, self.bottleneck).state_dict()
        except ValueError as error:
            raise ValueError(f"model: {error}") from error
        state = self._resized(state, self.active(1))
        self._first = list(self._channels)
        whole = self._widen(self.active(1))
        self._names[split] = self._halves[split].device_names()
        load_arrays(whole, state)
        return whole

    def train_round(
        self,
        grid: Grid,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        timeout: float,
    ) -> tuple[ArrayRecord, list[Outcome]]:
        """Change the bottleneck's width where it is time, then train as the base does."""
        self.whole_model()  # says if prepare() is missing
        state, active = messages.to_tensors(arrays), self.active(server_round)
        if len(state[ENCODER_WEIGHT]) != active:
            arrays = messages.to_record(self._resized(state, active))
        if self.bottleneck.active != active:
            self._widen(active)
        return super().train_round(grid, server_round, arrays, config, timeout)

    def round_extra(self) -> dict[str, float]:
        """Active channels of the round."""
        return {"active_channels": self.bottleneck.active}

    def evaluate(self, arrays: Mapping[str, Tensor], test: Test) -> dict[str, float]:
        """Test the network with its bottleneck and its link."""
        if self.bottleneck.active != len(arrays[ENCODER_WEIGHT]):
            self._widen(len(arrays[ENCODER_WEIGHT]))
        return super().evaluate(arrays, test)

    def describe(self) -> dict[str, float]:
        """As `SplitStrategy`, of the last round's width, and that width."""
        sizes = self.bottleneck
        return {
            **super().describe(),
            "cut_channels": sizes.channels,
            "active_channels": sizes.active,
        }

    def costs_at(
        self,
        model: nn.Module,
        input_shape: tuple[int, ...],
        pieces: Pieces,
        name: str,
        tail: str,
    ) -> tuple[list[Cost], Cost]:
        """With the bottleneck as it is at the end."""
        (device,), server = super().costs_at(model, input_shape, pieces, name, tail)
        channels, *rest = device.output_shape
        active = self.prune.target(channels)
        bottleneck = Bottleneck(channels, active, len(rest))
        if self.prune.importance == "bn":
            part = halves(model, Split(name)).device[0]
            if weight_before(part, input_shape, SCALES) is None:
                raise ValueError(f"no normalisation of {channels} channels comes before it")
        encoder = cost(bottleneck.encoder(), device.output_shape, input_grad=True)
        sent = (active, *rest)
        decoder = cost(bottleneck.decoder(), sent, input_grad=True)
        return [joined([device, encoder])], joined([decoder, server])

    def network_cost(self) -> Cost:
        """Of both parts, encoder and decoder among them."""
        ((device, server),) = self.costs().values()
        return joined([*device, server])

    def client_config(self) -> dict[str, bool | int | float | str]:
        """As `SplitStrategy`, and the bottleneck."""
        return super().client_config() | messages.pack_settings(bottleneck=self.bottleneck)

    def _widen(self, active: int) -> nn.Module:
        """Have parts with ``active`` channels, costs of theirs, and a global model, returned."""
        assert self._plain is not None
        assert self._network is not None
        self.bottleneck = replace(self.bottleneck, active=active)
        for split in self._halves:
            self._halves[split] = bottlenecked(self._plain, self.bottleneck)
        self._costs = {}
        whole = attach(self._network, self.bottleneck)
        return FederatedStrategy.prepare(self, whole, self.input_shape)

    def _resized(self, state: Mapping[str, Tensor], active: int) -> dict[str, Tensor]:
        """Return ``state`` with ``active`` channels, and remember which."""
        encoder, decoder = state[ENCODER_WEIGHT], state[DECODER_WEIGHT]
        if active < len(encoder):
            keep = most_important(self._scores(state), active)
            encoder, decoder = shrink(encoder, decoder, keep)
            self._channels = [self._channels[place] for place in keep]
        else:
            absent = sorted(set(range(self.bottleneck.channels)) - set(self._channels))
            first = most_important(self._sizes(state)[absent], active - len(encoder))
            new = [absent[place] for place in first]
            places = range(len(encoder), active)
            encoder, decoder = grow(encoder, decoder, *unit(new, encoder), places)
            self._channels = self._channels + new
        changed = {ENCODER_WEIGHT: encoder, DECODER_WEIGHT: decoder}
        if self.bottleneck.taylor:
            changed[TAYLOR] = torch.zeros(active)  # of these channels nothing is known yet
        return {**state, **changed}

    def _scores(self, state: Mapping[str, Tensor]) -> Tensor:
        """(k,) worth of the active channels."""
        if self.bottleneck.taylor:
            return state[TAYLOR]
        return importance(state[ENCODER_WEIGHT], state[DECODER_WEIGHT], self._sizes(state))

    def _sizes(self, state: Mapping[str, Tensor]) -> Tensor:
        """(C,) size of the network's own channels; all alike where nothing tells them apart."""
        if self.bottleneck.taylor or self._scales is None:
            return torch.ones(self.bottleneck.channels)
        return state[self._scales].detach().reshape(self.bottleneck.channels, -1).abs().sum(1)


def bottlenecked(parts: Halves, bottleneck: Bottleneck) -> Halves:
    """Return copies of the parts with encoder and decoder at the cut."""
    first, server = parts.device[0], parts.server
    assert isinstance(first, Part)
    assert isinstance(server, Part)
    device, decoder = with_bottleneck(first, server, bottleneck)
    return Halves((device,), decoder)


# The client half; `split_learning.train` is the rest of it ----------------------------------------


def prepare(model: nn.Module, config: Mapping[str, Any]) -> Halves:
    """Clients train the parts of the network with the round's bottleneck between them."""
    bottleneck = unpack_settings(config, "bottleneck", Bottleneck)
    return bottlenecked(split_learning.prepare(model, config), bottleneck)
