"""Every damage to a file of a run: an equal result or one line, never a silent difference."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import assert_same_run
from lives import live, tiny

from app.run_folder import is_finished
from tracking.collect import find
from tracking.report import print_tables, write_report

CHOSEN = ("strategy=fedavg", "rounds=3", "checkpoint.keep=2")
FILES = (
    "config.json", "rounds.jsonl", "clients.jsonl", "summary.json", "model.safetensors",
    "checksums.json", "checkpoint/000003/model.safetensors", "checkpoint/000003/records.json",
    "checkpoint/000003/strategy.safetensors", "checkpoint/000003/manifest.json",
)  # fmt: skip


def flip(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "half": lambda path, other: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path, other: path.write_bytes(b""),
    "zeros": lambda path, other: path.write_bytes(bytes(path.stat().st_size)),
    "one bit": flip,
    "missing": lambda path, other: path.unlink(),
    "of another run": lambda path, other: path.write_bytes(other.read_bytes()),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, one that was ended before its summary, and a finished one of another seed."""
    above = tmp_path_factory.mktemp("damages")
    live(tiny(*CHOSEN), above / "finished")
    live(tiny(*CHOSEN, "seed=7"), above / "other")
    shutil.copytree(above / "finished", above / "ended")
    for name in ("summary.json", "model.safetensors", "checksums.json"):
        (above / "ended" / name).unlink()
    return above


@pytest.mark.parametrize("kind", ["finished", pytest.param("ended", marks=pytest.mark.long)])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged(
    kind: str, damage: str, runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of each file; all together is one test, since each is a fraction of a second."""
    chosen, whole = tiny(*CHOSEN), runs / "finished"
    for name in FILES:
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(runs / kind, folder)
        if not (folder / name).exists():
            continue
        DAMAGES[damage](folder / name, runs / "other" / name)
        print_tables(write_report([folder], tmp_path / "report"))
        (reported,) = find([folder])
        caplog.clear()
        try:
            live(chosen, folder)
        except ValueError as error:
            assert str(error) and "\n" not in str(error)
            assert str(folder) in str(error)
            continue
        lost = (folder / "clients.jsonl").read_bytes() != (whole / "clients.jsonl").read_bytes()
        if lost:  # rows cannot be had again: that is said, and the rest is equal
            assert name == "clients.jsonl" and "clients.jsonl: was" in caplog.text
            shutil.copy(whole / "clients.jsonl", folder)
        assert_same_run(whole, folder)
        assert lost or is_finished(folder, chosen)
        if kind == "finished" and name in ("config.json", "rounds.jsonl", "clients.jsonl"):
            known = damage == "missing" and name != "config.json"
            assert known or reported.status == "damaged", (name, damage, reported)


def test_the_newest_checkpoint_is_passed_over_and_all_bad_is_one_line(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs / "ended", folder)
    flip(folder / "checkpoint/000003/model.safetensors", folder)
    live(tiny(*CHOSEN), folder)
    assert "000003: model.safetensors is damaged (its checksum differs); continued from 000002" in (
        caplog.text
    )
    assert_same_run(runs / "finished", folder)

    for checkpoint in (folder / "checkpoint").iterdir():
        flip(checkpoint / "records.json", folder)
    (folder / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint is whole: 000003: .*; 000002: .*; delet"):
        live(tiny(*CHOSEN), folder)
    assert (folder / "rounds.jsonl").stat().st_size  # nothing was begun anew

    shutil.rmtree(folder / "checkpoint")
    caplog.clear()
    live(tiny(*CHOSEN), folder)
    assert "no checkpoint, begun anew: rounds 1 to 3 are run again" in caplog.text
    assert_same_run(runs / "finished", folder)


def test_a_checkpoint_of_another_run_and_one_without_checksums(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs / "ended", folder)
    shutil.rmtree(folder / "checkpoint/000003")
    shutil.copytree(runs / "other/checkpoint/000003", folder / "checkpoint/000003")
    live(tiny(*CHOSEN), folder)
    assert "000003: is of another run or round; continued from 000002" in caplog.text
    assert_same_run(runs / "finished", folder)

    old = tmp_path / "old"
    shutil.copytree(runs / "ended", old)
    for checkpoint in (old / "checkpoint").iterdir():
        (checkpoint / "manifest.json").unlink()
    live(tiny(*CHOSEN), old)
    assert "no checksum, read as it is" in caplog.text
    assert_same_run(runs / "finished", old)


def test_one_damaged_run_is_a_row_of_the_report(runs: Path, tmp_path: Path) -> None:
    for number, damage in enumerate(DAMAGES.values()):
        for offset, name in enumerate(("summary.json", ".hydra/overrides.yaml")):
            folder = tmp_path / "sweep" / str(2 * number + offset)
            shutil.copytree(runs / "finished", folder)
            (folder / ".hydra").mkdir()
            (folder / ".hydra/overrides.yaml").write_text("[seed=0, name=a]\n")
            damage(folder / name, runs / "other" / "rounds.jsonl")
    shutil.copytree(runs / "other", tmp_path / "sweep" / "12")
    found = write_report([tmp_path / "sweep"], tmp_path / "sweep")
    print_tables(found)
    assert len(found) == 13
    assert found[-1].status == "finished"
    text = (tmp_path / "sweep/summary.csv").read_text()
    assert "summary.json is damaged (no JSON)" in text
    assert ".hydra/overrides.yaml is damaged" in text
