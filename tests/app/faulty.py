"""A method whose clients fail on demand, for the tests of what happens then.

`strategy._target_=tests.app.faulty.Faulty`; which clients fail is given in environment variables,
because the strategy's own settings are checked.
"""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from strategies.contract import ClientData, ServerHalf, Task, Update
from strategies.fedavg import FedAvg, FedAvgClient


class FaultyClient(FedAvgClient):
    """FedAvg's, unless the file that FAULTS names says otherwise."""

    def train(
        self,
        model: nn.Module,
        arrays: Mapping[str, Tensor],
        data: ClientData,
        task: Task,
        server: ServerHalf | None,
    ) -> Update:
        faults = dict(line.split() for line in Path(os.environ["FAULTS"]).read_text().splitlines())
        fault = faults.get(str(task.streams.partition))
        if fault == "raise":
            raise ArithmeticError("this phone is broken")
        if fault == "exit":
            sys.exit("this phone is leaving")
        if fault == "die":
            os._exit(1)
        if fault == "die-once":
            marker = Path(os.environ["FAULTS"]).with_suffix(f".{task.streams.partition}")
            if not marker.exists():
                marker.touch()
                os._exit(1)
        if fault == "hang":
            time.sleep(600)
        return super().train(model, arrays, data, task, server)


class Faulty(FedAvg):
    """Server half: FedAvg's."""

    client = FaultyClient()
