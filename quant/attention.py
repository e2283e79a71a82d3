"""torch.nn's attention with few bits: the projections and both products."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from quant.modules import Quantized, Recipe, apply
from quant.quantizer import Quantizer

_INPUTS = ("query", "key", "value")


class QuantMultiheadAttention(Quantized, nn.MultiheadAttention):
    """MultiheadAttention whose products have quantized operands.

    Quantized are the inputs and the weights of the projections, then q, k, v and the attention's
    weights. ``out_proj`` is a quantized layer of its own. What is query and key or value at once is
    quantized once.
    """

    def equip(self, recipe: Recipe) -> None:
        """Quantizers for all but the output projection."""
        inside = recipe.inside()
        for name in _INPUTS:
            setattr(self, f"{name}_input_quantizer", recipe.of_input())
            setattr(self, f"{name}_quantizer", inside.of_inner())
        self.attention_quantizer = inside.of_inner(is_unsigned=True)
        for name in self._projections():
            quantizer = recipe.of_weight(self._parameters[f"{name}_weight"])
            setattr(self, f"{name}_quantizer", quantizer)

    def quantized_weights(self) -> dict[str, str]:
        """The weight of all three projections, or those of each."""
        return {
            f"{name}_weight": f"{name}_quantizer"
            for name in self._projections()
            if self._quantizer(name) is not None
        }

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, E), (B, S, K), (B, S, V) → (B, T, E) and the attention's weights, as torch's."""
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        is_batched = query.dim() == 3
        if not is_batched and key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        q, k, v = self._projected(query, key, value)  # (B, T or S, E)
        mask = _merged(attn_mask, key_padding_mask, self.num_heads, q)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                F.pad(x, (0, 0, 0, 1)) + F.pad(bias, (0, 0, k.shape[1], 0))
                for x, bias in ((k, self.bias_k), (v, self.bias_v))
            )
            mask = None if mask is None else F.pad(mask, (0, 1))
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
            mask = None if mask is None else F.pad(mask, (0, 1))
        # Transposed first: onnxruntime 1.31 fails at one between DequantizeLinear and MatMul.
        k = k.transpose(-2, -1)
        q, k, v = (
            apply(self._quantizer(name), x) for name, x in zip(_INPUTS, (q, k, v), strict=True)
        )
        scores = q @ k / math.sqrt(self.head_dim)  # (B, H, T, S)
        weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = F.dropout(weights, self.dropout, self.training)
        output = apply(self.attention_quantizer, weights) @ v
        output = self.out_proj(output.transpose(1, 2).flatten(2))
        shown = weights.mean(1) if average_attn_weights else weights
        if not is_batched:
            output, shown = output.squeeze(0), shown.squeeze(0)
        elif not self.batch_first:
            output = output.transpose(0, 1)
        return output, shown if need_weights else None

    def _projected(
        self, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v of the inputs, batch first."""
        quantized: dict[int, Tensor] = {}
        inputs = []
        for name, given in zip(_INPUTS, (query, key, value), strict=True):
            if id(given) not in quantized:
                x = given.unsqueeze(0) if given.dim() == 2 else given
                x = x if self.batch_first or given.dim() == 2 else x.transpose(0, 1)
                quantized[id(given)] = apply(self._quantizer(f"{name}_input"), x)
            inputs.append(quantized[id(given)])
        weights = [
            apply(self._quantizer(name), self._parameters[f"{name}_weight"])  # type: ignore[arg-type]
            for name in self._projections()
        ]
        if self._qkv_same_embed_dim:
            weights = list(weights[0].chunk(3))
        bias = self.in_proj_bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        q, k, v = map(F.linear, inputs, weights, biases)
        return q, k, v

    def _projections(self) -> tuple[str, ...]:
        return ("in_proj",) if self._qkv_same_embed_dim else ("q_proj", "k_proj", "v_proj")

    def _quantizer(self, name: str) -> Quantizer | None:
        return self._modules.get(f"{name}_quantizer")  # type: ignore[return-value]


def _merged(
    attention: Tensor | None, padding: Tensor | None, num_heads: int, like: Tensor
) -> Tensor | None:
    """One mask to add to scores (B, H, T, S), of (T, S) or (B·H, T, S), and (B, S)."""
    if attention is not None:
        attention = _additive(attention, like)
        if attention.dim() == 3:
            attention = attention.unflatten(0, (-1, num_heads))
    if padding is None:
        return attention
    padding = _additive(padding, like)[:, None, None, :]
    return padding if attention is None else attention + padding


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """``mask`` as a term of the scores: True is −∞."""
    if mask.is_floating_point():
        return mask.to(like.dtype)
    return like.new_zeros(mask.shape).masked_fill(mask, -math.inf)
