"""A sweep's report as a run of the sweep's group."""

from dataclasses import replace
from pathlib import Path

import pytest
import wandb
from test_wandb_sink import SETTINGS
from wandb_reader import offline_runs, read_only_run, table_of
from wandb_server import serving

from runs import make_run, make_seeds
from tracking.collect import find
from tracking.report import write_report
from tracking.sync import main
from tracking.wandb_report import publish, tables

pytestmark = pytest.mark.usefixtures("no_wandb_environment")


def test_tables_of_a_sweep(tmp_path: Path) -> None:
    make_seeds(tmp_path)
    make_run(tmp_path / "9", ["strategy=oqfl", "quant.bits=auto"], error="ValueError: no\n")
    found = tables(find([tmp_path]))
    columns = list(found["sweep/settings"].columns)
    best = dict(zip(columns, found["sweep/settings"].rows[2], strict=True))
    assert best["setting"].startswith("strategy=fedavg")
    assert (best["seeds"], best["final_accuracy"]) == (2, 0.9375)  # 0.875 and 1
    assert best["sd"] == pytest.approx(0.125 / 2**0.5)
    runs = found["sweep/runs"]
    bits = [row[list(runs.columns).index("quant.bits")] for row in runs.rows]
    assert "auto" in bits and all(isinstance(one, str | None) for one in bits)  # of one kind
    assert [row[-1] for row in runs.rows][-1] == "failed"
    pareto = found["sweep/pareto"]
    assert list(pareto.columns) == ["price", "setting", "mean", "accuracy"]
    assert [(row[0], row[2], row[3]) for row in pareto.rows] == [
        ("total_bytes", 4000, 0.5625), ("total_bytes", 8000, 0.8125), ("total_bytes", 64000, 0.9375)
    ]  # fmt: skip
    assert tables([]) == {}


def test_a_sweeps_report_is_one_run_and_goes_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    make_seeds(sweep)
    runs = write_report([sweep], sweep)
    publish(sweep, runs, replace(SETTINGS, mode="disabled"), "digits/now")
    assert not (sweep / "wandb").exists()
    for _ in range(2):  # as after a resume
        publish(sweep, runs, SETTINGS, "digits/now")
    run = read_only_run(sweep)
    assert (run.job_type, run.group, run.name) == ("report", "digits/now", "report digits/now")
    assert (run.exit_code, run.history, run.config.get("seed")) == (0, [], None)
    assert len(table_of(run, sweep, "sweep/runs")["data"]) == len(runs)
    assert run.summary["sweep/report"]["_type"] == "html-file"
    (page,) = offline_runs(sweep)[0].parent.glob("files/media/html/**/*.html")
    assert page.read_bytes() == (sweep / "report.html").read_bytes()
    assert sorted(run.artifacts["report"]) == ["report.html", "summary.csv", "summary.md"]
    assert run.collections["report"] == "report-digits-now"
    with serving() as server:
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        wandb.teardown()
        assert main([str(sweep)]) == 0
        assert main([str(sweep)]) == 0
        assert "all 1 runs are uploaded" in capfd.readouterr().err
    (there,) = server.runs.values()
    assert (there.id, there.given["jobType"], there.exit_code) == (run.id, "report", 0)
    assert there.given["groupName"] == "digits/now"
    assert set(server.committed) == set(server.versions.values())
    assert (sweep / "report.html").read_bytes() in server.uploads
