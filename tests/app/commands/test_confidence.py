"""Inference by confidence, against a loop over samples."""

import pytest
import torch

from app.commands.confidence import Price, by_confidence, confidence

PRICE = Price(edge_s=1.0, cloud_s=10.0, bytes_up=100, bytes_down=1)


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
