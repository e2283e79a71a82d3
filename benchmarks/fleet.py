"""What the simulated clock costs: milliseconds to plan a round, or an asynchronous server step.

python -m benchmarks.fleet [--clients 100 300 1000] [--repeats 20]
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from benchmarks.table import table
from fleet.availability import Diurnal
from fleet.clock import Rule, overlapped, parallel, pipelined, queued, sequential
from fleet.devices import tables
from fleet.flights import Flight, Service, Step
from fleet.plan import Fleet
from fleet.population import assign
from fleet.selection import select
from fleet.service import Queue, Shared
from fleet.work import BatchWork, ClientWork, Compute, Exchange
from strategies.server.buffered import idle_clients, in_turn

RULES: dict[str, Rule] = {
    "parallel": parallel,
    "queued": queued,
    "sequential": sequential,
    "overlapped": overlapped,
    "pipelined": pipelined,
}
CONCURRENCY, BUFFER = 200, 10  # of asynchronous steps
# Whether there is a server's part, and how it serves those at work.
STEPPED: dict[str, tuple[bool, Service]] = {
    "whole": (False, Shared(parallel.pace)),
    "cut": (True, Shared(parallel.pace)),
    "cut, queued": (True, Queue()),
}


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
    for name, rule in RULES.items():
        plan, drawn = (
            median_ms(lambda f=f, r=rule: f.plan(list(parts), parts, r, 1, 0.0), repeats)
            for f in (plain, varied)
        )
        found[name] = (plan, drawn, once)
    return found


def steps(num_clients: int, repeats: int, is_cut: bool, service: Service) -> tuple[float, float]:
    """Return the milliseconds of a server step, and of one with more to draw.

    Args:
        num_clients: of which `CONCURRENCY` are at work, or all.
        repeats: steps, one after another.
        is_cut: whether there is a server's part.
        service: how the server serves them.
    """
    clients = assign(tables().population("mobile"), tables(), range(num_clients), 0)
    plain = Fleet(clients, tables().device("server"))
    varied = replace(plain, availability=Diurnal(), jitter=0.2, dropout=0.1)
    local = ClientWork(400_000, Compute({"fp32": 1e9}, 1e7), (), 400_000, 10**7)
    parts = plain.phases({p: work(10 + p % 50) if is_cut else local for p in clients})
    at_work = min(CONCURRENCY, num_clients)
    found = []
    for fleet in (plain, varied):
        now, number, flights = 0.0, 0, tuple[Flight, ...]()

        def step(fleet: Fleet = fleet) -> None:
            nonlocal now, number, flights
            number += 1
            idle = idle_clients(range(num_clients), {flight.partition for flight in flights})
            first = (
                select(idle, at_work - len(flights), 0, number) if len(flights) < at_work else []
            )
            one = Step(
                fleet, service, lambda began: parts, number, now, at_work,
                min(BUFFER, at_work),
            )  # fmt: skip
            plan = one.plan(flights, in_turn(idle, first, random.Random(number)))
            now, flights = now + plan.sim_s, plan.flights

        step()  # all begin
        found.append(median_ms(step, repeats))
    return found[0], found[1]


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
    stepped = [
        (num_clients, kind, *(f"{t:.2f}" for t in steps(num_clients, chosen.repeats, *how)))
        for num_clients in chosen.clients
        for kind, how in STEPPED.items()
    ]
    columns = ("clients", "network", "step", "with jitter, diurnal, dropout")
    title = f"planning a server step, median ms; {CONCURRENCY} at work, {BUFFER} arrive"
    print(f"\n{table(columns, stepped, title)}")


if __name__ == "__main__":
    main()
