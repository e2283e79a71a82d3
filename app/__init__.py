"""Everything that depends on Flower's runtime, Hydra or Ray."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def ours_first() -> None:
    """Put the current folder last on Python's path, with our packages before it.

    The user's own networks are found there, and a folder models/ of theirs does not take the place
    of ours: `python -m app.cuts` would otherwise look into the current folder first of all.
    """
    here = str(Path.cwd())
    if here == str(ROOT):
        return
    path = [entry for entry in sys.path if entry not in ("", here)]
    if str(ROOT) not in path:
        path.append(str(ROOT))
    sys.path[:] = [*path, here]


ours_first()
