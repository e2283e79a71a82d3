"""The settings of quantization: which bits, of what, and how quantized weights cross."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from quant.layers import BIT_WIDTHS, FULL_PRECISION, QuantSpec

WIRES = ("latent", "codes", "codes_both", "updates")
SIDES = ("both", "client")
AUTO = "auto"
# What `QuantSpec` is made of, as keys of the configuration.
QUANTIZERS = ("quant.bits", *(f"quant.{f.name}" for f in fields(QuantSpec)))


@dataclass(frozen=True)
class QuantSettings:
    """The group quant of the configuration."""

    bits: Any = field(
        default=None,
        metadata={
            "help": "bit width, 2 to 8 or 32; null: 4 for oqfl, else 32; one per client: "
            "'{0: …, phone_low: …, default: …}', or auto (widest of 2, 3, 4, 8 that ends in time)"
        },
    )
    weight_bits: Any = field(
        default=None, metadata={"help": "bit width of weights, one or a mapping; null: quant.bits"}
    )
    act_bits: Any = field(
        default=None,
        metadata={"help": "bit width of activations, one or a mapping; null: quant.bits"},
    )
    edge_bits: int = field(
        default=8, metadata={"help": "bit width of the first and last layer; unused at 32"}
    )
    learn_step: bool = field(
        default=True, metadata={"help": "learn the quantizer steps with the weights"}
    )
    per_channel: bool = field(
        default=False, metadata={"help": "one quantizer step per output channel of a weight"}
    )
    wire: str = field(
        default="latent",
        metadata={
            "help": "oqfl: transmit latent (fp32), codes (of weights, uplink), codes_both, updates "
            "(codes of what changed, uplink)"
        },
    )
    side: str = field(
        default="both", metadata={"help": "quantized part of a split network: both, client"}
    )

    def __post_init__(self) -> None:
        for key in ("bits", "weight_bits", "act_bits", "edge_bits"):
            value = getattr(self, key)
            if isinstance(value, Mapping) and key != "edge_bits":
                _check_mapping(f"quant.{key}", value)
            elif not (value is None or _is_width(value) or (key, value) == ("bits", AUTO)):
                raise ValueError(f"quant.{key}={value}: takes 2 to 8, {FULL_PRECISION} or null")
        for key, accepted in (("wire", WIRES), ("side", SIDES)):
            if getattr(self, key) not in accepted:
                raise ValueError(f"quant.{key}={getattr(self, key)}: takes {', '.join(accepted)}")
        if self.bits is not None and None not in (self.weight_bits, self.act_bits):
            raise ValueError(
                f"quant.bits={self.bits}: contradicts quant.weight_bits={self.weight_bits} and "
                f"quant.act_bits={self.act_bits}, which together leave it nothing to say"
            )

    @property
    def is_per_client(self) -> bool:
        """Whether a width is a mapping, or follows from what a client's round takes."""
        given = (self.bits, self.weight_bits, self.act_bits)
        return AUTO in given or any(isinstance(one, Mapping) for one in given)

    @property
    def varies(self) -> bool:
        """Whether clients may have different widths."""
        given = (self.bits, self.weight_bits, self.act_bits)
        return AUTO in given or any(len(set(_values(one))) > 1 for one in given)

    def spec(self, default_bits: int = FULL_PRECISION) -> QuantSpec:
        """Return what `quantize` takes, where ``bits`` of null stands for ``default_bits``.

        Raises:
            ValueError: clients have widths of their own.
        """
        if self.varies:
            raise ValueError(f"quant.{self._varied}: takes one width for all clients")
        bits, weight_bits, act_bits = (
            _values(one)[0] for one in (self.bits, self.weight_bits, self.act_bits)
        )
        return self.of_widths(weight_bits or bits or default_bits, act_bits or bits or default_bits)

    def of_widths(self, weight_bits: int, act_bits: int) -> QuantSpec:
        """Return the same kind of quantizers with these widths."""
        return QuantSpec(
            weight_bits=weight_bits,
            act_bits=act_bits,
            edge_bits=self.edge_bits,
            learn_step=self.learn_step,
            per_channel=self.per_channel,
        )

    @property
    def _varied(self) -> str:
        """The first setting in which clients differ, as the user gave it."""
        given = {key: getattr(self, key) for key in ("bits", "weight_bits", "act_bits")}
        return next(
            f"{key}={value}"
            for key, value in given.items()
            if value == AUTO or len(set(_values(value))) > 1
        )


def _is_width(value: Any) -> bool:
    return type(value) is int and value in BIT_WIDTHS


def _check_mapping(key: str, given: Mapping[Any, Any]) -> None:
    """Refuse a mapping of clients to what is no width."""
    if not given:
        raise ValueError(f"{key}={{}}: takes a width, or a mapping to widths")
    for name, value in given.items():
        if value == AUTO:
            raise ValueError(f"{key}.{name}={AUTO}: {AUTO} is for all clients, not for some")
        if not _is_width(value):
            raise ValueError(f"{key}.{name}={value}: takes 2 to 8 or {FULL_PRECISION}")


def _values(given: Any) -> list[Any]:
    """The widths in a setting: of a mapping all, else the one."""
    return list(given.values()) if isinstance(given, Mapping) else [given]
