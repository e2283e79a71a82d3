"""The best setting, what cannot be told apart from it, and the fronts."""

import pytest
from scipy import stats

from runs import make_run, make_seeds
from tracking.answer import answer, front
from tracking.collect import find
from tracking.seeds import groups

SETTINGS = {
    "a": [0.90, 0.92, 0.91, 0.93],
    "b": [0.89, 0.93, 0.90, 0.92],
    "c": [0.70, 0.71, 0.72, 0.71],
}


def make(root, settings, **more):
    """A run for each accuracy of each setting, by seed."""
    for number, (name, accuracies) in enumerate(settings.items()):
        for seed, accuracy in enumerate(accuracies):
            summary = {
                "final_accuracy": accuracy, "total_bytes_up": 100 * number, "total_bytes_down": 10,
                "total_sim_s": 5.0 - number, "total_energy_j": None,
            }  # fmt: skip
            said = [f"strategy={name}", f"seed={seed}"]
            config = {"strategy.name": name, "seed": seed}
            make_run(
                root / f"{name}{seed}", said, config,
                summary | {key: values[name][seed] for key, values in more.items()},
            )  # fmt: skip


def found(root):
    divided = groups(find([root]))
    return answer(divided), [group.label.removeprefix("strategy=") for group in divided]


def test_best_and_what_cannot_be_told_apart(tmp_path):
    make(tmp_path, SETTINGS)
    said, names = found(tmp_path)
    assert said.measure == "final_accuracy"
    assert names[said.best] == "a"
    assert [(names[r.group], r.verdict) for r in said.rivals] == [("b", "open"), ("c", "worse")]
    each = [stats.ttest_rel(SETTINGS["a"], SETTINGS[name]).pvalue for name in "bc"]
    assert [r.p for r in said.rivals] == pytest.approx([each[0], 2 * each[1]])  # Holm, of two
    assert [r.found.mean for r in said.rivals] == pytest.approx([-0.005, -0.205])
    assert said.short == []


def test_equal_results_are_said_to_be_equal(tmp_path):
    make(tmp_path, {"a": SETTINGS["a"], "d": SETTINGS["a"]})
    said, names = found(tmp_path)
    assert names[said.best] == "a"  # the first of equals
    assert [(names[r.group], r.verdict) for r in said.rivals] == [("d", "same")]


def test_two_seeds_are_too_few(tmp_path):
    make_seeds(tmp_path)
    said, names = found(tmp_path)
    assert names[said.best] == "fedavg"
    assert {r.verdict for r in said.rivals} == {"few"}


def test_a_lucky_seed_is_not_the_best_but_is_named(tmp_path):
    make(tmp_path, SETTINGS | {"e": [0.99]})
    said, names = found(tmp_path)
    assert names[said.best] == "a"
    assert [names[number] for number in said.short] == ["e"]
    assert next(r.verdict for r in said.rivals if names[r.group] == "e") == "few"


def test_validation_samples_choose_where_all_have_them(tmp_path):
    validation = {name: [value - 0.1 * (name == "a") for value in values]
                  for name, values in SETTINGS.items()}  # fmt: skip
    make(tmp_path, SETTINGS, final_validation_accuracy=validation)
    said, names = found(tmp_path)
    assert (said.measure, names[said.best]) == ("final_validation_accuracy", "b")
    make_run(tmp_path / "z", ["strategy=z"], {"strategy.name": "z"}, {"final_accuracy": 0.1})
    said, names = found(tmp_path)
    assert (said.measure, names[said.best]) == ("final_accuracy", "a")


def test_without_results(tmp_path):
    make_run(tmp_path / "0", ["seed=0"], {"seed": 0}, error="x")
    said, _ = found(tmp_path)
    assert (said.best, said.rivals, said.fronts) == (None, (), {})


def test_fronts(tmp_path):
    make(tmp_path, SETTINGS)
    said, names = found(tmp_path)
    shown = {price: [names[n] for n in numbers] for price, numbers in said.fronts.items()}
    assert shown == {"total_bytes": ["a"], "total_sim_s": ["c", "b", "a"]}  # nobody has joules


def test_front_of_points():
    points = {0: (1.0, 0.5), 1: (2.0, 0.5), 2: (2.0, 0.7), 3: (3.0, 0.6), 4: (4.0, 0.9)}
    assert front(points) == [0, 2, 4]
    assert front({}) == []
