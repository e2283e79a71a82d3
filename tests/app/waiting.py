"""A method whose clients say that they are there, and wait until they are let go.

For tests that look at a run from outside while it works; HOLD names the folder of both marks.
"""

import os
import time
from pathlib import Path
from typing import Any

from strategies.contract import Update
from strategies.fedavg import FedAvg, FedAvgClient

LONGEST_S = 250.0


class WaitingClient(FedAvgClient):
    """FedAvg's, later."""

    def train(self, *args: Any, **named: Any) -> Update:
        marks, began = Path(os.environ["HOLD"]), time.monotonic()
        (marks / "there").touch()
        while not (marks / "go").exists() and time.monotonic() - began < LONGEST_S:
            time.sleep(0.1)
        return super().train(*args, **named)


class Waiting(FedAvg):
    """Server half: FedAvg's."""

    client = WaitingClient()
