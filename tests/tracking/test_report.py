"""Tables over folders that the test makes."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from runs import make_run as make_configured
from runs import make_seeds
from tracking.collect import find, value
from tracking.report import (
    HEADINGS,
    _rounded,
    cells,
    main,
    markdown,
    print_tables,
    write_report,
)
from tracking.seeds import spread

SUMMARY = {
    "final_accuracy": 0.91234, "best_accuracy": 0.95, "rounds": 5, "total_bytes_up": 1_500_000,
    "total_bytes_down": 999, "total_wall_s": 12.345, "weight_bits": 4, "act_bits": 4,
    "strategy": "oqfl", "seed": 0, "versions": {"torch": "2.13", "flwr": "1.41"},
}  # fmt: skip


def collect(folder):
    return [run.row() for run in find([folder])]


def make_run(folder, overrides=(), summary=None, error=None, config=True):
    folder.mkdir(parents=True)
    if config:
        (folder / "config.json").write_text("{}")
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    if error is not None:
        (folder / "error.txt").write_text(error)


@pytest.fixture
def sweep(tmp_path):
    """Five jobs: finished, failed while it ran, stopped, failed before it had a config, a copy."""
    make_run(tmp_path / "0", ["strategy=oqfl", "quant.bits=4"], SUMMARY)
    make_run(tmp_path / "1", ["strategy=fedavg"], error="Traceback …\nValueError: x\n")
    make_run(tmp_path / "2", ["seed=2"])
    make_run(tmp_path / "3", ["seed=3"], error="x", config=False)
    without_bits = {k: v for k, v in SUMMARY.items() if not k.endswith("_bits")}
    make_run(tmp_path / "10", ["seed=4"], without_bits | {"same_as": "0"})
    (tmp_path / "not_a_run").mkdir()
    return tmp_path


def test_one_row_a_run_in_the_order_of_the_jobs(sweep):
    rows = collect(sweep)
    assert [(row["job"], row["overrides"], row["status"]) for row in rows] == [
        ("0", "strategy=oqfl quant.bits=4", "finished"),
        ("1", "strategy=fedavg", "failed"),
        ("2", "seed=2", "unfinished"),
        ("3", "seed=3", "failed"),
        ("10", "seed=4", "same as 0"),
    ]
    assert {k: rows[0][k] for k in SUMMARY if k != "versions"} == {
        k: v for k, v in SUMMARY.items() if k != "versions"
    }
    assert (rows[0]["version_torch"], rows[0]["version_flwr"]) == ("2.13", "1.41")
    assert "versions" not in rows[0]


def test_cells(sweep):
    rows = collect(sweep)
    assert cells(rows[0]) == [
        "0", "strategy=oqfl quant.bits=4", "oqfl", "4", "0.9123", "0.9500", "1.5 MB", "999 B",
        "12.3", "finished",
    ]  # fmt: skip
    assert cells(rows[1]) == ["1", "strategy=fedavg", "", "–", "", "", "", "", "", "failed"]
    assert cells(rows[4])[3] == "–"


@pytest.mark.parametrize(
    ("changes", "heading", "text"),
    [
        ({"weight_bits": 2, "act_bits": 8}, "bits", "w2 a8"),
        ({"weight_bits": 32, "act_bits": 32}, "bits", "32"),
        ({"weight_bits": 4, "act_bits": 4, "quantized_share": 0.05}, "bits", "4 (5%)"),
        ({"weight_bits": 4, "act_bits": 4, "quantized_share": 1.0}, "bits", "4"),
        ({"weight_bits": 32, "act_bits": 32, "quantized_share": 0.0}, "bits", "32"),
        ({"final_accuracy": 0.0}, "accuracy", "0.0000"),
        ({"final_accuracy": None}, "accuracy", ""),
        ({"total_bytes_up": 0}, "up", "0 B"),
        ({"total_bytes_up": 1000}, "up", "1 kB"),
        ({"total_bytes_up": 123_456_789_000}, "up", "123 GB"),
        ({"total_bytes_up": 5 * 10**16}, "up", "5e+04 TB"),
        ({"total_wall_s": 0.0}, "seconds", "0.0"),
    ],
)
def test_one_cell(tmp_path, changes, heading, text):
    make_run(tmp_path / "0", summary=SUMMARY | changes)
    (row,) = collect(tmp_path)
    assert cells(row)[HEADINGS.index(heading)] == text


@pytest.mark.parametrize(("value", "text"), [(999_600, "1 MB"), (999_999_999, "1 GB")])
def test_bytes_just_below_the_next_unit(tmp_path, value, text):
    make_run(tmp_path / "0", summary=SUMMARY | {"total_bytes_up": value})
    (row,) = collect(tmp_path)
    assert cells(row)[HEADINGS.index("up")] == text


def test_markdown(sweep):
    found, table = markdown(find([sweep])).split("\n\n")
    assert found.startswith("- best: strategy=oqfl quant.bits=4  0.9123")
    lines = table.splitlines()
    assert len(lines) == 2 + 5
    assert [part.strip() for part in lines[0].strip("|").split("|")] == list(HEADINGS)
    assert set(lines[1]) == {"|", "-"}
    assert lines[2].startswith("| 0 | strategy=oqfl quant.bits=4 | oqfl | 4 | 0.9123 |")
    assert {line.count("|") for line in lines} == {len(HEADINGS) + 1}


def test_what_each_device_class_trains(tmp_path):
    for job, share in enumerate(({"submodel.share": 1.0}, {"submodel.share.phone_low": 0.5})):
        summary = {"final_accuracy": 0.5, "final_clients_accuracy_phone_low": 0.25}
        chosen = {"clients/phone_low/width50": 3, "clients/phone_mid/width50": 1,
                  "clients/phone_mid/width100": 4}  # fmt: skip
        key = ["submodel.share=1.0", "submodel.share={phone_low:0.5}"][job]
        make_configured(tmp_path / str(job), [key], share, summary | (chosen if job else {}))
    text = markdown(find([tmp_path]))
    assert "| 1 | phone_low | 3 width50 | 0.2500 |" in text
    assert "| 1 | phone_mid | 1 width50, 4 width100 |  |" in text
    runs = find([tmp_path])
    known = {key for run in runs for key in run.config}
    assert [value(run, "submodel.share", known) for run in runs] == [1.0, "phone_low: 0.5"]


def test_a_bar_in_an_override_does_not_break_the_table(tmp_path):
    make_run(tmp_path / "0", ["name=a|b"], SUMMARY)
    line = markdown(find([tmp_path])).splitlines()[2]
    assert line.replace("\\|", "").count("|") == len(HEADINGS) + 1


def test_report_files(sweep):
    runs = write_report([sweep], sweep)
    rows = [run.row() for run in runs]
    assert (sweep / "summary.md").read_text(encoding="utf-8") == markdown(runs)
    with (sweep / "summary.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [row["job"] for row in read] == ["0", "1", "2", "3", "10"]
    assert [row["status"] for row in read] == [row["status"] for row in rows]
    assert float(read[0]["final_accuracy"]) == SUMMARY["final_accuracy"]
    assert read[1]["final_accuracy"] == ""
    assert read[4]["same_as"] == "0"
    assert read[0]["version_torch"] == "2.13"
    assert (read[0]["quant.bits"], read[1]["quant.bits"]) == ("4", "")
    assert write_report([sweep], sweep) == runs  # its own files do not count as runs


def test_a_report_that_cannot_be_written_leaves_the_old_one(sweep, monkeypatch):
    write_report([sweep], sweep)
    old = {name: (sweep / name).read_bytes() for name in ("summary.csv", "summary.md")}
    (sweep / "0" / "summary.json").write_text("{}")

    def full(path, text, **options):
        path.write_bytes(text.encode()[:9])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        write_report([sweep], sweep)
    assert {name: (sweep / name).read_bytes() for name in old} == old


def test_csv_quotes_what_hydra_lets_through(tmp_path):
    make_run(tmp_path / "0", ['model.widths=[1,2,"x"]', "name=ä\nb"], SUMMARY)
    (run,) = write_report([tmp_path], tmp_path)
    with (tmp_path / "summary.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["overrides"] == run.row()["overrides"] == 'model.widths=[1,2,"x"] name=ä\nb'


def test_a_single_run(tmp_path):
    make_run(tmp_path / "2026-01-01", ["rounds=5"], SUMMARY)
    (row,) = collect(tmp_path / "2026-01-01")
    assert (row["job"], row["status"]) == ("2026-01-01", "finished")


def test_a_run_without_hydra(tmp_path):
    """Under `flwr run` there is no .hydra folder."""
    (tmp_path / "config.json").write_text("{}")
    (row,) = collect(tmp_path)
    assert (row["overrides"], row["status"]) == ("", "unfinished")


def test_a_finished_run_that_failed_when_it_was_to_grow_is_failed(tmp_path):
    make_run(tmp_path / "0", ["rounds=9"], SUMMARY, error="Traceback")
    assert collect(tmp_path)[0]["status"] == "failed"


def test_nothing_there(tmp_path, capsys):
    assert write_report([tmp_path], tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}: no run there\n"
    assert main([str(tmp_path / "nowhere")]) == 1


def test_command_line(sweep, capsys):
    assert main([str(sweep)]) == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert len(rows) == 5
    assert rows[0].split()[:3] == ["0", "oqfl", "4"]  # what varies, in columns
    assert "failed: job 1: ValueError: x" in out
    assert (sweep / "summary.csv").exists()
    assert out.splitlines()[-1] == str(sweep / "report.html")
    with pytest.raises(SystemExit, match="2"):
        main([])
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "python -m tracking.report" in capsys.readouterr().out


def shown(rows, **options):
    console = Console(file=io.StringIO(), **options)
    print_tables(rows, console)
    return console.file.getvalue()


def test_every_row_is_one_line_where_there_is_no_terminal(sweep):
    out = shown(find([sweep]), width=40)
    assert len([line for line in out.splitlines() if line.strip()[:1].isdigit()]) == 5


def test_also_of_long_overrides_and_no_row_is_very_long(tmp_path):
    for job in (0, 1):
        said = [f"train.some_option_{i}=value_{i}" for i in range(20)]
        varies = [f"data.path={'x' * 300}{job}", f"seed={job}"]
        make_run(tmp_path / str(job), [*said, *varies], SUMMARY)
    out = shown(find([tmp_path]))
    rows = [line for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert len(rows) == 2
    assert max(map(len, rows)) <= 160
    assert " xxx" in rows[1] and "xxx1 " in rows[1]  # without its middle
    assert "train.some_option_19=value_19" in out  # above, once
    assert out.count("train.some_option_19") == 1


def test_in_a_narrow_terminal_costs_go_first(sweep):
    def headings(width):
        out = shown(find([sweep]), width=width, force_terminal=True, color_system=None)
        return next(line.split() for line in out.splitlines() if line.lstrip().startswith("job"))

    # `seed` and `strategy` are what varies; what has no room is left out from the right.
    first = ["job", "strategy", "quant.bits", "seed", "accuracy", "status"]
    assert headings(120) == [*first, "up", "down", "seconds"]
    assert headings(72) == [*first, "up", "down"]
    assert headings(60) == first


def test_settings_by_accuracy_and_what_was_found(tmp_path):
    make_seeds(tmp_path)
    out = shown(find([tmp_path]))
    settings = [line.split()[:4] for line in out.splitlines() if " ± " in line][:3]
    assert settings == [
        ["fedavg", "–", "2", "0.9375"], ["oqfl", "4", "2", "0.8125"], ["oqfl", "2", "2", "0.5625"],
    ]  # fmt: skip
    assert out.splitlines()[-1] == (
        "best: strategy=fedavg  0.9375 ± 0.0884  (too few seeds for a test, which takes 3)"
    )


def test_three_seeds_are_tested(tmp_path):
    for bits, accuracies in {
        2: (0.5, 0.51, 0.52),
        4: (0.9, 0.92, 0.91),
        8: (0.89, 0.93, 0.9),
    }.items():
        for seed, accuracy in enumerate(accuracies):
            make_seeded(tmp_path / f"{bits}-{seed}", bits, seed, accuracy)
    assert shown(find([tmp_path])).splitlines()[-3:] == [
        "best: quant.bits=4  0.9100 ± 0.0100",
        "cannot be told apart from it (paired t-test): quant.bits=8",
        "worse (p < 0.05): quant.bits=2",
    ]
    assert markdown(find([tmp_path])).splitlines()[0] == "- best: quant.bits=4  0.9100 ± 0.0100"


def test_what_was_chosen_on_validation_samples_says_so(tmp_path):
    """The best is not the table's first row then, which is by accuracy on the test set."""
    for bits, accuracy in {4: 0.9, 8: 0.8}.items():
        for seed in range(3):
            more = {"final_validation_accuracy": 1.5 - accuracy + seed / 100}
            make_seeded(tmp_path / f"{bits}-{seed}", bits, seed, accuracy + seed / 100, **more)
    assert "best by validation accuracy: quant.bits=8  0.8100 ± 0.0100 on the test set" in shown(
        find([tmp_path])
    )


def make_seeded(folder, bits, seed, accuracy, **more):
    summary = SUMMARY | {"final_accuracy": accuracy} | more
    make_run(folder, [f"quant.bits={bits}", f"seed={seed}"], summary)
    config = {"seed": seed, "quant.bits": bits}
    (folder / "config.json").write_text(json.dumps(config))


def test_an_interpolation_is_shown_as_its_value(tmp_path):
    for job, rate in enumerate((0.1, 0.2)):
        said = [f"train.lr={rate}", "train.server_lr=${train.lr}", "name=${data.name}"]
        make_run(tmp_path / str(job), said, SUMMARY)
        config = {"train.lr": rate, "train.server_lr": rate}
        (tmp_path / str(job) / "config.json").write_text(json.dumps(config))
    runs = find([tmp_path])
    assert runs[1].overrides == ["train.lr=0.2", "train.server_lr=0.2", "name=${data.name}"]
    rows = [line.split() for line in shown(runs).splitlines() if line.strip()[:1].isdigit()]
    assert [row[:3] for row in rows] == [["0", "0.1", "0.1"], ["1", "0.2", "0.2"]]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (spread([18.0, 21.0, 24.0]), "21.0 ± 3.0"), (spread([100.0, 350.0]), "225 ± 177"),
        (spread([0.01234]), "0.0123"), (spread([7.0, 7.0]), "7.00 ± 0.00"), (None, ""),
        (spread([0.0]), "0.00"),
    ],
)  # fmt: skip
def test_a_mean_has_the_digits_that_its_deviation_gives_it(found, text):
    assert _rounded(found) == text


@pytest.mark.parametrize("override", ["split.cut=[stage1,stage2]", "name=[/x]"])
def test_brackets_in_an_override_are_shown_as_they_are(tmp_path, override):
    make_run(tmp_path / "0", [override], SUMMARY)
    assert override in shown(find([tmp_path]))


def test_seeds_together_and_several_sweeps(tmp_path, capsys, monkeypatch):
    make_seeds(tmp_path / "a")
    make_run(tmp_path / "b" / "0", ["seed=9"], SUMMARY)
    monkeypatch.chdir(tmp_path)
    assert main(["a"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"oqfl +2 +2 +0.5625 ± 0.0884 +2 kB", out)
    assert re.search(r"fedavg +– +2 +0.9375 ± 0.0884 +32 kB", out)
    assert "sim s" not in out  # nobody has any
    first = (tmp_path / "a" / "summary.md").read_text().split("\n\n")[1].splitlines()
    assert first[2] == (
        "| strategy=oqfl quant.bits=2 | 2 | 0.5625 ± 0.0884 | 0.9000 ± 0.0000 | 2 kB | 2 kB |  |  "
        "| 1.0 ± 0.0 |"
    )
    assert "<title>a</title>" in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")

    assert main(["a", "b"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "report.html")
    with (tmp_path / "summary.csv").open() as file:
        assert [row["job"] for row in csv.DictReader(file)][-2:] == ["a/6", "b/0"]
    assert main(["a", "b", "--out", "both"]) == 0
    assert (tmp_path / "both" / "report.html").exists()
    assert main(["a", "nowhere"]) == 1


def test_a_line_break_does_not_break_the_table(tmp_path):
    make_run(tmp_path / "0", ["name=a\nb\\|c"], SUMMARY)
    line = markdown(find([tmp_path])).splitlines()[2]
    assert line.startswith("| 0 | name=a b\\\\\\|c |")
