"""A round's updates that wait in a file are the ones that came."""

import errno
import gc
import os

import numpy as np
import pytest
from conftest import assert_same_run, simulate

from strategies.server import spool
from strategies.server.spool import Spool


@pytest.fixture
def on_disk(monkeypatch):
    monkeypatch.setattr(spool, "IN_MEMORY", -1)


def test_arrays_come_back_as_they_were(on_disk):
    put = [
        {
            "w": np.random.default_rng(i).standard_normal((3, 4), np.float32).T,
            "none": np.zeros((0, 2), np.float16),
            "flag": np.array(i == 1),
            "count": np.array(i, np.int64),
        }
        for i in range(3)
    ]
    waiting = Spool(0)
    back = [waiting.put(arrays) for arrays in put]
    for i in (2, 0, 1):
        assert list(back[i]) == list(put[i])
        for name, array in put[i].items():
            assert back[i][name].dtype == array.dtype
            np.testing.assert_array_equal(back[i][name], array)
    with pytest.raises(KeyError):
        back[0]["other"]


def test_what_is_small_stays_in_memory():
    arrays = {"w": np.zeros(3)}
    assert Spool(24).put(arrays) is arrays


def test_the_file_is_gone_with_its_arrays(on_disk):
    waiting = Spool(0)
    back = waiting.put({"w": np.zeros(3)})
    number = waiting._file.fileno()
    file = os.fstat(number)
    assert file.st_size == 24
    assert file.st_nlink == 0  # it has no name
    del waiting
    np.testing.assert_array_equal(back["w"], np.zeros(3))
    del back
    gc.collect()
    try:
        assert not os.path.samestat(os.fstat(number), file)  # another file has the number now
    except OSError as error:
        assert error.errno == errno.EBADF


def test_a_full_disk_is_said(on_disk, monkeypatch):
    waiting = Spool(0)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=r"writing a round's updates.*No space.*TMPDIR") as error:
        waiting.put({"w": np.zeros(3)})
    assert error.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    "strategy", ["oqfl", "splitfed_v2", "splitfed_v3", "hierarchical", "prune"]
)
def test_a_run_whose_updates_wait_in_a_file_is_the_same(strategy, tmp_path, monkeypatch):
    simulate(tmp_path / "memory", f"strategy={strategy}", "clients.per_round=4")
    monkeypatch.setattr(spool, "IN_MEMORY", -1)
    simulate(tmp_path / "file", f"strategy={strategy}", "clients.per_round=4")
    assert_same_run(tmp_path / "memory", tmp_path / "file")
