"""What the simulated clock costs: milliseconds to plan a round.

python -m benchmarks.fleet [--clients 100 300 1000] [--repeats 20]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

from benchmarks.table import table
from fleet.availability import Diurnal
from fleet.clock import overlapped, parallel, pipelined, queued, sequential
from fleet.devices import tables
from fleet.plan import Fleet
from fleet.population import assign
from fleet.work import BatchWork, ClientWork, Compute, Exchange

RULES = (parallel, queued, sequential, overlapped, pipelined)


def median_ms(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
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


def measure(num_clients: int, repeats: int) -> dict[str, tuple[float, float, float]]:
    """Return of each rule the milliseconds of a plan, of one with more to draw, of the phases."""
    clients = assign(tables().population("mobile"), tables(), range(num_clients), 0)
    works = {p: work(10 + p % 50) for p in clients}
    plain = Fleet(clients, tables().device("server"))
    varied = Fleet(clients, plain.server, availability=Diurnal(), jitter=0.2, deadline_s=1e6)
    parts = plain.phases(works)
    once = median_ms(lambda: plain.phases(works), repeats)
    found = {}
    for rule in RULES:
        plan, drawn = (
            median_ms(lambda f=f, r=rule: f.plan(list(parts), parts, r, 1, 0.0), repeats)
            for f in (plain, varied)
        )
        found[rule.__name__] = (plan, drawn, once)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--repeats", type=int, default=20)
    chosen = parser.parse_args(argv)
    rows = [
        (num_clients, rule, *(f"{t:.2f}" for t in times))
        for num_clients in chosen.clients
        for rule, times in measure(num_clients, chosen.repeats).items()
    ]
    heads = ("clients", "rule", "plan", "with jitter, diurnal", "phases, once a run")
    print(table(heads, rows, "planning a round, median ms"))


if __name__ == "__main__":
    main()
