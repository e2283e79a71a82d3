"""A full disk, a folder that is deleted, and which of several runs is continued."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import assert_same_run
from lives import live, tiny

from app import server
from app.jobs import finished, fresh, newest
from app.one_job import said
from app.run_folder import FolderTakenError, claim
from strategies.server import checkpoint
from strategies.server.loop import FederatedStrategy
from tracking import jsonl
from tracking.files import CannotWriteError, FolderGoneError, whole

CHOSEN = ("strategy=fedavg", "rounds=3")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True
    )
    if made.returncode:
        pytest.skip("mounting a small disk takes root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_line_and_the_run_goes_on_with_room(
    small_disk: Path, tmp_path: Path
) -> None:
    """Room for two checkpoints: the third does not fit."""
    chosen, folder = tiny(*CHOSEN), small_disk / "run"
    with pytest.raises(CannotWriteError) as raised:
        live(chosen, folder)
    line = str(raised.value)
    assert line.startswith(f"cannot write the checkpoint of round 3 to {folder}: No space left")
    assert "0.0962 MB to write, " in line and line.endswith(" MB free)") and "\n" not in line
    assert "with that mended, the same command with resume=true continues" in said(
        raised.value, folder
    )
    subprocess.run(["mount", "-o", "remount,size=3m", small_disk], check=True)
    live(chosen, folder)
    live(chosen, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", folder)


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("rounds", errno.ENOSPC),
        ("rounds", errno.EACCES),
        ("arrays", errno.EDQUOT),
        ("model", errno.EROFS),
    ],
)
def test_what_cannot_be_written_is_said(
    what: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any) -> int:
        raise OSError(code, os.strerror(code))

    chosen = tiny(*CHOSEN)
    with monkeypatch.context() as patch:
        if what == "rounds":
            patch.setattr(jsonl.os, "write", refuse)
        else:
            patch.setattr(checkpoint if what == "arrays" else server, "save_arrays", refuse)
        with pytest.raises(CannotWriteError, match=rf"cannot write .* to .*: {os.strerror(code)}"):
            live(chosen, tmp_path)
    live(chosen, tmp_path)
    assert (tmp_path / "summary.json").exists()


def test_a_folder_that_is_deleted_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    real = FederatedStrategy.federation

    def deletes(self: FederatedStrategy, *given: Any) -> Any:
        shutil.rmtree(folder)
        return real(self, *given)

    monkeypatch.setattr(FederatedStrategy, "federation", deletes)
    with pytest.raises(FolderGoneError, match="was deleted or replaced while the run went on"):
        live(tiny(*CHOSEN), folder)
    assert not folder.exists()
    with pytest.raises(FolderGoneError), whole(folder / "x"):
        (folder / "x.part").write_text("")


def test_the_unfinished_one_is_continued_and_names_tell_the_order(tmp_path: Path) -> None:
    chosen = tiny(*CHOSEN)
    for name in ("2026-01-01", "2026-01-02", "2026-01-03"):
        live(chosen, tmp_path / name)
    os.utime(tmp_path / "2026-01-01")  # by time of modification it would be the newest
    assert newest(tmp_path, [chosen], is_sweep=False) == tmp_path / "2026-01-03"
    (tmp_path / "2026-01-02" / "summary.json").write_text("{")
    assert newest(tmp_path, [chosen], is_sweep=False) == tmp_path / "2026-01-02"
    assert newest(tmp_path, [tiny(*CHOSEN, "seed=9")], is_sweep=False) is None
    assert len(finished(tmp_path)[chosen.hash]) == 2

    (tmp_path / "2026-01-03" / "config.json").write_text("")  # its checkpoints say whose it is
    claim(tmp_path / "2026-01-03", chosen)
    with pytest.raises(FolderTakenError, match="nothing says whose rounds these are"):
        claim(tmp_path / "2026-01-03", tiny(*CHOSEN, "seed=9"))


def test_two_runs_of_one_second_get_two_folders(tmp_path: Path) -> None:
    folders = [fresh(tmp_path) for _ in range(3)]
    assert len(set(folders)) == 3 and sorted(folders)[0].name.startswith("20")
