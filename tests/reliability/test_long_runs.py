"""A process that runs many rounds and many jobs keeps its size: memory, files, threads, children.

pytest tests/reliability/test_long_runs.py -m long -s     full size, with figures
"""

import gc
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import small

from app.engine import Simulator
from strategies.server.checkpoint import Checkpoints
from strategies.server.method import ServerState
from tracking.record import ClientRecord, RoundRecord, Sink

TINY = (
    "strategy=fedavg", "data.max_train=60", "data.max_test=20", "clients.total=3", "model.width=4",
    "checkpoint.every=5",
)  # fmt: skip
ROUND_MIB = 12  # of resident memory more at the end than after the warm-up
JOB_MIB = 1.0  # the same, of each job


@dataclass(frozen=True)
class Size:
    """What a process has: MiB in memory, and open files, threads, children, temporary files."""

    mib: float
    files: int
    threads: int
    children: int
    temporary: int

    @staticmethod
    def now() -> "Size":
        gc.collect()
        own = Path("/proc/self")
        pages = int((own / "statm").read_text().split()[1])
        return Size(
            pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
            len(list((own / "fd").iterdir())),
            len(list((own / "task").iterdir())),
            sum(len(t.joinpath("children").read_text().split()) for t in (own / "task").iterdir()),
            len(list(Path(tempfile.gettempdir()).iterdir())),
        )


class Probe:
    """A sink that takes the process's size after some rounds."""

    def __init__(self, at: Sequence[int]) -> None:
        self.sizes: dict[int, Size] = {}
        self._at = at

    def show(self, num_rounds: int, done: Sequence[RoundRecord]) -> Sink:
        return self

    def round(self, record: RoundRecord, clients: Sequence[ClientRecord]) -> None:
        if record.round in self._at:
            self.sizes[record.round] = Size.now()

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        pass


def assert_flat(warm: Size, end: Size, mib: float, say: str) -> None:
    print(f"{say}: MiB, files, threads, children, temporary: {astuple(warm)} → {astuple(end)}")
    assert end.mib - warm.mib < mib
    assert end.files <= warm.files + 1
    assert end.threads <= warm.threads + 1
    assert end.children <= warm.children
    assert end.temporary <= warm.temporary


def many_rounds(folder: Path, num: int, *more: str, simulator: Simulator | None = None) -> None:
    simulator = simulator or Simulator()
    probe = Probe((num // 5, num))
    chosen = small(*TINY, *more, f"rounds={num}")
    simulator.run(chosen, folder / "rounds", show=probe.show)
    warm, end = probe.sizes.values()
    assert_flat(warm, end, ROUND_MIB, f"{num} rounds {more}")


def many_jobs(folder: Path, num: int, *more: str, simulator: Simulator | None = None) -> None:
    """Jobs that differ in seed, partition, size and method, as those of sweeps do."""
    simulator = simulator or Simulator()
    sizes = []
    for job in range(num):
        own = [f"seed={job}", f"train.batch_size={8 + job % 5}", f"data.max_train={60 + job}"]
        probe = Probe(())
        simulator.run(small(*TINY, *own, *more, "rounds=2"), folder / f"{job}", show=probe.show)
        sizes.append(Size.now())
    assert_flat(sizes[num // 5], sizes[-1], JOB_MIB * num, f"{num} jobs {more}")


@pytest.fixture
def own_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return tmp_path


@pytest.mark.long
def test_rounds_and_jobs(own_temporary: Path) -> None:
    many_rounds(own_temporary, 60)
    many_jobs(own_temporary, 6)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_rounds_and_jobs_at_full_size(own_temporary: Path) -> None:
    many_rounds(own_temporary, 500)
    many_jobs(own_temporary, 50)
    many_jobs(own_temporary / "split", 20, "strategy=splitfed_v1")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_rounds_and_jobs_on_ray(own_temporary: Path, ray_simulator: Simulator) -> None:
    on_ray = ("engine=ray", "engine.workers=2")
    many_rounds(own_temporary, 100, *on_ray, simulator=ray_simulator)
    many_jobs(own_temporary, 12, *on_ray, simulator=ray_simulator)


@pytest.mark.long
def test_records_of_10_000_rounds_are_small(tmp_path: Path) -> None:
    """All records are part of each checkpoint: what that costs."""
    import time

    record = RoundRecord(1, 0.5, 1.5, 1.5, 10, 0, 0, 10**6, 10**6, 1.0, 2.0, 0.5, {"a": 1.0})
    for num in (500, 10_000):
        state = ServerState(num, {}, {}, records=(record,) * num)
        began = time.perf_counter()
        Checkpoints(tmp_path / str(num)).save(state)
        took = time.perf_counter() - began
        size = (tmp_path / str(num) / f"{num:06d}" / "records.json").stat().st_size
        print(f"{num} records: {size / 1e6:.2f} MB, {took:.3f} s")
        assert size < 300 * num + 1000
        assert took < 5
