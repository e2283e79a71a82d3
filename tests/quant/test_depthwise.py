"""Networks with depthwise convolutions and squeeze-excitation train at few bits and default rates.

Their steps' gradients are large beside the steps themselves, so that steps that are lost show here
first. Noise around ten mean images, batches of 32, SGD 0.1 with momentum 0.9.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quant.layers import QuantSpec, quantize
from quant.quantizer import Quantizer
from strategies.client.training import LocalTraining, make_optimizer
from tests.quant.depthwise import NETWORKS

WIDTHS = (2, 4, 8)
# In `make test` each network at one width.
SOME = [(name, WIDTHS[index % 3], 24) for index, name in enumerate(NETWORKS) if index % 2 == 0]
ALL = [
    pytest.param(name, bits, 200, marks=pytest.mark.long) for name in NETWORKS for bits in WIDTHS
]


def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(10, 3, 16, 16, generator=generator)
    for _ in range(steps):
        y = torch.randint(10, (32,), generator=generator)
        yield means[y] + torch.randn(32, 3, 16, 16, generator=generator), y


@pytest.mark.parametrize(("name", "bits", "steps"), [*SOME, *ALL])
def test_trains_and_stays_finite(name: str, bits: int, steps: int) -> None:
    torch.manual_seed(0)
    model = quantize(NETWORKS[name](), QuantSpec(weight_bits=bits, act_bits=bits)).train()
    optimizer = make_optimizer([model], LocalTraining())
    losses = []
    for x, y in batches(steps):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        for n, p in model.named_parameters():
            assert p.grad is not None, n
            assert p.grad.isfinite().all(), n
        optimizer.step()
        losses.append(float(loss.detach()))
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    assert len(quantizers) >= 12
    assert all((q.step > 0).all() and q.step.isfinite().all() for q in quantizers)
    assert all(p.isfinite().all() for p in model.parameters())
    tenth = max(3, steps // 10)
    first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
    assert last < (0.97 if steps < 100 else 0.8) * first
