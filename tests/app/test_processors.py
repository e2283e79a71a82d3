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
