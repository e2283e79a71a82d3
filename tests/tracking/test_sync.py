"""`python -m tracking.sync`, against a server on this machine."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
import wandb_reader
from test_wandb_sink import CONFIG, SETTINGS, record
from wandb_reader import offline_runs, read_only_run
from wandb_server import Server, serving

from tracking import sync, wandb_file, wandb_names
from tracking.files import DamagedError
from tracking.sync import Place, Seen, main
from tracking.wandb_sink import Inputs, WandbSink

KEY = "a" * 40


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    with serving() as one:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", one.url)
        wandb.teardown()  # else it remembers what it has read
        yield one
    wandb.teardown()


def run(folder: Path, rounds: int, accuracy: float | None = None, done: int = 0) -> None:
    """A run of so many rounds, which has finished where it has an accuracy."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = None
    if accuracy is not None:
        summary = {"final_accuracy": accuracy, "rounds": rounds}
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text("configuration")
        for name in ("model.safetensors", "config.json"):
            (folder / name).write_text(f"{name} of {folder.name}")
        (folder / "summary.json").write_text(json.dumps(summary))
    before = [record(r) for r in range(1, done + 1)]
    inputs = Inputs({"name": "digits"})
    sink = WandbSink(SETTINGS, folder, CONFIG, "digits/now", before, inputs)
    for r in range(done + 1, rounds + 1):
        sink.round(record(r), ())
    sink.finish(summary)
    read_only_run(folder)


def rounds_of(server: Server, folder: Path) -> list[int]:
    """Rounds that the server has of a folder's run."""
    run_id = wandb_names.stored_id(folder)
    assert run_id is not None
    return [row["round"] for row in server.runs[run_id].history]


def test_a_sweep_goes_up_once(
    tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    for number, accuracy in enumerate([0.2, 0.5, None]):
        run(sweep / str(number), 3, accuracy)
    assert main([str(tmp_path)]) == 0
    assert [rounds_of(server, sweep / n) for n in "012"] == [[1, 2, 3]] * 3
    assert [server.runs[str(wandb_names.stored_id(sweep / n))].exit_code for n in "012"] == [
        0,
        0,
        1,
    ]
    assert capfd.readouterr().err.endswith(f"uploaded 3 of 3 runs to {server.url}\n")
    models = [a for a in server.artifacts if a["artifactTypeName"] == "model"]
    assert {a["artifactCollectionName"] for a in models} == {"model-digits-now"}
    best = [a for a in models if any(alias["alias"] == "best" for alias in a["aliases"])]
    assert [json.loads(a["metadata"])["accuracy"] for a in best] == [0.5]  # 0.2 was when it ended
    assert set(server.committed) == set(server.versions.values())
    for content in (b"model.safetensors of 0", b"config.json of 1", b"configuration"):
        assert content in server.uploads
    server.operations.clear()
    assert main([str(sweep)]) == 0
    assert capfd.readouterr().err == "all 3 runs are uploaded; --again uploads them once more\n"
    assert server.operations == []


def test_again_after_a_failure_without_doubles(tmp_path: Path, server: Server) -> None:
    for number in "01":
        run(tmp_path / number, 3, 0.5)
    server.refuses = 10**6
    assert main([str(tmp_path)]) == 1
    assert server.runs == {}
    server.refuses, server.fails = 0, "RunResumeStatus"  # what it has cannot be asked
    assert main([str(tmp_path)]) == 1
    assert server.runs == {}
    server.fails = "CreateArtifact"  # in the middle: history is there
    assert main([str(tmp_path)]) == 1  # wandb itself says that it is done
    server.fails = ""
    assert main([str(tmp_path)]) == 0
    assert [rounds_of(server, tmp_path / n) for n in "01"] == [[1, 2, 3]] * 2
    assert set(server.committed) == set(server.versions.values())


def test_a_run_that_was_uploaded_resumed_and_uploaded(tmp_path: Path, server: Server) -> None:
    run(tmp_path / "0", 3)
    assert main([str(tmp_path)]) == 0
    run(tmp_path / "0", 5, 0.5, done=2)
    assert main([str(tmp_path)]) == 0
    assert rounds_of(server, tmp_path / "0") == [1, 2, 3, 4, 5]
    (there,) = server.runs.values()
    assert there.summary["accuracy"] == {"max": 0.5, "last": 0.5}
    assert there.exit_code == 0


@pytest.mark.parametrize("is_here", [False, True])
def test_a_sweep_of_another_machine(tmp_path: Path, server: Server, is_here: bool) -> None:
    """Moved, and copied: the second is the same run as the first, not one beside it."""
    before, now = tmp_path / "there" / "sweep", tmp_path / "here" / "sweep"
    for number, accuracy in enumerate([0.2, 0.5]):
        run(before / str(number), 2, accuracy)
    shutil.copytree(before, now, symlinks=True)
    if is_here:
        assert main([str(before)]) == 0
        for number in "01":  # what lies there now is another's
            (before / number / "model.safetensors").write_text("other")
    else:
        shutil.rmtree(before)
    assert main([str(now)]) == 0
    assert [rounds_of(server, now / n) for n in "01"] == [[1, 2]] * 2
    assert len(server.runs) == 2
    assert b"model.safetensors of 1" in server.uploads and b"other" not in server.uploads
    assert b"configuration" in server.uploads
    assert main([str(now)]) == 0


def test_what_is_not_there_is_left_out_and_said(
    tmp_path: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "0", 2, 0.5)
    (tmp_path / "0" / "model.safetensors").write_text("another's")
    server.fails = "ProjectArtifacts"  # as on a server that does not know how to say it
    assert main([str(tmp_path)]) == 0
    assert "model-digits-now: " in (said := capfd.readouterr().err)
    assert "whether config-digits-now arrived is not known: " in said
    assert "model.safetensors is not there as it was; left out" in said
    assert {a["artifactTypeName"] for a in server.artifacts} == {"dataset", "config"}


def test_what_cannot_be_uploaded_is_one_line(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main([str(tmp_path / "none")]) == 1
    assert main([str(tmp_path)]) == 1
    run(tmp_path / "0", 1)
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()
    assert main([str(tmp_path)]) == 1
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    wandb.teardown()
    (file,) = offline_runs(tmp_path / "0")
    file.write_bytes(b"damaged")
    assert main([str(tmp_path)]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == f"error: {tmp_path / 'none'}: no such folder"
    assert lines[1].startswith(f"error: {tmp_path}: no runs of wandb there; --online")
    assert lines[2] == f"error: no key for {server.url}; set WANDB_API_KEY or run wandb login"
    assert lines[3] == f"error: {file}: is no file of wandb"


def test_files_elsewhere_and_of_another_project(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    wandb.teardown()
    (tmp_path / "runs" / "0").mkdir(parents=True)
    sink = WandbSink(SETTINGS, tmp_path / "runs" / "0", CONFIG)
    sink.round(record(1), ())
    sink.finish(None)
    read_only_run(tmp_path / "elsewhere")
    monkeypatch.delenv("WANDB_DIR")
    wandb.teardown()
    assert main([str(tmp_path / "runs"), "--project=other"]) == 0
    (there,) = server.runs.values()
    assert (there.given["project"], len(there.rows)) == ("other", 1)


# The file ---------------------------------------------------------------------------------------


def test_what_is_written_is_what_was_read(tmp_path: Path) -> None:
    chosen = random.Random(0)
    block = wandb_file.BLOCK
    sizes = [0, 1, block - 21, block - 14, block - 7, block, 3 * block, 5, block - 10]
    sizes += [chosen.randrange(3 * block) for _ in range(40)]
    given = [chosen.randbytes(size) for size in sizes]
    content = wandb_file.packed(given)
    assert list(wandb_file.records(content)) == given
    assert wandb_reader.payloads(content) == given  # an independent reader
    for end in (len(content) - 1, len(content) // 2, 7):  # cut off: what is whole
        kept = list(wandb_file.records(content[:end]))
        assert kept == given[: len(kept)]
    with pytest.raises(DamagedError, match="checksum differs"):
        list(wandb_file.records(content[:-1] + bytes([content[-1] ^ 1])))
    with pytest.raises(DamagedError, match="is no file of wandb"):
        list(wandb_file.records(b"x" * 20))


def test_an_unchanged_run_is_not_copied(tmp_path: Path) -> None:
    run(tmp_path / "0", 3, 0.5)
    (file,) = offline_runs(tmp_path / "0")
    (tmp_path / "aside").mkdir()
    asked = []

    def ask(place: Place) -> Seen:
        asked.append(place)
        return Seen()

    assert wandb_file.packed(wandb_file.records(file.read_bytes())) == file.read_bytes()
    one = sync.prepare(file, tmp_path / "0", tmp_path / "aside", ask)
    assert one.place == file
    assert asked == [Place(str(wandb_names.stored_id(tmp_path / "0")), "cutbit-test")]
