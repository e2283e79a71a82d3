"""Exits: their shapes, names, weights; answering by confidence against a loop over samples."""

import pytest
import torch
from torch import nn

from models.exits import ExitSpec, Price, by_confidence, confidence, exit_head, exit_name

SHAPES = [(12,), (12, 9), (12, 5, 7), (12, 1, 1), (12, 1)]
PRICE = Price(edge_s=1.0, cloud_s=10.0, bytes_up=100, bytes_down=1)


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


def test_by_confidence_is_what_one_would_do_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    edge, cloud = (3 * torch.randn(50, 4, generator=generator) for _ in range(2))
    y = torch.randint(4, (50,), generator=generator)
    thresholds = [0.0, 0.3, 0.6, 0.9, 0.99, 1.1]
    for point in by_confidence(edge, cloud, y, thresholds, PRICE):
        asked, right, right_here = 0, 0, 0
        for mine, theirs, label in zip(edge, cloud, y, strict=True):
            sure = max(torch.softmax(mine, 0)) >= point.threshold
            answer = int((mine if sure else theirs).argmax())
            asked += not sure
            right += answer == int(label)
            right_here += bool(sure and answer == int(label))
        assert point.edge_share == pytest.approx(1 - asked / 50)
        assert point.accuracy == pytest.approx(right / 50)
        assert point.bytes == pytest.approx(asked / 50 * 101)
        assert point.seconds == pytest.approx(1 + asked / 50 * 10)
        if asked == 50:
            assert point.edge_accuracy is None
        else:
            assert point.edge_accuracy == pytest.approx(right_here / (50 - asked))


def test_the_ends_are_the_two_exits_and_the_share_falls() -> None:
    edge, cloud = torch.randn(30, 3), torch.randn(30, 3)
    y = torch.randint(3, (30,))
    points = by_confidence(edge, cloud, y, [0.0, 0.4, 0.5, 0.7, 0.9, 1.1], PRICE)
    assert points[0].accuracy == pytest.approx(float((edge.argmax(1) == y).float().mean()))
    assert points[-1].accuracy == pytest.approx(float((cloud.argmax(1) == y).float().mean()))
    assert (points[0].edge_share, points[-1].edge_share) == (1.0, 0.0)
    shares = [point.edge_share for point in points]
    assert shares == sorted(shares, reverse=True)


def test_odd_logits() -> None:
    """What is no number is not sure; one class is always sure; nothing is refused."""
    assert confidence(torch.zeros(2, 1)).tolist() == [1.0, 1.0]
    edge = torch.tensor([[float("nan"), 0.0], [0.0, 5.0]])
    (point,) = by_confidence(edge, torch.zeros(2, 2), torch.tensor([0, 1]), [0.5], PRICE)
    assert (point.edge_share, point.accuracy) == (0.5, 1.0)
    with pytest.raises(ValueError, match="got 0, 0 and 0"):
        by_confidence(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0), [0.5], PRICE)
    with pytest.raises(ValueError, match="got 1, 2 and 2"):
        by_confidence(torch.zeros(1, 2), torch.zeros(2, 2), torch.zeros(2), [0.5], PRICE)
