"""A device, a link and a server on which one operation, or one byte, takes one second."""

import math

from fleet.devices import Device, Link
from fleet.work import BatchWork, ClientWork, Compute, Exchange

DEVICE = Device("d", {"fp32": 1.0}, 1.0, 1000.0, power_w=2.0, idle_w=0.5)
SLOW = Device("slow", {"fp32": 0.5}, 0.5, 1000.0, power_w=2.0, idle_w=0.5)
SERVER = Device("s", {"fp32": 1.0}, math.inf, math.inf, power_w=1.0)
MBPS = 8e-6  # one byte a second
LINK = Link("l", down_mbps=MBPS, up_mbps=MBPS)


def flops(count: float) -> Compute:
    return Compute({"fp32": count})


def batches(
    count: int, forward: float, up: int, server: float, down: int, backward: float
) -> BatchWork:
    exchange = Exchange(flops(forward), up, flops(server), down)
    return BatchWork((exchange,), flops(backward), count)


# Two batches: forward 2 s, up 1 s, server 4 s, down 1 s, backward 3 s; client half 3 s each way.
SPLIT = ClientWork(3, Compute(), (batches(2, 2, 1, 4, 1, 3),), 3, peak_bytes=900)
# Two batches: forward 2 s, up 3 s, server 1 s, nothing down; exit and backward 5 s.
HIERARCHICAL = ClientWork(3, Compute(), (batches(2, 2, 3, 1, 0, 5),), 3)
# One batch: 2 s, up 1 s, 4 s, down 2 s; 1 s, up 2 s, 5 s, down 1 s; 3 s.
U_SHAPED = ClientWork(
    3,
    Compute(),
    (
        BatchWork(
            (Exchange(flops(2), 1, flops(4), 2), Exchange(flops(1), 2, flops(5), 1)), flops(3)
        ),
    ),
    3,
)
FEDERATED = ClientWork(3, flops(10), (), 4)
