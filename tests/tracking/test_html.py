"""report.html: what it holds, that other people's text stays text, and how it is used."""

import json
import re

import pytest

from runs import client_row, make_run, make_seeds, round_row
from tracking.collect import find
from tracking.html import clients, curves, describe, embed, render, write_html
from tracking.text import line

NASTY = "</script><script>alert(1)</script><!-- <b>&amp; \u2028 {{data}}"


def shown(page):
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(data)


def test_totals_run_over_the_rounds():
    rows = [round_row(1, None, extra_metric=7.0), round_row(2, 0.5), round_row(3, 0.1234567890123)]
    assert curves(rows) == {
        "round": [1, 2, 3], "accuracy": [None, 0.5, 0.123457], "train_loss": [1, 0.5, 0.333333],
        "num_clients": [2, 2, 2], "num_failed": [0, 0, 0], "num_dropped": [0, 0, 0],
        "extra_metric": [7, None, None], "bytes": [110, 220, 330], "wall_s": [0.5, 1, 1.5],
    }  # fmt: skip
    assert curves([]) == {}


def test_seconds_and_joules_are_there_where_every_round_has_them():
    rows = [round_row(r, 0.5, sim_s=2.0, energy_j=1.0 if r == 1 else None) for r in (1, 2)]
    assert curves(rows)["sim_s"] == [2, 4]
    assert "energy_j" not in curves(rows)


def test_one_value_a_client():
    rows = [
        client_row(1, 0, loss=3.0, sim_s=1.0), client_row(1, 1, loss=9.0, sim_s=5.0),
        client_row(2, 0, loss=2.0, sim_s=3.0), client_row(2, 1, status="failed", loss=None),
        client_row(1, 2, device="phone", loss=None, bytes_up=1, bytes_down=2),
    ]  # fmt: skip
    assert clients(rows) == {
        "": {"loss": [2, 9], "sim_s": [2, 5], "bytes": [55, 55]}, "phone": {"bytes": [3]},
    }  # fmt: skip
    assert clients([]) == {}


def test_many_clients_are_their_quantiles():
    found = clients([client_row(1, p, loss=float(1000 - p)) for p in range(1001)])[""]["loss"]
    assert found == [i * 10 for i in range(101)]


def test_nothing_in_the_page_ends_the_script():
    text = embed({"a": NASTY, "b": [NASTY]})
    assert "<" not in text
    assert json.loads(text) == {"a": NASTY, "b": [NASTY]}


def test_the_page_holds_what_is_nasty_as_text(tmp_path):
    config = {"seed": 0, "name": NASTY}
    make_run(tmp_path / "0", [f"model.x={NASTY}"], config, error=f"Traceback\n{NASTY}\n")
    page = render(find([tmp_path]), NASTY)
    assert page.count("alert(1)</script>") == 0
    assert shown(page)["runs"][0]["error"] == line(NASTY)
    assert shown(page)["runs"][0]["config"] == config | {"name": line(NASTY)}
    assert "<title>&lt;/script&gt;" in page


def test_not_a_number_is_null(tmp_path):
    make_run(tmp_path / "0", [], {"x": [float("nan")]}, {"loss": float("inf"), "n": 1e-30})
    (run,) = describe(find([tmp_path]), "")["runs"]
    assert (run["config"], run["summary"]) == ({"x": [None]}, {"loss": None, "n": 1e-30})


def test_the_file_needs_nothing_from_elsewhere(tmp_path):
    make_seeds(tmp_path)
    write_html(tmp_path / "report.html", find([tmp_path]), "x")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:)', page.split("<script>")[0])
    assert "default-src 'none'" in page
    assert len(page) < 6e6
    assert not list(tmp_path.glob("*.part"))


# In a browser ------------------------------------------------------------------------------------


@pytest.fixture
def open_page(chromium):
    """Opens a report at a width; whatever the console says fails the test."""
    said, pages = [], []

    def opened(path, width=1280):
        is_phone = width < 640
        context = chromium.new_context(
            viewport={"width": width, "height": 800}, is_mobile=is_phone, has_touch=is_phone
        )
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append("alert"))
        page.goto(f"file://{path}")
        pages.append(context)
        return page

    yield opened
    for context in pages:
        context.close()
    assert said == []


def report(tmp_path):
    write_html(tmp_path / "report.html", find([tmp_path]), "x")
    return tmp_path / "report.html"


def jobs(page):
    return page.locator("#table tbody tr td:first-child").all_inner_texts()


def test_nasty_text_runs_nowhere(tmp_path, open_page):
    for number in (0, 1):
        make_run(
            tmp_path / str(number), [f"model.x={NASTY}{number}"], {"model.x": f"{NASTY}{number}"},
            {"final_accuracy": 0.5, "total_bytes_up": 1, "total_bytes_down": number},
            rounds=[round_row(1, 0.5)], clients=[client_row(1, 0, device=NASTY)],
        )  # fmt: skip
    make_run(tmp_path / "2", [NASTY], {}, error=NASTY)
    page = open_page(report(tmp_path))
    for name in ("curves", "front", "effects", "clients"):
        page.locator(f"#{name}").scroll_into_view_if_needed()
        page.locator(f"#{name} .main-svg").first.wait_for()
    assert page.locator("script").count() == 3
    assert page.locator("td b, text b").count() == 0
    assert "failed" in page.locator("#table").inner_text()
    assert page.locator("td.status small").text_content() == line(NASTY)


def test_filters(tmp_path, open_page):
    make_seeds(tmp_path)
    make_run(tmp_path / "7", ["seed=9"], error="Traceback\nValueError: too hot")
    page = open_page(report(tmp_path))
    assert "8 runs: 7 finished, 1 failed" in page.locator("#counts").inner_text()
    for text, found in {
        "quant.bits=4": ["2", "3"], "oqfl seed=1": ["1", "3"], "accuracy>=0.875": list("3456"),
        "accuracy<0.6": ["0"], "too hot": ["7"], "same": ["6"], "nothing": [],
        "strategy=fedavg": ["4", "5", "6"], "": list("01234567"),
    }.items():  # fmt: skip
        page.locator("#filter").fill(text)
        assert jobs(page) == found, text
    page.locator("#filter").fill("nothing at all")
    for name in ("curves", "front"):
        page.locator(f"#{name}").scroll_into_view_if_needed()
        page.get_by_text("nothing to show").first.wait_for()


def test_equal_accuracies_are_not_drawn_on_an_axis_beyond_1(tmp_path, open_page):
    for job, strategy in enumerate(("fedavg", "oqfl")):
        summary = {"final_accuracy": 0.9375, "total_bytes_up": 1000 * (job + 1),
                   "total_bytes_down": 0}  # fmt: skip
        config = {"seed": 0, "strategy.name": strategy}
        make_run(tmp_path / str(job), [f"strategy={strategy}"], config, summary)
    page = open_page(report(tmp_path))
    page.locator("#front").scroll_into_view_if_needed()
    page.locator("#front-list").get_by_text("Filled").wait_for()
    ends = page.evaluate("document.getElementById('front-chart').layout.yaxis.range")
    assert ends == pytest.approx([0.8875, 0.9875])


def test_the_front_is_what_nothing_beats(tmp_path, open_page):
    make_seeds(tmp_path)
    page = open_page(report(tmp_path))
    page.locator("#front").scroll_into_view_if_needed()
    page.locator("#front-list").get_by_text("Filled").wait_for()
    assert page.locator("#front-list").inner_text() == (
        "Filled, on the front: strategy=oqfl quant.bits=2 (0.5625, 4 kB) · "
        "strategy=oqfl quant.bits=4 (0.8125, 8 kB) · strategy=fedavg (0.9375, 64 kB)"
    )


def test_what_a_method_adds_can_be_plotted(tmp_path, open_page):
    """Accuracy against leakage, and each key's effect on it."""
    for job, (weight, accuracy, leak) in enumerate([(0, 0.9, 0.8), (1, 0.85, 0.5), (2, 0.6, 0.6)]):
        make_run(
            tmp_path / str(job), [f"privacy.dcor_weight={weight}"], {"privacy.dcor_weight": weight},
            {"final_accuracy": accuracy, "total_bytes_up": 1, "total_bytes_down": 1,
             "final_dcor_max": leak, "final_attack_mse": leak / 10},
            rounds=[round_row(1, accuracy, dcor_max=leak)],
        )  # fmt: skip
    page = open_page(report(tmp_path))
    assert "0.5" in page.locator("#table tbody tr").nth(1).inner_text()
    page.locator("#front").scroll_into_view_if_needed()
    page.locator("#front-x").select_option("final_dcor_max")
    page.locator("#front-list").get_by_text("Filled").wait_for()
    assert page.locator("#front-list").inner_text() == (
        "Filled, on the front: 1 privacy.dcor_weight=1 (0.8500, 0.5) · "
        "0 privacy.dcor_weight=0 (0.9000, 0.8)"
    )
    assert page.locator("#front-x option[value=final_attack_mse]").count() == 0  # more is better
    page.locator("#effect-y").select_option("final_attack_mse")
    page.locator("#effects").scroll_into_view_if_needed()
    page.locator("#effects .main-svg").first.wait_for()
    drawn = page.evaluate("document.querySelector('#effects-charts .chart').data[0].y")
    assert drawn == pytest.approx([0.08, 0.05, 0.06])


def test_accuracy_against_bytes_says_whose_a_point_is_without_a_click(tmp_path, open_page):
    for number, (ratio, total) in enumerate([(0, 1600), (0.5, 800), (0.9375, 100)]):
        make_run(
            tmp_path / str(number), [f"prune.ratio={ratio}"], {"prune.ratio": ratio},
            {"final_accuracy": 0.9 - ratio / 9, "total_bytes_up": total, "total_bytes_down": total},
        )  # fmt: skip
    page = open_page(report(tmp_path))
    page.locator("#front").scroll_into_view_if_needed()
    for ratio in ("0", "0.5", "0.9375"):
        page.locator("#front-chart .textpoint").get_by_text(ratio, exact=True).wait_for()
    x, y = (page.locator(f"#front-chart .{axis}title").first.text_content() for axis in ("x", "y"))
    assert (x, y) == ("bytes, up and down", "final accuracy")
    points = page.evaluate(
        "document.getElementById('front-chart').data.slice(1).map(t => [t.text[0], t.x[0], t.y[0]])"
    )
    assert [(ratio, spent) for ratio, spent, _ in points] == [
        ("0", 3200), ("0.5", 1600), ("0.9375", 200)
    ]  # fmt: skip


def test_seeds_are_mean_and_deviation_or_runs(tmp_path, open_page):
    make_seeds(tmp_path)
    page = open_page(report(tmp_path))

    def lines():
        page.locator("#curves .main-svg").first.wait_for()
        return page.evaluate(
            "document.getElementById('curves-chart').data.filter(t => t.fill !== 'toself')"
            ".map(t => t.y.filter(y => y !== null))"
        )

    page.locator("#curves").scroll_into_view_if_needed()
    assert lines() == [[0.5625], [0.8125], [0.9375]]
    page.get_by_label("seeds as mean").uncheck()
    assert lines() == [[0.5], [0.625], [0.75], [0.875], [0.875], [1]]


@pytest.mark.parametrize("runs", [1, 40])
def test_on_a_phone_nothing_is_wider_than_the_screen(tmp_path, open_page, runs):
    for number in range(runs):
        said = [
            f"a.long.key.of.a.strategy={'x' * 30}",
            f"seed={number}",
            f"quant.bits={number % 9}",
        ]
        config = {"seed": number, "quant.bits": number % 9}
        make_run(
            tmp_path / str(number), said, config,
            {"final_accuracy": 0.5, "total_bytes_up": 1, "total_bytes_down": number},
            rounds=[round_row(1, 0.5, sim_s=1.0)], clients=[client_row(1, 0, device="mid")],
        )  # fmt: skip
    page = open_page(report(tmp_path), width=390)
    for name in ("curves", "clients", "compare"):
        page.locator(f"#{name}").scroll_into_view_if_needed()
    page.locator("#clients .main-svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#front").is_visible() == (runs > 1)


@pytest.mark.long
def test_two_hundred_runs_open_within_three_seconds(tmp_path, open_page):
    import time

    for number in range(200):
        config = {"seed": number % 5, "quant.bits": number // 5}
        make_run(
            tmp_path / str(number), [f"quant.bits={number // 5}", f"seed={number % 5}"], config,
            {"final_accuracy": number / 200, "total_bytes_up": 9 + number, "total_bytes_down": 1},
            rounds=[round_row(r, r / 100 + number / 1000) for r in range(1, 101)],
            clients=[client_row(r, p, loss=r / 7 + p) for r in range(1, 101) for p in range(20)],
        )  # fmt: skip
    began = time.monotonic()
    path = report(tmp_path)
    assert time.monotonic() - began < 20
    assert path.stat().st_size < 15e6
    began = time.monotonic()
    page = open_page(path)
    page.locator("#table tbody tr").nth(199).wait_for(state="attached")
    page.locator("#curves .main-svg").first.wait_for()
    assert time.monotonic() - began < 3
