"""The small transformer: what it sees, where it is cut, and what it refuses."""

import pytest
import torch
from torch import nn

from models.inputs import InputSpec
from models.split import cut, cut_points
from models.transformer import Transformer

SPEC = InputSpec((12,), torch.int64, 30)


def network(causal: bool, **options: float) -> Transformer:
    torch.manual_seed(0)
    return Transformer(30, 5, (12,), dim=16, heads=2, causal=causal, **options)  # type: ignore[arg-type]


def reference(model: Transformer, x: torch.Tensor) -> torch.Tensor:
    """The same by torch's own attention, in evaluation."""
    x = model.embedding.tokens.weight[x] + model.embedding.places
    for name in model.blocks:
        block = getattr(model, name)
        own, y = block.attention, block.norm1(x)
        q, k, v = (
            part(y).reshape(len(x), 12, 2, 8).transpose(1, 2)
            for part in (own.query, own.key, own.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=model.causal)
        x = x + own.out(mixed.transpose(1, 2).reshape(len(x), 12, 16))
        x = x + block.feed(block.norm2(x))
    x = model.norm(x)
    return model.head(x if model.causal else x.mean(1))


@pytest.mark.parametrize("causal", [False, True])
def test_it_computes_what_torchs_attention_does(causal: bool) -> None:
    model, x = network(causal).eval(), SPEC.example(3)
    assert model(x).shape == ((3, 12, 5) if causal else (3, 5))
    torch.testing.assert_close(model(x), reference(model, x))


def test_no_place_sees_a_later_one() -> None:
    model, x = network(causal=True).eval(), SPEC.example(2)
    later = x.clone()
    later[:, 7:] = (later[:, 7:] + 1) % 30
    before, after = model(x), model(later)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("causal", [False, True])
def test_every_cut_is_exact(causal: bool) -> None:
    """With dropout; `cut` trains parts and whole for two steps and compares every bit."""
    model, example = network(causal, dropout=0.1), SPEC.example()
    names = [point.name for point in cut_points(model, example)]
    assert {"embedding", "block1", "block2", "norm"} <= set(names)
    for name in names:
        cut(model, name, example)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "model.heads=3: takes a divisor of model.dim=64"),
        ({"dim": 0}, "model.dim=0: takes 1 or more"),
        ({"dropout": 1.0}, "model.dropout=1.0: takes 0 or more, below 1"),
        ({"input_shape": (3, 8, 8)}, r"takes rows of tokens \(T,\), got samples of \(3, 8, 8\)"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transformer(**{"vocab_size": 30, "num_classes": 5, "input_shape": (12,), **options})  # type: ignore[arg-type]
