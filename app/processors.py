"""How many processors there are to use, and how a process computes on one of them."""

import ctypes
import functools
import os

# Options of glibc's mallopt, in bytes. What is at least as large goes back when it is freed; other
# memory when so much is free at the heap's end, which grows by so much at once.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_TOP_PAD = -3, -1, -2
_KEPT = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 1536 << 20, _M_TOP_PAD: 16 << 20}


@functools.cache
def usable() -> int:
    """How many processors this process may use, at least 1.

    That is by its affinity (Slurm, taskset) and by the quota of its container; the machine may have
    more. LOKY_MAX_CPU_COUNT lowers it.
    """
    import joblib

    return max(1, int(joblib.cpu_count()))


def use_one() -> None:
    """Have torch compute in one thread, and this process keep freed memory for what comes next."""
    import torch  # which to count processors does without

    torch.set_num_threads(1)
    _keep_freed_memory()


@functools.cache
def _keep_freed_memory() -> None:
    """Have the C library not give back what each batch takes anew, which is slow: docs/LOG.md.

    Where the environment tunes it, or it is another library, it is left as it is.
    """
    is_tuned = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or is_tuned:
        return
    for option, num_bytes in _KEPT.items():
        mallopt(option, num_bytes)
