"""Optimizers that do not load torch's compiler, and what else would load it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import nn

from models import eager

PAIRS = {
    "sgd": (eager.SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": (eager.Adam, torch.optim.Adam, {"weight_decay": 0.01}),
    "adamw": (eager.AdamW, torch.optim.AdamW, {}),
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", PAIRS)
def test_a_step_is_torchs(name: str, fused: bool) -> None:
    ours, torchs, options = PAIRS[name]
    weights, calls = [], []
    for kind in (ours, torchs):
        torch.manual_seed(0)
        layer = nn.Linear(5, 3)
        optimizer = kind(layer.parameters(), 0.1, fused=fused, **options)
        optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
        optimizer.register_step_post_hook(lambda *_: calls.append("after"))
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.randn(4, 5)).square().sum().backward()
            optimizer.step()
            assert not layer.weight.grad.requires_grad
        weights.append(layer.weight.detach())
    assert torch.equal(*weights)
    assert calls == ["before", "after"] * 6


def loaded(code: str) -> set[str]:
    """The modules that a process of its own has loaded after ``code``."""
    code += "\nimport sys; sys.stderr.write(' '.join(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert not done.returncode, done.stderr
    return set(done.stderr.splitlines()[-1].split())


NETWORKS = """
import torch
from models import cnn, lenet5, mobilenetv2, resnet
from models.cost import cost
from models.cut_points import flops_until
from models.trace import trace
from quant.layers import QuantSpec, quantize
networks = [
    (mobilenetv2.mobilenetv2(), (3, 32, 32)),
    (lenet5.LeNet5(), (1, 28, 28)),
    (resnet.resnet8(), (3, 32, 32)),
    (cnn.CNN(), (1, 28, 28)),
    (torch.nn.TransformerEncoderLayer(8, 2, batch_first=True), (5, 8)),
]
for network, shape in networks:
    cost(network, shape)
    cost(quantize(network, QuantSpec(weight_bits=4, act_bits=4)), shape)
    if len(shape) == 3:
        flops_until(trace(network, training=True), torch.zeros(2, *shape))
"""

RUN = """
import runpy, sys
sys.argv = ["main.py", "-m", "strategy=oqfl,binarized_split", "train.optimizer=adam"]
sys.argv += ["rounds=1", "clients.total=3", "train.max_batches=2", "engine=serial", "tracker=none"]
sys.argv += ["hydra.sweep.dir=FOLDER"]
try:
    runpy.run_path("main.py", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize("code", [NETWORKS, RUN], ids=["costs", "runs"])
def test_nothing_loads_the_compiler(code: str, tmp_path: Path) -> None:
    modules = loaded(code.replace("FOLDER", str(tmp_path)))
    assert "models.cost" in modules
    assert "torch._dynamo" not in modules


def test_who_compiles_gets_it() -> None:
    modules = loaded(
        "import torch\n"
        "torch.manual_seed(0)\n"
        "from models import eager\n"
        "from models.cost import cost\n"
        "layer = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())\n"
        "cost(layer, (3,))\n"
        "optimizer = eager.SGD(layer.parameters(), 0.1)\n"
        "forward = torch.compile(layer, backend='eager')\n"
        "before = layer[0].weight.clone()\n"
        "x = torch.ones(2, 3)\n"
        "assert torch.equal(forward(x), layer(x))\n"
        "forward(x).square().sum().backward()\n"
        "optimizer.step()\n"
        "optimizer.zero_grad()\n"
        "assert not torch.equal(before, layer[0].weight)\n"
        "assert layer[0].weight.grad is None\n"
    )
    assert "torch._dynamo" in modules
