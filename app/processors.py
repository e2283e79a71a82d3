"""How many processors there are to use."""

import functools


@functools.cache
def usable() -> int:
    """How many processors this process may use, at least 1.

    That is by its affinity (Slurm, taskset) and by the quota of its container; the machine may have
    more. LOKY_MAX_CPU_COUNT lowers it.
    """
    import joblib

    return max(1, int(joblib.cpu_count()))
