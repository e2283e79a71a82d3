"""Small transformers over tokens: one classifies a text, one predicts the token at each place.

Pre-norm blocks (Xiong et al. 2020, arXiv 2002.04745) with learned positions. Projections are plain
linear layers and attention is two matrix products, so that torch.fx traces all of it, quantizers
find it, and every block is a cut point: block1 … blockN, head.
"""

import math

import torch
from torch import Tensor, nn

INITIAL_STD = 0.02  # of embeddings and positions, as GPT-2's


class Attention(nn.Module):
    """Attention of several heads; with ``causal`` no place sees a later one.

    Args:
        dim: features D.
        heads: how many; they divide D.
        length: places T.
        causal: whether later places are hidden.
    """

    later: Tensor

    def __init__(self, dim: int, heads: int, length: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.width = heads, dim // heads
        self.scale = 1 / math.sqrt(self.width)
        self.causal = causal
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        self.register_buffer("later", later, persistent=False)  # (T, T)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        q = self.query(x).unflatten(2, (self.heads, self.width)).transpose(1, 2)  # (B, heads, T, w)
        k = self.key(x).unflatten(2, (self.heads, self.width)).transpose(1, 2)
        v = self.value(x).unflatten(2, (self.heads, self.width)).transpose(1, 2)
        scores = torch.matmul(q, k.transpose(2, 3)) * self.scale  # (B, heads, T, T)
        if self.causal:
            scores = scores.masked_fill(self.later, -torch.inf)
        mixed = torch.matmul(scores.softmax(3), v)
        output: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return output


class Block(nn.Module):
    """Attention and two linear layers, each added to what came in.

    Args:
        dim: features D.
        heads: of attention.
        length: places T.
        causal: whether later places are hidden.
        dropout: share dropped of what is added.
    """

    def __init__(self, dim: int, heads: int, length: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, length, causal)
        self.feed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        output: Tensor = x + self.dropout(self.feed(self.norm2(x)))
        return output


class Embedding(nn.Module):
    """Tokens and their places as vectors.

    Args:
        vocab_size: number of tokens.
        dim: features D.
        length: places T.
    """

    def __init__(self, vocab_size: int, dim: int, length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, dim)
        self.places = nn.Parameter(torch.empty(length, dim))
        nn.init.normal_(self.tokens.weight, std=INITIAL_STD)
        nn.init.normal_(self.places, std=INITIAL_STD)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) int64 → (B, T, D)."""
        output: Tensor = self.tokens(x) + self.places
        return output


class Transformer(nn.Module):
    """Embeddings, blocks and a linear head.

    Args:
        vocab_size: number of tokens of the input.
        num_classes: outputs, of the text or of each place.
        input_shape: (T,).
        dim: features D.
        depth: number of blocks.
        heads: of attention; they divide D.
        dropout: share dropped of what blocks add.
        causal: predict at each place, from it and earlier ones; else one answer for the text, from
            the mean over its places.

    Raises:
        ValueError: an option is out of range, or samples are no rows of tokens; names the key.
    """

    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        input_shape: tuple[int, ...],
        dim: int = 64,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise ValueError(f"takes rows of tokens (T,), got samples of {tuple(input_shape)}")
        for name, value in (("dim", dim), ("depth", depth), ("heads", heads)):
            if value < 1:
                raise ValueError(f"model.{name}={value}: takes 1 or more")
        if dim % heads:
            raise ValueError(f"model.heads={heads}: takes a divisor of model.dim={dim}")
        if not 0 <= dropout < 1:
            raise ValueError(f"model.dropout={dropout}: takes 0 or more, below 1")
        (length,) = input_shape
        self.causal = causal
        self.embedding = Embedding(vocab_size, dim, length)
        self.blocks = [f"block{number}" for number in range(1, depth + 1)]
        for name in self.blocks:
            self.add_module(name, Block(dim, heads, length, causal, dropout))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) int64 → (B, classes), causal (B, T, classes)."""
        x = self.embedding(x)
        for name in self.blocks:
            x = getattr(self, name)(x)
        x = self.norm(x)
        output: Tensor = self.head(x if self.causal else x.mean(1))
        return output
