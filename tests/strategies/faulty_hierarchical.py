"""Hierarchical training whose clients fail on demand, as `faulty_split` says."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from strategies import hierarchical
from strategies.client.tiers import Tiers
from strategies.client.training import ClientData, Streams, Update
from strategies.hierarchical import Hierarchical
from tests.strategies.faulty_split import Skipping, faults

prepare = hierarchical.prepare


class Faulty(Skipping, Hierarchical):
    """Server half."""


def train(
    model: Tiers,
    arrays: Mapping[str, Tensor],
    data: ClientData,
    config: Mapping[str, Any],
    streams: Streams,
) -> Update:
    update = hierarchical.train(model, arrays, data, config, streams)
    if faults().get(str(streams.partition)) == "late":
        raise ArithmeticError("this phone breaks at the end")
    return update
