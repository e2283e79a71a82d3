"""A network without its values: what two networks have in common that cost the same."""

import hashlib
import io
import pickle
import types
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef


@dataclass(frozen=True)
class Structure:
    """Equal for networks that are equal but for the values of their tensors.

    Attributes:
        digest: of all attributes of all modules; of tensors type, shape, strides and what shares
            whose memory.
        code: their classes and functions, by identity: a file that was read again has others.
    """

    digest: bytes
    code: tuple[Any, ...]


def structure_of(model: nn.Module) -> Structure | None:
    """Describe a network; None where some attribute cannot be described.

    What its code reads beside attributes, such as a global variable, is not in it.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump(model)
    except Exception:  # whatever somebody else's object raises that is not to be pickled
        return None
    return Structure(hashlib.sha256(file.getbuffer()).digest(), tuple(pickler.code))


def storage_of(tensor: Tensor) -> int:
    """The identity of a tensor's memory while it lives; there is no address on the meta device."""
    return int(StorageWeakRef(tensor.untyped_storage()).cdata)


class _Pickler(pickle.Pickler):
    """Writes tensors without values, and code as the number at which `code` has it."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.code: list[Any] = []
        self._storages: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return (
                type(obj).__name__, str(obj.dtype), tuple(obj.shape), obj.stride(),
                obj.storage_offset(), obj.requires_grad, vars(obj),
                self._storages.setdefault(storage_of(obj), len(self._storages)),
            )  # fmt: skip
        if isinstance(obj, type | types.FunctionType):
            self.code.append(obj)
            return len(self.code)
        return None
