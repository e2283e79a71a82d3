"""What of the global model one client holds: under which names, and which entries of each array.

    everything    the global model as it is
    selected      some of its arrays, under names of the client's own, or some entries of them

A client's model has no other arrays than those of its view, and messages none but these.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.slices import Kept
from strategies.blocks import Form, arrays_of
from strategies.client.training import load_arrays
from strategies.server.method import Arrays, Masks
from strategies.server.results import check_forms, forms


@dataclass(frozen=True, eq=False)
class Everything:
    """A client that holds the global model.

    Attributes:
        model: it.
    """

    model: nn.Module

    def of(self, arrays: Arrays) -> Arrays:
        """As they are."""
        return arrays

    def back(self, arrays: Mapping[str, Tensor]) -> tuple[Arrays, Masks]:
        """As they came."""
        return arrays_of(arrays), {}


@dataclass(frozen=True)
class Source:
    """Where one array of a client's comes from.

    Attributes:
        name: of the array in the global model.
        kept: its entries that the client holds.
    """

    name: str
    kept: Kept = ()

    @property
    def is_whole(self) -> bool:
        """Whether the client holds all of it."""
        return all(axis is None for axis in self.kept)

    def entries(self, shape: tuple[int, ...]) -> Any:
        """The index of the entries in an array of this shape."""
        axes = [
            np.arange(size) if axis is None else axis
            for size, axis in zip(shape, self.kept, strict=True)
        ]
        return np.ix_(*axes)


@dataclass(frozen=True, eq=False)
class Selected:
    """A client that holds some arrays of the global model, or some entries of them.

    Attributes:
        model: the client's.
        whole: the global model.
        sources: of each array of the client's, by its name there.
        marks: booleans of the global model that are True where such a client has trained; they do
            not cross.
    """

    model: nn.Module
    whole: nn.Module
    sources: Mapping[str, Source]
    marks: frozenset[str] = field(default_factory=frozenset)

    def of(self, arrays: Arrays) -> Arrays:
        """The client's part of the global model's arrays, in its own names and shapes."""
        found: dict[str, NDArray[Any]] = {}
        for name, source in self.sources.items():
            array = arrays[source.name]
            found[name] = array if source.is_whole else array[source.entries(array.shape)]
        return found

    def back(self, arrays: Mapping[str, Tensor]) -> tuple[Arrays, Masks]:
        """A client's arrays in the global model's names and shapes, and what of them it holds.

        Raises:
            ValueError: the arrays are not the client's.
        """
        own = {name: tensor.numpy() for name, tensor in arrays.items()}
        check_forms(own, self._forms)
        found: dict[str, NDArray[Any]] = {}
        for name, (shape, dtype) in self._whole.items():
            mine = self._by_source.get(name)
            if mine is None:
                found[name] = np.full(shape, name in self.marks, dtype)
            elif self.sources[mine].is_whole:
                found[name] = own[mine]
            else:
                found[name] = np.zeros(shape, dtype)
                found[name][self.sources[mine].entries(shape)] = own[mine]
        return found, self.masks

    def loaded(self, arrays: Mapping[str, Tensor]) -> nn.Module:
        """The client's model with its part of the global model's arrays."""
        own = self.of({name: tensor.numpy() for name, tensor in arrays.items()})
        load_arrays(self.model, {name: torch.from_numpy(array) for name, array in own.items()})
        return self.model

    @functools.cached_property
    def masks(self) -> dict[str, bool | NDArray[Any]]:
        """What is not held as a whole: False for nothing of an array, else True at its entries."""
        masks: dict[str, bool | NDArray[Any]] = {}
        for name, (shape, _) in self._whole.items():
            mine = self._by_source.get(name)
            if mine is None:
                if name not in self.marks:
                    masks[name] = False
            elif not self.sources[mine].is_whole:
                mask = np.zeros(shape, bool)
                mask[self.sources[mine].entries(shape)] = True
                masks[name] = mask
        return masks

    @functools.cached_property
    def _by_source(self) -> dict[str, str]:
        return {source.name: name for name, source in self.sources.items()}

    @functools.cached_property
    def _forms(self) -> Mapping[str, Form]:
        return forms({name: t.detach().numpy() for name, t in self.model.state_dict().items()})

    @functools.cached_property
    def _whole(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        state = self.whole.state_dict()
        return {name: (tuple(t.shape), t.numpy().dtype) for name, t in state.items()}
