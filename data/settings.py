"""The settings of a data source and of its division among the clients."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

from data.partition import check_scheme


@dataclass(frozen=True)
class DataSettings:
    """The group data of the configuration.

    `content` and `label_names` are found at `path` and name what is there.
    """

    name: str = field(default="digits", metadata={"help": "data set, as in conf/data"})
    source: str = field(
        default="data.digits", metadata={"help": "module or file that loads the data"}
    )
    shape: list[Any] = field(
        default_factory=list,
        metadata={
            "help": "shape of a sample, e.g. [3,32,32], or a list of shapes; arrays, hub: read "
            "from the data"
        },
    )
    num_classes: int = field(
        default=0,
        metadata={
            "help": "number of classes, labels, numbers or tokens (task); arrays, hub: read from "
            "the data"
        },
    )
    vocab_size: int | None = field(
        default=None,
        metadata={"help": "number of tokens where inputs are tokens; null: they are real numbers"},
    )
    path: str | None = field(
        default=None,
        metadata={"help": "arrays: .npz file; hub: folder, or name on the Hugging Face Hub"},
    )
    content: str = ""
    label_names: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "hub: splits and columns, e.g. data.options.label (docs/DATA.md)"},
    )
    root: str = field(
        default="${oc.env:CUTBIT_DATA,${oc.env:HOME,/tmp}/.cache/cutbit}",
        metadata={"help": "folder of local data sets"},
    )
    partition: str = field(
        default="iid",
        metadata={"help": "iid, dirichlet, shards, natural (by user), or a function of your own"},
    )
    alpha: float = field(
        default=0.5, metadata={"help": "dirichlet: concentration; smaller is more non-IID"}
    )
    samples_per_client: int | None = field(
        default=None, metadata={"help": "maximum samples per client; null: no limit"}
    )
    max_train: int | None = field(
        default=None, metadata={"help": "maximum training samples; null: all"}
    )
    max_test: int | None = field(default=None, metadata={"help": "maximum test samples; null: all"})
    validation: float | None = field(
        default=None,
        metadata={
            "help": "share of the training samples kept to choose the best round on, so that the "
            "test set is looked at once, at the end; null: none (docs/EVALUATION.md)"
        },
    )
    image_size: int | None = field(
        default=None, metadata={"help": "resize images to this height and width"}
    )

    def __post_init__(self) -> None:
        is_plain = re.fullmatch(r"[\w. -]+(/[\w. -]+)*", self.name) is not None
        if not is_plain or ".." in self.name.split("/"):  # part of a file's name in the cache
            raise ValueError(f"data.name={self.name!r}: takes letters, digits and . _ - /")
        for key in ("samples_per_client", "max_train", "max_test", "image_size", "vocab_size"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ValueError(f"data.{key}={value}: takes 1 or more")
        check_scheme(self.partition)
        if self.validation is not None and not 0 <= self.validation < 1:
            raise ValueError(
                f"data.validation={self.validation}: takes a share from 0, which is none, to below "
                "1, or null"
            )
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"data.alpha={self.alpha}: takes a finite number above 0")

    def check_shape(self) -> None:
        """Refuse what no data can have, once what is found at the path is filled in.

        Raises:
            ValueError: names the key.
        """
        shapes = self.shape if self.is_several else [self.shape]
        whole = all(type(size) is int for shape in shapes for size in shape)
        if not whole or min(min(s, default=0) for s in shapes) < 1 or self.num_classes < 1:
            raise ValueError(
                f"data.shape={self.shape}, data.num_classes={self.num_classes}: data={self.name} "
                "takes positive ones"
            )
        if self.image_size is not None:
            self.check_images(f"data.image_size={self.image_size}")

    def check_images(self, setting: str) -> None:
        """Refuse a setting of images where samples are none."""
        if len(self.shape) != 3 or self.is_several:
            raise ValueError(
                f"{setting}: takes images (C, H, W), data={self.name} has samples of "
                f"{tuple(self.shape)}"
            )

    @property
    def is_several(self) -> bool:
        """Whether a sample has several inputs."""
        return any(isinstance(shape, list) for shape in self.shape)

    @property
    def input_shape(self) -> tuple[Any, ...]:
        """Shape of one sample as the network gets it; of several inputs, one each."""
        if self.is_several:
            return tuple(tuple(shape) for shape in self.shape)
        channels, *size = self.shape
        return (channels, *([self.image_size] * 2 if self.image_size else size))
