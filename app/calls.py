"""What of a round's clients is still to be run, and what became of the others."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, Metadata, RecordDict

from app.time_limit import GRACE_S
from strategies import messages

CLIENTS_PER_CALL = 10  # measured.md: beyond this nothing is gained
BYTES_PER_CALL = 64 << 20  # of what is sent; as much comes back at once
CALLS_IN_FLIGHT = 2  # per worker, so that it never waits for the driver
MAX_DEATHS = 2  # of its worker, before a client is given up
START_S = 600.0  # that a worker may take to start and to load data, before its first client


@dataclass
class Call:
    """Clients that go to a worker together; ``deaths`` counts workers that died over them."""

    indices: list[int]
    deaths: int = 0


@dataclass
class Round:
    """The state of one `send_and_receive`.

    Attributes:
        sent: its messages; clients are known by their place in it.
        contents: each distinct content, by a key.
        keys: of the content of each message.
        queue: what no worker has yet.
        num_nodes: clients in the run.
        run_config: what the ClientApp finds in its context.
        limit_s: seconds that a client may train; None for no limit.
        deadline: when to give up whoever is at work, of `time.monotonic`.
        references: where Ray holds each content, once it does.
        replies: those that are to be handed out.
        flying: what workers have: which one, and its clients.
        heard: when each worker was last idle or answered.
    """

    sent: Sequence[Message]
    contents: dict[str, RecordDict]
    keys: list[str]
    queue: deque[Call]
    num_nodes: int = 0
    run_config: Mapping[str, Any] = field(default_factory=dict)
    limit_s: float | None = None
    deadline: float = math.inf
    references: dict[str, Any] = field(default_factory=dict)
    replies: deque[Message] = field(default_factory=deque)
    flying: dict[Any, tuple[int, Call]] = field(default_factory=dict)
    heard: dict[int, float] = field(default_factory=dict)

    def jobs(self, call: Call) -> list[tuple[str, Metadata]]:
        """Key of the content and metadata of each of a call's messages."""
        return [(self.keys[i], self.sent[i].metadata) for i in call.indices]

    def longest_s(self, call: Call) -> float:
        """Seconds a worker may have a call before it is ended, as it does not even end itself."""
        if self.limit_s is None:
            return math.inf
        return START_S + len(call.indices) * (self.limit_s + 2 * GRACE_S)


def plan(sent: Sequence[Message], token: str, num_workers: int) -> Round:
    """Find the distinct contents, and group the clients.

    A reply is about as large as what was sent: with a large model few clients share a call.

    Args:
        sent: messages.
        token: names this round. A key must not come again with another content while a worker
            remembers it.
        num_workers: among which they are divided.
    """
    keys = [f"{token}/{id(message.content)}" for message in sent]
    contents = {key: message.content for key, message in zip(keys, sent, strict=True)}
    largest = max((_num_bytes(content) for content in contents.values()), default=0)
    per_call = len(sent) // (num_workers * CALLS_IN_FLIGHT * 2)
    per_call = max(1, min(CLIENTS_PER_CALL, per_call, BYTES_PER_CALL // max(1, largest)))
    indices = range(len(sent))
    calls = [Call(list(indices[i : i + per_call])) for i in range(0, len(sent), per_call)]
    return Round(sent, contents, keys, deque(calls))


def _num_bytes(content: RecordDict) -> int:
    return sum(messages.payload_bytes(record) for record in content.array_records.values())
