"""The state of the best round, kept beside the state of the last one.

It lies in the state's ``extra``, so a checkpoint holds it and a run that is continued has it. What
parts keep is kept with it: a method with private halves cannot be tested without them.
"""

from dataclasses import replace

from strategies.server.method import ServerState
from tracking.summary import best_round

PREFIX = "best/"
_ARRAYS, _EXTRA = "arrays/", "extra/"


def keeping_best(state: ServerState) -> ServerState:
    """Return the state after a round, with itself as the best where its accuracy is the highest."""
    if best_round(state.accuracies) != state.round:
        return state
    kept = {_ARRAYS + name: array for name, array in state.arrays.items()}
    for name, array in state.extra.items():
        if not name.startswith(PREFIX):
            kept[_EXTRA + name] = array
    return state.keeping(PREFIX, kept)


def best_of(state: ServerState) -> ServerState:
    """Return the state after the best round; the state itself where no round's accuracy is known.

    Args:
        state: of a run whose every round went through `keeping_best`.
    """
    number, kept = best_round(state.accuracies), state.kept(PREFIX)
    if number is None:
        return state
    parts = [
        {name.removeprefix(part): array for name, array in kept.items() if name.startswith(part)}
        for part in (_ARRAYS, _EXTRA)
    ]
    return replace(
        state, round=number, arrays=parts[0], extra=parts[1], records=state.records[:number]
    )
