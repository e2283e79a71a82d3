"""What runs clients in a process of its own: a Ray actor's, or one that the driver forked."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import Context, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp

from app import client, runtime, shipped_data
from app.time_limit import TimeLimitError, series
from strategies import messages


def make_context(run_id: int, node: int, num_nodes: int, run_config: Mapping[str, Any]) -> Context:
    """Return the context of one client, as Flower's runtimes make it."""
    return Context(
        run_id=run_id,
        node_id=node,
        node_config={"partition-id": node, "num-partitions": num_nodes},
        state=RecordDict(),
        run_config=dict(run_config),
    )


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """Run the app; what it raises becomes an error reply with the traceback.

    Raises:
        TimeLimitError: the client took too long; there is no saying what it was amidst.
        KeyboardInterrupt: the user's, or for all that can be told so.
    """
    try:
        return app(message, context)
    except (TimeLimitError, KeyboardInterrupt):
        raise
    except BaseException as error:
        return messages.error_reply(message, error)


class Worker:
    """Runs clients one after another; data and network stay in its process.

    Args:
        fetch: returns what a reference stands for: a content, or data that were sent.
        where: returns the name of the machine that this process runs on.
    """

    def __init__(self, fetch: Callable[[Any], Any], where: Callable[[], str] = str) -> None:
        self._fetch = fetch
        self._where = where
        self._contents: dict[str, RecordDict] = {}
        self.is_spent = False

    def is_there(self) -> str:
        """Answer on which machine, when this process has started."""
        return self._where()

    def handle(
        self,
        contents: Mapping[str, Any],
        jobs: Sequence[tuple[str, Metadata]],
        num_nodes: int,
        run_config: Mapping[str, Any],
    ) -> list[Message]:
        """Run several clients; arguments and replies as those of `replies`."""
        return list(self.replies(contents, jobs, num_nodes, run_config))

    def replies(
        self,
        contents: Mapping[str, Any],
        jobs: Sequence[tuple[str, Metadata]],
        num_nodes: int,
        run_config: Mapping[str, Any],
    ) -> Iterator[Message]:
        """Run several clients, each when its reply is asked for.

        Args:
            contents: a reference to each distinct content, by a key. A content of the call before
                is not fetched again.
            jobs: key of the content and metadata of each message.
            num_nodes: clients in the run.
            run_config: what the ClientApp finds in its context.

        Yields:
            The replies in the order of the jobs. After a client that took too long this process
            runs no other: it `is_spent`, the replies end with that client's, and of later calls
            there are none.
        """
        # Contents of the call before are kept: in most rounds all clients get the same one.
        self._contents = {
            key: self._contents[key] if key in self._contents else self._fetch(reference)
            for key, reference in contents.items()
        }
        run_config = shipped_data.received(run_config, self._fetch)
        with series():
            for key, metadata in jobs:
                if self.is_spent:
                    return
                message = runtime.rebuild(self._contents[key], metadata)
                context = make_context(metadata.run_id, metadata.dst_node_id, num_nodes, run_config)
                try:
                    reply = answer(client.app, message, context)
                except (TimeLimitError, KeyboardInterrupt) as error:  # a worker's user is elsewhere
                    self.is_spent = isinstance(error, TimeLimitError)
                    reply = messages.error_reply(message, error)
                yield reply
