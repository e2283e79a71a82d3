"""The study alone: draws that depend on the seed and on what was told, and nothing else."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.search.settings import SearchSettings
from app.search.space import space
from app.search.study import Result, Study
from tracking.search import conclusion, find_search, markdown

RANGES = ("train.lr=tag(log, interval(0.001, 1))", "quant.bits=2,4,8", "train.epochs=range(1,4)")
TWO = SearchSettings(trials=16, minimize=["total_bytes_up"])


def study(folder: Path, settings: SearchSettings) -> Study:
    folder.mkdir(exist_ok=True)
    return Study(folder, settings, space(RANGES).drawn, {"seed": 0}, rounds=4)


def outcome(values: dict[str, object], settings: SearchSettings) -> Result:
    """High near a rate of 0.1, higher with more bits, which cost bytes."""
    rate, bits = float(str(values["train.lr"])), int(str(values["quant.bits"]))
    accuracy = 1 - abs(math.log10(rate) + 1) / 3 - 0.1 / bits
    found = (accuracy, 1000.0 * bits)[: len(settings.names)]
    return Result(found, [accuracy * share for share in (0.25, 0.5, 0.75, 1.0)])


def go_on(folder: Path, settings: SearchSettings, upto: int) -> Iterator[dict[str, object]]:
    """Open the study anew, and draw and tell on."""
    opened = study(folder, settings)
    for number in range(upto):
        if opened.result(number) is None:
            drawn = opened.ask(number)
            opened.tell(number, outcome(dict(drawn.values), settings))
        yield dict(opened.drawn(number).values)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random"])
def test_a_study_that_is_opened_again_draws_the_same(tmp_path: Path, sampler: str) -> None:
    settings = SearchSettings(trials=15, minimize=["total_bytes_up"], sampler=sampler)
    whole = list(go_on(tmp_path / "whole", settings, 15))
    parts: list[dict[str, object]] = []
    for upto in (7, 13, 15):
        parts = list(go_on(tmp_path / "parts", settings, upto))
        if upto < 15:  # drawn, and killed before it was told
            study(tmp_path / "parts", settings).ask(upto)
    assert parts == whole
    other = SearchSettings(trials=15, minimize=["total_bytes_up"], sampler=sampler, seed=1)
    assert list(go_on(tmp_path / "other", other, 2)) != whole[:2]


def test_it_draws_the_better_ones_more_often(tmp_path: Path) -> None:
    """The last five of TPE's twenty trials are nearer to the best rate than its first ten."""
    drawn = list(go_on(tmp_path / "tpe", SearchSettings(trials=20), 20))
    away = [abs(math.log10(float(str(one["train.lr"]))) + 1) for one in drawn]
    assert sum(away[15:]) / 5 < sum(away[:10]) / 10 / 2


def test_floors_are_the_medians_of_what_ran_to_its_end(tmp_path: Path) -> None:
    settings = SearchSettings(trials=9, prune=True)
    opened = study(tmp_path / "pruned", settings)
    for number, share in enumerate((0.1, 0.9, 0.5, 0.3, 0.7)):
        assert opened.ask(number).floors == []
        opened.tell(number, Result([share], [share / 2, None, share, share]))
    assert opened.ask(5).floors == [0.25, None, 0.5]
    opened.tell(5, Result(accuracies=[0.1], is_pruned=True))
    opened.ask(6)
    opened.tell(6, Result(accuracies=[0.1], failure="broken"))
    assert opened.ask(7).floors == [0.25, None, 0.5]  # neither ran to its end
    opened.tell(7, Result([0.6], [0.3, None, 0.6, 0.6]))
    again = study(tmp_path / "pruned", settings)
    assert again.ask(8).floors == [0.275, None, 0.55]

    found = find_search(tmp_path / "pruned", with_importances=False)
    assert found is not None
    assert [one.state for one in found.trials] == [
        *["finished"] * 5, "pruned", "failed", "finished", "unfinished",
    ]  # fmt: skip
    assert [(one.job, one.values) for one in found.front] == [("1", (0.9,))]
    assert conclusion(found)[0] == (
        "search by tpe: 9 trials: 6 finished, 1 pruned, 1 failed, 1 unfinished"
    )
    assert "best: job 1  best_validation_accuracy=0.9" in conclusion(found)[1]


def test_the_front_and_what_matters(tmp_path: Path) -> None:
    list(go_on(tmp_path / "two", TWO, 16))
    found = find_search(tmp_path / "two")
    assert found is not None
    assert {one.params["quant.bits"] for one in found.front} <= {"2", "4", "8"}
    rising = [one.values[1] for one in reversed(found.front)]
    assert rising == sorted(rising)  # who is more accurate costs more bytes
    assert found.importances["total_bytes_up"]["quant.bits"] > 0.8
    for shares in found.importances.values():
        assert set(shares) == {"train.lr", "quant.bits", "train.epochs"}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    text = markdown(found)
    assert text.count("\n| ") == len(found.front) + 1 + 3 + 1
    assert found.logs == ["train.lr"]


def test_a_damaged_study_is_one_line(tmp_path: Path) -> None:
    list(go_on(tmp_path / "damaged", TWO, 2))
    path = tmp_path / "damaged" / "search.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:3], "nothing of JSON", *rows[3:]]) + "\n")
    with pytest.raises(ValueError, match=r"search\.jsonl: is damaged: "):
        find_search(tmp_path / "damaged")
    assert find_search(tmp_path) is None
