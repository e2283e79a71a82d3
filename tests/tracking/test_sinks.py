"""csv, TensorBoard and MLflow, read back by their own readers; also after a resume."""

import csv
import importlib.util
from pathlib import Path

import pytest
from conftest import rounds, simulate
from test_wandb_sink import record

from app.config.composition import compose
from app.experiment import resolve
from tracking.record import ClientRecord
from tracking.sinks import CsvSink, MlflowSink, TensorboardSink, check_tracker


def client(number: int, partition: int) -> ClientRecord:
    return ClientRecord(number, partition, None, "ok", 7, 0.5, 1, 1, None, None)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_the_rows_of_the_run(tmp_path: Path) -> None:
    sink = CsvSink(tmp_path, [], [])
    for number in (1, 2, 3):
        sink.round(record(number), [client(number, p) for p in range(2)])
    sink.finish({})
    before = [record(1), record(2)]
    sink = CsvSink(tmp_path, before, [client(n, p).to_dict() for n in (1, 2) for p in range(2)])
    sink.round(record(3, extra={"=more": 1.5}), [client(3, 0)])
    sink.finish(None)
    found = read_csv(tmp_path / "rounds.csv")
    assert [row["round"] for row in found] == ["1", "2", "3"]
    assert [row["'=more"] for row in found] == ["", "", "1.5"]  # text, for a spreadsheet
    assert [row["accuracy"] for row in found] == ["0.1", "0.2", "0.3"]
    people = [(row["round"], row["partition"]) for row in read_csv(tmp_path / "clients.csv")]
    assert people == [("1", "0"), ("1", "1"), ("2", "0"), ("2", "1"), ("3", "0")]


def test_tensorboard_has_every_round_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    TensorboardSink(tmp_path, []).round(record(1), ())  # killed
    sink = TensorboardSink(tmp_path, [record(1)])
    sink.round(record(2, extra={"dcor_max": 0.75}), ())
    sink.finish({})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()

    def values(name: str) -> list[tuple[int, float]]:
        return [
            (e.step, round(float(e.tensor_proto.float_val[0]), 6)) for e in events.Tensors(name)
        ]

    assert values("accuracy") == [(1, 0.1), (2, 0.2)]
    assert values("dcor_max") == [(2, 0.75)]
    assert [step for step, _ in values("total_bytes")] == [1, 2]
    assert "sim_s" not in events.Tags()["tensors"]


def test_mlflow_has_one_run_for_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "server").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "run"
    folder.mkdir()
    config = {"quant.bits": 4, **{f"key{i}": "x" * 9000 for i in range(150)}}
    first = MlflowSink(folder, "oqfl seed=0", "digits", config, [])
    for number in (1, 2, 3):
        first.round(record(number), ())
    first.finish(None)
    second = MlflowSink(folder, "oqfl seed=0", "digits", config, [record(1), record(2)])
    for number in (3, 4):
        second.round(record(number), ())
    second.finish({"final_accuracy": 0.4, "rounds": 4, "strategy": "oqfl"})
    with monkeypatch.context() as patch:  # a server that goes away does not end a run
        patch.setattr(MlflowClient, "log_batch", None)
        patch.setattr(MlflowClient, "set_terminated", None)
        second.round(record(5), ())
        second.finish(None)
    assert caplog.text.count("mlflow: round 5 is not logged: ") == 1
    assert caplog.text.count("mlflow: the end of the run is not logged: ") == 1
    there = MlflowClient(uri)
    experiment = there.get_experiment_by_name("digits")
    (one,) = there.search_runs([experiment.experiment_id])
    assert (one.info.run_name, one.info.status) == ("oqfl seed=0", "FINISHED")
    assert (one.data.params["quant.bits"], len(one.data.params)) == ("4", 151)
    history = there.get_metric_history(one.info.run_id, "accuracy")
    assert sorted((m.step, m.value) for m in history) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert one.data.metrics["final_accuracy"] == 0.4


def test_what_is_not_there_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        for name in ("tensorboard", "mlflow"):
            message = rf"^tracker={name}: {name} is not installed; pip install cutbit\[{name}\]"
            with pytest.raises(ValueError, match=message):
                check_tracker(name)
        for name in ("wandb", "csv", "none"):
            check_tracker(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(ValueError, match=r"^tracker=mlflow: takes a server in MLFLOW_TRACKING_"):
        check_tracker("mlflow")
    with pytest.raises(ValueError, match=r"^tracker\.name=x: takes wandb, csv, tensorboard, mlfl"):
        resolve(compose(["tracker.name=x"]))


def test_another_tracker_takes_wandbs_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")  # which is not asked
    one, two = resolve(compose([])), resolve(compose(["tracker=csv"]))
    assert one.hash == two.hash and two.wandb.mode == "disabled"
    simulate(tmp_path / "run", "strategy=fedavg", "rounds=2", "tracker=csv")
    found = read_csv(tmp_path / "run" / "rounds.csv")
    assert [int(row["round"]) for row in found] == [r["round"] for r in rounds(tmp_path / "run")]
    assert not (tmp_path / "run" / "wandb").exists()
