"""What a client did in a round, in units that a device and a link turn into seconds and joules."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Work:
    """One client's work in one round.

    Attributes:
        bytes_up: payload bytes sent by the client, as packed.
        bytes_down: payload bytes received by the client, as packed.
        flops: floating or integer operations on the device by precision, such as
            ``{"fp32": 1e9, "int4": 5e8}``.
        peak_bytes: most memory the device holds at once.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    flops: Mapping[str, float] = field(default_factory=dict)
    peak_bytes: int = 0
