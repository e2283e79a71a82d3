"""Totals over rounds.jsonl, by hand."""

import json

import pytest

from tracking.jsonl import ROUNDS
from tracking.summary import summarise


def folder_of(tmp_path, rows):
    whole = [
        {"round": i, "accuracy": None, "num_failed": 0, "bytes_up": 10 * i, "bytes_down": 1,
         "sim_s": 2.0, "energy_j": None, "wall_s": 0.5, **row}
        for i, row in enumerate(rows, 1)
    ]  # fmt: skip
    (tmp_path / ROUNDS).write_text("".join(json.dumps(row) + "\n" for row in whole))
    return tmp_path


ACCURACIES = [None, 0.4, 0.7, None, 0.6]


def rows(**changes):
    return [{"accuracy": a, **changes} for a in ACCURACIES]


def test_totals(tmp_path):
    found = summarise(folder_of(tmp_path, rows(num_failed=2)))
    assert found == {
        "final_accuracy": 0.6, "best_accuracy": 0.7, "best_round": 3, "rounds": 5,
        "total_bytes_up": 150, "total_bytes_down": 5, "total_sim_s": 10.0,
        "total_energy_j": None, "total_wall_s": 2.5, "num_failed": 10,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("target", "reached"), [(0.1, 2), (0.4, 2), (0.41, 3), (0.7, 3), (0.70001, None), (1.0, None)]
)
def test_to_target_counts_up_to_and_with_the_round_that_reached_it(tmp_path, target, reached):
    found = summarise(folder_of(tmp_path, rows()), target)
    expected = {
        "target_accuracy": target, "rounds_to_target": reached, "bytes_up_to_target": None,
        "bytes_down_to_target": None, "sim_s_to_target": None, "energy_j_to_target": None,
        "wall_s_to_target": None,
    }  # fmt: skip
    if reached is not None:
        expected |= {
            "bytes_up_to_target": sum(10 * i for i in range(1, reached + 1)),
            "bytes_down_to_target": reached, "sim_s_to_target": 2.0 * reached,
            "wall_s_to_target": 0.5 * reached,
        }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert found["rounds"] == 5
    assert found["total_bytes_up"] == 150


def test_reached_in_the_first_round(tmp_path):
    found = summarise(folder_of(tmp_path, [{"accuracy": 0.9}, {"accuracy": 0.1}]), 0.5)
    assert (found["rounds_to_target"], found["bytes_up_to_target"]) == (1, 10)


def test_a_first_round_that_takes_no_bytes_is_0_and_not_none(tmp_path):
    found = summarise(folder_of(tmp_path, [{"accuracy": 0.9, "bytes_up": 0}]), 0.5)
    assert (found["bytes_up_to_target"], found["rounds_to_target"]) == (0, 1)


def test_without_a_target_there_are_no_such_fields(tmp_path):
    assert not [k for k in summarise(folder_of(tmp_path, rows())) if "target" in k]


def test_never_evaluated(tmp_path):
    found = summarise(folder_of(tmp_path, [{}, {}]), 0.5)
    assert found["final_accuracy"] is found["best_accuracy"] is found["rounds_to_target"] is None


def test_a_network_that_is_never_right_has_0_not_none(tmp_path):
    found = summarise(folder_of(tmp_path, [{"accuracy": 0.0}]))
    assert found["final_accuracy"] == found["best_accuracy"] == 0.0


def test_a_figure_missing_in_one_round_is_missing_in_the_total(tmp_path):
    found = summarise(folder_of(tmp_path, [{"sim_s": 1.0}, {"sim_s": None}]))
    assert found["total_sim_s"] is None


def test_no_rounds(tmp_path):
    found = summarise(tmp_path, 0.5)
    assert (found["rounds"], found["best_accuracy"], found["total_bytes_up"]) == (0, None, 0)
    assert found["rounds_to_target"] is None


def test_what_a_method_adds_is_there_as_it_was_at_the_end(tmp_path):
    leaks = [{"dcor_max": 0.9, "alone_accuracy": 0.5}, {"dcor_max": 0.7, "edge_accuracy": 0.5}]
    found = summarise(folder_of(tmp_path, leaks))
    assert (found["final_dcor_max"], found["final_edge_accuracy"]) == (0.7, 0.5)
    others = {"final_bytes_up", "final_round", "final_loss", "final_alone_accuracy"}
    assert not others & found.keys()
