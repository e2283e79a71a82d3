"""Split methods whose clients fail on demand: the file that FAULTS names says which, and how.

raise   at once
late    after having trained
skip    takes no part: it is given no data
"""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from strategies.client.split_loop import Halves, SplitClient
from strategies.contract import ClientData, ServerHalf, Task, Update
from strategies.split import Split
from strategies.splitfed_v2 import SplitFedV2
from strategies.splitfed_v3 import SplitFedV3


def faults() -> dict[str, str]:
    return dict(line.split() for line in Path(os.environ["FAULTS"]).read_text().splitlines())


class Skipping:
    """Leaves out who is to be skipped, after the draw of the order."""

    def order(self, chosen: list[int], server_round: int) -> list[int]:
        found: list[int] = super().order(chosen, server_round)  # type: ignore[misc]
        return [p for p in found if faults().get(str(p)) != "skip"]


class FaultyClient(SplitClient):
    def train(
        self,
        model: Halves,
        arrays: Mapping[str, Tensor],
        data: ClientData,
        task: Task,
        server: ServerHalf | None,
    ) -> Update:
        fault = faults().get(str(task.streams.partition))
        if fault == "raise":
            raise ArithmeticError("this phone is broken")
        update = super().train(model, arrays, data, task, server)
        if fault == "late":
            raise ArithmeticError("this phone breaks at the end")
        return update


class FaultySplit(Skipping, Split):
    """Server half: sequential split learning's."""

    client = FaultyClient()


class FaultyV2(Skipping, SplitFedV2):
    """Server half: SplitFed V2's."""

    client = FaultyClient()


class FaultyV3(SplitFedV3):
    """Server half: SplitFed V3's."""

    client = FaultyClient()

    def choose(self, server_round: int) -> list[int]:
        return [p for p in super().choose(server_round) if faults().get(str(p)) != "skip"]
