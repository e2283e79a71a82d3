"""Load a local file of weights by name: torchvision's .pth, or .safetensors such as a run's."""

import io
import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_OLD_PICKLES = 5
"""Which torch.save wrote one after the other until version 1.6: what it is, names, storages."""

_TENSOR = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor(_v[23])?|parameter)|torch Size"
    r"|torch \w*Storage|torch\.storage \w*Storage|torch (u?int|b?float|complex|bool)\d*"
)
"""What the pickles of a state dict name."""

NUM_NAMED = 3
"""Names given in an error before it says how many more there are."""

_SKIPPED = ("AuxLogits.",)
"""Parts of published networks that the backbones here leave out: Inception's auxiliary head."""

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
"""torchvision's DenseNet files say norm.1 where its model, and ours, says norm1."""


_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Names under which checkpoints of training programs keep the weights."""

_PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and Lightning put before each name."""


def load_weights(model: nn.Module, path: str | Path, replace_head: bool = False) -> list[str]:
    """Load the state dict in the file ``path`` into ``model``, in place, or leave it as it was.

    Every name and shape must agree. Exceptions: ``num_batches_tracked``, which older files lack,
    stays as it is; Inception's auxiliary head is skipped; DenseNet's older names are understood; a
    state dict within a checkpoint (``{"state_dict": …}``) is taken out of it; what DataParallel and
    its like put before each name (``module.``) is left out where no name of the model begins so.

    Args:
        model: any model; its head is its last linear layer.
        path: file written by ``torch.save`` of a state dict, of which only tensors are unpickled,
            or a file that ends in .safetensors.
        replace_head: keep the fresh initialisation of the head, and of what else in the same
            top-level part (such as ``classifier``) does not fit the file.

    Returns:
        what was done to the file's names, in words; nothing where they are the model's.

    Raises:
        ValueError: the file cannot be read, or does not fit; one line that lists the first names.
    """
    own = model.state_dict()
    found, done = _read(Path(path))
    found, stripped = _without_prefixes(found, own)
    found = {
        _OLD_DENSENET.sub(r"\1\2", name): tensor
        for name, tensor in found.items()
        if not name.startswith(_SKIPPED)
    }
    done += [f"{prefix!r} before each name is left out" for prefix in stripped]
    head = _head(model)
    if replace_head and head is not None:
        found = _without_head(found, own, head)
    missing = [name for name in own if name not in found and not name.endswith(_COUNTER)]
    unexpected = [name for name in found if name not in own]
    if missing or unexpected:
        raise ValueError(f"{path} does not fit: {_listed('missing', missing, unexpected)}")
    unlike = [name for name in found if found[name].shape != own[name].shape]
    if head is not None and unlike and all(name.startswith(f"{head}.") for name in unlike):
        classes = [weights[f"{head}.weight"].shape[0] for weights in (found, own)]
        raise ValueError(
            f"{path} has a head for {classes[0]} classes, the model one for {classes[1]}: "
            f"model.replace_head=true trains a new {head}"
        )
    if unlike:
        raise ValueError(f"{path} does not fit: {_shapes(unlike, found, own)}")
    model.load_state_dict({**own, **found})
    return done


_COUNTER = "num_batches_tracked"


def _read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The file's tensors by their names, and what it took to find them."""
    state: Any
    try:
        if path.exists() and not path.is_file():
            raise OSError("is no file")
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            _check_sizes(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    except _NamesMoreError as error:
        raise ValueError(
            f"{path} is not a weights file saved by torch.save(model.state_dict(), path): it "
            f"{error}, which may run code"
        ) from error
    except Exception as error:  # a broken file can raise anything
        raise ValueError(f"{path} is not a weights file saved by torch.save") from error
    done = []
    if isinstance(state, Mapping) and not _is_state_dict(state):
        for name in _WRAPPERS:
            if _is_state_dict(state.get(name)):
                state = state[name]
                done = [f"the weights are what the checkpoint has under {name!r}"]
                break
    if not _is_state_dict(state):
        raise ValueError(f"{path} holds no state dict (names → tensors)")
    return dict(state), done


class _NamesMoreError(ValueError):
    """A pickle names something else than tensors."""


def _is_state_dict(state: object) -> bool:
    """Whether it maps names to tensors, some at least."""
    return (
        isinstance(state, Mapping)
        and len(state) > 0
        and all(map(_is_entry, state.keys(), state.values()))
    )


def _without_prefixes(
    found: dict[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors without what stands before every name and before none of the model's."""
    stripped = []
    while found:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in found)), None)
        if prefix is None or any(name.startswith(prefix) for name in own):
            break
        found = {name.removeprefix(prefix): weight for name, weight in found.items()}
        stripped.append(prefix)
    return found, stripped


def _check_sizes(path: Path) -> None:
    """Refuse what torch.save does not write for a state dict, before anything is made of it.

    That is an archive that says that it holds more than it is long (torch.save packs nothing), and
    pickles that name anything but tensors.

    Raises:
        ValueError: it is so.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(_OLD_PICKLES):
                _check_names(file)
        return
    with zipfile.ZipFile(path) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
        if claimed > path.stat().st_size:
            raise ValueError(f"says that it holds {claimed} bytes")
        for name in archive.namelist():
            if name.endswith(".pkl"):
                _check_names(io.BytesIO(archive.read(name)))


def _check_names(file: IO[bytes]) -> None:
    """Refuse a pickle that names anything but what tensors are made of."""
    for code, argument, _ in pickletools.genops(file):
        if code.name in ("STACK_GLOBAL", "INST") or (
            code.name == "GLOBAL" and not _TENSOR.fullmatch(str(argument))
        ):
            raise _NamesMoreError(f"names {str(argument or code.name)[:80]}")


def _is_entry(name: object, tensor: object) -> bool:
    """Whether it is a name with an ordinary tensor in memory."""
    return (
        isinstance(name, str)
        and isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
    )


def _head(model: nn.Module) -> str | None:
    """Name of the last linear layer."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def _without_head(
    found: Mapping[str, Tensor], own: Mapping[str, Tensor], head: str
) -> dict[str, Tensor]:
    """``found`` with the model's own tensors for the head and what does not fit in its part."""
    part = head.split(".")[0] + "."
    body = {name: tensor for name, tensor in found.items() if not name.startswith(part)}
    for name, tensor in own.items():
        if name.startswith(part):
            fits = name in found and found[name].shape == tensor.shape
            body[name] = found[name] if fits and not name.startswith(f"{head}.") else tensor
    return body


def _listed(what: str, missing: list[str], unexpected: list[str]) -> str:
    named = ((what, missing), ("unexpected", unexpected))
    return "; ".join(f"{kind} {_first(names)}" for kind, names in named if names)


def _shapes(unlike: list[str], found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    return _first(
        f"{name} is {tuple(found[name].shape)} there, {tuple(own[name].shape)} in the model"
        for name in unlike
    )


def _first(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
