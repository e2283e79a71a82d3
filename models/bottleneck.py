"""A bottleneck at a cut: a 1×1 encoder on the device, a decoder on the server, k of C channels.

    z = E·x    (B, C, …) → (B, k, …)        E (k, C, 1, …), on the device
    x̂ = D·z    (B, k, …) → (B, C, …)        D (C, k, 1, …), on the server

1×1 convolutions without bias, linear layers where the activation is flat; BottleNet++ (Shao and
Zhang 2020, arXiv 1910.14315) has convolutions at the cut, too. Only active channels exist: `shrink`
takes rows of E and columns of D away, `grow` puts some in. A place begins as one of the network's
own channels, with unit vectors in E and D, so that with k = C the network computes what it does
without: every sum has one term that is no zero. (A −0 may become 0, which no later sum can tell.)

What a channel is worth, larger is more:

    l1      Σᵢ|Eⱼᵢ|·‖Wᵢ‖₁ · Σᵢ|Dᵢⱼ|     W: filters of the convolution or linear layer before the cut
                                        (Li et al. 2017, arXiv 1608.08710)
    bn      Σᵢ|Eⱼᵢ|·|γᵢ| · Σᵢ|Dᵢⱼ|       γ: scales of the normalisation before the cut
                                        (Liu et al. 2017, arXiv 1708.06519)
    taylor  Σ over samples of |Σ zⱼ·∂L/∂zⱼ| over positions, which is |Σᵢ Eⱼᵢ·∂L/∂Eⱼᵢ| of the sample
                                        (Molchanov et al. 2017, arXiv 1611.06440)

The two products do not change when Eⱼ grows by what Dⱼ shrinks. At the start E and D are unit
vectors, and they are the papers' own criteria. Taylor takes each sample by itself: the sum over a
batch is the loss's slope in the channel's size, which training brings to 0 whatever it is worth.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.inputs import Inputs, zeros_for
from models.precision import in_fp32
from models.subnetwork import Part

ENCODER, DECODER, TAYLOR = "cut_encoder", "cut_decoder", "cut_taylor"
ENCODER_WEIGHT, DECODER_WEIGHT = f"{ENCODER}.weight", f"{DECODER}.weight"
FILTERS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Linear)
SCALES: tuple[type[nn.Module], ...] = (_BatchNorm, nn.GroupNorm)

_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d)  # by spatial dimensions


@dataclass(frozen=True)
class Bottleneck:
    """What an encoder and a decoder are made of.

    Attributes:
        channels: C, of the activation at the cut.
        active: k, of what crosses.
        dims: dimensions of the activation after the channels: 0, 1 or 2.
        taylor: whether the device's part adds up the channels' Taylor importance.
        frozen: whether encoder and decoder do not train.
    """

    channels: int = 1
    active: int = 1
    dims: int = 0
    taylor: bool = False
    frozen: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.channels:
            raise ValueError(f"{self.active} active channels of {self.channels}")
        if not 0 <= self.dims < len(_LAYERS):
            raise ValueError(f"takes (C), (C, L) or (C, H, W), got {self.dims} dimensions after C")

    def encoder(self) -> nn.Module:
        """(B, C, …) → (B, k, …): the first k channels."""
        return self._layer(self.channels, self.active)

    def decoder(self) -> nn.Module:
        """(B, k, …) → (B, C, …): the first k channels, and zeros."""
        return self._layer(self.active, self.channels)

    def _layer(self, inputs: int, outputs: int) -> nn.Module:
        # Nothing is drawn, and the memory stays contiguous: the output's format is the input's.
        size = (1,) if self.dims else ()
        kind = _LAYERS[self.dims]
        layer: nn.Module = nn.utils.skip_init(kind, inputs, outputs, *size, bias=False)
        weight = layer.weight
        assert isinstance(weight, nn.Parameter)
        with torch.no_grad():
            weight.copy_(torch.eye(outputs, inputs).reshape(weight.shape))
        weight.requires_grad_(not self.frozen)
        return layer


class Encoded(Part):
    """A device's part with the encoder behind it.

    Args:
        part: the part, which is used up.
        bottleneck: sizes.

    Shapes: as of ``part`` → (B, k, …).
    """

    cut_taylor: Tensor | None

    def __init__(self, part: Part, bottleneck: Bottleneck) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(vars(part))
        self.add_module(ENCODER, bottleneck.encoder())
        self.register_buffer(TAYLOR, torch.zeros(bottleneck.active) if bottleneck.taylor else None)

    def forward(self, x: Tensor) -> Tensor:
        """Run the part, then the encoder."""
        z: Tensor = self.get_submodule(ENCODER)(super().forward(x))
        if self.cut_taylor is not None and self.training and z.requires_grad:
            values, total = in_fp32(z.detach()), self.cut_taylor

            def add(gradient: Tensor) -> None:
                slopes = (values * gradient)[..., None].flatten(2).sum(2)  # (B, k)
                total.add_(slopes.abs().sum(0))

            z.register_hook(add)
        return z


class Decoded(Part):
    """A server's part with the decoder before it.

    Args:
        part: the part, which is used up.
        bottleneck: sizes.

    Shapes: (B, k, …) → as of ``part``.
    """

    def __init__(self, part: Part, bottleneck: Bottleneck) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(vars(part))
        self.add_module(DECODER, bottleneck.decoder())

    def forward(self, z: Tensor) -> Tensor:
        """Run the decoder, then the part."""
        output: Tensor = super().forward(self.get_submodule(DECODER)(z))
        return output


def with_bottleneck(device: Part, server: Part, bottleneck: Bottleneck) -> tuple[Encoded, Decoded]:
    """Return copies of the two parts with encoder and decoder between them."""
    return (
        Encoded(copy.deepcopy(device), bottleneck),
        Decoded(copy.deepcopy(server), bottleneck),
    )


def attach(network: nn.Module, bottleneck: Bottleneck) -> nn.Module:
    """Return a copy of ``network`` whose state holds a bottleneck's, too; it runs without one.

    Raises:
        ValueError: the network has something of the same name.
    """
    network = copy.deepcopy(network)
    taken = [name for name in (ENCODER, DECODER, TAYLOR) if hasattr(network, name)]
    if taken:
        raise ValueError(f"{type(network).__name__} has a {taken[0]} of its own")
    network.add_module(ENCODER, bottleneck.encoder())
    network.add_module(DECODER, bottleneck.decoder())
    if bottleneck.taylor:
        network.register_buffer(TAYLOR, torch.zeros(bottleneck.active))
    return network


# Fewer and more channels --------------------------------------------------------------------------


def shrink(encoder: Tensor, decoder: Tensor, keep: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return both weights with the channels ``keep`` alone, in that order.

    Args:
        encoder: (k, C, …).
        decoder: (C, k, …).
        keep: positions among the k.
    """
    index = torch.tensor(list(keep), dtype=torch.int64)
    return encoder[index], decoder[:, index]


def grow(
    encoder: Tensor, decoder: Tensor, rows: Tensor, columns: Tensor, at: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Put channels in: the inverse of `shrink`, given what it took away and where that was.

    Args:
        encoder: (k, C, …).
        decoder: (C, k, …).
        rows: (n, C, …) of the encoder.
        columns: (C, n, …) of the decoder.
        at: n positions among the k + n.
    """
    new = torch.tensor(list(at), dtype=torch.int64)
    is_old = torch.ones(len(encoder) + len(rows), dtype=torch.bool)
    is_old[new] = False
    more_rows = encoder.new_empty(len(is_old), *encoder.shape[1:])
    more_rows[is_old], more_rows[new] = encoder, rows
    more_columns = decoder.new_empty(len(decoder), len(is_old), *decoder.shape[2:])
    more_columns[:, is_old], more_columns[:, new] = decoder, columns
    return more_rows, more_columns


def unit(channels: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of an encoder and columns of a decoder that pass some of the network's channels on.

    Args:
        channels: n of the network's C channels.
        like: an encoder's weight (k, C, …).

    Returns:
        (n, C, …) and (C, n, …).
    """
    chosen = torch.eye(like.shape[1], dtype=like.dtype)[list(channels)]
    ones = like.shape[2:]
    return chosen.reshape(*chosen.shape, *ones), chosen.T.reshape(*chosen.T.shape, *ones)


# What a channel is worth --------------------------------------------------------------------------


def importance(encoder: Tensor, decoder: Tensor, scales: Tensor) -> Tensor:
    """(k,) worth of each active channel by its weights.

    Args:
        encoder: (k, C, …).
        decoder: (C, k, …).
        scales: (C,) size of each of the network's channels, ≥ 0.
    """
    into, out_of = encoder.flatten(1).abs(), decoder.flatten(1).abs()
    return (into @ scales) * out_of.sum(0)


def most_important(scores: Tensor, count: int) -> list[int]:
    """Positions of the ``count`` largest, ascending; of equal ones the first are taken."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return sorted(order[:count].tolist())


@torch.no_grad()
def weight_before(
    part: nn.Module, input_shape: Inputs, kinds: tuple[type[nn.Module], ...]
) -> str | None:
    """Name of the weight of the last layer that ``part`` calls with an output for each channel.

    Args:
        part: a device's part; left as it is.
        input_shape: of one sample.
        kinds: of layers that are looked for.

    Returns:
        None where there is none, as behind a flattening or a concatenation.
    """
    part = copy.deepcopy(part).eval()
    called: list[tuple[str, int]] = []

    def note(name: str, layer: nn.Module) -> None:
        weight = layer.weight
        if isinstance(weight, Tensor):
            called.append((f"{name}.weight".removeprefix("."), len(weight)))

    for name, module in part.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda layer, _, __, name=name: note(name, layer))
    with torch.random.fork_rng(devices=[]):
        channels = part(*zeros_for(input_shape, 2)).shape[1]
    found = [name for name, outputs in called if outputs == channels]
    return found[-1] if found else None
