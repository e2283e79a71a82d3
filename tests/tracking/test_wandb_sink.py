"""What lies in an offline run's file, read back byte by byte."""

import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import wandb_reader
import yaml
from wandb_reader import offline_runs, read_only_run
from wandb_server import serving

from app.config.composition import compose
from tracking.record import ClientRecord, RoundRecord
from tracking.wandb_settings import WandbSettings
from tracking.wandb_sink import WandbSink

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "strategy.name": "oqfl", "data.name": "digits", "model._target_": "models.cnn.CNN",
    "quant.bits": 4, "train.lr": 0.1,
    "target_accuracy": None, "clients.per_round": 1.0, "data.shape": [1, 8, 8], "resume": False,
}  # fmt: skip


SETTINGS = WandbSettings(mode="offline", project="cutbit-test")


@pytest.fixture(autouse=True)
def no_wandb_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def record(server_round, **changes):
    values = {
        "round": server_round, "accuracy": server_round / 10, "loss": 1.5, "train_loss": 2.0,
        "num_clients": 5, "num_failed": 1, "num_dropped": 0, "bytes_up": 2**40,
        "bytes_down": server_round, "sim_s": None, "energy_j": None, "wall_s": 0.25,
    }  # fmt: skip
    return RoundRecord(**{**values, **changes})


def expected_rows(records):
    rows, totals = [], {"total_bytes": 0}
    for r in records:
        totals["total_bytes"] += r.bytes_up + r.bytes_down
        row = {name: value for name, value in r.to_dict().items() if value is not None}
        for name in ("sim_s", "energy_j", "wall_s"):
            if name in row:
                totals[f"total_{name}"] = totals.get(f"total_{name}", 0) + row[name]
        if "total_sim_s" in totals:
            totals["total_sim_h"] = totals["total_sim_s"] / 3600
        rows.append({**row, **totals, "_step": r.round})
    return rows


def without_clock(rows):
    return [{k: v for k, v in r.items() if k not in ("_timestamp", "_runtime")} for r in rows]


def write(folder, records, summary, done=(), group="sweep/now"):
    sink = WandbSink(SETTINGS, folder, CONFIG, group, done)
    for r in records:
        sink.round(r, ())
    sink.finish(summary)
    return read_only_run(folder)


def test_a_finished_run_is_whole(tmp_path):
    folder = tmp_path / "digits" / "7"
    folder.mkdir(parents=True)
    records = [
        record(1),
        record(2, accuracy=None, loss=None),
        record(3, sim_s=1.5, energy_j=2.5, extra={"dcor_max": 0.75}),
    ]
    summary = {"final_accuracy": 0.3, "rounds": 3, "versions": {"torch": "x"}, "to_target": None}
    run = write(folder, records, summary)
    assert without_clock(run.history) == expected_rows(records)
    assert {k: run.config[k] for k in CONFIG} == CONFIG
    assert run.group == "sweep/now"
    assert run.name == "oqfl"
    assert run.project == "cutbit-test"
    assert set(run.tags) == {"oqfl", "cnn", "digits"}
    assert run.exit_code == 0
    for name in ("final_accuracy", "rounds"):
        assert run.summary[name] == summary[name]
    assert run.summary["dcor_max"] == 0.75  # the last row of history is there too
    assert run.summary["total_bytes"] == 3 * 2**40 + 6
    for name in ("round", "total_bytes", "total_sim_s", "total_energy_j"):
        assert name in run.metrics
    assert run.metrics["*"].step_metric == "round"
    assert run.metrics["accuracy"].summary.max and run.metrics["loss"].summary.min


def client(number, partition, loss, sim_s=None, status="ok"):
    return ClientRecord(number, partition, None, status, 7, loss, 1, 1, sim_s, None)


def test_clients_are_histograms(tmp_path):
    """Also those of the rounds before this start, from clients.jsonl."""
    before = [client(1, p, float(p)) for p in range(5)]
    now = [client(2, 0, 1.0, 5.0), client(2, 1, 3.0, 6.0), client(2, 2, None, 9.0, "failed")]
    rows = [json.dumps(c.to_dict()) + "\n" for c in before]
    (tmp_path / "clients.jsonl").write_text("".join(rows))
    sink = WandbSink(SETTINGS, tmp_path, CONFIG, "", [record(1)])
    sink.round(record(2), now)
    sink.round(record(3), [])
    sink.finish({})
    first, second, third = read_only_run(tmp_path).history
    assert sum(first["clients/loss.values"]) == 5
    assert (first["clients/loss.bins"][0], first["clients/loss.bins"][-1]) == (0, 4)
    assert sum(second["clients/loss.values"]) == 2
    assert sum(second["clients/sim_s.values"]) == 3
    assert not [name for row in (first, third) for name in row if "sim_s" in name and "c" in name]


def test_model_and_configuration_are_artifacts(tmp_path):
    (tmp_path / ".hydra").mkdir()
    for name in ("model.safetensors", "config.json", ".hydra/config.yaml"):
        (tmp_path / name).write_text(f"this is {name}")
    run = write(tmp_path, [record(1)], {"rounds": 1})
    assert {kind: sorted(files) for kind, files in run.artifacts.items()} == {
        "model": ["model.safetensors"], "config": ["config.json", "config.yaml"],
    }  # fmt: skip
    for files in run.artifacts.values():
        for path in files.values():  # where wandb sync will look: in the run's folder
            assert Path(path).is_relative_to(tmp_path)
            assert Path(path).read_text().startswith("this is")


def test_metrics_are_series_and_the_best_model_is_there(tmp_path):
    """What is no number, such as what a round was evaluated on, is in the configuration alone."""
    for name in ("model.safetensors", "model_best.safetensors"):
        (tmp_path / name).write_text(f"this is {name}")
    extra = {"macro_f1": 0.5, "auroc": float("nan"), "metrics_undefined": 1.0}
    tested = [replace(client(1, p, 1.0), accuracy=p / 4) for p in range(4)]
    sink = WandbSink(SETTINGS, tmp_path, CONFIG)
    sink.round(record(1, extra=extra, evaluated_on="validation"), tested)
    sink.finish({"per_class": {"recall": [1.0, None]}})
    run = read_only_run(tmp_path)
    (row,) = run.history
    assert (row["macro_f1"], row["metrics_undefined"]) == (0.5, 1.0)
    assert "auroc" not in row and "evaluated_on" not in row
    assert sum(row["clients/accuracy.values"]) == 4
    assert sorted(run.artifacts["model"]) == ["model.safetensors", "model_best.safetensors"]
    assert run.summary["per_class"] == {"recall": [1.0, None]}


def test_what_was_offline_goes_up_later(tmp_path):
    """With wandb's own command, to a server on this machine."""
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_text("{}")
    records = [record(1), record(2)]
    write(tmp_path, records, {"rounds": 2})
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    with serving() as server:
        environment = {**os.environ, "WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": server.url}
        command = [str(Path(sys.executable).with_name("wandb")), "sync", str(run)]
        result = subprocess.run(
            command, env=environment, timeout=60, check=False, capture_output=True, text=True
        )
    assert result.returncode == 0, result.stderr
    sent = [{k: v for k, v in row.items() if k != "_step"} for row in without_clock(server.history)]
    expected = [{k: v for k, v in row.items() if k != "_step"} for row in expected_rows(records)]
    assert sent == expected
    assert {given["artifactTypeName"] for given in server.artifacts} == {"model", "config"}


def test_a_run_that_failed_has_no_artifacts(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert write(tmp_path, [record(1)], None).artifacts == {}


def test_a_server_that_does_not_answer_makes_it_offline(tmp_path, monkeypatch, caplog):
    import wandb

    start = wandb.init

    def init(mode, **given):
        if mode == "online":
            raise wandb.errors.CommError("connection refused\nmore")
        return start(mode=mode, **given)

    monkeypatch.setattr(wandb, "init", init)
    sink = WandbSink(replace(SETTINGS, mode="online"), tmp_path, CONFIG, "group")
    sink.round(record(1), ())
    sink.finish({"rounds": 1})
    run = read_only_run(tmp_path)
    assert ([row["round"] for row in run.history], run.exit_code) == ([1], 0)
    assert "connection refused; kept offline, see python -m tracking.sync" in caplog.text


def test_the_sweep_file_drives_main(monkeypatch):
    """Every run that a wandb agent would start is a valid command line."""
    found = yaml.safe_load((ROOT / "docs" / "wandb-sweep.yaml").read_text())
    assert found["program"] == "main.py"
    fixed = [part for part in found["command"] if not part.startswith("${")]
    values = {key: given["values"] for key, given in found["parameters"].items()}
    jobs = [
        [*fixed, *(f"{key}={value}" for key, value in zip(values, chosen, strict=True))]
        for chosen in itertools.product(*values.values())
    ]
    assert len(jobs) > 1
    config = compose(jobs[-1])
    assert config.tracker.wandb.mode == "online"
    assert found["command"][-1] == "${args_no_hyphens}"
    assert found["metric"]["name"] == "final_accuracy"


def test_a_long_run_crosses_blocks(tmp_path):
    """More than 32 KiB, so that records are cut into pieces."""
    records = [record(r, extra={f"metric_{i}": r / 7 + i for i in range(30)}) for r in range(1, 61)]
    run = write(tmp_path, records, {"rounds": 60})
    (path,) = offline_runs(tmp_path)
    assert path.stat().st_size > 2 * wandb_reader.BLOCK
    assert without_clock(run.history) == expected_rows(records)


def test_without_a_summary_the_run_has_failed(tmp_path):
    run = write(tmp_path, [record(1), record(2)], None)
    assert run.exit_code == 1
    assert [row["round"] for row in run.history] == [1, 2]


def test_without_a_group_and_names_there_are_none(tmp_path):
    sink = WandbSink(SETTINGS, tmp_path, {"seed": 3})
    sink.finish({})
    run = read_only_run(tmp_path)
    assert (run.group, run.tags, run.history) == ("", (), [])
    assert run.config["seed"] == 3


def test_continuing_writes_a_whole_run_in_place_of_the_old_one(tmp_path):
    interrupted = write(tmp_path, [record(1), record(2), record(3)], None)
    assert interrupted.exit_code == 1
    (old,) = offline_runs(tmp_path)
    kept = tmp_path / "wandb" / "notes.txt"
    kept.write_text("mine")
    records = [record(r) for r in range(1, 6)]
    run = write(tmp_path, records[2:], {"rounds": 5}, done=records[:2])  # round 3 is run again
    assert without_clock(run.history) == expected_rows(records)
    assert run.exit_code == 0
    assert run.summary["rounds"] == 5
    (new,) = offline_runs(tmp_path)
    assert new.name == old.name  # with the id in it: the same run in wandb
    assert kept.exists()


def test_starting_over_before_the_first_checkpoint_leaves_one_run(tmp_path):
    """resume=true, but the run stopped before its first checkpoint: nothing is done."""
    write(tmp_path, [record(1)], None)
    sink = WandbSink(SETTINGS, tmp_path, CONFIG, "", done=())
    sink.finish({})
    assert len(offline_runs(tmp_path)) == 1


def test_disabled_writes_nothing(tmp_path):
    sink = WandbSink(replace(SETTINGS, mode="disabled"), tmp_path, CONFIG, "group", [record(1)])
    sink.round(record(2), ())
    sink.finish({"rounds": 2})
    assert list(tmp_path.iterdir()) == []


def test_disabled_does_not_import_wandb(tmp_path):
    code = f"""
        import sys, pathlib
        from tracking.wandb_sink import WandbSettings, WandbSink
        settings = WandbSettings(mode="disabled")
        WandbSink(settings, pathlib.Path({str(tmp_path)!r}), {{}}).finish({{}})
        assert "wandb" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=ROOT)


def test_runs_one_after_another_do_not_mix(tmp_path):
    """Jobs of a sweep share a process; the one before may not have been finished."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    left = WandbSink(SETTINGS, tmp_path / "a", CONFIG)
    left.round(record(1), ())
    second = WandbSink(SETTINGS, tmp_path / "b", {"strategy.name": "fedavg"})
    second.round(record(1, accuracy=0.75), ())
    second.round(record(2, accuracy=0.875), ())
    second.finish({"rounds": 2})
    a, b = read_only_run(tmp_path / "a"), read_only_run(tmp_path / "b")
    assert [row["accuracy"] for row in a.history] == [0.1]
    assert [row["accuracy"] for row in b.history] == [0.75, 0.875]
    assert (set(a.tags), set(b.tags)) == ({"oqfl", "cnn", "digits"}, {"fedavg"})
    assert b.exit_code == 0


def test_nothing_is_printed(tmp_path, capfd):
    write(tmp_path, [record(1)], {"rounds": 1})
    out, err = capfd.readouterr()
    assert out == err == ""


def test_a_killed_run_keeps_its_rounds(tmp_path):
    code = f"""
        import os, signal, sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import pathlib
        from test_wandb_sink import CONFIG, SETTINGS, record
        from tracking.wandb_sink import WandbSink
        sink = WandbSink(SETTINGS, pathlib.Path({str(tmp_path)!r}), CONFIG)
        for server_round in range(1, 6):
            sink.round(record(server_round), ())
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT)
    assert ended.returncode == -signal.SIGKILL
    run = read_only_run(tmp_path, enough=lambda run: len(run.history) == 5)
    assert [row["round"] for row in run.history] == [1, 2, 3, 4, 5]


# The reader itself ------------------------------------------------------------------------------


def piece(data, kind):
    crc = zlib.crc32(data, zlib.crc32(bytes([kind])))
    return struct.pack("<IHB", crc, len(data), kind) + data


HEADER = b":W&B" + struct.pack("<HB", 0xBEE1, 0)


def test_reader_joins_pieces_and_skips_padding():
    first = b"a" * (wandb_reader.BLOCK - len(HEADER) - 7 - 3)  # leaves three bytes of padding
    data = HEADER + piece(first, 2) + b"\0" * 3 + piece(b"b", 3) + piece(b"c", 4) + piece(b"d", 1)
    assert wandb_reader.payloads(data) == [first + b"bc", b"d"]


def test_reader_waits_for_what_is_still_written(tmp_path):
    write(tmp_path, [record(1), record(2)], {"rounds": 2})
    (path,) = offline_runs(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    threading.Timer(0.3, path.write_bytes, [whole]).start()
    assert read_only_run(tmp_path).exit_code == 0
    path.write_bytes(whole[:-1])
    with pytest.raises(wandb_reader.CutOffError):
        read_only_run(tmp_path, timeout_s=0.2)


def test_reader_refuses_what_is_damaged():
    data = HEADER + piece(b"hello", 1)
    assert wandb_reader.payloads(data) == [b"hello"]
    with pytest.raises(AssertionError, match="checksum"):
        wandb_reader.payloads(data[:-1] + b"!")
    for length in (0, 5, len(HEADER) + 3, len(data) - 1):
        with pytest.raises(wandb_reader.CutOffError, match="cut off"):
            wandb_reader.payloads(data[:length])
    with pytest.raises(AssertionError, match="not a wandb file"):
        wandb_reader.payloads(b"x" * 20)
