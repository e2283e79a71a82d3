"""On what the tables are measured: one line.

python -m benchmarks.machine
"""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path


def machine() -> str:
    """Return date, processor and versions."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "flwr", "ray")]
    return ", ".join([
        datetime.date.today().isoformat(),
        f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}",
        f"Python {platform.python_version()}",
        *versions,
    ])  # fmt: skip


if __name__ == "__main__":
    print(machine())
