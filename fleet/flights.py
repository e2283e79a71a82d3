"""Clients that begin and end when they like: who arrives in which server step, and when.

After FedBuff (Nguyen et al. 2022, arXiv 2106.06639). ``concurrency`` clients are at work at any
moment. A step begins with a new global model; from then on whoever begins has that one. The step
ends with the arrival that fills the buffer. Where a client ends, another begins at once, so far as
there is one that is there, fits, and has not been asked in this step yet.

What a client's work takes follows from shapes, so every arrival is known before anybody trains. The
server's capacity is shared by those who are at it: with n at work a client goes on at the rate of
one n-th of its `clock.Pace`, and what is left of its work is stretched or shortened whenever n
changes:

    end ← t + (end − t) · pace(n) / pace(n before)
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fleet.clock import Pace
from fleet.phases import Phases
from fleet.plan import Fleet, Member, RoundPlan, left_after


@dataclass(frozen=True)
class Flight:
    """A client at work; times are in simulated seconds from the beginning of a server step.

    Attributes:
        partition: the client.
        began: the server step whose model it has, from 1.
        begins_in_s: when it began; negative where that was in an earlier step.
        ends_in_s: when it will end.
        needs_s: what its whole work takes while ``sharers`` are at work.
        sharers: how many share the server's capacity.
        share: of its work that it does; below 1 it leaves before the end.
    """

    partition: int
    began: int
    begins_in_s: float
    ends_in_s: float
    needs_s: float
    sharers: int
    share: float = 1.0

    def since(self, seconds: float) -> "Flight":
        """The same, seen from ``seconds`` later."""
        return Flight(  # dataclasses.replace takes three times as long
            self.partition,
            self.began,
            self.begins_in_s - seconds,
            self.ends_in_s - seconds,
            self.needs_s,
            self.sharers,
            self.share,
        )


@dataclass(frozen=True)
class StepPlan(RoundPlan):
    """A server step before it happens; `members` are in the order of what happened to them.

    Attributes:
        arrived: whose updates the server takes, in the order of arrival.
        flights: who is at work when the step ends.
    """

    arrived: tuple[Flight, ...] = ()
    flights: tuple[Flight, ...] = ()


@dataclass(frozen=True, eq=False)
class Step:
    """One server step.

    Attributes:
        fleet: devices, links, availability, and the longest that a client's work may take.
        pace: seconds of a client's work while n share the server.
        phases: of the clients that begin in a step, by its number.
        number: of this step, from 1.
        now_s: when it begins, in simulated seconds since the experiment began.
        concurrency: how many are at work at any moment.
        buffer: how many arrivals end the step.
        is_stale: whether the update of a client that began in a step is of no use any more.
    """

    fleet: Fleet
    pace: Pace
    phases: Callable[[int], Mapping[int, Phases]]
    number: int
    now_s: float
    concurrency: int
    buffer: int
    is_stale: Callable[[int], bool] = lambda began: False

    def plan(self, flights: Sequence[Flight], idle: Iterator[int]) -> StepPlan:
        """Decide the step.

        Args:
            flights: who is at work as it begins.
            idle: the other clients, each once, in the order in which they are asked.
        """
        working, members, arrived = list(flights), list[Member](), list[Flight]()
        now = 0.0
        while len(arrived) < self.buffer:
            begun = self._begun(self.concurrency - len(working), idle, now, members)
            sharers = len(working) + len(begun)
            if working and working[0].sharers != sharers:  # as many for all of them
                working = [self._shared(flight, sharers, now) for flight in working]
            working += [self._flight(partition, own, sharers, now) for partition, own in begun]
            if not working:
                break
            first = min(working, key=_end)
            working.remove(first)
            now = first.ends_in_s
            members.append(member := self._ended(first))
            if member.status == "ok":
                arrived.append(first)
        if not (working or arrived or now):  # nobody was there
            now = self.fleet.deadline_s if math.isfinite(self.fleet.deadline_s) else 0.0
        left = tuple(flight.since(now) for flight in working)
        return StepPlan(tuple(members), now, tuple(arrived), left)

    def _begun(
        self, count: int, idle: Iterator[int], now: float, members: list[Member]
    ) -> list[tuple[int, Phases]]:
        """Up to ``count`` clients that begin now; who is asked and cannot joins the members."""
        found: list[tuple[int, Phases]] = []
        while len(found) < count and (partition := next(idle, None)) is not None:
            when, parts = self.now_s + now, self.phases(self.number)
            member = self.fleet.refused(partition, parts, self.number, when)
            if member is None:
                own = self._paced(partition, self.number)
                if self.pace(own, self.concurrency) <= self.fleet.deadline_s:
                    found.append((partition, own))
                    continue
                member = self.fleet.late(partition)
            members.append(member)
        return found

    def _flight(self, partition: int, own: Phases, sharers: int, now: float) -> Flight:
        """A client that begins now."""
        needs = self.pace(own, sharers)
        share = self.fleet.stays(partition, self.number)
        return Flight(partition, self.number, now, now + share * needs, needs, sharers, share)

    def _shared(self, flight: Flight, sharers: int, now: float) -> Flight:
        """The same client while ``sharers`` are at work from now on."""
        needs = self.pace(self._paced(flight.partition, flight.began), sharers)
        ends = flight.ends_in_s
        if needs != flight.needs_s:
            ends = now + (ends - now) / flight.needs_s * needs
        return replace(flight, ends_in_s=ends, needs_s=needs, sharers=sharers)

    def _ended(self, flight: Flight) -> Member:
        """What becomes of a client that ends."""
        own, share = self._paced(flight.partition, flight.began), flight.share
        seconds = flight.ends_in_s - flight.begins_in_s
        member = Member(
            flight.partition,
            self.fleet.clients[flight.partition].device.name,
            "ok",
            sim_s=seconds,
            energy_j=own.joules(seconds / share) * share,
            begin_s=self.now_s + flight.begins_in_s,
            end_s=self.now_s + flight.ends_in_s,
            began=flight.began,
            share=share,
        )
        if share < 1:
            return replace(member, status="left", reason=left_after(share))
        if self.is_stale(flight.began):
            behind = self.number - flight.began
            steps = "1 step" if behind == 1 else f"{behind} steps"
            return replace(member, status="stale", reason=f"began {steps} before")
        return member

    def _paced(self, partition: int, began: int) -> Phases:
        return self.fleet.paced(self.phases(began)[partition], began, partition)


def _end(flight: Flight) -> tuple[float, int]:
    return flight.ends_in_s, flight.partition
