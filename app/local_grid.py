"""What our grids share: nodes, ids and messages, without Flower's simulation runtime.

What Flower does not publish (task identity, message ids, runs) is in `app.runtime`.
"""

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from app import isolation, runtime
from app.worker import make_context


class LocalGrid(Grid):
    """Nodes, ids and messages. Node ids are the partition ids, from 0.

    Args:
        num_nodes: how many clients there are.
        run_config: what the ClientApp finds in its context.
    """

    _run_ids = itertools.count(1)

    def __init__(self, num_nodes: int, run_config: Mapping[str, Any]) -> None:
        self._run = runtime.start_run(next(self._run_ids))
        self._num_nodes = num_nodes
        self._run_config = dict(run_config)
        self._message_ids = itertools.count(1)
        self._replies: dict[str, Message] = {}

    def set_run(self, run: runtime.Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def processes(self) -> int:
        """How many of this machine run clients, and are idle while the server tests."""
        return 1

    @property
    def run(self) -> runtime.Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message to a node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes; they are always there."""
        return range(self._num_nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run the messages now and keep the replies for `pull_messages`."""
        sent = list(messages)
        for reply in self.send_and_receive(sent):
            self._replies[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand out the replies to these messages, each once."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Run the messages and hand out each reply when it is there, in any order.

        Nothing runs before the first is asked for, and nothing that was handed out is kept. Replies
        that are not there after ``timeout`` seconds are left out; SerialGrid, which runs one client
        after another in this process, waits for all.
        """
        sent = list(messages)
        isolation.drop_held_back()
        for message in sent:
            runtime.number(message, str(next(self._message_ids)))
        return self._execute(sent, timeout)

    @abstractmethod
    def _execute(self, sent: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        """Run messages that have ids."""

    def _context(self, node: int) -> Context:
        return make_context(self._run.run_id, node, self._num_nodes, self._run_config)


def node_of(message: Message) -> int:
    """The node that a message goes to."""
    return message.metadata.dst_node_id
