"""One way to derive every random stream of an experiment.

A stream is named by (seed, purpose, round, partition) and by nothing else. The purpose never
contains a strategy's name, so two methods with the same seed see the same clients, the same
batches and the same initial weights, and can be compared seed by seed. Streams are derived, never
advanced across rounds, so a resumed run needs no generator state.
"""

import hashlib


def derive_seed(seed: int, purpose: str, server_round: int = 0, partition: int = 0) -> int:
    """Return a 63-bit seed for one stream.

    Args:
        seed: the experiment's seed.
        purpose: what the stream is for, such as ``"sampling"`` or ``"batches"``.
        server_round: the round, 0 for what happens once per run.
        partition: the client's partition id, 0 for what the server does.
    """
    text = f"{seed}/{purpose}/{server_round}/{partition}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def draw_uniform(seed: int, purpose: str, server_round: int = 0, partition: int = 0) -> float:
    """Return the one number in (0, 1) of a stream, arguments as in `derive_seed`.

    Much cheaper than a generator where a stream is needed for one number only.
    """
    return ((derive_seed(seed, purpose, server_round, partition) >> 10) + 0.5) / 2**53
