"""What every method must do. A method without a row here cannot exist."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, assert_same_run, rounds, simulate, small, strategies
from omegaconf import OmegaConf
from safetensors.numpy import load_file

from app import experiment
from app.engine import Simulator

# Overrides that a method needs to run small; the variants of it that must conform as well.
ROWS: dict[str, list[tuple[str, ...]]] = {
    "fedavg": [
        (),
        ("strategy.average=median",),
        ("strategy.average=trimmed_mean",),
        ("strategy.average=multi_krum",),
        ("strategy.server_optimizer=fedadam", "strategy.server_learning_rate=0.01"),
        ("strategy.proximal_mu=0.1",),
    ],
    "oqfl": [
        (),
        ("quant.bits=2", "quant.per_channel=true"),
        ("quant.weight_bits=3", "quant.act_bits=32"),
        ("quant.learn_step=false",),
        ("quant.wire=codes",),
        ("quant.wire=codes_both",),
        ("quant.bits={0:2,1:2,2:8,default:32}", "quant.wire=codes_both"),
        ("strategy.server_optimizer=fedavgm", "strategy.proximal_mu=0.1", "quant.wire=codes"),
        ("quant.bits={0:2,1:2,2:8,default:32}", "quant.wire=updates"),
    ],
    "heterofl": [
        (),
        (
            "submodel.share={0:0.25,1:0.5,default:1.0}",
            "quant.bits={0:2,2:4,default:32}",
            "quant.wire=codes",
            "model.norm=batch",
            "submodel.statistics=own",
        ),
        ("submodel.share=0.5", "strategy.scaler=false", "strategy.average=median"),
    ],
    "fjord": [
        (),
        (
            "submodel.share={0:0.25,1:0.5,default:1.0}",
            "quant.bits=4",
            "model.norm=batch",
            "quant.wire=codes_both",
        ),
        ("strategy.shares=[0.5,1]", "strategy.distillation=0.5"),
    ],
    "split": [(), ("link.up=int8", "link.down=int4", "link.rounding=stochastic")],
    "splitfed_v1": [
        (),
        ("split.cut={0:stage1,1:stage2,default:stage3}", "link.up=fp16"),
        ("quant.bits=4", "quant.side=client", "link.up=int8"),
        (
            "split.cut=0.6",
            "train.server_lr=0.05",
            "quant.bits={0:4,default:8}",
            "submodel.share={0:0.25,1:0.5,default:1.0}",
        ),
        ("quant.bits=4", "split.cut=0.6", "train.server_lr=0.05"),
    ],
    "splitfed_v2": [(), ("link.up=sign", "link.down=sign", "model.norm=batch")],
    "splitfed_v3": [(), ("link.up=randtopk", "clients.per_round=4", "evaluate.clients=3")],
    "binarized_split": [
        (),
        ("strategy.base=split", "privacy.dcor_weight=0.5", "privacy.epsilon=5"),
        ("strategy.base=splitfed_v2", "strategy.binarize=both"),
        ("strategy.binarize=none", "link.up=int8"),
    ],
    "hierarchical": [
        (),
        ("strategy.server_half=replicated", "strategy.exit_width=8", "link.up=int8"),
        ("quant.bits=4", "quant.side=client", "link.up=randtopk", "model.norm=batch"),
    ],
    "deprune": [
        (),
        ("strategy.base=split", "prune.schedule=shrink", "prune.importance=taylor"),
        ("strategy.base=splitfed_v2", "prune.schedule=fixed", "quant.bits=4", "link.up=int8"),
    ],
    "prune": [
        (),
        ("strategy.base=split", "prune.importance=bn", "quant.bits=4", "quant.side=client"),
        ("strategy.base=splitfed_v2", "prune.importance=taylor", "link.up=int8"),
    ],
    "ushaped": [(), ("link.up=int8", "link.down=int2", "link.per_channel=true")],
}
CASES = [pytest.param(s, o, id=" ".join((s, *o))) for s, rows in ROWS.items() for o in rows]


def some_always(cases: list[Any], step: int = 3) -> Iterator[Any]:
    """The first case of each method, and each that is ``step`` after it, runs always."""
    before, number = "", 0
    for case in cases:
        number = number + 1 if case.values[0] == before else 0
        before = case.values[0]
        is_long = number % step > 0
        yield pytest.param(*case.values, id=case.id, marks=pytest.mark.long if is_long else ())


def test_every_method_has_a_row_a_page_a_file_and_a_place_in_the_sweep() -> None:
    assert sorted(ROWS) == strategies()
    over = OmegaConf.load(ROOT / "conf/sweep/methods.yaml").over
    assert sorted(over.strategy.split(",")) == strategies()
    for name in ROWS:
        assert (ROOT / "strategies" / f"{name}.py").exists()
        page = (ROOT / "strategies" / f"{name}.md").read_text()
        for heading in ("Use", "Deviations", "Suggested settings", "Trade-offs", "Citation"):
            assert f"## {heading}" in page, f"{name}.md has no section {heading}"


@pytest.mark.parametrize("page", sorted((ROOT / "strategies").glob("*.md")), ids=lambda p: p.stem)
def test_no_page_has_an_empty_section(page: Path) -> None:
    text = page.read_text()
    for heading, body in re.findall(r"^#+ (.+)\n((?:(?!#+ ).*\n?)*)", text, re.MULTILINE):
        assert body.strip(), f"{page.name}: nothing under {heading}"


@pytest.fixture(scope="module")
def simulate_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """`simulate`, but what has run before in this module is copied."""
    done: dict[tuple[str, ...], tuple[Path, dict[str, Any]]] = {}

    def run(folder: Path, *overrides: str) -> dict[str, Any]:
        if overrides not in done:
            first = tmp_path_factory.mktemp("once")
            done[overrides] = first, simulate(first, *overrides)
        first, summary = done[overrides]
        shutil.copytree(first, folder, dirs_exist_ok=True)
        return summary

    return run


@pytest.mark.parametrize(("strategy", "overrides"), list(some_always(CASES)))
def test_two_rounds(
    strategy: str,
    overrides: tuple[str, ...],
    tmp_path: Path,
    ray_simulator: Simulator,
    simulate_once: Callable[..., dict[str, Any]],
) -> None:
    chosen = (f"strategy={strategy}", *overrides)
    summary = simulate_once(tmp_path / "serial", *chosen)
    simulate(tmp_path / "again", *chosen)
    on_ray = ("engine=ray", "engine.workers=2")
    simulate(tmp_path / "ray", *chosen, *on_ray, simulator=ray_simulator)
    assert_same_run(tmp_path / "serial", tmp_path / "again", tmp_path / "ray")

    records = rounds(tmp_path / "serial")
    assert [record["round"] for record in records] == [1, 2]
    for record in records:
        assert np.isfinite([record["accuracy"], record["loss"], record["train_loss"]]).all()
        assert (record["num_failed"], record["num_dropped"]) == (0, 0)
        assert record["num_clients"] == (4 if "clients.per_round=4" in overrides else 6)
        assert record["bytes_up"] > 0 < record["bytes_down"]
    clients = [json.loads(line) for line in (tmp_path / "serial" / "clients.jsonl").open()]
    for direction in ("bytes_up", "bytes_down"):
        by_round = [sum(c[direction] for c in clients if c["round"] == r) for r in (1, 2)]
        assert by_round == [record[direction] for record in records]
        assert summary[f"total_{direction}"] == sum(by_round)


@pytest.mark.parametrize(("strategy", "overrides"), list(some_always(CASES)))
def test_names_and_types_stay_those_of_the_model(
    strategy: str,
    overrides: tuple[str, ...],
    tmp_path: Path,
    simulate_once: Callable[..., dict[str, Any]],
) -> None:
    config = small(f"strategy={strategy}", *overrides)
    model = experiment.prepare(config, experiment.strategy(config))
    simulate_once(tmp_path, f"strategy={strategy}", *overrides)
    arrays = load_file(tmp_path / "model.safetensors")
    state = model.state_dict()
    assert arrays.keys() == state.keys()
    for name, tensor in state.items():
        # A bottleneck's width may be another one than in the first round.
        assert arrays[name].shape == tuple(tensor.shape) or name.startswith("cut_")
        assert arrays[name].dtype == tensor.numpy().dtype
        assert np.isfinite(arrays[name]).all()


SIZES = {
    "one client": ("clients.total=1",),
    "empty clients": ("data.max_train=4",),
    "one sample each": ("data.max_train=6", "model.norm=batch"),
    "a last batch of one": ("data.max_train=102", "model.norm=batch"),
    "batches of one": ("train.batch_size=1", "data.max_train=24"),
    "a batch larger than the data": ("train.batch_size=100000",),
    "one class or two": ("data.partition=shards", "data.max_train=60"),
    "one client a round": ("clients.per_round=1",),
}


def odd_sizes() -> Iterator[Any]:
    """Every method with every size; of these two in three run long, other ones of each."""
    for number, strategy in enumerate(strategies()):
        for other, (name, overrides) in enumerate(SIZES.items()):
            marks = pytest.mark.long if (number + other) % 3 else ()
            yield pytest.param(strategy, overrides, marks=marks, id=f"{name}-{strategy}")


@pytest.mark.parametrize(("strategy", "overrides"), list(odd_sizes()))
def test_odd_sizes(strategy: str, overrides: tuple[str, ...], tmp_path: Path) -> None:
    summary = simulate(tmp_path, f"strategy={strategy}", *overrides)
    assert summary["num_failed"] == 0
    assert summary["rounds"] == 2
