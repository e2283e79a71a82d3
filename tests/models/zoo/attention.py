"""Networks of attention, of tokens and of patches."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.zoo.entry import CLASSES, SEQUENCE, TOKENS, Entry

DIM, HEADS, VOCABULARY = 16, 4, 50


class Attention(nn.Module):
    """As timm writes it: one projection, reshaped and permuted."""

    def __init__(self, dim: int = DIM, heads: int = HEADS) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attn = self.drop(((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1))
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj(x)


class FusedAttention(Attention):
    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class Block(nn.Module):
    def __init__(self, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attn = attention or Attention()
        self.mlp = nn.Sequential(nn.Linear(DIM, 32), nn.GELU(), nn.Linear(32, DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, distilled: bool = False, attention: type[nn.Module] = Attention) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, DIM, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, DIM)) if distilled else None
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 17 + distilled, DIM))
        self.blocks = nn.Sequential(Block(attention()), Block(attention()))
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        tokens = [self.cls_token] + ([] if self.dist_token is None else [self.dist_token])
        x = torch.cat([t.expand(x.shape[0], -1, -1) for t in tokens] + [x], dim=1)
        x = self.norm(self.blocks(x + self.pos_embed))
        return self.head(x[:, 0] if self.dist_token is None else (x[:, 0] + x[:, 1]) / 2)


def window_partition(x: Tensor, size: int) -> Tensor:
    B, H, W, C = x.shape
    x = x.view(B, H // size, size, W // size, size, C)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size, size, C)


def window_reverse(windows: Tensor, size: int, H: int, W: int) -> Tensor:  # noqa: N803
    B = int(windows.shape[0] / (H * W / size / size))
    x = windows.view(B, H // size, W // size, size, size, -1)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(B, H, W, -1)


class SwinBlock(nn.Module):
    """Shifted windows; pads where the size does not divide, checks what it gets."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.size, self.shift = 2, shift
        self.norm, self.attn = nn.LayerNorm(DIM), Attention()
        self.mlp = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 32), nn.GELU(),
                                 nn.Linear(32, DIM))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        _, H, W, C = x.shape
        assert C == DIM, "input feature has wrong size"
        shortcut = x
        x = self.norm(x)
        pad_r, pad_b = (self.size - W % self.size) % self.size, (self.size - H % self.size) % 2
        if pad_r > 0 or pad_b > 0:
            x = F.pad(x, (0, 0, 0, pad_r, 0, pad_b))
        if self.shift > 0:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        windows = window_partition(x, self.size).view(-1, self.size * self.size, C)
        windows = self.attn(windows).view(-1, self.size, self.size, C)
        x = window_reverse(windows, self.size, H, W)
        if self.shift > 0:
            x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        x = shortcut + x
        return x + self.mlp(x)


class Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, DIM, 4, 4)
        self.layers = nn.Sequential(SwinBlock(0), SwinBlock(1))
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.patch(x).permute(0, 2, 3, 1))
        return self.head(x.mean((1, 2)))


class MixerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.tokens = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
        self.channels = nn.Sequential(nn.Linear(DIM, 32), nn.GELU(), nn.Linear(32, DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, DIM, 4, 4)
        self.blocks, self.head = nn.Sequential(MixerBlock(), MixerBlock()), nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


class Encoder(nn.Module):
    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(8, DIM)
        layer = nn.TransformerEncoderLayer(
            DIM, HEADS, 32, batch_first=True, norm_first=norm_first, dropout=0.1
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class PositionalEncoding(nn.Module):
    """PyTorch's tutorial, time first."""

    pe: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)
        position = torch.arange(64).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, DIM, 2) * (-math.log(10000.0) / DIM))
        pe = torch.zeros(64, 1, DIM)
        pe[:, 0, 0::2] = torch.sin(position * div_term)
        pe[:, 0, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pe[: x.size(0)]
        return self.dropout(x)


class TutorialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.pos = nn.Embedding(VOCABULARY, DIM), PositionalEncoding()
        layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, 0.1)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.linear = nn.Linear(DIM, CLASSES)

    def forward(self, src: Tensor, src_mask: Tensor | None = None) -> Tensor:
        src = self.pos(self.embedding(src.t()) * math.sqrt(DIM))
        if src_mask is None:
            src_mask = nn.Transformer.generate_square_subsequent_mask(len(src))
        return self.linear(self.encoder(src, src_mask)[-1])


class Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, DIM)
        self.attn, self.head = (
            nn.MultiheadAttention(DIM, HEADS, batch_first=True),
            nn.Linear(DIM, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


class CausalSelfAttention(nn.Module):
    """nanoGPT's, with its mask in a buffer."""

    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        mask = torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64)
        self.register_buffer("bias", mask)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(DIM, dim=2)
        k = k.view(B, T, HEADS, C // HEADS).transpose(1, 2)
        q = q.view(B, T, HEADS, C // HEADS).transpose(1, 2)
        v = v.view(B, T, HEADS, C // HEADS).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        y = F.softmax(att, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class NanoGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCABULARY, DIM),
                "wpe": nn.Embedding(64, DIM),
                "h": nn.ModuleList([Block(CausalSelfAttention()) for _ in range(2)]),
                "ln_f": nn.LayerNorm(DIM),
            }
        )
        self.lm_head = nn.Linear(DIM, CLASSES, bias=False)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        device = idx.device
        _b, t = idx.size()
        assert t <= 64, f"Cannot forward sequence of length {t}, block size is only 64"
        pos = torch.arange(0, t, dtype=torch.long, device=device)
        x = self.transformer["wte"](idx) + self.transformer["wpe"](pos)
        for block in self.transformer["h"]:  # type: ignore[union-attr]
            x = block(x)
        logits = self.lm_head(self.transformer["ln_f"](x)[:, -1])
        loss = None if targets is None else F.cross_entropy(logits, targets)
        return logits, loss


class Conv1D(nn.Module):
    """GPT-2's linear layer, transposed."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = (
            nn.Parameter(0.1 * torch.randn(nx, nf)),
            nn.Parameter(torch.zeros(nf)),
        )

    def forward(self, x: Tensor) -> Tensor:
        size_out = (*x.size()[:-1], self.nf)
        x = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return x.view(size_out)


class GPT2Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = Conv1D(3 * DIM, DIM), Conv1D(DIM, DIM)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None,
                use_cache: bool | None = None) -> tuple[Tensor, None]:  # fmt: skip
        query, key, value = self.c_attn(hidden_states).split(DIM, dim=2)
        shape = (*query.shape[:-1], -1, DIM // HEADS)
        query, key, value = (t.view(shape).transpose(1, 2) for t in (query, key, value))
        is_causal = query.shape[2] > 1 and attention_mask is None
        out = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
        out = out.transpose(1, 2).reshape(*hidden_states.shape[:-1], -1).contiguous()
        return self.c_proj(out), None


class ModelOutput(OrderedDict[str, Any]):
    """Hugging Face's: a dict with attributes, without what is None."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                self[name] = value

    def __getitem__(self, k: Any) -> Any:
        return super().__getitem__(k) if isinstance(k, str) else tuple(self.values())[k]


@dataclass
class CausalLMOutput(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None


class GPT2Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(DIM), GPT2Attention(), nn.LayerNorm(DIM)
        self.c_fc, self.c_out = Conv1D(32, DIM), Conv1D(DIM, 32)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None,
                **kwargs: Any) -> Tensor:  # fmt: skip
        residual = hidden_states
        attn_output, _ = self.attn(
            self.ln_1(hidden_states), attention_mask=attention_mask, **kwargs
        )
        hidden_states = attn_output + residual
        return hidden_states + self.c_out(F.gelu(self.c_fc(self.ln_2(hidden_states))))


class GPT2Like(nn.Module):
    """Hugging Face's decoder: keyword arguments, control flow on None, a dataclass as output."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, DIM), nn.Embedding(64, DIM)
        self.h = nn.ModuleList([GPT2Block(), GPT2Block()])
        self.ln_f, self.score = nn.LayerNorm(DIM), nn.Linear(DIM, CLASSES, bias=False)

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
                position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
                output_hidden_states: bool = False, **kwargs: Any) -> CausalLMOutput:  # fmt: skip
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.wte(input_ids)
        if position_ids is None:
            position_ids = torch.arange(inputs_embeds.shape[1]).unsqueeze(0)
        hidden_states = inputs_embeds + self.wpe(position_ids)
        all_hidden_states = () if output_hidden_states else None
        for block in self.h:
            hidden_states = block(hidden_states, attention_mask=attention_mask, **kwargs)
        logits = self.score(self.ln_f(hidden_states)[:, -1])
        return CausalLMOutput(logits=logits, hidden_states=all_hidden_states)


class BertLike(nn.Module):
    """Hugging Face's encoder: an extended mask, transpose_for_scores, a pooler."""

    position_ids: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.word, self.position = (
            nn.Embedding(VOCABULARY, DIM, padding_idx=0),
            nn.Embedding(64, DIM),
        )
        self.kind, self.norm = nn.Embedding(2, DIM), nn.LayerNorm(DIM)
        self.query, self.key, self.value = (nn.Linear(DIM, DIM) for _ in range(3))
        self.dense, self.pooler = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.classifier = nn.Linear(DIM, CLASSES)
        self.register_buffer("position_ids", torch.arange(64).expand((1, -1)), persistent=False)

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        new_shape = (*x.size()[:-1], HEADS, DIM // HEADS)
        return x.view(new_shape).permute(0, 2, 1, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        input_shape = input_ids.size()
        seq_length = input_shape[1]
        if attention_mask is None:
            attention_mask = torch.ones(input_shape)
        token_type_ids = torch.zeros(input_shape, dtype=torch.long)
        x = self.word(input_ids) + self.kind(token_type_ids)
        x = self.norm(x + self.position(self.position_ids[:, :seq_length]))
        extended = (1.0 - attention_mask[:, None, None, :]) * torch.finfo(torch.float32).min
        q = self.transpose_for_scores(self.query(x))
        k = self.transpose_for_scores(self.key(x))
        v = self.transpose_for_scores(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(DIM // HEADS)
        context = torch.matmul(F.softmax(scores + extended, dim=-1), v)
        context = context.permute(0, 2, 1, 3).contiguous()
        context = context.view(*context.size()[:-2], DIM)
        x = self.norm(self.dense(context) + x)
        return {"logits": self.classifier(torch.tanh(self.pooler(x[:, 0])))}


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM))

    def forward(self, hidden_states: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + 1e-6)
        return self.weight * hidden_states.to(input_dtype)


def rotate_half(x: Tensor) -> Tensor:
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


class LlamaLayer(nn.Module):
    """Rotary positions, grouped keys, a gated feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj = (
            nn.Linear(DIM, DIM, bias=False),
            nn.Linear(DIM, DIM // 2, bias=False),
        )
        self.v_proj, self.o_proj = (
            nn.Linear(DIM, DIM // 2, bias=False),
            nn.Linear(DIM, DIM, bias=False),
        )
        self.gate, self.up = nn.Linear(DIM, 32, bias=False), nn.Linear(DIM, 32, bias=False)
        self.down, self.ln1, self.ln2 = nn.Linear(32, DIM, bias=False), RMSNorm(), RMSNorm()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        bsz, q_len, _ = x.size()
        h = self.ln1(x)
        q = self.q_proj(h).view(bsz, q_len, HEADS, DIM // HEADS).transpose(1, 2)
        k = self.k_proj(h).view(bsz, q_len, HEADS // 2, DIM // HEADS).transpose(1, 2)
        v = self.v_proj(h).view(bsz, q_len, HEADS // 2, DIM // HEADS).transpose(1, 2)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        k, v = (t[:, :, None].expand(bsz, 2, 2, q_len, 4).reshape(bsz, 4, q_len, 4) for t in (k, v))
        mask = torch.full((q_len, q_len), float("-inf")).triu(1)
        a = (torch.matmul(q, k.transpose(2, 3)) / 2 + mask).softmax(-1, dtype=torch.float32)
        x = x + self.o_proj(torch.matmul(a.to(q.dtype), v).transpose(1, 2).reshape(bsz, q_len, DIM))
        h = self.ln2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    inv_freq: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer, self.norm = nn.Embedding(VOCABULARY, DIM), LlamaLayer(), RMSNorm()
        self.head = nn.Linear(DIM, CLASSES, bias=False)
        self.register_buffer("inv_freq", 1.0 / 10000 ** (torch.arange(0, 4, 2) / 4), False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        t = torch.arange(tokens.shape[1], dtype=torch.float32)
        freqs = torch.outer(t, self.inv_freq)
        emb = torch.cat((freqs, freqs), dim=-1)
        return self.head(self.norm(self.layer(x, emb.cos(), emb.sin()))[:, -1])


class AttentionPooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.score = nn.Linear(8, DIM), nn.Linear(DIM, 1)
        self.query, self.head = nn.Parameter(torch.randn(1, DIM)), nn.Linear(2 * DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x))
        weights = torch.softmax(self.score(x), dim=1)
        read = torch.einsum("bnd,qd->bqn", x, self.query).softmax(-1) @ x
        return self.head(torch.cat([(weights * x).sum(1), read.squeeze(1)], -1))


class LoRALinear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(2, inputs))
        self.lora_b = nn.Parameter(torch.zeros(outputs, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * (x @ self.lora_a.T @ self.lora_b.T)


class LoRA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = (
            LoRALinear(8, DIM),
            LoRALinear(DIM, DIM),
            nn.Linear(DIM, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu().mean(1))


class Experts(nn.Module):
    """A mixture of experts: weighs all, or sends tokens where they go."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.sparse, self.embed, self.gate = sparse, nn.Linear(8, DIM), nn.Linear(DIM, 4)
        self.experts = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(4))
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weights = F.softmax(self.gate(x), dim=-1)
        if not self.sparse:
            stacked = torch.stack([e(x) for e in self.experts], dim=-2)
            return self.head((weights.unsqueeze(-1) * stacked).sum(-2).mean(1))
        flat, top = x.flatten(0, 1), weights.flatten(0, 1).topk(1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            rows = (top.indices[:, 0] == i).nonzero(as_tuple=True)[0]
            if rows.numel():
                out.index_add_(0, rows, expert(flat[rows]) * top.values[rows])
        return self.head(out.view_as(x).mean(1))


ATTENTION = {
    "vit": Entry("ViT", ViT),
    "vit fused": Entry("ViT", lambda: ViT(attention=FusedAttention)),
    "deit": Entry("DeiT", lambda: ViT(distilled=True)),
    "swin": Entry("Swin", Swin),
    "mlp-mixer": Entry("MLP-Mixer", Mixer),
    "transformer encoder": Entry("nn.TransformerEncoder", Encoder, SEQUENCE),
    "encoder norm first": Entry("nn.TransformerEncoder", lambda: Encoder(True), SEQUENCE),
    "tutorial transformer": Entry("nn.TransformerEncoder", TutorialTransformer, TOKENS),
    "multihead": Entry("nn.MultiheadAttention", Multihead, SEQUENCE),
    "nanogpt": Entry("GPT", NanoGPT, TOKENS),
    "gpt-2": Entry("Hugging Face decoder", GPT2Like, TOKENS),
    "bert": Entry("Hugging Face encoder", BertLike, TOKENS),
    "llama": Entry("Llama", Llama, TOKENS),
    "attention pooling": Entry("attention pooling", AttentionPooling, SEQUENCE),
    "lora": Entry("LoRA", LoRA, SEQUENCE),
    "soft experts": Entry("mixture of experts", lambda: Experts(False), SEQUENCE),
    "sparse experts": Entry("mixture of experts", lambda: Experts(True), SEQUENCE),
}
