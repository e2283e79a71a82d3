"""Hierarchical training whose clients fail on demand, as `faulty_split` says."""

from collections.abc import Mapping
from functools import wraps
from typing import Any

from torch import Tensor

from strategies.client.tiers import Tiers, TiersClient
from strategies.contract import ClientData, ServerHalf, Task, Update
from strategies.hierarchical import Hierarchical
from tests.strategies.faulty_split import faults, skipping


class FaultyClient(TiersClient):
    def train(
        self,
        model: Tiers,
        arrays: Mapping[str, Tensor],
        data: ClientData,
        task: Task,
        server: ServerHalf | None,
    ) -> Update:
        update = super().train(model, arrays, data, task, server)
        if faults().get(str(task.streams.partition)) == "late":
            raise ArithmeticError("this phone breaks at the end")
        return update


class Faulty(Hierarchical):
    """Hierarchical training with faulty clients."""

    client = FaultyClient()

    @wraps(Hierarchical.__init__)
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.method = skipping(self.method)
