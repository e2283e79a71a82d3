"""Networks of other people's packages, where those are installed; weights are never downloaded."""

import importlib.util

import torch
from torch import nn

from tests.models.zoo.entry import CLASSES, Entry, InputSpec

TOKENS, IMAGE = InputSpec((12,), torch.int64, 50), InputSpec((3, 64, 64))
TIMM = (
    "resnet18", "regnetx_002", "convnext_atto", "mobilenetv3_small_050", "mobilenetv4_conv_small",
    "efficientnet_b0", "ghostnet_050", "edgenext_xx_small", "repvgg_a0", "ese_vovnet19b_dw",
)  # fmt: skip
TEXT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
TRANSFORMERS: dict[str, tuple[dict[str, object], InputSpec]] = {
    "BertForSequenceClassification": ({"vocab_size": 50, **TEXT}, TOKENS),
    "DistilBertForSequenceClassification": (
        {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}, TOKENS),
    "GPT2ForSequenceClassification": (
        {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2}, TOKENS),
    "LlamaForSequenceClassification": (
        {"vocab_size": 50, "pad_token_id": 0, "num_key_value_heads": 2, **TEXT}, TOKENS),
    "ViTForImageClassification": ({"image_size": 64, "patch_size": 16, **TEXT}, IMAGE),
    "ResNetForImageClassification": (
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, IMAGE),
    "ConvNextForImageClassification": (
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, IMAGE),
}  # fmt: skip


class _Einops(nn.Module):
    """As einops' readers write it, by functions and by layers."""

    def __init__(self) -> None:
        super().__init__()
        from einops.layers.torch import Rearrange  # type: ignore[import-not-found]

        self.patch = nn.Sequential(
            Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=16, q=16), nn.Linear(768, 24)
        )
        self.qkv, self.out = nn.Linear(24, 72, bias=False), nn.Linear(24, 24)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        import einops  # type: ignore[import-not-found]

        x = self.patch(x)
        q, k, v = (
            einops.rearrange(t, "b n (h d) -> b h n d", h=4) for t in self.qkv(x).chunk(3, dim=-1)
        )
        dots = torch.einsum("bhid,bhjd->bhij", q, k) * 6**-0.5
        out = torch.einsum("bhij,bhjd->bhid", dots.softmax(-1), v)
        x = self.out(einops.rearrange(out, "b h n d -> b n (h d)")) + x
        return self.head(einops.reduce(x, "b n d -> b d", "mean"))


def _of_transformers(name: str) -> nn.Module:
    import transformers  # type: ignore[import-not-found]

    kind = getattr(transformers, name)
    model: nn.Module = kind(kind.config_class(num_labels=CLASSES, **TRANSFORMERS[name][0]))
    return model


def _of_timm(name: str) -> nn.Module:
    import timm  # type: ignore[import-not-found]

    model: nn.Module = timm.create_model(name, num_classes=CLASSES)
    return model


def installed() -> dict[str, Entry]:
    """Those that there are on this machine."""
    found: dict[str, Entry] = {}
    if importlib.util.find_spec("einops"):
        found["einops"] = Entry("einops", _Einops, IMAGE)
    if importlib.util.find_spec("transformers"):
        for name, (_, spec) in TRANSFORMERS.items():
            found[name] = Entry("transformers", lambda name=name: _of_transformers(name), spec)
    if importlib.util.find_spec("timm"):
        for name in TIMM:
            found[f"timm {name}"] = Entry("timm", lambda name=name: _of_timm(name), IMAGE)
    return found
