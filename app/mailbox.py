"""What jobs in processes of their own say while they run, on its way to the driver.

A Ray actor holds it: jobs post into it, and the driver takes what is there. The driver's word to
all jobs that they are to stop goes the other way. This file imports nothing heavy: the actor's
process has nothing else to load.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from tracking.record import RoundRecord


@dataclass(frozen=True)
class Begun:
    """A job's rounds begin.

    Attributes:
        number: of the job, from 1.
        num_rounds: of the whole run.
        done: records of the rounds before this start.
    """

    number: int
    num_rounds: int
    done: Sequence[RoundRecord]


@dataclass(frozen=True)
class RoundDone:
    """A round of a job has ended."""

    number: int
    record: RoundRecord


@dataclass(frozen=True)
class Said:
    """A job has something for the terminal, such as a warning."""

    number: int
    text: str


Event = Begun | RoundDone | Said


class Mailbox:
    """Keeps what jobs post, in the order of each, until the driver takes it."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()

    async def post(self, event: Event) -> None:
        """Put something in."""
        self._events.append(event)
        self._wake.set()

    async def take(self) -> list[Event]:
        """Take everything, once there is something or somebody calls `flush`."""
        await self._wake.wait()
        self._wake.clear()
        found, self._events = self._events, []
        return found

    async def flush(self) -> None:
        """Have the next `take`, or the one that waits, return with what there is."""
        self._wake.set()

    async def stop(self) -> None:
        """Tell all jobs to stop."""
        self._stop.set()

    async def stopped(self) -> None:
        """Wait until jobs are to stop."""
        await self._stop.wait()
