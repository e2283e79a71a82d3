"""Signs and their gradients, binary layers, and the rewrite of a model."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.cnn import CNN
from models.cost import cost
from models.ecg1d import ecg1d
from models.lenet5 import LeNet5
from models.resnet import resnet8
from models.split import cut
from quant.binary import (
    ESTIMATORS,
    BinarySpec,
    Sign,
    binarize,
    binary_layers,
    clip_latent,
    sign,
)

properties = settings(deadline=None, max_examples=40)
SHAPES = {"ecg1d": (1, 128), "cnn": (1, 12, 12), "cnn batch": (1, 12, 12), "lenet5": (1, 12, 12)}


def make(name, seed=0):
    torch.manual_seed(seed)
    if name.startswith("cnn"):
        norm = "batch" if name == "cnn batch" else "group"
        return CNN(input_shape=SHAPES[name], width=4, norm=norm)
    return ecg1d() if name == "ecg1d" else LeNet5(input_shape=SHAPES[name])


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stages(name):
    return {"ecg1d": 3, "lenet5": 4}.get(name, 3)


# Signs -------------------------------------------------------------------------------------------


def test_signs():
    x = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 5.0, -5.0, torch.inf, -torch.inf, torch.nan])
    assert sign(x).tolist() == [1, 1, 1, -1, 1, -1, 1, -1, -1]
    assert sign(x.double()).dtype == torch.float64
    image = draw(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert sign(image).is_contiguous(memory_format=torch.channels_last)


@properties
@given(
    values=st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=20),
    estimator=st.sampled_from(ESTIMATORS),
)
def test_gradients_by_their_formulas(values, estimator):
    x = torch.tensor([*values, 1.0, -1.0, 0.0], requires_grad=True)
    grad = torch.linspace(-2, 3, len(x))
    sign(x, estimator).backward(grad)
    slope = {
        "clip": lambda v: float(abs(v) <= 1),
        "approx": lambda v: max(0.0, 2 - 2 * abs(v)),
        "tanh": lambda v: 1 - float(torch.tensor(v).double().tanh()) ** 2,
    }[estimator]
    expected = [g * slope(v) for g, v in zip(grad.tolist(), x.tolist(), strict=True)]
    assert x.grad.tolist() == pytest.approx(expected, abs=1e-5)


def test_the_bounds_of_the_clip():
    """A latent weight clipped to exactly ±1 still gets its gradient."""
    for dtype in (torch.float32, torch.float64):
        one = torch.tensor(1.0, dtype=dtype)
        beyond = torch.nextafter(one, 2 * one)
        x = torch.stack([one, -one, beyond, -beyond]).requires_grad_()
        sign(x).sum().backward()
        assert x.grad.tolist() == [1, 1, 0, 0]


def test_other_estimators_are_refused():
    with pytest.raises(ValueError, match="estimator=soft: takes clip, approx, tanh"):
        BinarySpec(estimator="soft")


# Layers ------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw_from):
    dims = draw_from(st.sampled_from([1, 2]))
    groups = draw_from(st.integers(1, 3))
    kernel = [draw_from(st.integers(1, 3)) for _ in range(dims)]
    layer = (nn.Conv1d, nn.Conv2d)[dims - 1](
        groups * draw_from(st.integers(1, 4)),
        groups * draw_from(st.integers(1, 4)),
        kernel[0] if dims == 1 else tuple(kernel),
        stride=draw_from(st.integers(1, 2)),
        padding=draw_from(st.integers(0, 2)),
        dilation=draw_from(st.integers(1, 2)),
        groups=groups,
        padding_mode=draw_from(st.sampled_from(["zeros", "circular", "replicate"])),
    )
    sizes = [draw_from(st.integers(5, 8)) for _ in range(dims)]
    return layer, sizes


@properties
@given(case=convolutions(), scale=st.booleans(), seed=st.integers(0, 999))
def test_a_layer_computes_with_the_signs_of_its_weight(case, scale, seed):
    layer, sizes = case
    net = nn.Sequential(copy.deepcopy(layer), nn.ReLU())
    binary = binarize(net, BinarySpec(scale=scale, normalise_input=False))
    x = draw(3, layer.in_channels, *sizes, seed=seed).sign()
    plain = copy.deepcopy(layer)
    plain.bias = None
    plain.weight.data = torch.where(layer.weight >= 0, 1.0, -1.0)
    expected = plain(x)
    assert torch.equal(expected, expected.round())
    if scale:
        means = torch.stack([layer.weight[c].abs().mean() for c in range(layer.out_channels)])
        expected = expected * means.view(-1, *[1] * len(sizes))
    assert torch.allclose(binary.get_submodule("0")(x), expected, rtol=1e-6)
    binary.train()
    assert set(binary(x).unique().tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("scale", [False, True])
def test_the_gradient_of_a_latent_weight(scale):
    """Straight through the sign; with scaling also through the mean of its magnitudes."""
    layer = binarize(nn.Sequential(nn.Linear(6, 4)), BinarySpec(scale=scale))[0].layer
    latent = draw(4, 6)
    layer.weight.data.copy_(latent)  # some beyond ±1
    layer.input_norm = None
    x, grad = draw(5, 6, seed=2), draw(5, 4, seed=3)
    layer(x).backward(grad)
    scales = latent.abs().mean(1, keepdim=True) if scale else torch.ones(4, 1)
    expected = grad.T @ x * scales * (latent.abs() <= 1)
    if scale:
        through = ((grad.T @ x) * sign(latent)).sum(1, keepdim=True)
        expected = expected + through * latent.sign() / 6
    assert torch.allclose(layer.weight.grad, expected, atol=1e-5)


def test_the_input_of_the_first_layer_is_normalised_per_sample():
    net = binarize(make("ecg1d"))
    first, second = (layer for name, layer in list(binary_layers(net))[:2])
    x = draw(4, 1, 128) * 5 + 3
    assert second.input_norm is None
    assert not list(first.input_norm.parameters())
    expected = (x - x.mean(2, keepdim=True)) / x.std(2, keepdim=True, correction=0)
    assert torch.allclose(first.normalised(x), expected, atol=1e-3)
    moved = first.normalised(x * torch.rand(4, 1, 1) + torch.rand(4, 1, 1))
    assert torch.allclose(moved, expected, atol=1e-3)
    flat = net.eval()(torch.full((2, 1, 128), 7.0))  # a dead electrode
    assert torch.isfinite(flat).all()
    plain = binarize(make("ecg1d"), BinarySpec(normalise_input=False))
    assert next(binary_layers(plain))[1].input_norm is None


def test_clip_latent_clips_latent_weights_alone():
    net = binarize(make("cnn"), sign_output=False)
    for parameter in net.parameters():
        parameter.data.fill_(-7)
    clip_latent(net)
    latent = {f"{name}.weight" for name, _ in binary_layers(net)}
    assert len(latent) == 4
    for name, parameter in net.named_parameters():
        assert (parameter == (-1 if name in latent else -7)).all()
    clip_latent(make("cnn"))  # nothing there


# The rewrite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_every_activation_and_the_input_of_every_inner_layer_is_a_sign(name):
    net = binarize(make(name), sign_output=False)
    seen = {}
    for path, module in net.named_modules():
        if path.startswith("stage") and path.count(".") == 0:
            module.register_forward_hook(lambda _, __, out, path=path: seen.update({path: out}))
    layers = [layer for _, layer in binary_layers(net)]
    inputs = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    logits = net(draw(6, *SHAPES[name]))
    assert len(seen) == stages(name)
    for output in seen.values():
        assert set(output.unique().tolist()) == {-1.0, 1.0}
    pools_globally = name.startswith("cnn")
    for layer, x in list(zip(layers, inputs, strict=True))[1 : -1 if pools_globally else None]:
        assert layer.input_quantizer is not None
        assert set(x.unique().tolist()) == {-1.0, 1.0}
    assert layers[0].input_quantizer is None
    assert (layers[-1].input_quantizer is None) == pools_globally
    assert len(logits.unique()) > 2
    assert not any(isinstance(m, nn.GroupNorm) and m.affine for m in net.modules())
    logits.square().sum().backward()
    for path, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any(), path


@pytest.mark.parametrize("name", ["ecg1d", "cnn", "lenet5"])
def test_cut_and_binarize_commute(name):
    """Also: both ways of making the client's half have the same names at every stage."""
    whole, shape = make(name), SHAPES[name]
    binary = binarize(whole, sign_output=False)
    x = draw(4, *shape)
    for stage in range(1, stages(name) + 1):
        client, server = cut(binary, f"stage{stage}", shape)  # checks that it trains as the whole
        half = binarize(cut(whole, f"stage{stage}", shape)[0])
        assert list(half.state_dict()) == list(client.state_dict())
        assert all(
            torch.equal(a, b)
            for a, b in zip(half.state_dict().values(), client.state_dict().values(), strict=True)
        )
        z = half(x)
        assert torch.equal(z, client(x))
        assert set(z.unique().tolist()) == {-1.0, 1.0}
        assert server(z).shape == (4, 5 if name == "ecg1d" else 10)
        assert torch.equal(pickle.loads(pickle.dumps(half)).eval()(x), half.eval()(x))


def test_names_follow_from_the_network_alone():
    names = list(binarize(cut(make("ecg1d"), "stage2", (1, 128))[0]).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert names == [
        name
        for stage in ("stage1", "stage2")
        for name in (f"{stage}.conv.weight", *(f"{stage}.pool.norm.{leaf}" for leaf in norm))
    ]
    own = list(binarize(cut(make("cnn"), "stage1", (1, 12, 12))[0]).state_dict())
    assert own == ["stage1.conv.weight", *(f"stage1.norm.{leaf}" for leaf in norm)]


def test_the_model_itself_stays():
    net = make("lenet5")
    before, kinds = copy.deepcopy(net.state_dict()), [type(m) for m in net.modules()]
    binarize(net, sign_output=False)
    assert [type(m) for m in net.modules()] == kinds
    assert all(torch.equal(a, before[name]) for name, a in net.state_dict().items())


def test_a_half_by_hand():
    """ecg1d's half, written out: convolution, maximum, batch norm, sign."""
    half = binarize(cut(make("ecg1d"), "stage2", (1, 128))[0])
    x = draw(8, 1, 128)
    state = {name: tensor.clone() for name, tensor in half.state_dict().items()}
    z = F.group_norm(x, 1)
    for stage, padding in (("stage1", 3), ("stage2", 2)):
        weight = torch.where(state[f"{stage}.conv.weight"] >= 0, 1.0, -1.0)
        z = F.max_pool1d(F.conv1d(z, weight, padding=padding), 2)
        centred = z - z.mean((0, 2), keepdim=True)
        z = torch.where(centred >= 0, 1.0, -1.0)  # weight 1, bias 0
    ours = half.train()(x)
    assert (ours != z).float().mean() < 1e-3  # means are summed in another order


def test_a_residual_network_keeps_its_shortcuts():
    torch.manual_seed(0)
    net = resnet8()
    binary = binarize(net, sign_output=False)
    for stage in ("stage1", "stage2", "stage3"):
        client, _ = cut(binary, stage, (3, 16, 16))
        assert set(client(draw(2, 3, 16, 16)).unique().tolist()) == {-1.0, 1.0}
    own = {name.removesuffix(".layer") for name, _ in binary_layers(binary)}
    assert own == {n for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def test_one_layer_without_activation_and_one_with_two():
    plain = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 3), nn.Tanh(), nn.ReLU())
    half = binarize(plain)
    assert set(half(draw(4, 2, 12)).unique().tolist()) == {-1.0, 1.0}
    assert sum(isinstance(m, Sign) and n.endswith("sign") for n, m in half.named_modules()) == 2
    assert sum(isinstance(m, nn.BatchNorm1d) for m in half.modules()) == 2


def test_dropout_goes():
    half = binarize(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)))
    assert not any(isinstance(m, nn.Dropout) for m in half.modules())
    assert set(half(draw(9, 4)).unique().tolist()) == {-1.0, 1.0}


def test_what_it_costs():
    half = binarize(cut(make("ecg1d"), "stage2", (1, 128))[0])
    found = cost(half, (1, 128))
    assert [(c.weight_bits, c.input_bits) for c in found.layers] == [(1, 32), (1, 1)]
    weights = 16 * 7 + 16 * 16 * 5
    assert found.model_bytes - found.packed_bytes == 4 * weights - weights // 8
    assert found.bops == 128 * 16 * 7 * 32 + 64 * 16 * 16 * 5


def test_type_and_mode_are_those_of_the_model():
    net = make("ecg1d").double()
    half = binarize(cut(net, "stage2", (1, 128))[0].eval())
    assert not any(module.training for module in half.modules() if list(module.buffers(False)))
    z = half(draw(3, 1, 128).double())
    assert z.dtype == torch.float64
    assert half.train()(draw(3, 1, 128).double()).unique().tolist() == [-1, 1]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 3)

    def forward(self, x):
        return F.relu(self.conv(x))


class Branching(Functional):
    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()

    def forward(self, x):
        return self.relu(self.two(self.relu(self.one(x))))


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (nn.Sequential(*[nn.Linear(2, 2)] * 2), "0 is called 2 times"),
        (Functional(), "takes relu as a module"),
        (Branching(), "torch.fx can trace"),
        (Shared(), "relu is called 2 times"),
        (nn.Linear(2, 2), "put the layer into an nn.Sequential"),
        (nn.Sequential(nn.ReLU()), "has no Conv1d, Conv2d or Linear"),
        (nn.Sequential(nn.Conv3d(1, 1, 1)), "0: Conv3d has no binary form"),
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "1: LayerNorm has no binary form"),
        (nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1)), "is not ±1"),
        (binarize(nn.Sequential(nn.Linear(2, 2))), "binarized already"),
    ],
)
def test_what_has_no_binary_form_is_refused(net, why):
    with pytest.raises(ValueError, match=why):
        binarize(net)


# Training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("scale", [False, True])
def test_it_learns(estimator, scale):
    """Two classes of noisy sines; the latent weights stay in their bounds."""
    torch.manual_seed(0)
    time = torch.linspace(0, 6.28, 32)
    y = torch.randint(2, (400,))
    x = torch.sin(time * (2 + 2 * y.unsqueeze(1)) + 6.28 * torch.rand(400, 1)).unsqueeze(1)
    x = x + 0.2 * torch.randn_like(x)
    net = nn.Sequential(
        binarize(
            nn.Sequential(nn.Conv1d(1, 8, 7), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten()),
            BinarySpec(estimator, scale),
        ),
        nn.Linear(8 * 13, 2),
    )
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(6):
        for rows in torch.randperm(300).split(30):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
            clip_latent(net)
    assert max(float(layer.weight.detach().abs().max()) for _, layer in binary_layers(net)) <= 1
    accuracy = (net.eval()(x[300:]).argmax(1) == y[300:]).float().mean()
    assert accuracy > 0.9
