"""Node discovery: waits for Flower's nodes and asks each for its partition and its data size."""

import logging
import time
from dataclasses import dataclass

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from strategies import messages
from strategies.server.results import reason

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Introduction:
    """One client's answer.

    Attributes:
        node: its node id.
        num_examples: samples it has.
    """

    node: int
    num_examples: int


def introductions(grid: Grid, num_clients: int | None, timeout: float) -> dict[int, Introduction]:
    """Ask every node which partition it holds and how much data; by partition id.

    Args:
        grid: where the nodes are.
        num_clients: nodes to wait for; None takes those that are there, but at least one.
        timeout: seconds to wait.

    Raises:
        ValueError: two nodes hold the same partition, or there are more nodes than clients.
        RuntimeError: a node answers with an error, too few nodes come, or nobody has data.
    """
    found: dict[int, Introduction] = {}
    ids = wait_for_nodes(grid, num_clients, timeout)
    sent = [Message(RecordDict(), dst_node_id=n, message_type=MessageType.QUERY) for n in ids]
    for reply in grid.send_and_receive(sent, timeout=timeout):
        node = reply.metadata.src_node_id
        if reply.has_error():
            log.warning("node %d: %s", node, reply.error.reason)
            raise RuntimeError(f"node {node} cannot take part: {reason(messages.why(reply))}")
        try:
            partition, num_examples = messages.read_introduction(reply)
        except ValueError as error:
            raise ValueError(f"the answer of node {node} cannot be used: {error}") from error
        if found.setdefault(partition, Introduction(node, num_examples)).node != node:
            raise ValueError(f"two nodes hold partition {partition}; each needs one of its own")
    silent = set(ids) - {who.node for who in found.values()}
    if silent:
        raise RuntimeError(f"no answer from {len(silent)} of {len(ids)} nodes in {timeout} s")
    num_empty = sum(who.num_examples == 0 for who in found.values())
    if num_empty == len(found):
        raise RuntimeError("no client has any data")
    if num_empty:
        log.info("%d of %d clients have no data and take no part", num_empty, len(found))
    return dict(sorted(found.items()))  # they answer in any order


def wait_for_nodes(grid: Grid, num_clients: int | None, timeout: float) -> list[int]:
    """Return the ids of all nodes, once there is one for each client; says how many are there.

    Args:
        grid: where the nodes are.
        num_clients: nodes to wait for; None takes those that are there, but at least one.
        timeout: seconds to wait.

    Raises:
        ValueError: there are more nodes than clients.
        RuntimeError: too few nodes came in time.
    """
    needed, deadline, said = num_clients or 1, time.monotonic() + timeout, -1
    while len(ids := sorted(grid.get_node_ids())) < needed:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"clients.total={num_clients}: only {len(ids)} nodes came in {timeout:g} s"
            )
        if len(ids) != said:  # a warning, because Flower shows nothing below
            log.warning("waiting for nodes: %d of %d are there", len(ids), needed)
            said = len(ids)
        time.sleep(1)
    if num_clients is not None and len(ids) > num_clients:
        raise ValueError(f"clients.total={num_clients}: there are {len(ids)} nodes")
    return ids
