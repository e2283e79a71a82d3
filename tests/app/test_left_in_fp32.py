"""What quantization leaves in fp32 is said, and that edges alone are quantized."""

import pytest
from torch import nn

from app import experiment
from app.config.composition import compose
from app.summary import left_in_fp32


class Bilinear(nn.Module):
    """Most of its multiply-adds are in a layer that has no quantized form."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.a, self.b = nn.Linear(64, 32), nn.Linear(32, 32)
        self.pair, self.head = nn.Bilinear(32, 32, 32), nn.Linear(32, num_classes)

    def forward(self, x):
        x = self.b(self.a(x.flatten(1)).relu())
        return self.head(self.pair(x, x))


class Two(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.a, self.b = nn.Linear(64, 32), nn.Linear(32, num_classes)

    def forward(self, x):
        return self.b(self.a(x.flatten(1)).relu())


def said(*overrides):
    chosen = experiment.resolve(compose(["engine=serial", "clients.total=2", *overrides]))
    return left_in_fp32(chosen, experiment.check(chosen).strategy)


def test_what_stays_is_named_with_its_share():
    (text,) = said("strategy=oqfl", f"model._target_={__file__}:Bilinear")
    # 32·32·32 of these and 64·32 + 32·32 + 32·10 others.
    share = 32**3 / (32**3 + 64 * 32 + 32 * 32 + 320)
    assert f"in fp32 stay {share:.1%} of the multiply-adds: pair._trilinear ({share:.1%})" in text


def test_edges_alone_are_said():
    (text,) = said("strategy=oqfl", "quant.bits=2", f"model._target_={__file__}:Two")
    assert text.startswith("quant.bits changes nothing")
    assert "quant.edge_bits=8" in text


def test_a_device_that_has_the_first_layer_alone_is_said():
    (text,) = said("strategy=splitfed_v1", "quant.bits=4", "quant.side=client")
    assert text.startswith("quant.bits changes nothing")


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=oqfl",),
        ("strategy=fedavg",),
        ("strategy=oqfl", "quant.bits=32"),
        ("strategy=oqfl", "quant.bits=8", f"model._target_={__file__}:Two"),
        ("strategy=oqfl", "quant.weight_bits=4", "quant.act_bits=32"),
        ("strategy=oqfl", "quant.weight_bits=32", "quant.act_bits=4"),
        ("strategy=splitfed_v1", "quant.bits=4", "quant.side=client", "split.cut=stage2"),
        ("strategy=splitfed_v1", "quant.bits=4"),
    ],
)
def test_nothing_is_said_where_the_settings_say_it(overrides):
    assert said(*overrides) == []
