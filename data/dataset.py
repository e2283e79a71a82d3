"""A data set in memory, and what is known of one before it is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Inputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Description:
    """What a source at ``data.path`` says before anything is loaded.

    Attributes:
        shape: of one sample, such as (1, 28, 28), one for each of several inputs; () where the
            configuration must state it.
        num_classes: as many as the labels need; 0 where the configuration must state it.
        content: names the content: equal for equal content, wherever it lies.
        label_names: of the classes, where the data name them.
        vocab_size: number of tokens, where inputs are tokens.
    """

    shape: tuple[Any, ...]
    num_classes: int
    content: str
    label_names: tuple[str, ...] = ()
    vocab_size: int | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set, ready for training.

    Attributes:
        train_x: (N, …) float32, standardised by its source: images (N, C, H, W), signals (N, C, L),
            features (N, F); or int64 tokens (N, T). A tuple of these where a sample has several
            inputs.
        train_y: (N,) int64 class of each sample, task=classification; (N, K) uint8 of 0 and 1,
            multilabel; (N, K) float32, regression; (N, T) int64, tokens.
        test_x: as train_x, never given to a client.
        test_y: as train_y.
        num_classes: number of classes, counting classes that no sample has; of labels; of numbers;
            of tokens.
        train_group: (N,) int64 natural owner of each training sample (a patient, a writer), or
            None where the data have no owners.
        valid_x: as train_x, kept to choose the best round on; None for none.
        valid_y: as train_y, of these.
    """

    train_x: Inputs
    train_y: Tensor
    test_x: Inputs
    test_y: Tensor
    num_classes: int
    train_group: Tensor | None = None
    valid_x: Inputs | None = None
    valid_y: Tensor | None = None

    @property
    def input_shape(self) -> tuple[Any, ...]:
        """Shape of one sample, such as (1, 28, 28); one for each of several inputs."""
        if isinstance(self.train_x, Tensor):
            return tuple(self.train_x.shape[1:])
        return tuple(tuple(x.shape[1:]) for x in self.train_x)

    def tensors(self) -> dict[str, Tensor]:
        """What a source returns as tensors; ``from_tensors`` is the inverse."""
        assert self.valid_y is None, "samples are kept after data were stored, not before"
        fields = {
            **_named("train_x", self.train_x),
            "train_y": self.train_y,
            **_named("test_x", self.test_x),
            "test_y": self.test_y,
            "num_classes": torch.tensor(self.num_classes),
        }
        return fields if self.train_group is None else fields | {"train_group": self.train_group}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Dataset":
        """Build a data set from what ``tensors`` returned."""
        return cls(
            train_x=_inputs("train_x", tensors),
            train_y=tensors["train_y"],
            test_x=_inputs("test_x", tensors),
            test_y=tensors["test_y"],
            num_classes=int(tensors["num_classes"]),
            train_group=tensors.get("train_group"),
        )

    def limit_train(self, max_train: int | None, seed: int) -> "Dataset":
        """Keep ``max_train`` training samples drawn by ``seed``, in their order; None keeps all."""
        keep = _drawn(len(self.train_y), max_train, seed)
        if keep is None:
            return self
        return replace(
            self,
            train_x=rows_of(self.train_x, keep),
            train_y=self.train_y[keep],
            train_group=None if self.train_group is None else self.train_group[keep],
        )

    def with_validation(self, share: float, seed: int) -> "Dataset":
        """Keep a share of the training samples drawn by ``seed``, which then no client has.

        Raises:
            ValueError: that is none of them, or all; names data.validation.
        """
        total = len(self.train_y)
        count = round(share * total)
        if not 0 < count < total:
            raise ValueError(
                f"data.validation={share}: is {count} of {total} training samples; takes a share "
                "that keeps one and leaves one"
            )
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        kept, left = order[:count].sort().values, order[count:].sort().values
        return replace(
            self,
            train_x=rows_of(self.train_x, left),
            train_y=self.train_y[left],
            train_group=None if self.train_group is None else self.train_group[left],
            valid_x=rows_of(self.train_x, kept),
            valid_y=self.train_y[kept],
        )

    def limit_test(self, max_test: int | None, seed: int) -> "Dataset":
        """Keep ``max_test`` test samples drawn by ``seed``, in their order; None keeps all."""
        keep = _drawn(len(self.test_y), max_test, seed)
        if keep is None:
            return self
        return replace(self, test_x=rows_of(self.test_x, keep), test_y=self.test_y[keep])

    def resized(self, size: int) -> "Dataset":
        """Bring images (C, H, W) to (C, ``size``, ``size``), bilinear with antialiasing."""
        assert isinstance(self.train_x, Tensor) and isinstance(self.test_x, Tensor)
        return replace(
            self, train_x=_resized(self.train_x, size), test_x=_resized(self.test_x, size)
        )


def _named(name: str, inputs: Inputs) -> dict[str, Tensor]:
    """``name``, or ``name.0``, ``name.1``, … of several inputs."""
    if isinstance(inputs, Tensor):
        return {name: inputs}
    return {f"{name}.{index}": tensor for index, tensor in enumerate(inputs)}


def _inputs(name: str, tensors: Mapping[str, Tensor]) -> Inputs:
    """Inverse of `_named`."""
    if name in tensors:
        return tensors[name]
    count = sum(key.startswith(f"{name}.") for key in tensors)
    return tuple(tensors[f"{name}.{index}"] for index in range(count))


def rows_of(inputs: Inputs, keep: Tensor | slice) -> Inputs:
    """Return some samples' inputs."""
    return inputs[keep] if isinstance(inputs, Tensor) else tuple(x[keep] for x in inputs)


def _drawn(count: int, limit: int | None, seed: int) -> Tensor | None:
    """Rows of ``limit`` out of ``count`` samples, ascending; None where all stay."""
    if limit is None or limit >= count:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:limit].sort().values


def hold_out(rows: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide a client's rows into those it trains on and those it holds out, each in its order.

    Of two or more rows there is at least one on either side; a single one is trained on.
    """
    count = 0 if len(rows) < 2 else min(len(rows) - 1, max(1, round(share * len(rows))))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[count:].sort().values], rows[order[:count].sort().values]


def _resized(images: Tensor, size: int) -> Tensor:
    """In pieces, because the interpolation keeps copies."""
    pieces = [
        F.interpolate(piece, (size, size), mode="bilinear", antialias=True)
        for piece in images.split(500)
    ]
    return torch.cat(pieces) if pieces else images
