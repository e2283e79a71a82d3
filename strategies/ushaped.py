"""U-shaped split learning with labels on the device, as in SplitEasy (arXiv 2011.04232).

The network is cut twice: its first and its last part are on the device, and so are inputs and
labels. Clients train in parallel; all parts are averaged as in SplitFed V1.
"""

from typing import ClassVar

from strategies.client.split_loop import SplitClient
from strategies.server.cuts import SplitStrategy


class UShaped(SplitStrategy):
    """Server half."""

    client = SplitClient()
    reads: ClassVar[tuple[str, ...]] = (*SplitStrategy.reads, "split.tail")
    is_u_shaped: ClassVar[bool] = True
