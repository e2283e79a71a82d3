"""What crosses a cut, and in how many bytes: link codecs for split learning.

A codec makes a `Packet` of a float32 tensor (activations, or the gradient that comes back) and a
tensor of a packet. The two directions have a codec each.

    name            a value becomes                                     bytes for n values
    fp32            itself                                              4n
    fp16            the nearest half, at most ±65504                    2n
    int8 int4 int2  round((x − low) / step), of min … max               ⌈n·b/8⌉ + 8 a range
    sign            +1 where x ≥ 0, else −1                             ⌈n/8⌉, + 4 if scaled
    topk randtopk   itself at k of a sample's d positions, elsewhere 0  4·B·k + ⌈B·k·⌈log2 d⌉/8⌉

Affine codes: Jacob et al. 2018, arXiv 1712.05877, with the smallest value itself in place of an
integer zero point, so that nothing is clipped; stochastic rounding: Gupta et al. 2015, arXiv
1502.02551. Sign: Courbariaux et al. 2016, arXiv 1602.02830; scaled by mean |x|, for gradients,
which mean nothing without their size: Karimireddy et al. 2019, arXiv 1901.09847. Top-k and its
random variant, and the bits of an index: Zheng et al. 2023, arXiv 2305.18469.

A codec is not differentiable: it gets a tensor without a graph and says by `gradient` what goes
back. Where it draws, it draws from the generator it is given (on the tensor's device), and given
None it does not draw: nearest rounding, plain top-k. That is what evaluation wants.

What is not finite is refused with a FloatingPointError by all but fp32, which costs nothing and
passes it on as an uncut network would.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Generator, Tensor

from quant.dense import Affine, Fp16, Fp32, SignCodec
from quant.packet import Packet
from quant.sparse import TopK
from targets import is_target, locate, shown

AFFINE_BITS = {"int8": 8, "int4": 4, "int2": 2}
CODECS = ("fp32", "fp16", *AFFINE_BITS, "sign", "topk", "randtopk")
ROUNDINGS = ("nearest", "stochastic")
ALPHA = 0.1  # randtopk: chance that a place goes to a value outside the top k
__all__ = ["CODECS", "ROUNDINGS", "Codec", "LinkSettings", "Packet", "make_codec"]


class Codec(Protocol):
    """One direction of a link. Tensors are float32 of shape (B, …) and carry no graph."""

    def encode(self, tensor: Tensor, generator: Generator | None) -> Packet:
        """Pack ``tensor``.

        Raises:
            FloatingPointError: a value is not finite (fp32 does not look).
            ValueError: ``tensor`` is not float32, carries a graph, or has no sample to choose from.
        """

    def decode(self, packet: Packet) -> Tensor:
        """What arrives: float32, in the shape and the memory format of what was encoded."""

    def num_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of the packet of any tensor of this shape."""

    def transmit(self, tensor: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor | None]:
        """``decode(encode(tensor))`` bit for bit without packing, and its `support`.

        May return ``tensor`` itself. Raises what `encode` raises.
        """

    def support(self, packet: Packet) -> Tensor | None:
        """Positions that crossed, or None for all.

        (B, k) int64, ascending, in each sample as flattened in the order of its dimensions.
        """

    def gradient_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the gradient that has to come back for a tensor of ``shape``."""

    def select(self, gradient: Tensor, support: Tensor | None) -> Tensor:
        """The part of d loss / d decoded that has to come back: ``gradient``, or (B, k) of it."""

    def gradient(self, sent: Tensor, received: Tensor, support: Tensor | None) -> Tensor:
        """Gradient rule.

        Args:
            sent: what was encoded.
            received: d loss / d decoded, whole or what `select` keeps of it.
            support: of what was sent.

        Returns:
            d loss / d ``sent``, like ``sent``.
        """


@dataclass(frozen=True)
class LinkSettings:
    """The group link of the configuration."""

    up: str = field(
        default="fp32",
        metadata={
            "help": "uplink codec at the cut: fp32, fp16, int8, int4, int2, sign, topk, "
            "randtopk, or a class of your own (docs/EXTEND.md)"
        },
    )
    down: str = field(
        default="fp32", metadata={"help": "downlink codec at the cut; the same choices"}
    )
    k: float = field(
        default=0.1, metadata={"help": "topk, randtopk: share of each sample's values that is sent"}
    )
    per_channel: bool = field(default=False, metadata={"help": "intN: one range per channel"})
    rounding: str = field(
        default="nearest", metadata={"help": "intN: rounding, nearest or stochastic"}
    )

    def __post_init__(self) -> None:
        for key in ("up", "down"):
            check_codec(getattr(self, key), f"link.{key}")
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"link.rounding={self.rounding}: takes {', '.join(ROUNDINGS)}")
        if not 0 < self.k <= 1:
            raise ValueError(f"link.k={self.k}: takes a share in (0, 1]")

    def codecs(self) -> tuple[Codec, Codec]:
        """Codecs up and down. Activations' signs are ±1, gradients' are scaled."""
        return make_codec(self.up, self), make_codec(self.down, self, scaled_sign=True)


def check_codec(name: str, key: str) -> None:
    """Refuse what is neither a codec of ours nor a class that has all that `Codec` has.

    Raises:
        ValueError: names ``key``, and what is missing.
    """
    if name not in CODECS:
        _own_codec(name, key)


def _own_codec(name: str, key: str) -> Callable[..., Codec]:
    """The class of a codec of the user's own."""
    expected = f"{', '.join(CODECS)}, or a class of your own (docs/EXTEND.md)"
    if not is_target(name):
        raise ValueError(f"{key}={name}: takes {expected}")
    found = locate(name, key, expected)
    if not isinstance(found, type):
        raise ValueError(f"{key}={shown(name)}: is not a class; expected {expected}")
    methods = [part for part in vars(Codec) if not part.startswith("_")]
    if missing := [part for part in methods if not callable(getattr(found, part, None))]:
        raise ValueError(
            f"{key}={shown(name)}: has no {', '.join(missing)}; a codec has {', '.join(methods)}"
        )
    needed = [
        part.name
        for part in inspect.signature(found).parameters.values()
        if part.default is part.empty and part.kind not in (part.VAR_POSITIONAL, part.VAR_KEYWORD)
    ]
    if unknown := [part for part in needed if part != "settings"]:
        raise ValueError(
            f"{key}={shown(name)}: its constructor wants {', '.join(unknown)}; a codec's gets "
            "nothing, or settings, the group link"
        )
    return found


def make_codec(name: str, settings: LinkSettings | None = None, scaled_sign: bool = False) -> Codec:
    """The codec called ``name``; of ``settings`` only what it reads matters.

    ``name`` may also be a class of the user's own, such as ``my_pkg.MyCodec`` or
    ``codecs/mine.py:MyCodec``, which is given ``settings`` where its constructor takes them.

    Raises:
        ValueError: there is none of this name.
    """
    settings = settings or LinkSettings()
    if name in AFFINE_BITS:
        stochastic = settings.rounding == "stochastic"
        return Affine(AFFINE_BITS[name], settings.per_channel, stochastic)
    match name:
        case "fp32":
            return Fp32()
        case "fp16":
            return Fp16()
        case "sign":
            return SignCodec(scaled_sign)
        case "topk":
            return TopK(settings.k)
        case "randtopk":
            return TopK(settings.k, ALPHA)
    if not is_target(name):
        raise ValueError(f"{name} is not a codec; expected {', '.join(CODECS)}")
    kind = _own_codec(name, "codec")
    takes_settings = "settings" in inspect.signature(kind).parameters
    return kind(settings=settings) if takes_settings else kind()
