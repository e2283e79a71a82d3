"""Everything that we use of Flower and that Flower does not publish (flwr 1.41 and 1.42).

The rest of us imports from flwr.app, flwr.clientapp, flwr.serverapp and flwr.simulation alone.
"""

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["Run", "is_simulated", "number", "rebuild", "start_run", "unknown_error"]

SERVER_NODE = 1


def start_run(run_id: int) -> Run:
    """Return a run; messages that this process creates from now on come from its server."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE
    TaskIdentity.task_id = 0
    return Run.create_empty(run_id)


def number(message: Message, message_id: str) -> None:
    """Give a message the id that a reply names; Flower's own runtimes do so on sending."""
    message.metadata.__dict__["_message_id"] = message_id


def rebuild(content: RecordDict, metadata: Metadata) -> Message:
    """Put a message together again from what travelled apart."""
    return Message(content=content, metadata=metadata)  # type: ignore[call-overload,no-any-return]


def unknown_error(message: Message, reason: str) -> Message:
    """Return the reply that says that a client was lost."""
    return Message(Error(ErrorCode.UNKNOWN, reason), reply_to=message)


def is_simulated(grid: Grid) -> bool:
    """Whether Flower simulates the nodes of ``grid`` on this machine.

    Its simulation passes messages in memory, a SuperLink over HTTP. A grid that is not known counts
    as deployed, which allows less.
    """
    # Imported here, where Flower has it already: it would cost `python main.py` half a second.
    from flwr.superlink.grid import InMemoryGrid

    return isinstance(grid, InMemoryGrid)
