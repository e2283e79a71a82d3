"""What wandb is told of an experiment beside its configuration."""

from pathlib import Path

import pytest

from app.config.composition import compose
from app.experiment import resolve
from app.sinks import effective, inputs


@pytest.mark.parametrize(
    ("overrides", "bits"),
    [
        (["strategy=fedavg"], (32, 32)),
        (["strategy=fedavg", "quant.bits=2"], (32, 32)),  # which it does not read
        (["strategy=oqfl"], (4, 4)),
        (["strategy=oqfl", "quant.bits=2"], (2, 2)),
        (["strategy=oqfl", "quant.weight_bits=3", "quant.act_bits=8"], (3, 8)),
        (["strategy=splitfed_v1"], (32, 32)),
        (["strategy=splitfed_v1", "quant.bits=4"], (4, 4)),
        (["strategy=binarized_split"], (32, 32)),
    ],
)
def test_every_method_has_bits_that_are_numbers(
    overrides: list[str], bits: tuple[int, int]
) -> None:
    chosen = resolve(compose(overrides))
    found = effective(chosen)
    assert (found["effective.weight_bits"], found["effective.act_bits"]) == bits


@pytest.mark.parametrize(
    ("overrides", "cut", "ratio"),
    [
        ("strategy=oqfl split.cut=stage1 prune.ratio=0.5", "none", 0.0),  # reads neither
        ("strategy=splitfed_v1 split.cut=stage1", "stage1", 0.0),
        ("strategy=splitfed_v1 split.cut=auto", "auto", 0.0),
        ("strategy=deprune prune.ratio=0.25 split.cut=stage1", "stage1", 0.25),
    ],
)
def test_every_method_has_a_cut_and_a_pruned_share(overrides: str, cut: str, ratio: float) -> None:
    found = effective(resolve(compose(overrides.split())))
    assert (found["effective.cut"], found["effective.ratio"]) == (cut, ratio)


def test_inputs_are_the_data_and_the_weights(tmp_path: Path) -> None:
    assert inputs(resolve(compose([]))).weights is None
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"x")
    found = inputs(resolve(compose([f"model.weights={weights}"])))
    assert found.weights == weights
    assert (found.data["name"], found.data["shape"]) == ("digits", [1, 8, 8])
