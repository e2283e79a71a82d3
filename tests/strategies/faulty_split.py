"""Split methods whose clients fail on demand: the file that FAULTS names says which, and how.

raise   at once
late    after having trained
skip    takes no part: it is given no data
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from torch import Tensor

from strategies.client.split_loop import Halves, SplitClient
from strategies.contract import ClientData, ServerHalf, Task, Update
from strategies.server.method import Method
from strategies.split import Split
from strategies.splitfed_v2 import SplitFedV2
from strategies.splitfed_v3 import SplitFedV3
from tests.app.faulty import LeavingOut


def faults() -> dict[str, str]:
    return dict(line.split() for line in Path(os.environ["FAULTS"]).read_text().splitlines())


def skipping(method: Method) -> Method:
    """The method with a schedule that leaves out who is to be skipped."""
    schedule = LeavingOut(method.schedule, lambda p, _: faults().get(str(p)) == "skip")
    return replace(method, schedule=schedule)


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


class FaultySplit(Split):
    """Sequential split learning with faulty clients."""

    client = FaultyClient()

    @wraps(Split.__init__)
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.method = skipping(self.method)


class FaultyV2(SplitFedV2):
    """SplitFed V2 with faulty clients."""

    client = FaultyClient()

    @wraps(SplitFedV2.__init__)
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.method = skipping(self.method)


class FaultyV3(SplitFedV3):
    """SplitFed V3 with faulty clients."""

    client = FaultyClient()

    @wraps(SplitFedV3.__init__)
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.method = skipping(self.method)
