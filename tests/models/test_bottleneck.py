"""The bottleneck: nothing changes at k = C, channels really go and come back, worth by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.bottleneck import (
    DECODER_WEIGHT,
    ENCODER_WEIGHT,
    FILTERS,
    SCALES,
    Bottleneck,
    Encoded,
    attach,
    grow,
    importance,
    most_important,
    shrink,
    unit,
    weight_before,
    with_bottleneck,
)
from models.build import build
from models.split import cut

IMAGE = (1, 28, 28)
SHAPES = [(7,), (7, 5), (7, 5, 6), (64, 3, 3), (1, 4, 4)]


def bits(tensor):
    return tensor.detach().contiguous().view(torch.int32)


def network(name="cnn.CNN", shape=IMAGE, **options):
    return build(f"models.{name}", options, shape, 10, 0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_all_channels_pass_in_every_bit(shape, channels_last):
    bottleneck = Bottleneck(shape[0], shape[0], len(shape) - 1)
    x = torch.randn(9, *shape) * torch.logspace(-30, 30, 9).reshape(9, *[1] * len(shape))
    if channels_last and len(shape) == 3:
        x = x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    z = bottleneck.encoder()(x)
    y = bottleneck.decoder()(z)
    for got in (z, y):
        assert torch.equal(bits(got), bits(x))
        assert got.stride() == x.stride()
    (gradient,) = torch.autograd.grad(y, x, x.detach().flip(0))
    assert torch.equal(bits(gradient), bits(x.flip(0)))


def test_a_negative_zero_is_all_that_may_change():
    x = torch.tensor([[-0.0, 1.0, -1.0]])
    assert torch.equal(Bottleneck(3, 3, 0).encoder()(x), x)  # equal, whatever the zero's sign


@pytest.mark.parametrize(
    ("name", "options", "at"),
    [
        ("cnn.CNN", {"norm": "batch"}, "stage1"),
        ("cnn.CNN", {}, "stage2.conv"),
        ("lenet5.LeNet5", {}, "stage3"),
        ("resnet.ResNet8", {}, "stage1"),
    ],
)
def test_a_training_step_with_all_channels_is_the_networks_own(name, options, at):
    plain = cut(network(name, **options), at, IMAGE)
    z = plain[0](torch.randn(4, *IMAGE))
    wide = with_bottleneck(*plain, Bottleneck(z.shape[1], z.shape[1], z.dim() - 2))
    x, y = torch.randn(6, *IMAGE), torch.arange(6)
    seen = []
    for device, server in (plain, wide):
        for part in (device, server):
            part.train()
            part.zero_grad()
        z = device(x)
        received = z.detach().requires_grad_()
        loss = F.cross_entropy(server(received), y)
        loss.backward()
        z.backward(received.grad)
        gradients = {n: p.grad for part in (device, server) for n, p in part.named_parameters()}
        gradients = {n: g for n, g in gradients.items() if not n.startswith("cut_")}
        seen.append({"z": z, "loss": loss[None], "gradient": received.grad, **gradients})
    for key in seen[0]:
        assert torch.equal(seen[0][key], seen[1][key]), key


def test_only_active_channels_are_computed():
    device, server = cut(network(), "stage1", IMAGE)
    for active in (1, 5, 16):
        first, second = with_bottleneck(device, server, Bottleneck(16, active, 2))
        z = first(torch.randn(3, *IMAGE))
        assert z.shape == (3, active, 14, 14)
        assert second(z).shape == (3, 10)
        assert first.state_dict()[ENCODER_WEIGHT].shape == (active, 16, 1, 1)
        assert second.state_dict()[DECODER_WEIGHT].shape == (16, active, 1, 1)
    assert "cut_encoder.weight" not in device.state_dict()  # copies


def test_nothing_random_is_drawn():
    before = torch.get_rng_state()
    bottleneck = Bottleneck(8, 3, 2, taylor=True)
    bottleneck.encoder(), bottleneck.decoder(), attach(network(), bottleneck)
    assert torch.equal(torch.get_rng_state(), before)


def test_shrink_and_grow_are_inverse():
    generator = torch.Generator().manual_seed(0)
    for ones in ((), (1,), (1, 1)):
        for keep in ([0, 1, 2, 3, 4], [4], [1, 3], [0, 2, 3], []):
            encoder = torch.randn(5, 7, *ones, generator=generator)
            decoder = torch.randn(7, 5, *ones, generator=generator)
            gone = [place for place in range(5) if place not in keep]
            small = shrink(encoder, decoder, keep)
            assert small[0].shape == (len(keep), 7, *ones)
            assert small[1].shape == (7, len(keep), *ones)
            assert all(w.untyped_storage().nbytes() == 4 * 7 * len(keep) for w in small)
            again = grow(*small, encoder[gone], decoder[:, gone], gone)
            assert torch.equal(again[0], encoder)
            assert torch.equal(again[1], decoder)


def test_a_shrunk_bottleneck_computes_what_zeroed_channels_would():
    encoder, decoder = torch.randn(4, 6), torch.randn(6, 4)
    x = torch.randn(9, 6)
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0])
    few = shrink(encoder, decoder, [0, 2])
    expected = (x @ encoder.T * mask) @ decoder.T
    torch.testing.assert_close(x @ few[0].T @ few[1].T, expected)


def test_unit_channels():
    rows, columns = unit([3, 0], torch.zeros(1, 4, 1, 1))
    assert rows.flatten(1).tolist() == [[0, 0, 0, 1], [1, 0, 0, 0]]
    assert columns.flatten(1).T.tolist() == rows.flatten(1).tolist()
    assert rows.shape == (2, 4, 1, 1)
    assert columns.shape == (4, 2, 1, 1)


def test_worth_by_hand():
    encoder = torch.tensor([[1.0, -2.0, 0.0], [0.5, 0.0, 3.0]])  # two channels of three
    decoder = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, 0.5]])
    scales = torch.tensor([2.0, 1.0, 10.0])
    # (1·2 + 2·1)·(1 + 1) and (0.5·2 + 3·10)·(0.5 + 0.5)
    assert importance(encoder, decoder, scales).tolist() == [8.0, 31.0]
    conv = (encoder[..., None, None], decoder[..., None, None])
    assert importance(*conv, scales).tolist() == [8.0, 31.0]
    # What one row gains and its column loses changes nothing.
    factor = torch.tensor([4.0, 0.25])
    assert importance(encoder * factor[:, None], decoder / factor, scales).tolist() == [8.0, 31.0]


def test_of_equals_the_first_stay():
    assert most_important(torch.tensor([1.0, 3.0, 1.0, 3.0, 1.0]), 3) == [0, 1, 3]
    assert most_important(torch.zeros(6), 2) == [0, 1]


@pytest.mark.parametrize("frozen", [False, True])
def test_taylor_is_weight_times_gradient_of_each_sample(frozen):
    device, server = cut(network(), "stage1", IMAGE)
    first, second = with_bottleneck(device, server, Bottleneck(16, 4, 2, True, frozen))
    expected = torch.zeros(4)
    weight = first.get_parameter(ENCODER_WEIGHT)
    for _ in range(3):
        x, y = torch.randn(5, *IMAGE), torch.arange(5)
        F.cross_entropy(second(first(x)), y).backward()
        if frozen:
            continue
        before = first.cut_taylor.clone()
        for i in range(5):  # each sample by itself, a fifth of the batch's loss
            loss = F.cross_entropy(second(first(x[i : i + 1])), y[i : i + 1]) / 5
            (gradient,) = torch.autograd.grad(loss, weight)
            expected += (weight * gradient).flatten(1).sum(1).abs().detach()
        first.cut_taylor.copy_(before)
    assert (first.cut_taylor > 0).all()
    if not frozen:
        torch.testing.assert_close(first.cut_taylor, expected, rtol=1e-3, atol=1e-7)
    before = first.cut_taylor.clone()
    first.eval()(torch.randn(2, *IMAGE)).sum().backward()
    assert torch.equal(first.cut_taylor, before)  # training alone counts


@pytest.mark.parametrize(
    ("name", "at", "filters", "scales"),
    [
        ("cnn.CNN", "stage1", "stage1.conv.weight", "stage1.norm.weight"),
        ("cnn.CNN", "stage2.conv", "stage2.conv.weight", None),
        ("lenet5.LeNet5", "stage2", "stage2.conv.weight", None),
        ("lenet5.LeNet5", "stage3", "stage3.linear.weight", None),
        ("lenet5.LeNet5", "stage2+flatten", None, None),
    ],
)
def test_the_layer_before_the_cut(name, at, filters, scales):
    model = network(name)
    if at == "stage2+flatten":
        at = "stage3.flatten"
    device, _ = cut(model, at, IMAGE)
    assert weight_before(device, IMAGE, FILTERS) == filters
    assert weight_before(device, IMAGE, SCALES) == scales


def test_parts_with_a_bottleneck_copy_and_pickle():
    import copy
    import pickle

    device, server = cut(network(), "stage1", IMAGE)
    first, _ = with_bottleneck(device, server, Bottleneck(16, 4, 2, True))
    x = torch.randn(2, *IMAGE)
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert isinstance(other, Encoded)
        assert torch.equal(other(x), first(x))


def test_what_cannot_be():
    with pytest.raises(ValueError, match="5 active channels of 4"):
        Bottleneck(4, 5, 2)
    with pytest.raises(ValueError, match="3 dimensions after C"):
        Bottleneck(4, 4, 3)
    model = nn.Sequential(nn.Linear(2, 2))
    model.cut_decoder = nn.Identity()
    with pytest.raises(ValueError, match="Sequential has a cut_decoder of its own"):
        attach(model, Bottleneck(2, 2))
