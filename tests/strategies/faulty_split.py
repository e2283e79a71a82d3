"""Split methods whose clients fail on demand: the file that FAULTS names says which, and how.

raise   at once
late    after having trained
skip    takes no part: it is given no data
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from strategies.client import split_loop as split_learning
from strategies.client.split_loop import Halves
from strategies.client.training import ClientData, Streams, Update
from strategies.split import Split
from strategies.splitfed_v2 import SplitFedV2
from strategies.splitfed_v3 import SplitFedV3

prepare = split_learning.prepare


def faults() -> dict[str, str]:
    return dict(line.split() for line in Path(os.environ["FAULTS"]).read_text().splitlines())


class Skipping:
    """Leaves out who is to be skipped, after the draw of the order."""

    def order(self, chosen: list[int], server_round: int) -> list[int]:
        found: list[int] = super().order(chosen, server_round)  # type: ignore[misc]
        return [p for p in found if faults().get(str(p)) != "skip"]


class FaultySplit(Skipping, Split):
    """Server half: sequential split learning's."""


class FaultyV2(Skipping, SplitFedV2):
    """Server half: SplitFed V2's."""


class FaultyV3(SplitFedV3):
    """Server half: SplitFed V3's."""

    def choose(self, server_round: int) -> list[int]:
        return [p for p in super().choose(server_round) if faults().get(str(p)) != "skip"]


def train(
    model: Halves,
    arrays: Mapping[str, Tensor],
    data: ClientData,
    config: Mapping[str, Any],
    streams: Streams,
) -> Update:
    fault = faults().get(str(streams.partition))
    if fault == "raise":
        raise ArithmeticError("this phone is broken")
    update = split_learning.train(model, arrays, data, config, streams)
    if fault == "late":
        raise ArithmeticError("this phone breaks at the end")
    return update
