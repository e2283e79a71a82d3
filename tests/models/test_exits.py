"""Exits: their shapes, names, weights."""

import pytest
import torch
from torch import nn

from models.exits import ExitSpec, exit_head, exit_name

SHAPES = [(12,), (12, 9), (12, 5, 7), (12, 1, 1), (12, 1)]


@pytest.mark.parametrize("width", [0, 2, 6])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_exit_for_every_shape(shape: tuple[int, ...], width: int) -> None:
    head = exit_head(ExitSpec.of(shape, 10, width), 0)
    for batch in (1, 3):  # a batch of one trains, too
        z = torch.randn(batch, *shape, requires_grad=True)
        logits = head.train()(z)
        assert logits.shape == (batch, 10)
        logits.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    size = sum(p.numel() for p in head.parameters())
    if not width:
        assert size == 12 * 10 + 10
    else:
        positions = 3 ** (len(shape) - 1)
        assert size == 12 * width * positions + 2 * width + 10 * width + 10


def test_a_plain_exit_is_the_mean_and_one_layer() -> None:
    head = exit_head(ExitSpec.of((4, 3, 3), 5), 0)
    z = torch.randn(2, 4, 3, 3)
    expected = z.mean((2, 3)) @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(z), expected)


def test_weights_are_drawn_by_the_seed_alone() -> None:
    spec = ExitSpec.of((4, 3, 3), 5, 8)
    before = torch.get_rng_state()
    one, same, other = (exit_head(spec, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["linear.weight"], other["linear.weight"])


def test_what_no_exit_fits() -> None:
    for shape, message in (((), "one number per sample"), ((3, 4, 4, 4), "got 5 dimensions")):
        with pytest.raises(ValueError, match=message):
            ExitSpec.of(shape, 10)
    for width in (-1, 1):
        with pytest.raises(ValueError, match=rf"strategy\.exit_width={width}: takes 0, or 2"):
            ExitSpec.of((3,), 10, width)


def test_the_name_is_one_that_nothing_has() -> None:
    network = nn.Sequential(nn.Linear(1, 1))
    assert exit_name(network) == "exit"
    network.add_module("exit", nn.Linear(1, 1))
    network.register_buffer("exit_", torch.zeros(1))
    assert exit_name(network) == "exit__"
