"""Prepared tensors on disk, mapped into memory by every worker instead of being prepared again."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.cache_folder import cache_folder

CHECKSUM = "xxh3"  # its name in the file's metadata


def cached(key: str, prepare: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors stored under ``key``, prepared and stored first where they are not there.

    The file is mapped: the workers of a machine share one copy in memory. One that cannot be read
    or is not as it was written (a full disk, an interrupted copy, a flipped bit) is prepared again.
    Where the cache cannot be written the tensors are returned as prepared.
    """
    path = cache_folder() / f"{key}.safetensors"
    if path.exists():
        with contextlib.suppress(SafetensorError, OSError, ValueError, KeyError, TypeError):
            tensors = load_file(path)
            with safe_open(path, "pt") as file:
                stored = (file.metadata() or {}).get(CHECKSUM)
            if stored == checksum(tensors):
                return tensors
    # Copies: safetensors refuses tensors that share memory.
    tensors = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in prepare().items()
    }
    try:
        _write(tensors, path)
    except (OSError, SafetensorError):  # the latter on a full disk
        return tensors
    return load_file(path)


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of names, types, shapes and values; some 8 GB/s."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    """Write aside and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(descriptor)
    try:
        save_file(tensors, name, {CHECKSUM: checksum(tensors)})
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
