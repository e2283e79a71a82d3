"""How the server serves clients that begin and end when they like, and so when each of them ends.

shared   each has a server part of its own, and all share its capacity: with n at work a client
         goes on at the rate of one n-th of its `clock.Pace`, and what is left of its work is
         stretched or shortened whenever n changes:

             end ← t + (end − t) · pace(n) / pace(n before)

queue    one shared part, which takes one client after another, in the order in which their
         first batches come. A client holds it from then until its own part is back:

             ready = begin + lead;  start = max(free, ready);  end = free' = start + held + tail

         So clients arrive in the order in which they are served: one that fails, leaves or comes
         too late to be of use is undone before the next is served.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fleet.clock import Pace
from fleet.flights import Flight, Service
from fleet.phases import Phases


@dataclass(frozen=True)
class Shared:
    """A `Service` of clients with server parts of their own.

    Attributes:
        pace: seconds of a client's work while n share the server.
    """

    pace: Pace

    def longest_s(self, own: Phases, at_work: int) -> float:
        """With all the others at work."""
        return self.pace(own, at_work)

    def reckoned(
        self, flights: Sequence[Flight], now_s: float, phases_of: Callable[[Flight], Phases]
    ) -> list[Flight]:
        """In their order, stretched or shortened where more or fewer are at work than before."""
        n = len(flights)
        return [
            flight if flight.sharers == n else self._shared(flight, n, now_s, phases_of(flight))
            for flight in flights
        ]

    def first(self, flights: Sequence[Flight]) -> tuple[Flight, Service]:
        """The smallest partition of those that end next."""
        return min(flights, key=lambda flight: (flight.ends_in_s, flight.partition)), self

    def done(self, flight: Flight, own: Phases) -> float:
        """As much as of its time: nobody waits."""
        return flight.share

    def _shared(self, flight: Flight, sharers: int, now_s: float, own: Phases) -> Flight:
        """The same client while ``sharers`` are at work from now on."""
        needs, ends = self.pace(own, sharers), flight.ends_in_s
        if not flight.sharers:
            ends = now_s + flight.share * needs
        elif needs != flight.needs_s:
            ends = now_s + (ends - now_s) / flight.needs_s * needs
        return _until(flight, ends, needs, sharers)


@dataclass(frozen=True)
class Queue:
    """A `Service` of one server part for all.

    A client that leaves does so after its share of the time from its begin to the end that it has
    by the queue as it stands. Before its turn it leaves a gap in the queue; in its turn it leaves
    the server free.

    Attributes:
        free_s: when the server is free of all that it has served, from the beginning of the step.
            A step ends with somebody just served, so that it is free as the next begins.
    """

    free_s: float = 0.0

    def longest_s(self, own: Phases, at_work: int) -> float:
        """Alone: how long the queue is, is not its doing."""
        return own.lead_s + own.held_s + own.tail_s

    def reckoned(
        self, flights: Sequence[Flight], now_s: float, phases_of: Callable[[Flight], Phases]
    ) -> list[Flight]:
        """In the order in which they are served; those that come at once by partition id."""
        came = [
            (flight.begins_in_s + own.lead_s, flight.partition, flight, own)
            for flight, own in zip(flights, map(phases_of, flights), strict=True)
        ]
        free, line = self.free_s, list[Flight]()
        for ready, _, flight, own in sorted(came, key=lambda one: one[:2]):
            free = max(free, ready) + own.held_s + own.tail_s
            needs, ends = free - flight.begins_in_s, free
            if flight.share < 1:
                leaves = flight.begins_in_s + flight.share * needs
                ends = min(free, max(now_s, leaves))  # maybe the queue has just become shorter
            line.append(_until(flight, ends, needs, 1))
        return line

    def first(self, flights: Sequence[Flight]) -> tuple[Flight, Service]:
        """Who ends next; then the server is free, if it was that one's turn."""
        ended = min(flights, key=lambda flight: flight.ends_in_s)
        # Where the first in the queue leaves before it is ready, nobody else is ready by then.
        return ended, Queue(ended.ends_in_s) if ended is flights[0] else self

    def done(self, flight: Flight, own: Phases) -> float:
        """All but the time in which it waited for its turn."""
        served_s = own.held_s + own.tail_s
        whole_s, passed_s = own.lead_s + served_s, flight.ends_in_s - flight.begins_in_s
        waits_until_s = flight.needs_s - served_s
        if not whole_s:
            return 1.0
        if passed_s < waits_until_s:
            return min(passed_s, own.lead_s) / whole_s
        return min(1.0, (own.lead_s + passed_s - waits_until_s) / whole_s)


def _until(flight: Flight, ends_in_s: float, needs_s: float, sharers: int) -> Flight:
    return Flight(  # dataclasses.replace takes three times as long
        flight.partition,
        flight.began,
        flight.begins_in_s,
        ends_in_s,
        needs_s,
        sharers,
        flight.share,
    )
