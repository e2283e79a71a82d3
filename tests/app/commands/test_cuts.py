"""The table of cut points."""

import itertools
import random

import pytest
from torch import Tensor, nn

from app import experiment
from app.commands import cuts
from app.config.composition import compose


def test_lenet5_by_hand() -> None:
    found = {row.name: row for row in cuts.find(["model=lenet5", "data=mnist"]).rows}
    assert {"stage1", "stage2", "stage3", "stage4"} <= found.keys()
    row = found["stage1"]  # conv 1→6, 5×5, padded: 28×28; pooled to 14×14
    assert row.shape == (6, 14, 14)
    assert [row.num_bytes(bits) for bits in (32, 8, 1)] == [4704, 1176, 147]
    assert row.client_params == 6 * 25 + 6
    assert row.client_flops == 2 * 28 * 28 * 6 * 25
    assert row.client_params + row.server_params == 61_706
    assert found["stage4"].server_flops == 2 * 84 * 10


@pytest.mark.parametrize(
    "model", ["cnn", "resnet8", pytest.param("mobilenetv2", marks=pytest.mark.long)]
)
def test_sides_add_up_and_grow(model: str) -> None:
    chosen = [f"model={model}", "data=cifar10"]
    found = cuts.find(chosen).rows
    whole = sum(
        p.numel() for p in experiment.network(experiment.resolve(compose(chosen))).parameters()
    )
    assert all(row.client_params + row.server_params == whole for row in found)
    assert len({row.client_flops + row.server_flops for row in found}) == 1
    for earlier, later in itertools.pairwise(found):
        assert earlier.client_params <= later.client_params
        assert earlier.client_flops <= later.client_flops


class Opaque(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * random.random()


class Partly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Opaque())
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Wholly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flat, self.noise = nn.Flatten(), Opaque()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.noise(self.flat(x)))


def test_what_is_kept_whole_is_said_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuts.main([f"model._target_={__name__}.Partly"]) == 0
    reason = "is kept whole: forward draws from Python's or NumPy's random numbers"
    assert f"body.2 {reason}" in capsys.readouterr().out
    assert cuts.main([f"model._target_={__name__}.Wholly"]) == 1
    assert f"Wholly has no cut points; 'noise' {reason}" in capsys.readouterr().err


def test_output_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuts.main(["model=cnn"]) == 0
    assert "stage1" in capsys.readouterr().out
    assert cuts.main(["model=nothing"]) == 1
    assert capsys.readouterr().err.startswith("error: model=nothing: takes cnn, ")
    assert cuts.main(["model=lenet5"]) == 1
    assert "at least 12×12" in capsys.readouterr().err
