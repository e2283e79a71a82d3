"""Recurrent networks, networks of signals and tables, and odd ones."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.models.zoo.entry import CLASSES, IMAGE, SEQUENCE, SIGNAL, TOKENS, Entry, InputSpec


class Recurrent(nn.Module):
    def __init__(self, kind: str, layers: int = 1, both: bool = False) -> None:
        super().__init__()
        options = {"num_layers": layers, "bidirectional": both, "batch_first": True}
        self.rnn = getattr(nn, kind)(8, 12, **options)
        self.fc = nn.Linear(12 * (1 + both), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.fc(out[:, -1, :])


class ExplicitState(nn.Module):
    """The tutorials' LSTM: initial states of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(8, 12, 2, batch_first=True), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h0 = torch.zeros(2, x.size(0), 12).to(x.device)
        c0 = torch.zeros(2, x.size(0), 12).to(x.device)
        out, _ = self.lstm(x, (h0, c0))
        return self.fc(out[:, -1])


class Cells(nn.Module):
    """A loop over time, with a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = nn.LSTMCell(8, 12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.size(0), 12, device=x.device)
        for t in range(x.size(1)):
            h, c = self.cell(x[:, t], (h, c))
        return self.fc(h)


class TextLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8, padding_idx=0)
        self.lstm, self.fc = nn.LSTM(8, 12, batch_first=True), nn.Linear(12, CLASSES)

    def forward(self, text: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.embedding(text))
        return self.fc(hidden[-1])


class TextCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.convs = nn.ModuleList([nn.Conv2d(1, 4, (k, 8)) for k in (2, 3)])
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, text: Tensor) -> Tensor:
        embedded = self.embedding(text).unsqueeze(1)
        conved = [F.relu(conv(embedded)).squeeze(3) for conv in self.convs]
        pooled = [F.max_pool1d(conv, conv.shape[2]).squeeze(2) for conv in conved]
        return self.fc(torch.cat(pooled, dim=1))


class BagOfWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.EmbeddingBag(50, 8), nn.Linear(8, CLASSES)

    def forward(self, text: Tensor) -> Tensor:
        return self.fc(self.embedding(text))


class Chomp1d(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        pad = 2 * dilation
        self.net = nn.Sequential(
            weight_norm(nn.Conv1d(inputs, outputs, 3, padding=pad, dilation=dilation)),
            Chomp1d(pad), nn.ReLU(), nn.Dropout(0.1),
        )  # fmt: skip
        self.downsample = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        res = x if self.downsample is None else self.downsample(x)
        return F.relu(self.net(x) + res)


class TCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tcn = nn.Sequential(TemporalBlock(2, 8, 1), TemporalBlock(8, 8, 2))
        self.linear = nn.Linear(8, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(self.tcn(inputs)[:, :, -1])


class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(2, 8, 1)
        self.filters = nn.ModuleList(nn.Conv1d(8, 8, 2, dilation=2**i) for i in range(3))
        self.gates = nn.ModuleList(nn.Conv1d(8, 8, 2, dilation=2**i) for i in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3))
        self.end = nn.Conv1d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        skip = 0
        for filt, gate, one in zip(self.filters, self.gates, self.skips, strict=True):
            y = torch.tanh(filt(x)) * torch.sigmoid(gate(x))
            s = one(y)
            try:
                skip = skip[:, :, -s.size(2) :]  # type: ignore[index]
            except TypeError:
                skip = 0
            skip = s + skip
            x = y + x[:, :, -y.size(2) :]
        return self.end(F.relu(skip)).mean(-1)  # type: ignore[arg-type]


class MLP(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(8, 16), act, nn.LayerNorm(16),
                                    nn.Linear(16, 16), act, nn.Linear(16, CLASSES))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TabularResNet(nn.Module):
    """Numbers and categories in one row, as tabular learners split them."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.kinds = nn.Linear(6, 16), nn.Embedding(3, 16)
        self.norm, self.mid, self.head = (
            nn.BatchNorm1d(16),
            nn.Linear(16, 16),
            nn.Linear(16, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        numbers, kinds = x[:, :6], x[:, 6:].abs().long().clamp(max=2)
        x = self.numbers(numbers) + self.kinds(kinds).sum(1)
        return self.head(x + F.dropout(self.mid(self.norm(x).relu()), 0.1, self.training))


class KAN(nn.Module):
    """Efficient KAN: B-splines of the input by recursion over a grid."""

    grid: Tensor

    def __init__(self) -> None:
        super().__init__()
        grid = torch.arange(-3, 9) * 0.4 - 1
        self.register_buffer("grid", grid.expand(8, -1).contiguous())
        self.base = nn.Parameter(0.1 * torch.randn(16, 8))
        self.spline = nn.Parameter(0.1 * torch.randn(16, 8, 8))
        self.head = nn.Linear(16, CLASSES)

    def b_splines(self, x: Tensor) -> Tensor:
        assert x.dim() == 2 and x.size(1) == 8
        grid = self.grid
        x = x.unsqueeze(-1)
        bases = ((x >= grid[:, :-1]) & (x < grid[:, 1:])).to(x.dtype)
        for k in range(1, 4):
            left = (x - grid[:, : -(k + 1)]) / (grid[:, k:-1] - grid[:, : -(k + 1)])
            right = (grid[:, k + 1 :] - x) / (grid[:, k + 1 :] - grid[:, 1:(-k)])
            bases = left * bases[:, :, :-1] + right * bases[:, :, 1:]
        return bases.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        base = F.linear(F.silu(x), self.base)
        splines = F.linear(self.b_splines(x).view(x.size(0), -1), self.spline.view(16, -1))
        return self.head(base + splines)


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's weight, transposed; a classifier on the code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bias = nn.Linear(8, 16), nn.Parameter(torch.zeros(8))
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        code = torch.relu(self.encoder(x))
        back = F.linear(code, self.encoder.weight.t(), self.bias)
        return self.head(torch.cat([code, back], 1))


class VAE(nn.Module):
    """Draws while it trains; a dict of results."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mu, self.logvar = nn.Linear(8, 16), nn.Linear(16, 6), nn.Linear(16, 6)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = F.relu(self.body(x))
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar) if self.training else mu
        return {"mu": mu, "logvar": logvar, "logits": self.fc(z)}


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.fc = nn.Linear(294, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.branch(x[:, :1]) - self.branch(x[:, 1:2])).abs())


class TwoBranches(nn.Module):
    """Joins what it computes in two ways only at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 5)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([self.a(x).relu().mean((2, 3)), self.b(x).relu().amax((2, 3))], 1))


class FNet(nn.Module):
    """Mixes tokens by Fourier transforms."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.ff = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.norm(x + torch.fft.fft2(x, dim=(-1, -2)).real)
        return self.head((x + self.ff(x).relu()).mean(1))


class ComplexFilter(nn.Module):
    """GFNet: a complex parameter between two transforms."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.filter = nn.Parameter(torch.randn(7, 16, dtype=torch.complex64) * 0.1)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = torch.fft.rfft(x, dim=1, norm="ortho") * self.filter
        return self.head((x + torch.fft.irfft(y, n=12, dim=1, norm="ortho")).mean(1))


class RealFilter(ComplexFilter):
    """GFNet as it is published: the filter is kept as pairs of real numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(7, 16, 2) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        weight = torch.view_as_complex(self.filter)
        y = torch.fft.rfft(x, dim=1, norm="ortho") * weight
        return self.head((x + torch.fft.irfft(y, n=x.shape[1], dim=1, norm="ortho")).mean(1))


class LookUp(nn.Module):
    """len() of a buffer and of a parameter list."""

    scales: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scales", torch.tensor([0.5, 1.0, 2.0]))
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        for i in range(len(self.scales)):
            x = x + self.b(x * self.scales[i]).relu() / len(self.scales)
        return self.head(x)


class Scripted(nn.Module):
    """A submodule that was compiled by torch.jit."""

    def __init__(self, trains: bool = True) -> None:
        super().__init__()
        self.a = nn.Linear(8, 16)
        body = nn.Sequential(nn.Linear(16, 16), nn.ReLU()).requires_grad_(trains)
        self.body = torch.jit.script(body)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.a(x).relu()))


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.LazyConv2d(8, 3), nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.avg_pool2d(F.relu(self.conv(x)), 4).flatten(1))


class Checked(nn.Module):
    """Checks sizes, as careful code does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"expected (B, 3, H, W), got {tuple(x.shape)}")
        assert x.size(-1) == x.size(-2), "takes squares"
        x = self.conv(x).relu()
        return self.fc(x.flatten(2).sum(-1) / float(x.shape[-1] * x.shape[-2]))


class Adaptive(nn.Module):
    """Control flow on values in the forward itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        while x.abs().max() > 4:
            x = x / 2
        return self.head(self.b(x).relu())


class InPlace(nn.Module):
    """`y = x; y += 1` changes x, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = x
        y += 1
        x = self.b(x)
        x *= 2
        mask = torch.zeros(16)
        mask[::2] = 1
        return self.head((x * mask).relu())


class Graph(nn.Module):
    """A graph convolution over a fixed adjacency."""

    adjacency: Tensor

    def __init__(self) -> None:
        super().__init__()
        adjacency = (torch.eye(12) + torch.eye(12).roll(1, 0)) / 2
        self.register_buffer("adjacency", adjacency)
        self.w1, self.w2 = (
            nn.Parameter(torch.randn(8, 16) / 3),
            nn.Parameter(torch.randn(16, 16) / 4),
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.matmul(self.adjacency, x @ self.w1).relu()
        x = torch.matmul(self.adjacency, torch.matmul(x, self.w2)).relu()
        return self.head(x.mean(1))


class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv1d(2, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 16, 1)
        )
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max(self.mlp(x), 2, keepdim=True)[0]
        return self.fc(x.view(-1, 16))


class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.h, self.t = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        gate = torch.sigmoid(self.t(x))
        return self.head(gate * F.relu(self.h(x)) + (1 - gate) * x)


class Hyper(nn.Module):
    """A layer whose weights another layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.make = nn.Parameter(torch.randn(4)), nn.Linear(4, 16 * 8)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.make(self.code).view(16, 8)
        return self.head(F.linear(x, weight).relu())


class LIF(nn.Module):
    """A spiking layer by a custom autograd function, over four steps of time."""

    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(x)
            return (x > 0).to(x.dtype)

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            return grad / (1 + 10 * ctx.saved_tensors[0].abs()) ** 2

    def forward(self, x: Tensor) -> Tensor:
        v, spikes = torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(4):
            v = 0.5 * v + x
            s = self.Spike.apply(v - 1)
            v = v * (1 - s)
            spikes = spikes + s
        return spikes / 4


TABLE = InputSpec((8,))

SEQUENCES = {
    "rnn": Entry("RNN", lambda: Recurrent("RNN"), SEQUENCE),
    "gru": Entry("GRU", lambda: Recurrent("GRU", 2), SEQUENCE),
    "lstm": Entry("LSTM", lambda: Recurrent("LSTM", both=True), SEQUENCE),
    "lstm states": Entry("LSTM", ExplicitState, SEQUENCE),
    "lstm cells": Entry("LSTM", Cells, SEQUENCE),
    "text lstm": Entry("token embedding", TextLSTM, TOKENS),
    "text cnn": Entry("token embedding", TextCNN, TOKENS),
    "bag of words": Entry("token embedding", BagOfWords, TOKENS),
    "tcn": Entry("TCN", TCN, SIGNAL),
    "wavenet": Entry("WaveNet", WaveNet, SIGNAL),
    "pointnet": Entry("PointNet", PointNet, SIGNAL),
    "mlp": Entry("MLP", lambda: MLP(nn.ReLU()), TABLE),
    "tabular": Entry("tabular", TabularResNet, TABLE),
    "kan": Entry("KAN", KAN, TABLE),
    "tied autoencoder": Entry("autoencoder", TiedAutoencoder, TABLE),
    "vae": Entry("VAE, dict output", VAE, TABLE),
    "siamese": Entry("siamese", Siamese, IMAGE),
    "two branches": Entry("two branches", TwoBranches, IMAGE),
    "fnet": Entry("Fourier", FNet, SEQUENCE),
    "gfnet": Entry("Fourier", RealFilter, SEQUENCE),
    "complex filter": Entry("complex parameters", ComplexFilter, SEQUENCE),
    "len of a buffer": Entry("len() of a buffer", LookUp, TABLE),
    "scripted": Entry("torch.jit", Scripted, TABLE),
    "scripted and frozen": Entry("torch.jit", lambda: Scripted(trains=False), TABLE),
    "lazy": Entry("lazy modules", Lazy, IMAGE),
    "checked": Entry("checks of sizes", Checked, IMAGE),
    "adaptive": Entry("control flow on values", Adaptive, TABLE),
    "in place": Entry("overwriting", InPlace, TABLE),
    "graph": Entry("graph network", Graph, SEQUENCE),
    "highway": Entry("highway", Highway, TABLE),
    "hypernetwork": Entry("hypernetwork", Hyper, TABLE),
    "spiking": Entry("spiking", lambda: nn.Sequential(
        nn.Linear(8, 16), LIF(), nn.Linear(16, 16), LIF(), nn.Linear(16, CLASSES)), TABLE),
}  # fmt: skip
