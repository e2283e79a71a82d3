"""What Flower does not say of the runtime that started the ServerApp (flwr 1.41)."""

from flwr.serverapp import Grid


def is_simulated(grid: Grid) -> bool:
    """Whether Flower simulates the nodes of ``grid`` on this machine.

    Its simulation passes messages in memory, a SuperLink over HTTP. A grid that is not known counts
    as deployed, which allows less.
    """
    # Imported here, where Flower has it already: it would cost `python main.py` half a second.
    from flwr.superlink.grid import InMemoryGrid

    return isinstance(grid, InMemoryGrid)
