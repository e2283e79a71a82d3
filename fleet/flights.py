"""Clients that begin and end when they like: who arrives in which server step, and when.

After FedBuff (Nguyen et al. 2022, arXiv 2106.06639). ``concurrency`` clients are at work at any
moment. A step begins with a new global model; from then on whoever begins has that one. The step
ends with the arrival that fills the buffer. Where a client ends, another begins at once, so far as
there is one that is there, fits, and has not been asked in this step yet.

What a client's work takes follows from shapes, so every arrival is known before anybody trains. How
the server serves those at work, and so when they end, is reckoned anew whenever somebody begins or
ends: `fleet.service`.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from fleet.phases import Phases
from fleet.plan import Fleet, Member, RoundPlan, left_after


@dataclass(frozen=True)
class Flight:
    """A client at work; times are in simulated seconds from the beginning of a server step.

    Attributes:
        partition: the client.
        began: the server step whose model it has, from 1.
        begins_in_s: when it began; negative where that was in an earlier step.
        ends_in_s: when it will end, or leave.
        needs_s: what its whole work takes as things are, waiting included.
        sharers: how many share the server's capacity; 0 until its end is first reckoned.
        share: of the time that its work takes after which it leaves; 1 where it does not.
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


class Service(Protocol):
    """How the server serves those at work: the classes of `fleet.service`."""

    def longest_s(self, own: Phases, at_work: int) -> float:
        """What a client's work takes by the measure of the deadline, where so many are at work."""

    def reckoned(
        self, flights: Sequence[Flight], now_s: float, phases_of: Callable[[Flight], Phases]
    ) -> list[Flight]:
        """The same flights with when they end if nobody else begins, or leaves before its end."""

    def first(self, flights: Sequence[Flight]) -> "tuple[Flight, Service]":
        """Who of those just reckoned ends first, and how the server goes on after that."""

    def done(self, flight: Flight, own: Phases) -> float:
        """The share of its work that a client has done that leaves."""


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
        service: how the server serves those at work, as the step begins.
        phases: of the clients that begin in a step, by its number.
        number: of this step, from 1.
        now_s: when it begins, in simulated seconds since the experiment began.
        concurrency: how many are at work at any moment.
        buffer: how many arrivals end the step.
        is_stale: whether the update of a client that began in a step is of no use any more.
    """

    fleet: Fleet
    service: Service
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
        now, service = 0.0, self.service
        paced = functools.cache(self._paced)

        def phases_of(flight: Flight) -> Phases:
            return paced(flight.partition, flight.began)

        while len(arrived) < self.buffer:
            working += self._begun(self.concurrency - len(working), idle, now, members)
            if not working:
                break
            working = service.reckoned(working, now, phases_of)
            first, service = service.first(working)
            working.remove(first)
            now = first.ends_in_s
            members.append(member := self._ended(first, phases_of(first)))
            if member.status == "ok":
                arrived.append(first)
        if not (working or arrived or now):  # nobody was there
            now = self.fleet.deadline_s if math.isfinite(self.fleet.deadline_s) else 0.0
        left = tuple(flight.since(now) for flight in working)
        return StepPlan(tuple(members), now, tuple(arrived), left)

    def _begun(
        self, count: int, idle: Iterator[int], now: float, members: list[Member]
    ) -> list[Flight]:
        """Up to ``count`` clients that begin now; who is asked and cannot joins the members."""
        found: list[Flight] = []
        while len(found) < count and (partition := next(idle, None)) is not None:
            when, parts = self.now_s + now, self.phases(self.number)
            member = self.fleet.refused(partition, parts, self.number, when)
            if member is None:
                own = self._paced(partition, self.number)
                if self.service.longest_s(own, self.concurrency) <= self.fleet.deadline_s:
                    share = self.fleet.stays(partition, self.number)
                    found.append(Flight(partition, self.number, now, now, 0.0, 0, share))
                    continue
                member = self.fleet.late(partition)
            members.append(member)
        return found

    def _ended(self, flight: Flight, own: Phases) -> Member:
        """What becomes of a client that ends."""
        has_left = flight.share < 1
        share = self.service.done(flight, own) if has_left else 1.0
        seconds = flight.ends_in_s - flight.begins_in_s
        member = Member(
            flight.partition,
            self.fleet.clients[flight.partition].device.name,
            "ok",
            sim_s=seconds,
            energy_j=own.joules(seconds / share) * share if share else own.idle_w * seconds,
            begin_s=self.now_s + flight.begins_in_s,
            end_s=self.now_s + flight.ends_in_s,
            began=flight.began,
            share=share,
        )
        if has_left:
            return replace(member, status="left", reason=left_after(share))
        if self.is_stale(flight.began):
            behind = self.number - flight.began
            steps = "1 step" if behind == 1 else f"{behind} steps"
            return replace(member, status="stale", reason=f"began {steps} before")
        return member

    def _paced(self, partition: int, began: int) -> Phases:
        return self.fleet.paced(self.phases(began)[partition], began, partition)
