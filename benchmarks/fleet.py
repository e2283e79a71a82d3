"""What the simulated clock costs: milliseconds to plan a round.

python -m benchmarks.fleet
"""

import statistics
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from fleet.availability import Diurnal
from fleet.clock import overlapped, parallel, pipelined, queued, sequential
from fleet.devices import tables
from fleet.plan import Fleet
from fleet.population import assign
from fleet.work import BatchWork, ClientWork, Compute, Exchange

REPEATS = 20


def median_ms(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def work(num_full: int) -> ClientWork:
    """Full batches and a last, smaller one."""
    whole = Exchange(Compute({"fp32": 1e8}, 1e6), 100_000, Compute({"fp32": 3e8}), 100_000)
    rest = Exchange(Compute({"fp32": 1e7}, 1e5), 10_000, Compute({"fp32": 3e7}), 10_000)
    batches = (
        BatchWork((whole,), Compute({"fp32": 2e8}, 2e6), num_full),
        BatchWork((rest,), Compute({"fp32": 2e7}, 2e5)),
    )
    return ClientWork(400_000, Compute(), batches, 400_000, 10**7)


def main() -> None:
    table = Table(title="planning a round, median ms")
    for heading in ("clients", "rule", "plan", "with jitter, diurnal", "phases, once a run"):
        table.add_column(heading, justify="right")
    for num_clients in (100, 300, 1000):
        clients = assign(tables().population("mobile"), tables(), range(num_clients), 0)
        works = {p: work(10 + p % 50) for p in clients}
        plain = Fleet(clients, tables().device("server"))
        varied = Fleet(clients, plain.server, availability=Diurnal(), jitter=0.2, deadline_s=1e6)
        parts = plain.phases(works)
        once = median_ms(lambda plain=plain, works=works: plain.phases(works))
        for rule in (parallel, queued, sequential, overlapped, pipelined):
            times = [
                median_ms(lambda f=f, r=rule, p=parts: f.plan(list(p), p, r, 1, 0.0))
                for f in (plain, varied)
            ]
            row = [str(num_clients), rule.__name__, *(f"{t:.2f}" for t in (*times, once))]
            table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
