"""What a command line lets a search draw from, and what it refuses in one line."""

from typing import Any

import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from app.jobs import Jobs
from app.search.settings import SearchSettings
from app.search.space import space

SMALL = ("engine=serial", "clients.total=2", "data.max_train=60", "tracker.wandb.mode=disabled")


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("train.lr=tag(log, interval(0.001, 0.3))", FloatDistribution(0.001, 0.3, log=True)),
        ("train.lr=interval(0, 1)", FloatDistribution(0, 1)),
        ("train.epochs=int(interval(1, 5))", IntDistribution(1, 5)),
        ("train.epochs=tag(log, int(interval(1, 64)))", IntDistribution(1, 64, log=True)),
        ("train.epochs=range(1, 6)", IntDistribution(1, 5)),
        ("train.epochs=sort(range(1, 10, 3), reverse=true)", IntDistribution(1, 7, step=3)),
        ("data.alpha=range(0.1, 0.5, 0.1)", FloatDistribution(0.1, 0.4, step=0.1)),
        ("data.alpha=float(range(1, 4))", FloatDistribution(1, 3, step=1)),
        ("quant.bits=2,4,8", CategoricalDistribution(["2", "4", "8"])),
        ("quant.bits=choice(2, 4, 2)", CategoricalDistribution(["2", "4"])),
        ("link.up=shuffle(fp32, int8)", None),
        ("quant.bits=4,null", CategoricalDistribution(["4", "null"])),
        ("model=glob([lenet*,mlp])", CategoricalDistribution(["lenet5", "mlp"])),
    ],
)
def test_ranges_of_hydra(text: str, drawn: BaseDistribution | None) -> None:
    found = space(["strategy=oqfl", text, "rounds=3"])
    key = text.partition("=")[0]
    assert list(found.drawn) == [key]
    assert list(found.fixed) == ["strategy=oqfl", "rounds=3"]
    if drawn is not None:
        assert found.drawn[key] == drawn
    else:
        of = found.drawn[key]
        assert isinstance(of, CategoricalDistribution)
        assert set(of.choices) == {"fp32", "int8"}


def test_a_trial_has_what_was_drawn_as_the_command_line_has_it() -> None:
    found = space(
        ["train.lr=interval(0.1, 0.3)", "++model.width=8,16", "link.up=choice(int8,0.5)",
         "train.epochs=range(1,3)", "rounds=3"]
    )  # fmt: skip
    values: dict[str, Any] = {
        "train.lr": 0.123456789, "++model.width": "16", "link.up": "0.5", "train.epochs": 2,
    }  # fmt: skip
    own = ["train.lr=0.123457", "++model.width=16", "link.up='0.5'", "train.epochs=2"]
    assert found.own(values) == own
    assert found.overrides(values) == ["rounds=3", *own]
    assert found.own(values | {"train.lr": 0.3})[0] == "train.lr=0.3"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.lr=interval(1, 0)", "train.lr=interval(1, 0): takes a lower end and an upper end"),
        ("train.lr=tag(log, interval(0, 1))", "with the tag log takes a lower end above 0"),
        ("train.lr=tag(lin, interval(0, 1))", "the tag lin is unknown; takes log"),
        ("train.lr=tag(log, choice(1, 2))", "the tag log is of numbers: takes interval or range"),
        ("train.epochs=range(2, 2)", "holds no value; a range is without its end"),
        ("train.epochs=tag(log, range(1, 9, 2))", "takes a step of 1, or interval"),
        ("seed=0,1,2", "seed: takes one value in a search: a search would take the luckiest seed"),
        ("data=digits,mnist", "data: takes one value in a search: trials are compared on it"),
        ("data.validation=0.1,0.2", "data.validation: takes one value in a search: trials are"),
        ("engine=ray,serial", "engine: takes one value in a search: it does not change what"),
        ("sweep.jobs=1,2", "sweep.jobs: takes one value in a search: it does not change"),
        ("rounds=3", "sweep=search: takes a range beside it, such as train.lr='tag(log,"),
    ],
)
def test_what_cannot_be_searched_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        space(["strategy=oqfl", text])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trials": 0}, "sweep.search.trials=0: takes 1 to 10000"),
        ({"sampler": "grid"}, "sweep.search.sampler=grid: takes tpe, gp, nsga2, random"),
        ({"maximize": "total_bytes"}, "did you mean total_bytes_up"),
        ({"maximize": "best_acuracy"}, "did you mean best_accuracy"),
        ({"maximize": []}, "sweep.search.maximize=[]: takes a name"),
        ({"minimize": "best_validation_accuracy"}, "best_validation_accuracy: is an objective t"),
        ({"prune": True, "minimize": "total_bytes_up"}, "sweep.search.prune=true: takes one obj"),
        ({"seed": -1}, "sweep.search.seed=-1: takes 0 or more"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        SearchSettings(**settings)
    assert said in str(caught.value)


def test_the_sampler_is_that_of_the_number_of_objectives() -> None:
    assert SearchSettings().sampled_by == "tpe"
    assert SearchSettings(minimize=["total_bytes_up"]).sampled_by == "gp"
    assert SearchSettings(sampler="random").sampled_by == "random"


SEARCH = ("sweep=search", "data.validation=0.2")


@pytest.mark.parametrize(
    ("overrides", "is_sweep", "said"),
    [
        (("train.lr=interval(0,1)",), False, "train.lr=interval(0,1): has no end of values; takes"),
        (("train.lr=interval(0,1)",), True, "takes sweep=search, which draws some (docs/SWEEPS"),
        (("hydra/sweeper=optuna",), True, "sweep=search draws them by Optuna"),
        ((*SEARCH, "quant.bits=2,4"), False, "sweep=search: runs several jobs; takes -m beside"),
        ((*SEARCH, "sweep.search.trials=2,4"), True, "takes one value; a list is [a,b]"),
        (("sweep=search", "quant.bits=2,4"), True, "takes data.validation beside it, such as"),
        ((*SEARCH, "quant.bits=2,4,9"), True, "quant.bits=9: takes 2 to 8, 32 or null"),
        ((*SEARCH, "train.lr=interval(-1,1)"), True, "train.lr=-1"),
        ((*SEARCH, "quant.bitz=2,4"), True, "quant.bitz: unknown key; did you mean quant.bits"),
        ((*SEARCH, "quant.bits=2,4", "sweep.search.maximize=rounds_to_target"), True,
         "sweep.search.maximize=rounds_to_target: takes target_accuracy beside it"),
    ],
)  # fmt: skip
def test_wrong_searches_end_before_anything_runs(
    overrides: tuple[str, ...], is_sweep: bool, said: str
) -> None:
    with pytest.raises(ValueError) as caught:
        Jobs().check([*overrides, *SMALL], is_sweep)
    assert said in str(caught.value)


def test_who_chooses_on_the_test_set_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    text = "sweep.search.maximize=final_accuracy"
    Jobs().check(["sweep=search", "quant.bits=2,4", text, *SMALL], is_sweep=True)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{text}: chooses on the test set" in said
