"""Configurations made from what is kept of conf/ are those that Hydra composes."""

from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from app.config import choices, methods
from app.config.choices import composed
from app.config.composition import open_keys
from app.config.schema import CONF

LINES: list[list[str]] = [
    [],
    ["seed=3", "rounds=7"],
    ["strategy=oqfl", "quant.bits=3", "model=lenet5", "train.lr=1e-3"],
    ["strategy=oqfl", "strategy=fedavg", "strategy.average=weighted"],
    ["experiment=oqfl", "rounds=3"],
    ["rounds=3", "experiment=oqfl", "train.epochs=9"],
    ["experiment=binarized_split", "strategy.binarize=client", "seed=1"],
    ["model._target_=models.mlp.MLP", "model.hidden=12"],
    ["fleet=mobile", "++fleet.over_select=1.2", "split.cut={0: stage1, default: stage2}"],
    ["sweep=bits", "engine=serial", "tracker=csv", "name=some/where"],
    ["data=hub", "data.path=a.csv", "++data.options.sep=a", "train.clip_norm=null"],
    ["name=${data.name}-${seed}", "seed=2", "seed=4"],
    ["hydra.run.dir=/tmp/x", "model=resnet8", "++model.width=0.5"],
    ["+tracker.wandb.mode=disabled"],
    ["split={cut: stage2}"],
    ["~seed", "rounds=2"],
]
WRONG: list[list[str]] = [
    ["seed=a"],
    ["train.lr=[1]"],
    ["train.foo=1"],
    ["foo.bar=1"],
    ["+seed=1"],
    ["seed=1,2"],
    ["strategy=nothing", "seed=1"],
    ["train@here=1"],
    ["model.width=1"],
]


def by_hydra(overrides: list[str]) -> str:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_yaml(hydra_compose("config", overrides))


@pytest.mark.parametrize("overrides", LINES, ids=" ".join)
def test_equal_to_what_hydra_composes(overrides: list[str]) -> None:
    methods.register()
    opened = open_keys(overrides)
    expected = by_hydra(opened)
    for _ in range(2):  # made, and kept
        assert OmegaConf.to_yaml(composed(opened)) == expected


@pytest.mark.parametrize("overrides", WRONG, ids=" ".join)
def test_errors_are_those_of_hydra(overrides: list[str]) -> None:
    methods.register()
    composed([])
    said = []
    for compose in (by_hydra, composed):
        with pytest.raises((HydraException, OmegaConfBaseException)) as error:
            compose(overrides)
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]


def test_one_job_s_values_do_not_reach_the_next() -> None:
    methods.register()
    one = composed(["seed=1", "split.cut={0: stage1, default: stage2}"])
    one.data.path = "elsewhere"
    two = composed(["seed=2"])
    assert (two.seed, two.split.cut, two.data.path) == (2, "stage1", composed([]).data.path)


def test_files_are_read_once_for_jobs_that_differ_in_values() -> None:
    methods.register()
    choices._of_files.cache_clear()
    for seed in range(5):
        for strategy in ("fedavg", "oqfl"):
            composed([f"strategy={strategy}", f"seed={seed}"])
    assert choices._of_files.cache_info().misses == 2


def test_the_users_own_files_are_read_each_time(tmp_path: Path) -> None:
    methods.register()
    (tmp_path / "sweep").mkdir()
    path = f"hydra.searchpath=[file://{tmp_path}]"
    for rate in (0.5, 0.25):
        (tmp_path / "sweep" / "mine.yaml").write_text(
            f"# @package _global_\ntrain: {{lr: {rate}}}\n"
        )
        assert composed([path, "sweep=mine"]).train.lr == rate
