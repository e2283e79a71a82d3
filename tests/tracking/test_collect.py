"""Runs of several folders, what tells them apart, and their seeds together."""

import statistics

import pytest

import tracking
from runs import make_run, make_seeds
from tracking.collect import find, natural, swept, value
from tracking.seeds import groups, spread


def jobs(*folders):
    return [run.job for run in find(folders)]


def test_jobs_are_named_below_what_the_folders_share(tmp_path):
    for name in ("a/0", "a/10", "a/2", "b/0"):
        make_run(tmp_path / name, config={})
    assert jobs(tmp_path / "a") == ["0", "2", "10"]
    assert jobs(tmp_path) == ["a/0", "a/2", "a/10", "b/0"]
    assert jobs(tmp_path / "b", tmp_path / "a") == ["a/0", "a/2", "a/10", "b/0"]
    assert jobs(tmp_path / "a" / "2") == ["2"]
    assert jobs(tmp_path / "a", tmp_path / "a", tmp_path / "a" / "2") == ["0", "2", "10"]
    assert jobs(tmp_path / "nowhere") == []


def test_what_lies_inside_of_a_run_is_no_run(tmp_path):
    make_run(tmp_path / "0", config={})
    for name in ("wandb/x/config.json", "checkpoint/3/config.json", ".hydra/config.json"):
        (tmp_path / "0" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "0" / name).write_text("{}")
    assert jobs(tmp_path) == ["0"]


def test_natural_order():
    assert sorted(["10", "9", "a2/1", "a10", "a2"], key=natural) == ["9", "10", "a2", "a2/1", "a10"]


def test_the_error_is_what_the_last_one_says_whole(tmp_path):
    first = "Traceback (most recent call last):\n  File\nKeyError: 1\n\nDuring it, another:\n\n"
    whole = (
        f"{first}Traceback (most recent call last):\n  File\n    x()\na.b.MyError: no\n  shape 3\n"
    )
    for number, error in enumerate(("Traceback\n  File\nValueError: no\n\n", "", whole, "killed")):
        make_run(tmp_path / str(number), error=error)
    runs = find([tmp_path])
    assert [run.error for run in runs] == ["ValueError: no", "", "MyError: no\n  shape 3", "killed"]
    assert {run.status for run in runs} == {"failed"}
    assert runs[2].traceback == whole.strip()


def test_swept_keys_are_those_that_differ(tmp_path):
    make_seeds(tmp_path)
    runs = find([tmp_path])
    assert swept(runs) == ["strategy", "quant.bits", "seed"]
    assert swept(runs[:2]) == ["seed"]
    assert swept(runs[:1]) == swept([]) == []


def test_values_are_what_the_method_reads(tmp_path):
    make_run(tmp_path / "0", ["strategy=oqfl", "engine.workers=2"], {"quant.bits": 4})
    make_run(tmp_path / "1", ["quant.bits=2", "model=cnn"], {"model._target_": "models.cnn.CNN"})
    make_run(tmp_path / "2", ["quant.bits=8"], error="x")  # failed before it had a configuration
    a, b, c = find([tmp_path])
    known = {"quant.bits", "model._target_"}
    assert [value(run, "quant.bits", known) for run in (a, b, c)] == [4, None, "8"]
    assert value(a, "engine.workers", known) == "2"
    assert value(b, "engine.workers", known) is None
    assert value(b, "model", known) == "cnn"


def test_a_key_left_at_its_default_has_a_value_too(tmp_path):
    """Two sweeps together, of which one does not name what the other changes."""
    make_run(tmp_path / "a/0", ["seed=1"], {"seed": 1, "train.lr": 0.1})
    make_run(tmp_path / "b/0", ["seed=1", "train.lr=0.2"], {"seed": 1, "train.lr": 0.2})
    runs = find([tmp_path])
    assert swept(runs) == ["train.lr"]
    assert [group.label for group in groups(runs)] == ["train.lr=0.1", "train.lr=0.2"]


def test_what_no_entry_stands_for_is_said(tmp_path):
    make_run(tmp_path / "0", ["engine.precision=fp32"], {"seed": 0})
    make_run(tmp_path / "1", ["engine.precision=bf16"], {"seed": 0, "engine.precision": "bf16"})
    labels = [group.label for group in groups(find([tmp_path]))]
    assert labels == ["engine.precision=fp32", "engine.precision=bf16"]


def test_null_is_a_value_of_a_key_that_is_read(tmp_path):
    for number, epsilon in enumerate((None, 1.0)):
        said = [f"privacy.epsilon={'null' if epsilon is None else epsilon}"]
        make_run(tmp_path / str(number), said, {"seed": 0, "privacy.epsilon": epsilon})
    labels = [group.label for group in groups(find([tmp_path]))]
    assert labels == ["privacy.epsilon=null", "privacy.epsilon=1.0"]


def test_where_only_seeds_differ_the_label_is_the_method(tmp_path):
    for seed in (0, 1):
        config = {"seed": seed, "strategy.name": "oqfl"}
        make_run(tmp_path / str(seed), [f"seed={seed}"], config, {"final_accuracy": 0.5})
    assert [group.label for group in groups(find([tmp_path]))] == ["oqfl"]


def test_seeds_together(tmp_path):
    make_seeds(tmp_path)
    found = groups(find([tmp_path]))
    assert [group.label for group in found] == [
        "strategy=oqfl quant.bits=2", "strategy=oqfl quant.bits=4", "strategy=fedavg",
    ]  # fmt: skip
    assert [len(group.runs) for group in found] == [2, 2, 3]  # the copy is there
    accuracy = found[2].measures["final_accuracy"]
    assert accuracy == spread([0.875, 1.0])  # but counts once
    assert (accuracy.mean, accuracy.n) == (0.9375, 2)
    assert {seed: run.job for seed, run in found[2].seeds.items()} == {0: "4", 1: "5"}
    assert accuracy.sd == pytest.approx(statistics.stdev([0.875, 1.0]))
    assert "total_sim_s" not in found[0].measures


def test_a_copy_counts_where_what_it_copies_is_elsewhere(tmp_path):
    make_seeds(tmp_path)
    (group,) = groups(find([tmp_path / "6"]))
    assert group.measures["final_accuracy"].n == 1


def test_failed_and_unfinished_runs_are_not_averaged(tmp_path):
    finished = {"final_accuracy": 0.5}
    make_run(tmp_path / "0", ["seed=0"], {"seed": 0}, finished)
    make_run(tmp_path / "1", ["seed=1"], {"seed": 1}, {"final_accuracy": 0.1}, error="x")
    make_run(tmp_path / "2", ["seed=2"], {"seed": 2})
    (group,) = groups(find([tmp_path]))
    assert group.measures["final_accuracy"] == spread([0.5])
    assert group.measures["final_accuracy"].sd is None


def test_an_engine_is_no_seed(tmp_path):
    for number, engine in enumerate(("ray", "serial")):
        make_run(tmp_path / str(number), [f"engine={engine}"], {"seed": 0}, {"total_wall_s": 1.0})
    assert [group.label for group in groups(find([tmp_path]))] == ["engine=ray", "engine=serial"]


def test_frames(tmp_path):
    make_seeds(tmp_path)
    make_run(tmp_path / "7", ["seed=9"], error="Traceback\nValueError: x")
    runs, rounds = tracking.load(tmp_path)
    assert list(runs.index) == [str(i) for i in range(8)]
    assert runs["final_accuracy"].tolist()[:6] == [0.5, 0.625, 0.75, 0.875, 0.875, 1.0]
    assert runs["quant.bits"].isna().tolist() == [False] * 4 + [True] * 4
    assert (runs.loc["7", "status"], runs.loc["7", "error"]) == ("failed", "ValueError: x")
    assert runs.loc["0", "folder"] == str(tmp_path / "0")
    assert rounds["run"].tolist() == [str(i) for i in range(6) for _ in range(2)]
    assert rounds["total_bytes"].tolist() == [110, 220] * 6
    assert rounds[rounds["run"] == "1"]["accuracy"].tolist()[1] == 0.625
    joined = rounds.join(runs[["quant.bits"]], on="run").groupby("quant.bits")["accuracy"].mean()
    assert joined.to_dict() == {2: 0.5625, 4: 0.8125}


def test_frames_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run there"):
        tracking.load(tmp_path)
    make_run(tmp_path / "0", error="x")
    runs, rounds = tracking.load(str(tmp_path))
    assert (len(runs), len(rounds), list(rounds.columns)) == (1, 0, ["run", "round"])
