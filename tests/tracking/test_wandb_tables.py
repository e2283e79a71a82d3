"""Tables at the end of a run, alerts, and what of them is uploaded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb
from test_wandb_sink import CONFIG, SETTINGS, client, record
from wandb_reader import read_only_run, table_of
from wandb_server import serving

from tracking.files import DamagedError
from tracking.metrics_file import read_metrics
from tracking.sync import main
from tracking.wandb_sink import WandbSink
from tracking.wandb_tables import ClientTally, Table, of_classes, of_confusion, of_rows

FINAL = {
    "accuracy": 0.5,
    "per_class": {"recall": [1, 0.5], "support": [2, 2]},
    "edge_per_class": {"recall": [0, None]},
    "confusion_matrix": [[2, 0], [1, 1]],
    "clients": {"0": {"device": "phone", "held_out": 3, "accuracy": 0.75}, "7": {"accuracy": 0.25}},
}
FOUND = {"evaluated_on": "test", "labels": ["cat", "dog"], "final": FINAL}


pytestmark = pytest.mark.usefixtures("no_wandb_environment")


def rows() -> list[list[dict[str, Any]]]:
    """Two rounds of three clients."""
    first = [client(1, 0, 2.0, 5.0), client(1, 1, 3.0, 6.0), client(1, 2, None, 9.0, "failed")]
    second = [client(2, 0, 1.0, 7.0), client(2, 1, None, None, "absent")]
    return [[one.to_dict() for one in clients] for clients in (first, second)]


def test_a_client_is_a_row_of_what_it_did() -> None:
    tally = ClientTally()
    for clients in rows():
        tally.add(clients)
    table = tally.table({"1": {"device": None, "accuracy": 0.5}, "9": {"accuracy": 0.25}})
    found = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    ways = {"bytes_up": 2, "bytes_down": 2}
    assert found[0] == {
        "partition": 0, "samples": 7, "rounds absent": 0, "rounds failed": 0, "rounds ok": 2,
        "last loss": 1.0, "accuracy": None, "sim_s": 12.0, **ways,
    }  # fmt: skip
    assert (found[1]["rounds absent"], found[1]["rounds ok"], found[1]["sim_s"]) == (1, 1, 6.0)
    assert (found[1]["last loss"], found[1]["accuracy"]) == (3.0, 0.5)
    assert (found[2]["rounds failed"], found[2]["last loss"]) == (1, None)
    assert (found[3]["partition"], found[3]["accuracy"], found[3]["samples"]) == (9, 0.25, None)
    assert "energy_j" not in table.columns and table.left_out == 0
    few = tally.table({}, most=2)
    assert ([row[0] for row in few.rows], few.left_out) == ([0, 1], 1)


def test_classes_and_what_was_taken_for_what() -> None:
    assert of_classes(FOUND) == Table(
        ["class", "recall", "support", "edge recall"], [["cat", 1, 2, 0], ["dog", 0.5, 2, None]]
    )
    matrix = of_confusion(FOUND)
    assert matrix is not None and list(matrix.rows) == [
        ["cat", "cat", 2], ["cat", "dog", 0], ["dog", "cat", 1], ["dog", "dog", 1],
    ]  # fmt: skip
    assert of_classes({}) is None and of_confusion({}) is None
    nameless = of_confusion({"labels": None, "final": FINAL})
    assert nameless is not None and nameless.rows[1] == ["0", "1", 0]
    assert of_confusion({"final": {"confusion_matrix": [[1] * 101] * 101}}) is None
    assert of_rows([]) == Table([], [])


@pytest.mark.parametrize("content", ["{", "[]", '{"final": 3}'])
def test_a_damaged_file_of_metrics_is_said(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(DamagedError, match=r"metrics\.json"):
        read_metrics(tmp_path)
    WandbSink(SETTINGS, tmp_path, CONFIG).finish({"rounds": 0})
    assert "metrics.json" in caplog.text
    assert read_only_run(tmp_path).exit_code == 0


def finished(folder: Path, done: int = 0, last: int = 2, **settings: Any) -> None:
    """A run with metrics of classes and clients."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(FOUND))
    before = [record(r) for r in range(1, done + 1)]
    sink = WandbSink(replace(SETTINGS, **settings), folder, CONFIG, "", before)
    for r in range(done + 1, last + 1):
        sink.round(record(r), [client(r, p, 1.0) for p in range(3)])
    sink.finish({"rounds": last, "final_accuracy": 0.5, "ended_by": "target_accuracy"})
    read_only_run(folder)


def test_a_run_ends_with_tables(tmp_path: Path) -> None:
    finished(tmp_path)
    run = read_only_run(tmp_path)
    assert len(run.history) == 2  # no row of their own: a continued run needs the step
    clients = table_of(run, tmp_path, "clients/results")
    accuracy = clients["columns"].index("accuracy")
    assert [(row[0], row[accuracy]) for row in clients["data"]] == [
        (0, 0.75), (1, None), (2, None), (7, 0.25),
    ]  # fmt: skip
    assert table_of(run, tmp_path, "classes")["data"][0][:2] == ["cat", 1]
    cells = table_of(run, tmp_path, "confusion_matrix_table")
    assert cells["data"][2] == ["dog", "cat", 1]
    shown = run.config["_wandb.visualize.confusion_matrix"]["panel_config"]
    assert shown["panelDefId"] == "wandb/confusion_matrix/v1"
    assert "confusion_matrix_table" in json.dumps(shown["userQuery"])
    assert sorted(run.artifacts["tables"]) == [
        "classes.table.json", "clients/results.table.json", "confusion_matrix_table.table.json",
    ]  # fmt: skip
    for path in run.artifacts["tables"].values():
        assert Path(path).is_relative_to(tmp_path) and Path(path).is_file()


def test_more_clients_than_are_shown_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = WandbSink(SETTINGS, tmp_path, CONFIG)
    sink.round(record(1), [client(1, p, 1.0) for p in range(1002)])
    sink.finish({"rounds": 1})
    assert caplog.text.count("wandb: table clients/results has the first 1000 of 1002") == 1
    run = read_only_run(tmp_path)
    assert len(table_of(run, tmp_path, "clients/results")["data"]) == 1000


def test_alerts_are_given_where_they_are_asked_for(tmp_path: Path) -> None:
    found = []
    for number, (on, summary) in enumerate(
        [
            (False, None),
            (True, None),
            (True, {"rounds": 1, "final_accuracy": 0.5, "ended_by": "rounds"}),
            (True, {"rounds": 1, "final_accuracy": 0.5, "ended_by": "target_accuracy"}),
            (True, {"rounds": 1, "final_accuracy": None, "ended_by": "evaluate.patience"}),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        sink = WandbSink(replace(SETTINGS, alerts=on), folder, CONFIG)
        sink.round(record(1), ())
        sink.finish(summary)
        found.append([(*one[:2], one[2].split(";")[0]) for one in read_only_run(folder).alerts])
    assert found == [
        [],
        [("ERROR", "failed: oqfl", "no result after round 1")],
        [("INFO", "finished: oqfl", "1 rounds, accuracy 0.5000")],
        [("INFO", "reached its target: oqfl", "1 rounds, accuracy 0.5000")],
        [("INFO", "ended by evaluate.patience: oqfl", "1 rounds")],
    ]


def test_tables_and_alerts_arrive_once_from_wherever_the_run_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before, now = tmp_path / "before", tmp_path / "now"
    finished(before, alerts=True)
    shutil.move(before, now)
    with serving() as server:
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb.teardown()
        assert main([str(now)]) == 0
        assert "left out" not in capfd.readouterr().err
        finished(now, done=2, last=5, alerts=True)
        assert main([str(now)]) == 0
        wandb.teardown()
    (run,) = server.runs.values()
    assert [row["round"] for row in run.history] == [1, 2, 3, 4, 5]
    assert run.summary["classes"]["nrows"] == 2
    assert run.config["_wandb"]["visualize"]["confusion_matrix"]["panel_type"] == "Vega2"
    kept = [one for one in server.artifacts if one["artifactTypeName"] == "tables"]
    assert {one["artifactCollectionName"] for one in kept} == {f"tables-{run.id}"}
    assert len({one["digest"] for one in kept}) == 2  # of two ends
    assert set(server.committed) == set(server.versions.values())
    titles = [one["title"] for one in server.alerts]
    assert titles == ["reached its target: oqfl"] * 2
