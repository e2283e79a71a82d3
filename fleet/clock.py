"""When each client of a round is done: one rule per way of taking turns, as sums and maxima.

A rule takes the clients' phases in the order in which they train, and returns for each when it
begins and ends, in seconds from the round's start; None for one that cannot end by the deadline.

    parallel     all at once; the server's capacity divided by all of them. Without batches over a
                 cut this is federated averaging, with them SplitFed V1 (U-shaped too)
    queued       all at once, but one shared server half takes them one after another: SplitFed V2
    sequential   one after another, the client half relayed by the server: split learning
    overlapped   all at once; within a batch the device goes on while the server works: hierarchical
    pipelined    overlapped, and the device does not wait for the server between batches either

In queued and sequential somebody late does not hold up those after it: the server knows from shapes
that it would be late, and does not serve it. In the others everybody begins, and whoever is late
holds its share of the server until the deadline. These are made of a pace: how long a client takes
while n are at it. Asynchronous training goes by paces, too, or by a queue (`fleet.service`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fleet.phases import Phases


@dataclass(frozen=True)
class Turn:
    """When a client begins and ends, in seconds from the round's start."""

    begin_s: float
    end_s: float


Rule = Callable[[Sequence[Phases], float], list[Turn | None]]
# Seconds from a client's begin to its end while n of them share the server's capacity.
Pace = Callable[[Phases, int], float]


@dataclass(frozen=True)
class AtOnce:
    """The rule of clients that all begin at once, each at its own pace."""

    pace: Pace

    def __call__(
        self, clients: Sequence[Phases], deadline_s: float = math.inf
    ) -> list[Turn | None]:
        """Turns of the clients."""
        ends = [self.pace(client, len(clients)) for client in clients]
        return [Turn(0.0, end) if end <= deadline_s else None for end in ends]


def _parallel(client: Phases, n: int) -> float:
    """Compute + transfers + n · server."""
    return client.compute_s + client.transfer_s + n * client.server_s


def queued(clients: Sequence[Phases], deadline_s: float = math.inf) -> list[Turn | None]:
    """The server takes all batches of a client before it takes the next client.

    leave = max(leave of the one before, lead) + held;  end = leave + tail. The server is held from
    the first batch's beginning until it has answered the last.
    """
    turns: list[Turn | None] = []
    leave = 0.0
    for client in clients:
        free = max(leave, client.lead_s) + client.held_s
        end = free + client.tail_s
        in_time = end <= deadline_s
        turns.append(Turn(0.0, end) if in_time else None)
        leave = free if in_time else leave
    return turns


def sequential(clients: Sequence[Phases], deadline_s: float = math.inf) -> list[Turn | None]:
    """Begin = end of the one before; the client half's way up and down again is the relay."""
    turns: list[Turn | None] = []
    now = 0.0
    for client in clients:
        end = now + client.compute_s + client.transfer_s + client.server_s
        in_time = end <= deadline_s
        turns.append(Turn(now, end) if in_time else None)
        now = end if in_time else now
    return turns


def _overlapped(client: Phases, n: int) -> float:
    """Each batch = forward + max(exit and backward, upload + n · server); then the next."""
    batches = sum(
        run.count * (run.first_s + max(run.last_s, run.first_up_s + n * run.server_s))
        for run in client.runs
    )
    return client.down_s + client.local_s + batches + client.up_s


def _pipelined(client: Phases, n: int) -> float:
    """Device, uplink and server each work batch after batch, as soon as the one before is done.

    Three stations in a row: batch k leaves each at max(batch k−1 left, k came) + its time.

    For a run of batches alike, the largest of these sums is reached where the queue starts at the
    first batch or at the last, so that a run of any length takes one step.
    """
    device = link = server = client.down_s + client.local_s
    for run in client.runs:
        count, up, serve = run.count, run.first_up_s, n * run.server_s
        each = run.first_s + run.last_s
        first = device + run.first_s  # when the first and the last batch leave the device's forward
        last = device + (count - 1) * each + run.first_s
        first_up = max(link, first) + up
        last_up = max(link + count * up, first + count * up, last + up)
        server = max(server + count * serve, first_up + count * serve, last_up + serve)
        device, link = device + count * each, last_up
    return max(max(device, link) + client.up_s, server)


parallel = AtOnce(_parallel)
overlapped = AtOnce(_overlapped)
pipelined = AtOnce(_pipelined)
