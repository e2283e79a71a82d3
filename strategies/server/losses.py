"""The clients' losses when they last took part, for selections that go by them.

They are in the server's state, and so in checkpoints.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from strategies.server.method import Result, ServerState

PREFIX = "losses/"
TABLE = "table"  # (m, 3) float64: client, mean training loss, round


def known_losses(state: ServerState) -> tuple[Mapping[int, float], Mapping[int, int]]:
    """Loss, and the round that it is of, by client."""
    table = state.extra.get(PREFIX + TABLE)
    rows = [] if table is None else table.tolist()
    return {int(p): loss for p, loss, _ in rows}, {int(p): int(number) for p, _, number in rows}


def with_losses(state: ServerState, results: Sequence[Result]) -> ServerState:
    """Return the state after the clients of a round came back."""
    losses, rounds = (dict(one) for one in known_losses(state))
    for result in results:
        if result.update is not None:
            losses[result.partition] = result.update.loss
            rounds[result.partition] = state.round + 1
    rows = [(p, losses[p], rounds[p]) for p in sorted(losses)]
    return state.keeping(PREFIX, {TABLE: np.array(rows, np.float64).reshape(-1, 3)})
