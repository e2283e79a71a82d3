"""How a sweep's jobs are to run side by side (`sweep.jobs`)."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.config.schema import AUTO, Config


@dataclass(frozen=True)
class Wanted:
    """How jobs are to run side by side.

    Attributes:
        jobs: how many at a time; None for as many as there is room for.
        workers: engine.workers, the most for None.
        address: of an existing Ray cluster; None starts one here.
    """

    jobs: int | None
    workers: int | None
    address: str | None


def wanted(configs: Sequence[Config], is_sweep: bool) -> Wanted | None:
    """Return how a command line's jobs are to run side by side; None for one after another.

    Raises:
        ValueError: sweep.jobs does not go with the rest; names the keys.
    """
    found = {one.sweep.jobs for one in configs}
    if found == {1}:
        return None
    if len(found) > 1:
        raise ValueError(f"sweep.jobs={','.join(map(str, found))}: takes one value for all jobs")
    (jobs,) = found
    if not is_sweep:
        raise ValueError(f"sweep.jobs={jobs}: runs jobs side by side; takes -m beside it")
    for key in ("name", "workers", "address"):
        values = {str(getattr(one.engine, key)) for one in configs}
        if len(values) > 1:
            shown = "engine" if key == "name" else f"engine.{key}"
            raise ValueError(
                f"{shown}={','.join(sorted(values))}: takes one value with sweep.jobs={jobs}, "
                "where each job's clients run in its own process"
            )
    engine = configs[0].engine
    if jobs == AUTO:
        return Wanted(None, engine.workers, engine.address)
    if engine.workers is not None and jobs > engine.workers:
        raise ValueError(f"sweep.jobs={jobs}: engine.workers={engine.workers} takes as many")
    return Wanted(jobs, engine.workers, engine.address)
