"""plan=auto for methods where all clients have one width: the cut alone, and it is said."""

from pathlib import Path

import pytest
from command_line import run
from conftest import assert_same_run, simulate, small

from app import experiment
from app.summary import remarks
from fleet.per_client import AUTO

PHONES = ("fleet=mobile", "clients.total=6", "clients.per_round=3", "fleet.objective=joules")


@pytest.mark.parametrize(
    "method",
    [
        "splitfed_v2",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("split", "splitfed_v3", "ushaped", "hierarchical", "deprune", "prune")
        ),
        "binarized_split",
    ],
)
def test_it_is_the_run_with_the_cut_left_open(method: str, tmp_path: Path) -> None:
    chosen = (f"strategy={method}", *PHONES)
    planned = small(*chosen, "plan=auto")
    assert planned.hash == small(*chosen, "split.cut=auto").hash
    assert planned.quant.bits != AUTO
    assert any(text.startswith(f"plan=auto: of strategy={method} the cut alone")
               for text in remarks(planned, experiment.check(planned).strategy))  # fmt: skip
    simulate(tmp_path / "planned", *chosen, "plan=auto")
    simulate(tmp_path / "open", *chosen, "split.cut=auto")
    assert_same_run(tmp_path / "planned", tmp_path / "open")


def test_bits_and_cut_that_are_stated_stay() -> None:
    chosen = small("strategy=splitfed_v2", *PHONES, "plan=auto", "quant.bits=4", "split.cut=stage1")
    assert (chosen.quant.bits, chosen.split.cut) == (4, "stage1")


def test_a_method_that_leaves_nothing_open_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^plan=auto: strategy=fedavg leaves nothing open; takes"):
        experiment.check(small("strategy=fedavg", *PHONES, "plan=auto"))


def test_what_is_chosen_before_the_run_begins_is_in_its_log(tmp_path: Path) -> None:
    done = run(
        "strategy=oqfl", *PHONES, "plan=auto", "data=digits", "model=cnn", "model.width=4",
        "rounds=1", "engine=serial", "tracker=none", f"hydra.run.dir={tmp_path}/run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run" / "cutbit.log").read_text()
    assert log.count("plan=auto: ") == log.count(" clients with ") >= 1
    assert sum(int(line.split(" for ")[1].split()[0]) for line in log.splitlines()
               if " clients with " in line) == 6  # fmt: skip
    assert "plan=auto: " not in done.stderr
