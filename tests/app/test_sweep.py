"""Sweeps: presets, what is not run again, what is killed and continued, the report at the end."""

import json
import math
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Running, run
from conftest import ROOT, small
from hydra.core.override_parser.overrides_parser import OverridesParser

import tracking
from app.config.composition import compose
from app.jobs import Jobs, expand, finished, preset
from app.run_folder import claim, take
from tracking.collect import find

SMALL = (
    "engine=serial", "clients.total=2", "data.max_train=40", "train.epochs=1", "rounds=2",
    "tracker.wandb.mode=disabled",
)  # fmt: skip
JOBS = ("strategy=oqfl,fedavg", "quant.bits=2,4,8", "seed=0,1")


def summaries(sweep: Path) -> dict[str, Any]:
    return {p.parent.name: json.loads(p.read_text()) for p in sweep.glob("*/summary.json")}


def page_data(sweep: Path) -> Any:
    """What report.html shows, read as a browser would."""
    page = (sweep / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve jobs, killed in the fifth and started again."""
    sweep = tmp_path_factory.mktemp("sweeps") / "first"
    jobs = ("-m", *JOBS, *SMALL, f"hydra.sweep.dir={sweep}")
    process = Running(*jobs)
    deadline = time.monotonic() + 120
    while not (sweep / "4" / "rounds.jsonl").exists():
        assert process.is_running(), "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send(signal.SIGKILL)
    process.wait()
    before = summaries(sweep)
    assert len(before) in (4, 5)
    assert not (sweep / "report.html").exists()
    stamps = {job: (sweep / job / "summary.json").stat().st_mtime_ns for job in before}

    again = run(*jobs, "resume=true")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished already") == len(before)
    assert {job: (sweep / job / "summary.json").stat().st_mtime_ns for job in before} == stamps
    return sweep


def test_killed_and_started_again_the_report_is_whole(sweep: Path) -> None:
    rows = page_data(sweep)["runs"]
    assert [row["job"] for row in rows] == [str(i) for i in range(12)]
    assert all(row["summary"] and len(row["rounds"]["round"]) == 2 for row in rows)
    assert sum(row["status"] == "finished" for row in rows) == 8  # FedAvg reads no bits
    runs, rounds = tracking.load(sweep)
    assert len(runs) == 12
    assert len(rounds) == 24
    assert runs["final_accuracy"].notna().all()


def test_the_report_in_a_browser(sweep: Path, chromium: Any) -> None:
    """Sorted and its axis switched by clicks, without a word on the console or a request."""
    page = chromium.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"file://{sweep / 'report.html'}")
    accuracies = {job: f"{s['final_accuracy']:.4f}" for job, s in summaries(sweep).items()}
    page.get_by_label("every run").check()
    rows = page.locator("#table tbody tr.seed").all_inner_texts()
    assert {row.split("\t")[0].strip(): row.split("\t")[1] for row in rows} == accuracies
    heading = page.get_by_role("button", name="accuracy", exact=True)
    for turn in (1, 2):  # the best were first
        settings = page.locator("#table tbody tr.set td:nth-child(2)").all_inner_texts()
        assert len(settings) == 4
        assert settings == sorted(settings, reverse=turn == 1)
        heading.click()

    def drawn() -> Any:
        page.locator("#curves-chart .main-svg").first.wait_for()
        return page.evaluate(
            "(({data, layout}) => ({title: layout.xaxis.title.text, x: data.map(t => t.x)}))"
            "(document.getElementById('curves-chart'))"
        )

    page.locator("#curves").scroll_into_view_if_needed()
    assert drawn()["title"] == "rounds"
    page.locator("#curve-x").get_by_text("bytes").click()
    assert drawn()["title"] == "bytes, up and down"
    totals = [s["total_bytes_up"] + s["total_bytes_down"] for s in summaries(sweep).values()]
    assert max(x for line in drawn()["x"] for x in line if x is not None) == pytest.approx(
        max(totals), rel=1e-5
    )
    page.locator("#curve-x").get_by_text("simulated time").click()
    seconds = [s["total_sim_s"] for s in summaries(sweep).values()]
    longest = max(x for line in drawn()["x"] for x in line if x is not None)
    assert longest == pytest.approx(max(seconds), rel=1e-5)

    page.locator("[data-key=strategy]").select_option(label="oqfl")
    assert page.locator("#table tbody tr.seed").count() == 6
    page.get_by_role("button", name="job 5: configuration", exact=True).click()
    page.locator("#run-b").select_option(label="1 strategy=oqfl quant.bits=2 seed=1")
    page.get_by_label("differences only").check()
    different = page.locator("#config tr.different").all_inner_texts()
    assert "quant.bits\t8\t2" in different
    for section in ("front", "effects", "clients"):
        page.locator(f"#{section}").scroll_into_view_if_needed()
        page.locator(f"#{section} .main-svg").first.wait_for()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    page.close()


def test_what_has_finished_beside_it_is_taken_over(sweep: Path) -> None:
    second = sweep.parent / "second"
    result = run(
        "-m", "strategy=oqfl,fedavg", "quant.bits=2,3", "seed=1", "target_accuracy=0.01", *SMALL,
        "sweep.skip_finished=true", f"hydra.sweep.dir={second}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = summaries(second)
    same_as = [found[str(i)].get("same_as") for i in range(4)]
    assert same_as[1] is None
    assert (same_as[0], same_as[3]) == ("../first/1", "2")
    assert same_as[2] in [f"../first/{i}" for i in (7, 9, 11)]
    assert all(summary["rounds_to_target"] == 1 for summary in found.values())


def test_a_folder_whose_run_was_killed_as_it_began_can_be_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    config = small()
    claim(tmp_path, config)
    take(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text()) == config.identity
    assert find([tmp_path])[0].status == "unfinished"


def test_without_being_asked_nothing_is_taken_over(tmp_path: Path) -> None:
    assert finished(tmp_path) == {}
    assert not compose([]).sweep.skip_finished


def test_one_job_fails_and_even_calls_exit(tmp_path: Path) -> None:
    target = "strategy._target_=tests.app.faulty.Leaving,strategies.fedavg.FedAvg"
    result = run("-m", "strategy=fedavg", target, *SMALL, f"hydra.sweep.dir={tmp_path}")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("failed: job 1/2 strategy._target_=")
    assert str(tmp_path / "0" / "error.txt") in result.stderr
    failed, fine = page_data(tmp_path)["runs"]
    assert (failed["status"], fine["status"]) == ("failed", "finished")
    assert failed["error"] == "SystemExit: this job is leaving"
    assert failed["summary"] == {}


PRESETS = {
    path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "conf" / "sweep").glob("*.yaml")
}


def choices(key: str, values: str) -> list[str]:
    """The values of a swept key, one of which may be a mapping."""
    (override,) = OverridesParser.create().parse_overrides([f"{key}={values}"])
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [values]


def test_the_presets_are_sweeps_but_for_the_search() -> None:
    assert [name for name, preset in PRESETS.items() if "over" not in preset] == ["search"]


@pytest.mark.parametrize("name", sorted(name for name in PRESETS if "over" in PRESETS[name]))
def test_every_preset_is_a_sweep_of_valid_jobs(name: str) -> None:
    session = Jobs()
    overrides = session.check([f"sweep={name}", "seed=0", "data=digits"], is_sweep=True)
    over = PRESETS[name]["over"]
    jobs = expand(overrides, is_sweep=True)
    assert len(jobs) == math.prod(
        len(choices(key, values)) for key, values in over.items() if key not in ("seed", "data")
    )
    assert len(over["seed"].split(",")) > 1


def test_a_key_on_the_command_line_takes_the_place_of_the_presets() -> None:
    given = ["sweep=bits", "quant.bits=2", "strategy=oqfl"]
    assert preset(given, is_sweep=True) == ["seed=0,1,2"]
    assert preset(["seed=1"], is_sweep=True) == []


def test_a_preset_leaves_an_experiment_its_method() -> None:
    codecs = preset(["experiment=deprune", "sweep=codecs", "seed=0"], is_sweep=True)
    assert codecs == ["link.up=fp32,fp16,int8,int4,int2,topk"]
    bits = preset(["experiment=oqfl", "sweep=bits", "seed=0"], is_sweep=True)
    assert bits == ["strategy=fedavg,oqfl", "quant.bits=2,3,4,8"]  # it is one of them


@pytest.mark.parametrize(
    ("overrides", "is_sweep", "message"),
    [
        (["sweep=bits"], False, "sweep=bits: runs several jobs; takes -m"),
        (["sweep=bits,methods"], True, "sweep: takes one preset"),
        (
            ["sweep=nothing"],
            True,
            "sweep=nothing: takes bits, codecs, cuts, each_phone, leak, methods",
        ),
        (["sweep.skip_finished=maybe"], False, "sweep.skip_finished=maybe: takes true or false"),
    ],
)
def test_what_cannot_be_swept(overrides: list[str], is_sweep: bool, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        preset(overrides, is_sweep)
        compose(overrides)
