"""Inference by confidence: the device answers where its exit is sure, and asks the cloud otherwise.

The exit is sure where its largest softmax probability reaches a threshold; BranchyNet
(Teerapittayanon et al. 2016, arXiv 1709.01686) asks where the entropy is high.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Price:
    """What one sample takes.

    Attributes:
        edge_s: seconds of the device's part and its exit.
        cloud_s: seconds more where the cloud is asked: up, its part, and the answer down.
        bytes_up: of an activation.
        bytes_down: of an answer.
    """

    edge_s: float
    cloud_s: float
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class Point:
    """What a threshold gives.

    Attributes:
        threshold: the device answers where it is at least this sure.
        edge_share: share of the samples that it answers.
        accuracy: share of right answers, its own and the cloud's.
        edge_accuracy: share of right ones among its own; None where it gives none.
        bytes: both ways, mean per sample.
        seconds: mean per sample.
    """

    threshold: float
    edge_share: float
    accuracy: float
    edge_accuracy: float | None
    bytes: float
    seconds: float


def confidence(logits: Tensor) -> Tensor:
    """Largest softmax probability of (B, classes) logits: (B,), in [1/classes, 1]."""
    return logits.softmax(1).amax(1)


def by_confidence(
    edge: Tensor, cloud: Tensor, y: Tensor, thresholds: Sequence[float], price: Price
) -> list[Point]:
    """What answering by confidence gives, for each threshold.

    Args:
        edge: (N, classes) logits of the exit.
        cloud: (N, classes) logits of the cloud, for the same samples.
        y: (N,) their classes.
        thresholds: 0 never asks the cloud, above 1 always does.
        price: of a sample.

    Raises:
        ValueError: there are no samples, or not as many of each.
    """
    if not len(y) or not len(edge) == len(cloud) == len(y):
        got = f"{len(edge)}, {len(cloud)} and {len(y)}"
        raise ValueError(f"takes logits of both for each of at least one sample, got {got}")
    sure, mine, theirs = confidence(edge), edge.argmax(1) == y, cloud.argmax(1) == y
    points = []
    for threshold in thresholds:
        stays = sure >= threshold  # what is no number is not sure, and is asked
        num_stay, num_asked = int(stays.sum()), int((~stays).sum())
        num_right = int((stays & mine).sum())
        points.append(
            Point(
                threshold=threshold,
                edge_share=num_stay / len(y),
                accuracy=(num_right + int((~stays & theirs).sum())) / len(y),
                edge_accuracy=num_right / num_stay if num_stay else None,
                bytes=num_asked / len(y) * (price.bytes_up + price.bytes_down),
                seconds=price.edge_s + num_asked / len(y) * price.cloud_s,
            )
        )
    return points
