"""Every kind of product is quantized: against torch's layers, and by what reaches the products."""

import copy
import itertools
import math
import pickle
import random
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from models.cost import cost
from models.split import cut, cut_points
from quant.attention import QuantMultiheadAttention
from quant.calls import WithCalls
from quant.export import Network, load_packed, save_packed
from quant.layers import (
    QuantSpec,
    quantize,
    quantized_layers,
    weight_quantizer_paths,
    without_quantizers,
)
from quant.modules import Recipe, derived, quantizers
from quant.survey import KINDS, survey

# Networks, of (B, 1, 8, 8) but for the last ----------------------------------------------------


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(8, 16), nn.Linear(16, 10)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        x = self.embed(x.flatten(1, 2))
        q, k, v = self.q(x), self.k(x), self.v(x)
        x = (q @ k.transpose(-2, -1) / q.size(-1) ** 0.5).softmax(-1) @ v
        return self.head(x.mean(1))


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.q, self.head = nn.Linear(8, 16), nn.Linear(16, 48), nn.Linear(16, 10)

    def forward(self, x):
        q, k, v = self.q(self.a(x.flatten(1, 2))).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=True).mean(1))


class Encoder(nn.Module):
    def __init__(self, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, **options)
        self.embed, self.encoder = nn.Linear(8, 16), nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x.flatten(1, 2))).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM, **options):
        super().__init__()
        self.rnn = kind(8, 12, batch_first=True, **options)
        width = self.rnn.proj_size or 12
        self.head = nn.Linear(width * (2 if self.rnn.bidirectional else 1), 10)

    def forward(self, x):
        return self.head(self.rnn(x.flatten(1, 2))[0][:, -1])


class Cells(nn.Module):
    def __init__(self, kind=nn.LSTMCell):
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(8, 8), kind(8, 12), nn.Linear(12, 10)

    def forward(self, x):
        state = None
        for step in self.embed(x.flatten(1, 2)).unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Volumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 8, (1, 3, 3))
        self.up, self.head = nn.ConvTranspose3d(8, 4, 2), nn.Linear(4, 10)

    def forward(self, x):
        return self.head(self.up(self.b(self.a(x.unsqueeze(1)).relu()).relu()).mean((2, 3, 4)))


class Upwards(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.up = nn.Conv2d(1, 8, 3, stride=2), nn.ConvTranspose2d(8, 4, 3, stride=2)
        self.line, self.head = nn.ConvTranspose1d(4, 4, 2), nn.Linear(4, 10)

    def forward(self, x):
        return self.head(self.line(self.up(self.a(x).relu()).flatten(2)).mean(2))


class OwnLinear(nn.Linear):
    """Changes nothing."""


class Standardised(nn.Conv2d):
    """The weight standardisation of NFNets: a forward of its own that calls F.conv2d."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / (weight.std() + 1e-5), self.bias, self.stride, self.padding)


class Derived(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Standardised(1, 4, 3)
        self.inner = Standardised(4, 4, 3)
        self.a = OwnLinear(64, 32)
        self.b = nn.utils.parametrizations.weight_norm(nn.Linear(32, 32))
        self.c = nn.utils.parametrizations.spectral_norm(nn.Linear(32, 32))
        self.d = nn.Parameter(torch.randn(32, 32) / 6)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.a(self.inner(self.stem(x).relu()).flatten(1)).relu()
        return self.head((self.c(self.b(x).relu()).relu() @ self.d).relu())


class OwnLayer(nn.Module):
    """GPT-2's Conv1D."""

    def __init__(self, num_in, num_out):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(num_in, num_out) / 8),
            nn.Parameter(torch.zeros(num_out)),
        )

    def forward(self, x):
        shape = x.size()[:-1] + (self.weight.shape[1],)  # noqa: RUF005 — as written there
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(shape)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(64, 32), OwnLayer(32, 16), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.b(self.a(x.flatten(1)).relu()).relu())


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 1, 3, 3) / 3)
        self.matrix = nn.Parameter(torch.randn(32, 144) / 12)
        self.mix = nn.Parameter(torch.randn(32, 32) / 6)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = F.conv2d(input=x, weight=self.kernel).relu().flatten(1)
        x = F.linear(x, self.matrix).relu()
        return self.head(torch.einsum("bi,ij->bj", x, self.mix).relu())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(F.linear(self.b(self.a(x.flatten(1)).relu()), self.a.weight.t()))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(50, 16), nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.mix(self.embed(x)).relu().mean(1))


NETWORKS = {
    "attention": Attention,
    "fused attention": Fused,
    "encoder": Encoder,
    "encoder, norm first": lambda: Encoder(norm_first=True, activation="gelu", bias=False),
    "lstm": Recurrent,
    "lstm, deep": lambda: Recurrent(num_layers=2, bidirectional=True, proj_size=5, dropout=0.1),
    "gru": lambda: Recurrent(nn.GRU, bidirectional=True),
    "rnn": lambda: Recurrent(nn.RNN, nonlinearity="relu"),
    "lstm cell": Cells,
    "gru cell": lambda: Cells(nn.GRUCell),
    "rnn cell": lambda: Cells(nn.RNNCell),
    "volumes": Volumes,
    "upwards": Upwards,
    "derived": Derived,
    "own layer": Own,
    "functional": Functional,
    "tied": Tied,
    "tokens": Tokens,
}


def built(name):
    torch.manual_seed(0)
    return NETWORKS[name]()


def inputs(name, count=4):
    generator = torch.Generator().manual_seed(1)
    if name == "tokens":
        return torch.randint(0, 50, (count, 7), generator=generator)
    return torch.rand(count, 1, 8, 8, generator=generator)


def trained(name, spec, steps=3):
    model = quantize(built(name), spec).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
    for _ in range(steps):
        loss = F.cross_entropy(model(inputs(name)), torch.tensor([0, 1, 2, 3]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert math.isfinite(loss.item())
    return model.eval()


# What reaches the products ------------------------------------------------------------------------


class Seen(TorchFunctionMode):
    """How many values the operands of each product have: an independent look from below."""

    OPERANDS: ClassVar = {
        "linear": (0, 1), "conv1d": (0, 1), "conv2d": (0, 1), "conv3d": (0, 1), "matmul": (0, 1),
        "conv_transpose1d": (0, 1), "conv_transpose2d": (0, 1), "conv_transpose3d": (0, 1),
        "__matmul__": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "einsum": (1, 2),
    }  # fmt: skip

    def __init__(self):
        super().__init__()
        self.values = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        assert name not in ("lstm", "gru", "_transformer_encoder_layer_fwd"), "a fused kernel"
        if name in self.OPERANDS:
            given = [*args, *kwargs.values()]
            self.values.append(
                tuple(len(given[position].unique()) for position in self.OPERANDS[name])
            )
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.long if i % 2 else ()) for i, n in enumerate(NETWORKS)],
)
def test_operands_have_few_values_and_the_cost_says_so(name):
    spec = QuantSpec(3, 3, edge_bits=5)
    model = trained(name, spec)
    with torch.no_grad(), Seen() as seen:
        model(inputs(name))
    assert seen.values
    products = [max(pair) for pair in seen.values]
    assert max(products) <= 2**5
    if not any(kind in name for kind in ("lstm", "gru", "rnn")):  # whose first layer has many
        assert sum(values > 2**3 for values in products) <= 2  # the first and the last product
    shape, dtype = tuple(inputs(name).shape[1:]), inputs(name).dtype
    found = cost(model, shape, dtype=dtype)
    assert found.quantized_share == 1
    assert found.flops_forward == 2 * found.macs == 2 * cost(built(name), shape, dtype=dtype).macs
    assert 3 <= found.mean_act_bits <= 5
    plain = cost(built(name), shape, dtype=dtype)
    assert (plain.quantized_share, plain.mean_weight_bits, plain.mean_act_bits) == (0, 32, 32)
    assert plain.bops == plain.macs * 32 * 32


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_and_the_packed_file_give_the_same(name, tmp_path):
    model, x = trained(name, QuantSpec()), inputs(name, 16)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    network = Network("x.X", {}, tuple(x.shape[1:]), 10, str(x.dtype).removeprefix("torch."))
    save_packed(model, tmp_path / "a.safetensors", network, QuantSpec())
    assert torch.equal(load_packed(tmp_path / "a.safetensors", built(name))(x), expected)
    if name != "derived":  # parametrized modules do not pickle
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_at_32_bits_it_is_the_model_itself(name):
    model = quantize(built(name), QuantSpec(32, 32))
    assert model.state_dict().keys() == built(name).state_dict().keys()
    assert torch.equal(model.eval()(inputs(name)), built(name).eval()(inputs(name)))


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        pytest.param(name, bits, marks=pytest.mark.long if (number + bits[0] // 32) % 2 else ())
        for number, name in enumerate(NETWORKS)
        for bits in ((4, 32), (32, 4))
    ],
)
def test_weights_or_activations_alone(name, bits):
    model = trained(name, QuantSpec(*bits), steps=1)
    found = cost(model, tuple(inputs(name).shape[1:]), dtype=inputs(name).dtype)
    assert (found.mean_act_bits == 32) == (bits[1] == 32)
    assert found.mean_weight_bits < 32 or bits[0] == 32 or name == "functional"


# Against torch's own layers -----------------------------------------------------------------------


def without_bits(layer):
    """The rewritten layer with no quantizers: the same function by our own code."""
    rewritten = copy.deepcopy(layer)
    kind = next(kind for base, kind in KINDS.items() if isinstance(layer, base))
    rewritten.__class__ = derived(kind, type(layer))
    rewritten.equip(Recipe(32, 32))
    return rewritten


def same(ours, torchs, *args, **kwargs):
    expected, got = torchs(*args, **kwargs), ours(*args, **kwargs)
    for a, b in zip(flat(expected), flat(got), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
    flat(expected)[0].square().sum().backward()
    flat(got)[0].square().sum().backward()
    for (name, p), q in zip(torchs.named_parameters(), ours.parameters(), strict=True):
        if p.grad is None:
            assert q.grad is None or not q.grad.any(), name
        else:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-5, msg=name)


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [] if value is None else [leaf for part in value for leaf in flat(part)]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"kdim": 5, "vdim": 7}, {"add_bias_kv": True, "add_zero_attn": True}]
)
def test_attention_without_bits_is_torchs(options, bias, batch_first):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, bias=bias, batch_first=batch_first, **options)
    kdim, vdim = options.get("kdim", 8), options.get("vdim", 8)
    query, key, value = (torch.randn(3, t, d) for t, d in ((4, 8), (6, kdim), (6, vdim)))
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[1, 4:] = True
    masks = [None, torch.randn(4, 6), torch.rand(4, 6) < 0.3, torch.randn(6, 4, 6)]
    masks[2][:, 0] = False
    for mask, padded, averaged in itertools.product(masks, (None, padding), (False, True)):
        if mask is not None and padded is not None and mask.dtype != torch.bool:
            padded = torch.zeros(3, 6).masked_fill(padded, -math.inf)
        same(
            without_bits(layer), copy.deepcopy(layer), query, key, value, key_padding_mask=padded,
            attn_mask=mask, average_attn_weights=averaged,
        )  # fmt: skip


def test_attention_of_one_sample_and_of_itself_is_torchs():
    torch.manual_seed(0)
    layer, x = nn.MultiheadAttention(8, 2), torch.randn(5, 8)
    same(without_bits(layer), copy.deepcopy(layer), x, x, x)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    same(without_bits(layer), copy.deepcopy(layer), x, x, x, attn_mask=causal, is_causal=True)
    with pytest.raises(RuntimeError, match="attn_mask"):
        without_bits(layer)(x, x, x, is_causal=True)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(nn.LSTM, {}), (nn.LSTM, {"proj_size": 3}), (nn.GRU, {}), (nn.RNN, {}),
     (nn.RNN, {"nonlinearity": "relu"})],
)  # fmt: skip
def test_recurrent_layers_without_bits_are_torchs(kind, options, bidirectional, bias, batch_first):
    torch.manual_seed(0)
    layer = kind(
        4, 6, num_layers=2, bias=bias, bidirectional=bidirectional, batch_first=batch_first,
        **options,
    )  # fmt: skip
    x, count = torch.randn(3, 5, 4), 4 if bidirectional else 2
    state = torch.randn(count, 5 if not batch_first else 3, options.get("proj_size", 6))
    given = (state, torch.randn(count, state.shape[1], 6)) if kind is nn.LSTM else state
    same(without_bits(layer), copy.deepcopy(layer), x)
    same(without_bits(layer), copy.deepcopy(layer), x, given)
    same(without_bits(layer), copy.deepcopy(layer), torch.randn(5, 4))


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("bias", [False, True])
def test_cells_without_bits_are_torchs(kind, bias):
    torch.manual_seed(0)
    layer, h, c = kind(4, 6, bias=bias), torch.randn(3, 6), torch.randn(3, 6)
    state = (h, c) if kind is nn.LSTMCell else h
    same(without_bits(layer), copy.deepcopy(layer), torch.randn(3, 4))
    same(without_bits(layer), copy.deepcopy(layer), torch.randn(3, 4), state)
    same(without_bits(layer), copy.deepcopy(layer), torch.randn(4))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "output_padding": 1, "groups": 2}])
def test_transposed_convolutions_without_bits_are_torchs(dims, options):
    torch.manual_seed(0)
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    layer, x = kind(4, 6, 3, **options), torch.randn(2, 4, *[5] * dims)
    same(without_bits(layer), copy.deepcopy(layer), x)
    size = [s + 0 for s in layer(x).shape[2:]]
    same(without_bits(layer), copy.deepcopy(layer), x, output_size=size)


def test_an_embedding_without_bits_is_torchs():
    layer = nn.Embedding(9, 4, padding_idx=2)
    same(without_bits(layer), copy.deepcopy(layer), torch.tensor([[1, 2], [3, 8]]))


def test_packed_sequences_are_refused():
    model = quantize(nn.GRU(4, 4), QuantSpec())
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
    with pytest.raises(TypeError, match="padded sequences"):
        model(packed)


# Calls of functions -------------------------------------------------------------------------------


def test_calls_are_those_of_the_modules_own_forward():
    model = quantize(built("own layer"), QuantSpec())
    assert isinstance(model.b, WithCalls)
    assert isinstance(model.b, OwnLayer)
    assert not isinstance(model, WithCalls)
    assert weight_quantizer_paths(model)["b.weight"] == "b.addmm0_1_quantizer"


def test_first_and_last_are_products_not_modules():
    model = quantize(built("functional"), QuantSpec())
    bits = {name: quantizer.bits for name, quantizer in quantizers(model)}
    assert {bits["conv2d0_0_quantizer"], bits["conv2d0_1_quantizer"]} == {8}
    assert {bits[f"linear1_{operand}_quantizer"] for operand in (0, 1)} == {4}
    assert bits["head.weight_quantizer"] == 8
    assert not isinstance(model.conv2d0_0_quantizer.step, nn.Parameter)


@pytest.mark.parametrize("name", ["attention", "fused attention", "functional", "derived"])
def test_a_network_with_calls_is_cut_where_it_was_and_exactly(name):
    model, x = quantize(built(name), QuantSpec()), inputs(name)
    before = [point.name for point in cut_points(built(name), x)]
    points = [point.name for point in cut_points(model, x)]
    assert points
    if name != "fused attention":  # which becomes several operations
        assert points == before
    for point in points:
        cut(model, point, x)


def test_quantizers_of_the_device_alone():
    model, x = quantize(built("attention"), QuantSpec()), inputs("attention")
    device, _ = cut(model, "embed", x)
    kept = {name for name, _ in device.named_modules()}
    assert [name for name, _ in quantizers(without_quantizers(model, kept))] == [
        "embed.weight_quantizer",
        "embed.input_quantizer",
    ]
    assert math.isfinite(model(x).sum().item())


def test_a_forward_that_multiplies_otherwise_in_evaluation_stays_in_fp32(caplog):
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.a(x)
            x = x @ x.transpose(-2, -1) if self.training else torch.bmm(x, x.transpose(-2, -1))
            return self.b(x)

    found = survey(Fickle())
    assert not found.calls
    assert found.order == [("a", -1), ("b", -1)]
    assert "does not multiply the same each time" in caplog.text


def test_blocks_that_are_skipped_by_chance_are_quantized_and_counted():
    class Skipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            for block in self.blocks:
                if not (self.training and random.random() < 0.5):
                    x = x + block(x)
            return x

    model = quantize(Skipped(), QuantSpec())
    assert len(list(quantized_layers(model))) == 4
    state = random.getstate()
    for _ in range(3):
        found = cost(model, (8,))
        assert found.macs == 4 * 64
        assert found.flops_backward > 0
    assert random.getstate() == state


# Signs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "is_unsigned"),
    [
        (lambda x: x + (-0.5), False),
        (lambda x: x + 0.5, True),
        (lambda x: torch.add(x, x), True),
        (lambda x: torch.add(x, x, alpha=-3), False),
        (lambda x: x * x, True),
        (lambda x: x * -1, False),
        (lambda x: x - x, False),
        (lambda x: x.add_(-1), False),
        (lambda x: x.softmax(-1), True),
        (lambda x: x.view(-1, 8).sigmoid(), True),
        (lambda x: F.leaky_relu(x), False),
        (lambda x: torch.cat([x, x - 1], 1)[:, :8], False),
    ],
)
def test_an_input_is_unsigned_only_where_it_is_never_negative(change, is_unsigned):
    class Changed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.c(self.b(change(self.a(x).relu())).relu())

    assert quantize(Changed(), QuantSpec()).b.input_quantizer.signed is not is_unsigned


def test_a_view_of_what_is_overwritten_is_signed():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = self.a(x).relu()
            y = x.view(-1, 8)
            x -= 1
            return self.b(y)

    assert quantize(Viewed(), QuantSpec()).b.input_quantizer.signed


# The rest -----------------------------------------------------------------------------------------


def test_layers_take_their_input_by_keyword():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 2, 3), nn.Linear(72, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.c(input=self.b(input=self.a(input=x).relu().flatten(1)).relu())

    model = quantize(Named(), QuantSpec())
    assert not model.c.input_quantizer.signed
    model(torch.rand(2, 1, 8, 8))


def test_evaluation_of_an_encoder_is_that_of_what_was_trained():
    model, x = trained("encoder", QuantSpec()), inputs("encoder")
    assert isinstance(model.encoder.layers[0].self_attn, QuantMultiheadAttention)
    with torch.no_grad():
        quick = model(x)
    torch.testing.assert_close(model(x), quick)  # with gradients torch takes no fast path
    assert not torch.allclose(quick, without_quantizers(model, ())(x), atol=1e-3)


def test_counting_leaves_a_spectral_norm_as_it_was():
    model = quantize(built("derived"), QuantSpec()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost(model, (1, 8, 8))
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_memory_of_an_lstm_is_what_torch_keeps():
    model, x = built("lstm"), torch.zeros(6, 1, 8, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model.train()(x)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    real = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    found = cost(model, (1, 8, 8))
    stated = found.fixed_activation_bytes + 6 * found.activation_bytes
    assert stated == pytest.approx(sum(b for p, b in real.items() if p not in own), rel=0.25)
