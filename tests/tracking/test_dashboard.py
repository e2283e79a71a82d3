"""`python -m tracking.dashboard`: what would be sent, and that it is of what is logged."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb
from test_wandb_sink import CONFIG, SETTINGS, client, record
from wandb_reader import read_only_run, table_of
from wandb_server import serving

from app.config.composition import compose
from app.experiment import resolve
from app.sinks import effective
from tracking import dashboard
from tracking.wandb_sink import WandbSink

SWEEP = "digits/now"


pytestmark = [
    pytest.mark.usefixtures("no_wandb_environment"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces"),
]


def sent(made: Any) -> dict[str, Any]:
    """The definition, as it is sent."""
    found: dict[str, Any] = json.loads(
        made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    )
    return found


def panels(sections: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(one["viewType"], one["config"]) for part in sections for one in part["panels"]]


def test_the_workspace() -> None:
    made = dashboard.workspace("me", "cutbit", SWEEP)
    spec = sent(made)
    (runs,) = spec["section"]["runSets"]
    asked = [(one["key"]["name"], one["op"], one["value"]) for one in runs["filters"]["filters"]]
    assert asked == [("group", "=", SWEEP), ("jobType", "!=", "report")]
    found = panels(spec["section"]["panelBankConfig"]["sections"])
    lines = [config for kind, config in found if kind == "Run History Line Plot"]
    over = [(one["xAxis"], one.get("xLogScale")) for one in lines if one["metrics"] == ["accuracy"]]
    assert over == [
        ("round", None), ("total_bytes", True), ("total_sim_h", None), ("total_energy_j", None),
    ]  # fmt: skip
    scatter = [config for kind, config in found if kind == "Scatter Plot"]
    assert [one["xAxis"] for one in scatter] == [
        "summary:total_bytes", "summary:total_sim_s", "summary:total_energy_j",
    ]  # fmt: skip
    assert all(one["yAxis"] == "summary:final_accuracy" for one in scatter)
    assert all(one["showMaxYAxisLine"] for one in scatter)  # the front
    (parallel,) = [config for kind, config in found if kind == "Parallel Coordinates Plot"]
    assert [column["accessor"] for column in parallel["columns"]] == [
        "config:effective.weight_bits.value", "config:effective.act_bits.value",
        "config:effective.cut.value", "config:effective.ratio.value",
        "summary:total_bytes", "summary:final_accuracy",
    ]  # fmt: skip
    charts = [config for kind, config in found if kind == "Vega2"]
    assert {one["panelDefId"] for one in charts} == {"wandb/histogram/v0"}
    assert all('"clients/results"' in json.dumps(one["userQuery"]) for one in charts)
    again = type(made)._from_model(made._to_model())  # as the package reads it back
    assert [section.name for section in again.sections] == list(dashboard.sections())
    assert again.runset_settings.filters == made.runset_settings.filters


def test_the_report_has_the_same_panels() -> None:
    spec = sent(dashboard.report("me", "cutbit", SWEEP))
    grids = [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]
    heads = [block["children"][0]["text"] for block in spec["blocks"] if block["type"] == "heading"]
    assert heads == list(dashboard.sections())
    found = [kind for grid in grids for kind, _ in panels([grid["panelBankSectionConfig"]])]
    bank = sent(dashboard.workspace("me", "cutbit"))["section"]["panelBankConfig"]["sections"]
    assert found == [kind for kind, _ in panels(bank)]
    for grid in grids:
        (runs,) = grid["runSets"]
        assert runs["name"] == SWEEP and len(runs["filters"]["filters"]) == 2


def test_panels_read_what_is_logged(tmp_path: Path) -> None:
    config = CONFIG | effective(resolve(compose(["strategy=fedavg", "data=digits"])))
    sink = WandbSink(SETTINGS, tmp_path, config)
    trained = [replace(client(1, p, 1.0, 5.0), energy_j=2.0, accuracy=0.5) for p in range(2)]
    sink.round(record(1, sim_s=1800.0, energy_j=4.0), trained)
    sink.finish({"rounds": 1, "final_accuracy": 0.1})
    run = read_only_run(tmp_path)
    (row,) = run.history
    assert row["total_sim_h"] == 0.5
    assert {metric for _, metric, _ in dashboard.AXES} <= row.keys()
    assert {metric for _, metric in dashboard.PRICES} | {"final_accuracy"} <= run.summary.keys()
    assert {key: run.config[key] for _, key in dashboard.SETTINGS} == {
        "effective.weight_bits": 32, "effective.act_bits": 32, "effective.cut": "none",
        "effective.ratio": 0.0,
    }  # fmt: skip
    columns = set(table_of(run, tmp_path, dashboard.CLIENTS)["columns"])
    for chart in dashboard.sections()["Clients"][:-1]:
        assert set(chart.chart_fields.values()) <= columns
    assert {f"{key}._type" for key in dashboard.sections()["Clients"][-1].media_keys} <= row.keys()


def test_both_are_saved(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with serving() as server:
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        server.projects = ["other", "cutbit"]
        assert dashboard.main(["me/mistyped"]) == 1
        assert server.views == []
        assert dashboard.main(["me/cutbit", "--sweep", SWEEP]) == 0
        wandb.teardown()
    kinds = [(one["type"], one["displayName"], one["projectName"]) for one in server.views]
    title = "CutBit digits now"
    assert kinds == [("project-view", title, "cutbit"), ("runs", title, "cutbit")]
    assert "Parallel Coordinates Plot" in server.views[0]["spec"]
    assert json.loads(server.views[1]["spec"])["width"] == "fluid"
    said = capfd.readouterr().err.splitlines()
    assert said[0] == f"error: me/mistyped: no such project at {server.url}"
    assert f"{server.url}/me/cutbit?nw=" in said[1]
    assert f"{server.url}/me/cutbit/reports/CutBit-digits-now--V2" in said[2]


def test_what_cannot_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert dashboard.main(["cutbit"]) == 1
    assert dashboard.main(["me/cutbit"]) == 1
    monkeypatch.setattr(dashboard, "PACKAGE", "no_such_package")
    assert dashboard.main(["me/cutbit"]) == 1
    assert capfd.readouterr().err.splitlines() == [
        "error: cutbit: takes entity/project",
        "error: no key for http://127.0.0.1:9; set WANDB_API_KEY or run wandb login",
        "error: wandb-workspaces is not installed; pip install cutbit[dashboard]",
    ]
