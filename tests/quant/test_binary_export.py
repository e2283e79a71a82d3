"""Packed halves give the network's own bits, whatever its batch norm, padding and layout."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from models.cnn import CNN
from models.ecg1d import ecg1d
from models.lenet5 import LeNet5
from models.resnet import resnet8
from models.split import cut
from quant.binary import BinarySpec, binarize, binary_layers
from quant.binary_export import load_packed, pack_half, save_packed
from quant.packed_half import PackedHalf

properties = settings(deadline=None, max_examples=60)


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def norms(half):
    return [m for m in half.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


def upset(half, seed):
    """Batch norms as training may leave them, some extreme, and thresholds on whole sums."""
    generator = torch.Generator().manual_seed(seed)
    for layer in norms(half):
        size = layer.weight.shape
        layer.weight.data = torch.randn(size, generator=generator)
        layer.bias.data = torch.randn(size, generator=generator)
        layer.running_mean = 3 * torch.randn(size, generator=generator)
        layer.running_var = 10 * torch.rand(size, generator=generator)
        kind = torch.randint(9, size, generator=generator)
        layer.weight.data[kind == 0] = 0
        layer.bias.data[kind == 1] = 0  # a sum equal to the mean is a tie
        layer.running_mean[kind <= 2] = layer.running_mean[kind <= 2].round()
        layer.running_var[kind == 3] = 0
        layer.running_var[kind == 4] = 1e30
        layer.running_mean[kind == 5] = 1e30
        layer.weight.data[kind == 6] = -0.0
        layer.bias.data[kind == 6] = -0.0
        # b = −k·a: zero at the whole number k, up to rounding
        root = (layer.running_var + layer.eps).sqrt()
        whole = torch.randint(-3, 4, size, generator=generator) - layer.running_mean
        tie = kind == 7
        layer.bias.data[tie] = -(whole * layer.weight.data / root)[tie]


def same_bits(half, packed, *inputs):
    half.eval()
    with torch.no_grad():
        for x in inputs:
            expected = half(x)
            assert set(expected.unique().tolist()) <= {-1.0, 1.0}
            found = packed(x)
            assert found.shape == expected.shape
            assert torch.equal(found, expected)


@st.composite
def networks(draw_from):
    """Two or three layers of any geometry in 1-D or 2-D, pooled before or after the norm."""
    dims = draw_from(st.sampled_from([1, 2]))
    conv, pool, norm = (
        (nn.Conv1d, nn.MaxPool1d, nn.BatchNorm1d),
        (nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d),
    )[dims - 1]
    small = st.integers(1, 3)
    layers, channels = [], draw_from(small)
    first = channels
    for index in range(draw_from(st.integers(2, 3))):
        groups = draw_from(st.sampled_from([1, channels])) if index else 1
        out = groups * draw_from(st.sampled_from([1, 2, 5, 9]))
        padding = draw_from(st.sampled_from([0, 1, 2, "same"]))
        layers.append(
            conv(
                channels,
                out,
                tuple(draw_from(small) for _ in range(dims)),
                stride=1 if padding == "same" else draw_from(st.integers(1, 2)),
                padding=padding,
                dilation=draw_from(st.integers(1, 2)),
                groups=groups,
            )
        )
        channels = out
        post = [nn.ReLU()]
        if draw_from(st.booleans()):
            kernel = draw_from(st.integers(2, 3))
            post.insert(
                draw_from(st.integers(0, 1)),
                pool(
                    kernel,
                    stride=draw_from(st.integers(1, 3)),
                    padding=draw_from(st.integers(0, kernel // 2)),
                    dilation=1,  # dilated, a window may lie in the padding and hold no value
                    ceil_mode=draw_from(st.booleans()),
                ),
            )
        if draw_from(st.booleans()):
            post.insert(draw_from(st.integers(0, len(post))), norm(channels))
        layers += post
    if draw_from(st.booleans()):
        layers.append(nn.Flatten())
    sizes = [draw_from(st.integers(12, 17)) for _ in range(dims)]
    return nn.Sequential(*layers), (first, *sizes)


@properties
@given(
    case=networks(),
    seed=st.integers(0, 10**6),
    scale=st.booleans(),
    normalise=st.booleans(),
    channels_last=st.booleans(),
)
def test_random_networks(case, seed, scale, normalise, channels_last):
    net, shape = case
    try:
        net(torch.zeros(2, *shape))
    except RuntimeError:  # maps that are too small for so much pooling
        return
    x = draw(5, *shape, seed=seed)
    if channels_last and len(shape) == 3:
        net, x = (thing.to(memory_format=torch.channels_last) for thing in (net, x))
    half = binarize(net, BinarySpec(scale=scale, normalise_input=normalise))
    upset(half, seed)
    half.eval()
    packed = pack_half(half)
    same_bits(half, packed, x, x[:1])
    assert packed.layers[0].geometry.is_real


@pytest.mark.parametrize("shape", [(3,), (4, 5)])
def test_linear_layers(shape):
    wide = nn.Sequential(
        nn.Flatten(),
        nn.Linear(torch.Size(shape).numel(), 130),
        nn.ReLU(),
        nn.Linear(130, 70),
        nn.Tanh(),
        nn.Linear(70, 9),
    )
    half = binarize(wide)
    upset(half, 0)
    same_bits(half, pack_half(half), draw(50, *shape), draw(1, *shape))


@pytest.mark.parametrize(
    ("net", "shape", "stages"),
    [(ecg1d, (1, 128), 3), (CNN, (1, 28, 28), 3), (LeNet5, (1, 28, 28), 4)],
    ids=["ecg1d", "cnn", "lenet5"],
)
def test_networks_of_ours_at_every_stage_and_from_their_files(net, shape, stages, tmp_path):
    torch.manual_seed(0)
    whole = net().to(memory_format=torch.channels_last)
    for stage in range(1, stages + 1):
        half = binarize(cut(whole, f"stage{stage}", shape)[0])
        for _ in range(2):
            half.train()(draw(32, *shape))
        packed = pack_half(half)
        assert half.training
        save_packed(packed, tmp_path / "half")
        again = load_packed(tmp_path / "half")
        same_bits(half, packed, draw(64, *shape), torch.zeros(2, *shape))
        same_bits(half, again, draw(64, *shape), torch.full((2, *shape), 3.0))
        sizes = [layer.weight.numel() for _, layer in binary_layers(half)]
        assert packed.weight_bytes() == again.weight_bytes() == sum(-(-n // 8) for n in sizes)
        if net is ecg1d:  # whole bytes in every layer
            assert 32 * packed.weight_bytes() == 4 * sum(sizes)
        assert (tmp_path / "half").stat().st_size < packed.weight_bytes() + 3000


def test_many_words_and_sums_beyond_16_bits():
    half = binarize(nn.Sequential(nn.Linear(40, 40_000), nn.ReLU(), nn.Linear(40_000, 2)))
    upset(half, 0)
    packed = pack_half(half)
    same_bits(half, packed, draw(3, 40))
    assert packed.layers[1].threshold.dtype.itemsize == 4


def test_every_sum_of_a_layer_is_looked_up():
    """All sums from −n to n, one at a time, next to a threshold at each of them."""
    net = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 9))
    for flip in (1.0, -1.0):
        half = binarize(net, BinarySpec(normalise_input=False))
        first, second = (layer for _, layer in binary_layers(half))
        (norm_1, norm_2) = norms(half)
        first.weight.data.fill_(1)
        second.weight.data.fill_(1)
        norm_1.bias.data = torch.arange(8) - 3.5  # input k/1 turns on a thermometer of signs
        norm_2.bias.data = flip * torch.arange(7.0, -10, -2)
        norm_2.weight.data.fill_(flip)
        half.eval()
        packed = pack_half(half)
        x = torch.arange(-5.0, 6).unsqueeze(1)
        same_bits(half, packed, x)
        sums = {int(s) for s in half[:2](x).sum(1)}
        assert sums == set(range(-8, 9, 2))
        assert len(packed(x).unique(dim=0)) == 9
        assert (packed.layers[1].flipped[:-1] == (flip < 0)).all()  # the last never turns on


def test_the_threshold_of_a_real_layer_is_exact():
    """The next float below it gives the other bit."""
    half = binarize(nn.Sequential(nn.Linear(1, 50)), BinarySpec(normalise_input=False))
    upset(half, 3)
    half.eval()
    next(binary_layers(half))[1].weight.data.fill_(1)
    packed = pack_half(half)
    threshold = torch.from_numpy(packed.layers[0].threshold)
    finite = threshold.isfinite()
    assert finite.sum() > 20
    with torch.no_grad():
        for channel in finite.nonzero().flatten().tolist():
            at = threshold[channel]
            x = torch.stack([torch.nextafter(at, torch.tensor(-torch.inf)), at]).unsqueeze(1)
            below, above = half(x)[:, channel].tolist()
            assert below == -above
            assert packed(x)[:, channel].tolist() == [below, above]


def test_a_batch_of_none():
    half = binarize(cut(ecg1d(), "stage2", (1, 128))[0]).eval()
    assert pack_half(half)(torch.zeros(0, 1, 128)).shape == (0, 16, 32)


# Refusals ----------------------------------------------------------------------------------------


def residual():
    torch.manual_seed(0)
    return binarize(cut(resnet8(), "stage1", (3, 16, 16))[0])


@pytest.mark.parametrize(
    ("half", "why"),
    [
        (lambda: nn.Sequential(nn.Linear(2, 2)), "cannot fold it"),
        (lambda: binarize(nn.Sequential(nn.Linear(2, 2)), sign_output=False), "end in a sign"),
        (lambda: binarize(nn.Sequential(nn.Conv1d(1, 1, 3), nn.AvgPool1d(2), nn.ReLU())), "fold"),
        (
            lambda: binarize(
                nn.Sequential(nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"), nn.ReLU())
            ),
            "padding of zeros, not circular",
        ),
        (lambda: binarize(nn.Sequential(nn.Linear(2, 2))).double(), "float32, not torch.float64"),
        (
            lambda: binarize(
                nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
            ),
            "no running statistics",
        ),
        (residual, "without branches"),
    ],
)
def test_what_does_not_fold_is_refused(half, why):
    half = half()
    with pytest.raises(ValueError, match=why):
        pack_half(half)
    assert half.training


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "half"
    with pytest.raises(ValueError, match="not a packed binary half"):
        load_packed(path)
    path.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="not a packed binary half"):
        load_packed(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not a packed binary half"):
        load_packed(path)
    half = binarize(cut(ecg1d(), "stage1", (1, 128))[0])
    save_packed(pack_half(half), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="not a packed binary half"):
        load_packed(path)


# Real beats --------------------------------------------------------------------------------------


def beats():
    root = Path(os.environ.get("CUTBIT_DATA", Path.home() / ".cache/cutbit"))
    from data import mitbih

    try:
        folder = mitbih.find_folder(root)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    parts = [mitbih.read_beats(folder, record) for record in (100, 109, 118, 200, 232)]
    x = torch.cat([torch.from_numpy(mitbih.prepare(windows[:400])) for windows, _ in parts])
    return x.unsqueeze(1), torch.cat([torch.from_numpy(labels[:400]) for _, labels in parts])


def test_1000_real_beats_after_training():
    """Every bit of every beat, from the trained network and from its file."""
    from quant.binary import clip_latent

    x, y = beats()
    torch.manual_seed(0)
    client, server = cut(ecg1d(), "stage2", (1, 128))
    half = binarize(client)
    parameters = [*half.parameters(), *server.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-3)
    for rows in torch.randperm(len(x)).split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(server(half(x[rows])), y[rows]).backward()
        optimizer.step()
        clip_latent(half)
    some = x[torch.randperm(len(x))[:1000]]
    packed = pack_half(half)
    assert isinstance(packed, PackedHalf)
    same_bits(half, packed, some, *some.split(32))
    assert packed(some).numel() == 1000 * 512
    assert 0.2 < float((packed(some) > 0).float().mean()) < 0.8


def test_the_header_says_what_it_is(tmp_path):
    half = binarize(cut(ecg1d(), "stage2", (1, 128))[0])
    save_packed(pack_half(half), tmp_path / "half")
    with safe_open(tmp_path / "half", "pt") as file:
        about = json.loads(file.metadata()["cutbit-binary-1"])
        assert [layer["name"] for layer in about["layers"]] == ["stage1.conv", "stage2.conv"]
        assert file.get_tensor("stage2.conv.weight").numel() == 160
        assert file.get_tensor("stage2.conv.threshold").dtype == torch.int16
