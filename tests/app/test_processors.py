"""As many workers as processors that may be used, not as the machine has."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
@pytest.mark.parametrize("limit", [{}, {"LOKY_MAX_CPU_COUNT": "1"}])
def test_workers_follow_what_a_batch_system_allows(limit: dict[str, str]) -> None:
    code = "from app.processors import usable; print(usable())"
    allowed = {min(os.sched_getaffinity(0))} if not limit else os.sched_getaffinity(0)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | limit, text=True, check=True,
        capture_output=True, preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )  # fmt: skip
    assert done.stdout.split() == ["1"]


FAULTS = """
import resource, torch
from app.processors import use_one
use_one()
assert torch.get_num_threads() == 1
for _ in range(3):
    torch.ones(1 << 20)
begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(1 << 20), torch.ones(1 << 21)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun) // 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
@pytest.mark.parametrize("tuned", [False, True])
def test_freed_memory_is_kept_unless_the_environment_says_otherwise(tuned: bool) -> None:
    """Pages that are taken anew for 12 MiB: none, or 3,072."""
    env = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    if tuned:
        env["MALLOC_MMAP_THRESHOLD_"] = "131072"
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=env, cwd=ROOT, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    faults = int(done.stdout)
    assert faults > 2000 if tuned else faults < 1000
