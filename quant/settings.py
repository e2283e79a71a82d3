"""The settings of quantization: which bits, of what, and how quantized weights cross."""

from dataclasses import dataclass, field, fields

from quant.layers import BIT_WIDTHS, FULL_PRECISION, QuantSpec

WIRES = ("latent", "codes", "codes_both")
SIDES = ("both", "client")
# What `QuantSpec` is made of, as keys of the configuration.
QUANTIZERS = ("quant.bits", *(f"quant.{f.name}" for f in fields(QuantSpec)))


@dataclass(frozen=True)
class QuantSettings:
    """The group quant of the configuration."""

    bits: int | None = field(
        default=None,
        metadata={"help": "bit width, 2 to 8 or 32; null: 4 for oqfl, else 32"},
    )
    weight_bits: int | None = field(
        default=None, metadata={"help": "bit width of weights; null: quant.bits"}
    )
    act_bits: int | None = field(
        default=None, metadata={"help": "bit width of activations; null: quant.bits"}
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
        metadata={"help": "oqfl: transmit latent (fp32), codes (uplink), codes_both"},
    )
    side: str = field(
        default="both", metadata={"help": "quantized part of a split network: both, client"}
    )

    def __post_init__(self) -> None:
        for key in ("bits", "weight_bits", "act_bits", "edge_bits"):
            value = getattr(self, key)
            if value is not None and value not in BIT_WIDTHS:
                raise ValueError(f"quant.{key}={value}: takes 2 to 8, {FULL_PRECISION} or null")
        for key, accepted in (("wire", WIRES), ("side", SIDES)):
            if getattr(self, key) not in accepted:
                raise ValueError(f"quant.{key}={getattr(self, key)}: takes {', '.join(accepted)}")
        if self.bits is not None and None not in (self.weight_bits, self.act_bits):
            raise ValueError(
                f"quant.bits={self.bits}: contradicts quant.weight_bits={self.weight_bits} and "
                f"quant.act_bits={self.act_bits}, which together leave it nothing to say"
            )

    def spec(self, default_bits: int = FULL_PRECISION) -> QuantSpec:
        """Return what `quantize` takes, where ``bits`` of null stands for ``default_bits``."""
        bits = default_bits if self.bits is None else self.bits
        return QuantSpec(
            weight_bits=bits if self.weight_bits is None else self.weight_bits,
            act_bits=bits if self.act_bits is None else self.act_bits,
            edge_bits=self.edge_bits,
            learn_step=self.learn_step,
            per_channel=self.per_channel,
        )
