"""The driver's memory does not grow with the clients of a round."""

import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest
from conftest import ROOT, simulate

from strategies.server import spool

MIB = 2**20


def test_updates_do_not_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python and numpy hold at once, of networks of 4 MB, whose updates wait in a file."""
    monkeypatch.setattr(spool, "IN_MEMORY", 0)
    peaks = []
    for clients in (2, 2, 12):  # the first has what is made once
        tracemalloc.start()
        simulate(
            tmp_path / f"{len(peaks)}", "strategy=fedavg", f"clients.total={clients}", "rounds=1",
            "model.width=200", "data.max_train=24", "data.max_test=20", "checkpoint.every=0",
            "train.max_batches=1",
        )  # fmt: skip
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    size = (tmp_path / "1" / "model.safetensors").stat().st_size
    assert size > 3 * MIB
    assert peaks[2] - peaks[1] < 4 * size  # of ten more clients


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_round_of_resnet18_on_ray(tmp_path: Path) -> None:
    """Resident memory of the driver alone, without Ray's shared memory, at its highest."""
    peaks = {}
    for clients in (10, 100, 300):
        process = subprocess.Popen(
            [
                sys.executable, "main.py", "strategy=fedavg", "model=resnet18", "rounds=1",
                f"clients.total={clients}", "data.max_train=600", "data.max_test=20",
                "train.epochs=1", "train.batch_size=2", "train.max_batches=1", "engine.workers=2",
                "checkpoint.every=0", "tracker.wandb.mode=disabled",
                f"hydra.run.dir={tmp_path / str(clients)}",
            ],
            cwd=ROOT, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        peaks[clients] = peak = _peak(process)
        assert process.returncode == 0
        sys.stderr.write(f"{clients} clients: {peak} MiB\n")
    assert peaks[300] < 1.15 * peaks[10]


def _peak(process: "subprocess.Popen[bytes]") -> int:
    """MiB of memory that is the process's own, at its highest until it ends."""
    peak, tick = 0, threading.Event()
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text("utf-8").splitlines()
        except OSError:
            break
        found = {name: value for name, _, value in (line.partition(":") for line in lines)}
        own = [int(found[name].split()[0]) for name in ("RssAnon", "RssFile") if name in found]
        peak = max(peak, sum(own))
        tick.wait(0.05)
    process.wait()
    return peak // 1024
