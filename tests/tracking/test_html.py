"""report.html: what it holds, that other people's text stays text, and how it is used."""

import csv
import json
import re
from xml.etree import ElementTree

import pytest

from runs import client_row, make_run, make_schedules, make_seeds, round_row
from tracking import html
from tracking.collect import find
from tracking.html import (
    MOST_POINTS,
    classes,
    clients,
    curves,
    describe,
    embed,
    render,
    timeline,
    write_html,
)  # fmt: skip
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


def test_of_many_rounds_every_so_many_evaluated_ones_and_the_last_are_drawn(tmp_path):
    rows = [round_row(r, None if r % 2 else r / 100) for r in range(1, 13)]
    found = curves(rows, step=3)
    assert found["round"] == [6, 12]
    assert found["accuracy"] == [0.06, 0.12]
    assert found["bytes"] == [660, 1320]  # totals of all rounds before them
    unevaluated = [round_row(r, None) for r in range(1, 5)]
    assert curves(unevaluated, step=2)["round"] == [2, 4]
    make_run(tmp_path / "0", [], {}, {"rounds": 1}, rounds=[round_row(r, 0.5) for r in (1, 2)])
    assert "notes" in describe(find([tmp_path]), "")
    assert describe(find([tmp_path]), "")["notes"] == []
    assert MOST_POINTS >= 200 * 100  # a sweep of 200 runs of 100 rounds is drawn whole


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


def test_where_all_clients_were_tested_at_the_end_that_is_their_accuracy():
    rows = [client_row(1, 0, device="phone", accuracy=0.2), client_row(1, 1, accuracy=0.3)]
    assert clients(rows)["phone"]["accuracy"] == [0.2]
    found = clients(rows, [("phone", 0.9), ("phone", 0.5), ("tablet", 0.75)])
    assert found["phone"]["accuracy"] == [0.5, 0.9]
    assert found["tablet"] == {"accuracy": [0.75]}  # of which nobody trained
    assert "accuracy" not in found[""]


def test_timeline():
    rows = [
        client_row(1, 2, device="phone"), client_row(1, 0, status="late"), client_row(3, 0),
        client_row(3, 2, device="phone", status="failed"), client_row(3, 1, status="new"),
    ]  # fmt: skip
    found = {"clients": ["0", "1", "2 phone"], "states": ["2.0", "...", "0.6"]}
    assert timeline(rows) == timeline(rows, most=9) == found
    assert timeline(rows, most=8) == timeline([]) == {}


def test_classes():
    final = {
        "accuracy": 0.5, "per_class": {"recall": [1, 0.123456789], "support": [3, None]},
        "edge_per_class": {"recall": [0, 1]}, "confusion_matrix": [[3, 0], [1, 2]],
    }  # fmt: skip
    assert classes({"final": final, "labels": ["cat", NASTY]}) == {
        "measures": {"recall": [1, 0.123457], "support": [3, None], "edge recall": [0, 1]},
        "matrix": [[3, 0], [1, 2]], "labels": ["cat", line(NASTY)],
    }  # fmt: skip
    many = {"per_class": {"recall": [0.5] * 101}, "confusion_matrix": [[1] * 101] * 101}
    assert classes({"final": many}) == classes({"final": {"accuracy": 1}}) == classes({}) == {}
    assert classes({"final": {"confusion_matrix": [[1, 2], 3]}}) == {}


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


def test_a_reason_stands_once_whole_with_its_jobs(tmp_path):
    first = f"Traceback\n  File\nValueError: too hot\n  by 3 K {NASTY}"
    for job, error in enumerate((first, "Traceback\n  Other\nKeyError: 1", first)):
        make_run(tmp_path / str(job), [f"seed={job}"], {"seed": job}, error=error)
    (hot, key) = describe(find([tmp_path]), "")["failures"]
    assert (hot["jobs"], hot["status"]) == (["0", "2"], "failed")
    assert hot["reason"].startswith("ValueError: too hot\n  by 3 K </script>")
    assert hot["traceback"].splitlines()[1] == "  File"
    assert (key["jobs"], key["reason"]) == (["1"], "KeyError: 1")


def test_the_answer_is_there_by_group(tmp_path):
    make_seeds(tmp_path)
    found = describe(find([tmp_path]), "")
    said = found["answer"]
    assert found["groups"][said["best"]] == "strategy=fedavg"
    assert [found["groups"][rival["group"]] for rival in said["rivals"]] == [
        "strategy=oqfl quant.bits=4", "strategy=oqfl quant.bits=2",
    ]  # fmt: skip
    assert [rival["difference"] for rival in said["rivals"]] == [-0.125, -0.375]
    assert {rival["verdict"] for rival in said["rivals"]} == {"few"}
    assert said["fronts"] == {"total_bytes": [0, 1, 2]}


def test_what_there_is_no_room_for_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "MOST_POINTS", 2)
    monkeypatch.setattr(html, "MOST_CELLS", 2)
    monkeypatch.setattr(html, "MOST_BARS", 2)
    make_run(
        tmp_path / "0", [], {"seed": 0}, {"final_accuracy": 0.5},
        rounds=[round_row(r, 0.5) for r in (1, 2, 3, 4)],
        clients=[client_row(1, p, begin_s=0.0, end_s=1.0 + p / 3) for p in range(3)],
    )  # fmt: skip
    final = {"per_class": {"recall": [0.5] * 101}}
    (tmp_path / "0" / "metrics.json").write_text(json.dumps({"final": final}))
    found = describe(find([tmp_path]), "")
    assert found["runs"][0]["rounds"]["round"] == [2, 4]
    works = found["runs"][0]["works"]
    assert (works["num_works"], works["end_s"]) == (3, [1.66667, 1.33333])  # the slowest first
    assert found["runs"][0]["timeline"] == found["runs"][0]["classes"] == {}
    assert found["notes"] == [
        "of each 2 rounds one is drawn, and the last",
        "1 runs have too many clients and rounds for a timeline",
        "1 runs have too many works of clients: the first 2 of each are drawn",
        "1 runs have over 100 classes: their values are in metrics.json",
    ]


@pytest.mark.parametrize(("content", "note"), [("{", "0: "), ('{"final": 3}', "0: metrics.json")])
def test_a_damaged_metrics_json_is_said_and_left_out(tmp_path, content, note):
    make_run(tmp_path / "0", [], {"seed": 0}, {"final_accuracy": 0.5})
    (tmp_path / "0" / "metrics.json").write_text(content)
    found = describe(find([tmp_path]), "")
    assert found["runs"][0]["classes"] == {}
    assert [text[: len(note)] for text in found["notes"]] == [note]


def test_not_a_number_is_null(tmp_path):
    make_run(tmp_path / "0", [], {"x": [float("nan")]}, {"loss": float("inf"), "n": 1e-30})
    (run,) = describe(find([tmp_path]), "")["runs"]
    assert (run["config"], run["summary"]) == ({"x": [None]}, {"loss": None, "n": 1e-30})


def test_the_file_needs_nothing_from_elsewhere(tmp_path):
    make_seeds(tmp_path)
    write_html(tmp_path / "report.html", find([tmp_path]), "x")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page.split("<script")[0])
    assert "default-src 'none'" in page
    assert len(page) < 6e6
    assert not list(tmp_path.glob("*.part"))


# In a browser ------------------------------------------------------------------------------------


@pytest.fixture
def open_page(chromium):
    """Opens a report at a width; whatever the console says fails the test."""
    said, pages = [], []

    def opened(path, width=1280, **options):
        is_phone = width < 640
        context = chromium.new_context(
            viewport={"width": width, "height": 800}, is_mobile=is_phone, has_touch=is_phone,
            **options,
        )  # fmt: skip
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append("alert"))
        page.goto(f"file://{path}")
        page.wait_for_function("window.Plotly")
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
    """Of all rows, in the order of the numbers."""
    shown = page.locator("#table tbody tr:not(.set) th button").all_text_contents()
    return sorted(shown, key=int)


def drawn(page, name):
    """The chart's traces, once it is there."""
    page.locator(f"#{name}").scroll_into_view_if_needed()
    page.locator(f"#{name} .main-svg").first.wait_for()
    return page.evaluate(
        "name => document.querySelector(`#${name} .chart`).data"
        ".map(({x, y, line, marker, fill, name}) => ({x, y, line, marker, fill, name}))",
        name,
    )


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Three settings of four seeds: one is clearly worse, two have one curve; and a failure."""
    root = tmp_path_factory.mktemp("seeds")
    accuracies = {2: [0.70, 0.71, 0.72, 0.71], 4: [0.90, 0.92, 0.91, 0.93]}
    for bits, strategy in ((2, "oqfl"), (4, "oqfl"), (4, "split")):
        for seed, accuracy in enumerate(accuracies[bits]):
            run = root / f"{strategy}{bits}" / str(seed)
            make_run(
                run, [f"strategy={strategy}", f"quant.bits={bits}", f"seed={seed}"],
                {"strategy.name": strategy, "quant.bits": bits, "seed": seed, "data.name": "x"},
                {"final_accuracy": accuracy, "total_bytes_up": 1e6 * bits, "total_bytes_down": 1e6,
                 "total_sim_s": 20.0 + 4 * seed, "total_energy_j": 1234.5,
                 "client_flops_per_sample": 925440},
                rounds=[round_row(r, accuracy * r / 5, sim_s=4.0) for r in range(1, 6)],
                clients=[client_row(1, p, device="ab"[p % 2], loss=p / 10) for p in range(6)],
            )  # fmt: skip
            final = {"per_class": {"recall": [accuracy, 1]}, "confusion_matrix": [[9, 1], [0, 10]]}
            metrics = {"final": final, "labels": ["cat", "dog"]}
            (run / "metrics.json").write_text(json.dumps(metrics))
    make_run(
        root / "oqfl2" / "4", ["strategy=oqfl", "quant.bits=2", "seed=4"],
        {"strategy.name": "oqfl", "quant.bits": 2, "seed": 4, "data.name": "x"}, error=FAILURE,
    )  # fmt: skip
    return report(root)


FAILURE = "Traceback\n  F\nValueError: too\n  hot"


@pytest.fixture(scope="module")
def seen(seeds, chromium):
    """Its page, for tests that leave it as it is."""
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"file://{seeds}")
    page.wait_for_function("window.Plotly")
    yield page
    page.close()
    assert said == []


def test_the_first_screen_is_the_answer(seen):
    assert seen.locator("#best .name").inner_text() == "oqfl bits=4"
    best = seen.locator("#best").inner_text()
    assert "0.9150 ± 0.0129 accuracy, mean ± sd of 4 seeds" in best
    assert "5 MB up and down · 26.0 ± 5.2 s simulated · 1.23 kJ" in best
    titles = seen.locator("#verdict h3").all_inner_texts()
    assert titles == ["Cannot be told apart from it", "Worse (p < 0.05)"]
    rows = seen.locator("#verdict tbody tr").all_inner_texts()
    assert [[cell.strip() for cell in row.split("\t")] for row in rows] == [
        ["split bits=4", "0.9150 ± 0.0129", "equal, seed by seed", "1.00"],
        ["oqfl bits=2", "0.7100 ± 0.0082", "−0.2050 [−0.226, −0.184]", "< 0.001"],
    ]  # fmt: skip
    compared = seen.locator("#compared").inner_text()
    assert "strategy oqfl, split" in compared and "seed 0 to 4" in compared and "data x" in compared
    failed = seen.locator("#failures p").text_content()
    assert failed == "Job oqfl2/4 failed: ValueError: too\n  hot"
    assert seen.locator("#failures pre").text_content() == FAILURE
    for place in ("#best", "#failures", "#verdict", "#front-figure .chart"):
        assert seen.locator(place).bounding_box()["y"] < 500


def test_seeds_are_folded_below_their_setting(seen):
    rows = seen.locator("#table tbody tr:visible")
    assert rows.count() == 3
    assert [row.split("\t")[1] for row in rows.all_inner_texts()] == [
        "0.9150 ± 0.0129", "0.9150 ± 0.0129", "0.7100 ± 0.0082",
    ]  # fmt: skip
    assert "4 finished, 1 failed" in rows.nth(2).inner_text()
    fold = seen.get_by_role("button", name="oqfl bits=2: runs")
    fold.focus()
    seen.keyboard.press("Enter")
    assert fold.get_attribute("aria-expanded") == "true"
    assert rows.count() == 8
    assert "ValueError: too hot" in rows.nth(7).inner_text()
    seen.keyboard.press("Enter")
    assert rows.count() == 3


def test_a_method_has_one_colour_throughout(seen):
    lines = {t["name"]: t["line"] for t in drawn(seen, "curves") if t["fill"] != "toself"}
    colour = {name: found["color"] for name, found in lines.items()}
    assert colour["oqfl bits=2"] == colour["oqfl bits=4"] != colour["split bits=4"]
    assert lines["oqfl bits=2"]["dash"] != lines["oqfl bits=4"]["dash"]
    # Of one curve: the thin line lies on the wide one, and the legend says so.
    assert lines["split bits=4"]["width"] < lines["oqfl bits=4"]["width"] / 3
    legend = seen.locator("#curves .legend").inner_text()
    assert "split bits=4 (same curve as oqfl bits=4)" in legend
    points = {t["name"]: t["marker"]["color"] for t in drawn(seen, "front")[1:]}
    assert points == colour
    assert {t["line"]["color"] for t in drawn(seen, "clients")} == set(colour.values())
    assert seen.locator("#timeline .legend").inner_text() == "trained"
    swatches = seen.locator("#table tbody tr.set .swatch rect").evaluate_all(
        "all => all.map(one => one.getAttribute('stroke'))"
    )
    assert swatches == [colour[n] for n in ("oqfl bits=4", "split bits=4", "oqfl bits=2")]
    key = seen.locator("[data-key=strategy]")
    key.select_option(label="split")
    assert drawn(seen, "front")[0]["marker"]["color"] == colour["split bits=4"]
    key.select_option(label="all")


def test_points_and_labels_do_not_lie_on_each_other(seen):
    drawn(seen, "front")
    labels = seen.locator("#front .annotation-text")
    labels.nth(2).wait_for()
    boxes = [label.bounding_box() for label in labels.all()]
    points = [point.bounding_box() for point in seen.locator("#front .scatterlayer .point").all()]
    assert (len(boxes), len(points)) == (3, 3)
    for i, a in enumerate(boxes):
        for b in [*boxes[i + 1 :], *points]:
            apart_x = a["x"] + a["width"] <= b["x"] + 1 or b["x"] + b["width"] <= a["x"] + 1
            apart_y = a["y"] + a["height"] <= b["y"] + 3 or b["y"] + b["height"] <= a["y"] + 3
            assert apart_x or apart_y


def test_every_tick_has_its_unit(seen):
    for value, unit in {"total_energy_j": "J", "total_sim_s": " s", "total_bytes": "MB"}.items():
        seen.locator("#front-x").select_option(value)
        drawn(seen, "front")
        ticks = seen.locator("#front .xtick text").all_text_contents()
        assert len(ticks) > 1
        assert all(tick.endswith(unit) for tick in ticks), ticks


def test_classes_and_their_confusions(seen):
    seen.locator("#classes").scroll_into_view_if_needed()
    seen.locator("#matrix .main-svg").first.wait_for()
    z = seen.evaluate("document.getElementById('classes-chart').data[0].z")
    assert z == [pytest.approx([0.915, 1]), pytest.approx([0.915, 1]), pytest.approx([0.71, 1])]
    ticks = seen.locator("#classes-chart .xtick text").all_text_contents()
    assert ticks == ["cat", "dog"]
    matrix = seen.evaluate("document.getElementById('matrix-chart').data[0].text")
    assert matrix == [["36", "4"], ["", "40"]]  # of four seeds


def test_numbers_of_the_configuration_are_rounded_and_have_units(seen):
    rows = dict(row.split("\t") for row in seen.locator("#config tr:has(td)").all_inner_texts())
    assert rows["total_bytes_up"] == "2 MB"
    assert rows["total_sim_s"] == "20 s"
    assert rows["total_energy_j"] == "1.23 kJ"
    assert rows["final_accuracy"] == "0.7000"
    assert rows["client_flops_per_sample"] == "925 k"
    assert (rows["seed"], rows["quant.bits"]) == ("0", "2")
    exact = seen.locator("#config tr", has_text="client_flops").locator("td")
    assert exact.get_attribute("title") == "925440"


def test_read_aloud(seen):
    """Every chart, table, choice and button says what it is."""
    drawn(seen, "front")
    chart = seen.get_by_role("img", name="Accuracy against bytes, up and down")
    said = chart.get_attribute("aria-label")
    assert "3 points. On the Pareto front: oqfl bits=2 (0.7100, 3 MB) · oqfl bits=4" in said
    unnamed = seen.evaluate(
        "[...document.querySelectorAll('button, select, input')].filter(e => e.checkVisibility()"
        " && !e.textContent.trim() && !e.ariaLabel && !e.closest('label')).length"
    )
    assert unnamed == 0
    assert seen.locator("table caption:visible").count() == 2
    heads = seen.locator("#table thead th")
    assert heads.count() == seen.locator("#table thead th[scope=col]").count()
    assert seen.locator("th[aria-sort=descending]").inner_text().startswith("accuracy")
    seen.evaluate("document.activeElement.blur()")
    seen.locator("h1").click()
    seen.keyboard.press("Shift+Tab")
    assert seen.evaluate("document.activeElement.className") == "skip"


def test_dark_on_the_screen_light_in_files_and_on_paper(seeds, open_page, tmp_path):
    page = open_page(seeds, accept_downloads=True, color_scheme="dark")

    def paper():
        drawn(page, "front")
        return page.evaluate("document.getElementById('front-chart').layout.paper_bgcolor")

    assert paper() == "#14181e"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 30)"
    names = {}
    for kind in ("SVG", "CSV"):
        with page.expect_download() as found:
            page.locator("#front").get_by_role("button", name=f"figure as {kind}").click()
        names[kind] = found.value.suggested_filename
        found.value.save_as(tmp_path / kind)
    assert names["SVG"] == "accuracy-against-bytes-up-and-down.svg"
    said = " ".join(ElementTree.parse(tmp_path / "SVG").getroot().itertext())
    assert "bytes, up and down" in said and "strategy oqfl" in said  # with its legend
    assert "rgb(255, 255, 255)" in (tmp_path / "SVG").read_text()
    with (tmp_path / "CSV").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["setting", "bytes (B)", "accuracy", "sd", "seeds", "on the front"]
    assert rows[1][:3] == ["strategy=oqfl quant.bits=2", "3000000", "0.71"]
    assert [row[-1] for row in rows[1:]] == ["yes", "yes", "no"]
    assert paper() == "#14181e"  # again

    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    for name in ("front", "curves", "effects", "classes", "matrix", "clients", "timeline"):
        assert page.locator(f"#{name} .main-svg").count() > 0, name
        assert page.locator(f"#{name} .chart").first.evaluate("c => c.offsetWidth") <= 700
    assert paper() == "#fff"
    assert page.locator("#failures details").get_attribute("open") is not None
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert paper() == "#14181e"
    assert page.locator("#failures details").get_attribute("open") is None

    page.emulate_media(color_scheme="light")
    assert paper() == "#fff"


def test_nasty_text_runs_nowhere(tmp_path, open_page):
    for number in (0, 1):
        make_run(
            tmp_path / str(number), [f"model.x={NASTY}{number}"], {"model.x": f"{NASTY}{number}"},
            {"final_accuracy": 0.5, "total_bytes_up": 1, "total_bytes_down": number},
            rounds=[round_row(1, 0.5)], clients=[client_row(1, 0, device=NASTY)],
        )  # fmt: skip
        final = {"per_class": {NASTY: [1, 0]}, "confusion_matrix": [[1, 0], [0, 1]]}
        (tmp_path / str(number) / "metrics.json").write_text(
            json.dumps({"final": final, "labels": [NASTY, "b"]})
        )
    make_run(tmp_path / "2", [NASTY], {}, error=NASTY)
    page = open_page(report(tmp_path))
    for name in ("curves", "front", "effects", "classes", "clients"):
        drawn(page, name)
    assert page.locator("body script").count() == 2
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
    drawn(page, "front")
    ends = page.evaluate("document.getElementById('front-chart').layout.yaxis.range")
    assert ends == pytest.approx([0.8875, 0.9875])


def test_the_front_is_what_nothing_beats(tmp_path, open_page):
    make_seeds(tmp_path)
    page = open_page(report(tmp_path))
    drawn(page, "front")
    assert page.locator("#front-list").inner_text() == (
        "Filled, on the front: oqfl bits=2 (0.5625, 4 kB) · oqfl bits=4 (0.8125, 8 kB) · "
        "fedavg (0.9375, 64 kB)"
    )
    assert "2 seeds a setting: too few" in page.locator("#verdict").inner_text()


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
    drawn(page, "front")
    page.locator("#front-x").select_option("final_dcor_max")
    assert page.locator("#front-list").inner_text() == (
        "Filled, on the front: dcor_weight=1 (0.8500, 0.5) · dcor_weight=0 (0.9000, 0.8)"
    )
    assert page.locator("#front-x option[value=final_attack_mse]").count() == 0  # more is better
    page.locator("#effect-y").select_option("final_attack_mse")
    (line_,) = drawn(page, "effects")
    assert line_["y"] == pytest.approx([0.08, 0.05, 0.06])


def test_accuracy_against_bytes_says_whose_a_point_is_without_a_click(tmp_path, open_page):
    for number, (ratio, total) in enumerate([(0, 1600), (0.5, 800), (0.9375, 100)]):
        make_run(
            tmp_path / str(number), [f"prune.ratio={ratio}"], {"prune.ratio": ratio},
            {"final_accuracy": 0.9 - ratio / 9, "total_bytes_up": total, "total_bytes_down": total},
        )  # fmt: skip
    page = open_page(report(tmp_path))
    drawn(page, "front")
    for ratio in ("0", "0.5", "0.9375"):
        page.locator("#front .annotation-text").get_by_text(ratio, exact=True).wait_for()
    x, y = (page.locator(f"#front-chart .{axis}title").first.text_content() for axis in ("x", "y"))
    assert (x, y) == ("bytes, up and down", "final accuracy")
    points = drawn(page, "front")[1:]
    assert [p["name"] for p in points] == ["ratio=0", "ratio=0.5", "ratio=0.9375"]
    assert [p["x"][0] for p in points] == pytest.approx([3200, 1600, 200])


def test_seeds_are_mean_and_deviation_or_runs(tmp_path, open_page):
    make_seeds(tmp_path)
    page = open_page(report(tmp_path))

    def lines():
        shown = [t["y"] for t in drawn(page, "curves") if t["fill"] != "toself"]
        return sorted([y for y in ys if y is not None] for ys in shown)

    assert lines() == [[0.5625], [0.8125], [0.9375]]
    page.get_by_label("seeds as mean").uncheck()
    assert lines() == [[0.5], [0.625], [0.75], [0.875], [0.875], [1]]


def test_schedules_are_compared_on_simulated_time(tmp_path, open_page):
    make_schedules(tmp_path)
    page = open_page(report(tmp_path))
    line_ = "Rounds of different schedules (sync, buffered) are not comparable; one of buffered is"
    assert line_ in page.locator("#verdict").inner_text()
    assert "by 6 s of simulated time" in page.locator("#simulated-said").inner_text()
    heads, *rows = page.locator("#simulated tr").all_inner_texts()
    assert [cell.strip() for cell in heads.split("\t")] == [
        "setting", "accuracy at 6 s", "reached by", "simulated time", "energy",
        "bytes, up and down",
    ]  # fmt: skip
    assert [[cell.strip() for cell in row.split("\t")] for row in rows] == [
        ["schedule=buffered", "0.3375 ± 0.3712", "1 of 2 seeds", "5 s", "15 J", "550 B"],
        ["schedule=sync", "0.3000 ± 0.0000", "2 of 2 seeds", "11.0 ± 1.4 s", "15 J", "550 B"],
    ]  # fmt: skip
    course = {t["name"]: t["x"] for t in drawn(page, "curves") if t["fill"] != "toself"}
    assert course["schedule=sync"][:3] == [2, 4, 6]  # over time at first
    page.locator("#curve-x label", has_text="rounds").click()
    assert line_ in page.locator("#curves-note").inner_text()
    assert page.locator("#curve-y option[value=staleness_mean]").inner_text() == (
        "mean staleness of updates (server steps)"
    )


def test_works_of_clients_over_simulated_time_and_over_rounds(tmp_path, open_page):
    """Two works of one client, one that left, one that failed; two steps of 100 s, one of 100."""
    make_run(
        tmp_path / "0", [], {"seed": 0, "schedule.name": "buffered"}, {"final_accuracy": 0.5},
        rounds=[round_row(r, 0.5, sim_s=100.0) for r in (1, 2, 3)],
        clients=[
            client_row(1, 0, device="slow", begin_s=0.0, end_s=100.0, loss=0.25),
            client_row(2, 1, status="left", begin_s=0.0, end_s=150.0, loss=None),
            client_row(3, 0, device="slow", begin_s=100.0, end_s=300.0),
            client_row(3, 2, status="failed", begin_s=0.0, end_s=120.0, loss=None),
            client_row(3, 3, status="absent", loss=None),
        ],
    )  # fmt: skip
    page = open_page(report(tmp_path))
    drawn(page, "timeline")
    assert "1 more never worked" in page.locator("#timeline-note").inner_text()
    traces = page.evaluate(
        "document.getElementById('timeline-chart').data"
        ".map(({type, name, base, x, y, hovertext}) => ({type, name, base, x, y, hovertext}))"
    )
    trained, left, failed, marks, crosses = traces
    assert [trained[name] for name in ("name", "base", "x", "y")] == [
        "trained", [0, pytest.approx(100 / 60)], pytest.approx([100 / 60, 200 / 60]), [0, 0],
    ]  # fmt: skip
    assert trained["hovertext"] == [
        "client 0 slow<br>server step 1: trained<br>0 s to 100 s, 100 s<br>staleness 0 steps"
        "<br>training loss 0.25",
        "client 0 slow<br>server step 3: trained<br>100 s to 300 s, 200 s<br>staleness 1 step"
        "<br>training loss 1",
    ]
    assert (left["name"], left["y"], failed["y"]) == ("left before its end", [2], [1])
    assert "staleness 2 steps" in failed["hovertext"][0]
    assert marks["x"][::3] == pytest.approx([100 / 60, 200 / 60, 5])  # minutes
    assert crosses["x"] == pytest.approx([2])
    legend = page.locator("#timeline .legend").inner_text().split("\n")
    assert [entry.strip() for entry in legend if entry.strip()] == [
        "trained", "left before its end", "failed", "end of a server step",
    ]  # fmt: skip
    page.locator("#timeline-x").select_option("rounds")
    (heat,) = page.evaluate("document.getElementById('timeline-chart').data.map(t => t.z)")
    assert heat == [[0, None, 0], [None, 7, None], [None, None, 6], [None, None, 4]]


@pytest.mark.parametrize("runs", [pytest.param(1, marks=pytest.mark.long), 40])
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
    best, compared = (page.locator(p).bounding_box()["y"] for p in ("#best", "#compared"))
    assert best < compared  # accuracy first
    for name in ("curves", "clients"):
        drawn(page, name)
    page.locator("#compare").scroll_into_view_if_needed()
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
            rounds=[round_row(r, r / 100 + number / 1000, sim_s=2 / 3) for r in range(1, 101)],
            clients=[
                client_row(r, p, loss=r / 7 + p, begin_s=r * 2 / 3, end_s=r * 2 / 3 + p / 40)
                for r in range(1, 101) for p in range(20)
            ],
        )  # fmt: skip
    began = time.monotonic()
    path = report(tmp_path)
    assert time.monotonic() - began < 20
    assert path.stat().st_size < 10e6
    began = time.monotonic()
    page = open_page(path)
    page.locator("#table tbody tr").nth(199).wait_for(state="attached")
    page.locator("#front .main-svg").first.wait_for()
    assert time.monotonic() - began < 3
