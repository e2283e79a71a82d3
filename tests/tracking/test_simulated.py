"""Settings at equal simulated time, and what their target took."""

import pytest

from runs import make_run, make_schedules, round_row
from tracking.collect import find, swept
from tracking.jsonl import ROUNDS, read
from tracking.report import markdown, simulated_lines
from tracking.seeds import groups
from tracking.simulated import accuracy_by, compare, is_timed


def schedules(root):
    make_schedules(root)
    return find([root])


def compared(runs):
    return compare(groups(runs), {run.job: read(run.folder / ROUNDS) for run in runs})


def test_accuracy_is_compared_where_the_shortest_run_ends(tmp_path):
    found = compared(schedules(tmp_path))
    assert (found.schedules, found.at_s, found.is_mixed) == (["sync", "buffered"], 6.0, True)
    buffered, sync = found.settings
    assert (buffered.group, sync.group) == (1, 0)
    assert buffered.accuracy.mean == pytest.approx((0.6 + 0.075) / 2)
    assert buffered.accuracy.sd == pytest.approx((0.6 - 0.075) / 2**0.5)
    assert (sync.accuracy.mean, sync.accuracy.n) == (pytest.approx(0.3), 2)  # of its third round


def test_time_to_target_is_over_the_seeds_that_reached_it(tmp_path):
    buffered, sync = compared(schedules(tmp_path)).settings
    assert (sync.target, sync.num_reached, sync.num_seeds) == (0.5, 2, 2)
    assert (sync.costs["sim_s"].mean, sync.costs["sim_s"].sd) == (11.0, pytest.approx(2**0.5))
    assert (buffered.num_reached, buffered.num_seeds) == (1, 2)
    assert (buffered.costs["sim_s"].mean, buffered.costs["sim_s"].sd) == (5.0, None)
    assert {name: cost.mean for name, cost in sync.costs.items()} == {
        "sim_s": 11.0, "energy_j": 15.0, "bytes": 550.0,
    }  # fmt: skip


def test_without_a_target_or_a_clock_nothing_is_made_up(tmp_path):
    make_run(tmp_path / "0", [], {"seed": 0}, {"final_accuracy": 0.5}, rounds=[round_row(1, 0.5)])
    found = compared(find([tmp_path]))
    (setting,) = found.settings
    assert (found.at_s, found.is_mixed, found.has_target) == (None, False, False)
    assert (setting.accuracy, setting.target, setting.num_reached, setting.costs) == (
        None,
        None,
        0,
        {},
    )


def test_the_last_accuracy_evaluated_by_a_time():
    rows = [round_row(1, 0.2, sim_s=0.1), round_row(2, None, sim_s=0.2), round_row(3, 0.4, sim_s=1)]
    times = (0.05, 0.1, 0.3, 1.2, 1.3)
    assert [accuracy_by(rows, at_s) for at_s in times] == [None, 0.2, 0.2, 0.2, 0.4]
    assert accuracy_by([round_row(1, 0.2)], 9.0) is None


@pytest.mark.parametrize(
    ("config", "timed"),
    [
        ({"fleet.population": "uniform", "fleet.availability": "always"}, False),
        ({}, False),
        ({"fleet.population": "uniform", "fleet.availability": 0.5}, False),
        ({"fleet.population": "uniform", "fleet.availability": "diurnal"}, False),
        ({"fleet.population": "uniform", "fleet.availability": "t.pkl"}, True),
        ({"fleet.population": "mobile"}, True),
        ({"fleet.population": None}, True),  # a trace of devices
        ({"fleet.population": "uniform", "schedule.name": "semi"}, True),
    ],
)
def test_whose_rounds_take_unequal_time(tmp_path, config, timed):
    make_run(tmp_path / "0", [], {"seed": 0} | config, {"final_accuracy": 0.5})
    assert is_timed(find([tmp_path])[0]) is timed


def test_sync_is_a_value_of_the_schedule_though_no_configuration_says_so(tmp_path):
    runs = schedules(tmp_path)
    assert swept(runs) == ["schedule", "seed"]
    assert [group.label for group in groups(runs)] == ["schedule=sync", "schedule=buffered"]


def test_the_terminal_and_summary_md_say_it(tmp_path):
    lines = simulated_lines(groups(schedules(tmp_path)))
    assert lines == [
        "rounds of different schedules (sync, buffered) are not comparable",
        "accuracy at 6 s of simulated time: schedule=buffered 0.3375 ± 0.3712; "
        "schedule=sync 0.3000 ± 0.0000",
        "simulated time to the target accuracy: schedule=buffered 5.00 s (1 of 2 seeds); "
        "schedule=sync 11.0 ± 1.4 s (2 of 2 seeds)",
    ]
    assert all(f"- {line}" in markdown(find([tmp_path])) for line in lines[:1])
