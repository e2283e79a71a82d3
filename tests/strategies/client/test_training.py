"""Local training: batches, optimizers, and the loop against plain PyTorch."""

import copy
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models import eager
from models.cnn import CNN
from quant.layers import QuantSpec, quantize
from quant.quantizer import is_step
from strategies.client import training
from strategies.client.training import (
    batches,
    crop_flip,
    load_arrays,
    make_optimizer,
    samples,
    train_epochs,
)
from strategies.contract import ClientData, Streams

LocalTraining = partial(training.LocalTraining, epochs=1, momentum=0.0)

modest = settings(deadline=None, max_examples=60)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def data(n=23, seed=0, shape=(1, 8, 8), total=64):
    """One client's n rows of a shared set."""
    generator = torch.Generator().manual_seed(seed)
    return ClientData(
        x=torch.randn(total, *shape, generator=generator),
        y=torch.randint(10, (total,), generator=generator),
        rows=torch.randperm(total, generator=generator)[:n],
    )


def drawn(n, seed=0, **settings):
    """Batches of a round as lists of row numbers."""
    rows = torch.arange(n) * 3 + 5
    generator = torch.Generator().manual_seed(seed)
    return [chunk.tolist() for chunk in batches(rows, LocalTraining(**settings), generator)]


def states_equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Batches ------------------------------------------------------------------------------------------


@modest
@given(n=st.integers(1, 70), size=st.integers(1, 40), epochs=st.integers(1, 3))
def test_batches_cover_every_row_once_per_epoch(n, size, epochs):
    chunks = drawn(n, batch_size=size, epochs=epochs)
    rows = [3 * i + 5 for i in range(n)]
    seen = [row for chunk in chunks for row in chunk]
    assert len(seen) == n * epochs
    for epoch in range(epochs):  # an epoch ends with a batch, so the rows come in whole epochs
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == rows
    per_epoch = len(chunks) // epochs
    sizes = [len(chunk) for chunk in chunks]
    assert sizes == sizes[:per_epoch] * epochs
    for position, got in enumerate(sizes[:per_epoch]):
        is_last = position == per_epoch - 1
        assert got == size or (is_last and got < size) or (is_last and got == size + 1)
    if size > 1 and n > 1:
        assert min(sizes) > 1


def test_a_last_single_sample_joins_the_batch_before_it():
    assert [len(c) for c in drawn(33, batch_size=8)] == [8, 8, 8, 9]
    assert [len(c) for c in drawn(34, batch_size=8)] == [8, 8, 8, 8, 2]
    assert [len(c) for c in drawn(3, batch_size=2)] == [3]


def test_one_sample_and_batches_of_one():
    assert drawn(1, batch_size=8, epochs=3) == [[5], [5], [5]]
    assert [len(c) for c in drawn(5, batch_size=1)] == [1] * 5


@modest
@given(
    n=st.integers(1, 40), size=st.integers(1, 20), epochs=st.integers(1, 4), most=st.integers(1, 20)
)
def test_max_batches_is_a_prefix_over_all_epochs(n, size, epochs, most):
    whole = drawn(n, batch_size=size, epochs=epochs)
    assert drawn(n, batch_size=size, epochs=epochs, max_batches=most) == whole[:most]


def test_order_depends_on_the_generator_and_differs_between_epochs():
    one = drawn(50, seed=1, batch_size=50, epochs=2)
    assert one == drawn(50, seed=1, batch_size=50, epochs=2)
    assert one[0] != one[1]
    assert one != drawn(50, seed=2, batch_size=50, epochs=2)


# Settings and streams -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer", "lbfgs"), ("epochs", 0), ("batch_size", 0), ("max_batches", -1), ("lr", -0.1),
        ("lr", math.nan), ("lr", math.inf), ("momentum", -1.0), ("weight_decay", math.nan),
    ],
)  # fmt: skip
def test_impossible_settings_name_the_key_and_what_it_takes(key, value):
    with pytest.raises(ValueError, match=rf"^train\.{key}={value}: takes "):
        LocalTraining(**{key: value})


def test_streams_differ_by_each_part_of_their_name_and_repeat():
    def first(streams, purpose="batches"):
        return torch.rand(4, generator=streams.generator(purpose)).tolist()

    base = Streams(1, 2, 3)
    assert first(base) == first(Streams(1, 2, 3))
    others = [Streams(9, 2, 3), Streams(1, 9, 3), Streams(1, 2, 9), Streams(12, 3, 0)]
    values = [first(base), first(base, "wire"), *map(first, others)]
    assert len({tuple(v) for v in values}) == len(values)


# Optimizer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", eager.SGD), ("adam", eager.Adam), ("adamw", eager.AdamW)],
)
def test_steps_get_no_weight_decay(name, kind):
    model = quantize(CNN(input_shape=(1, 8, 8), width=4), QuantSpec())
    optimizer = make_optimizer(
        [model], LocalTraining(optimizer=name, weight_decay=0.3, lr=0.2, momentum=0.4)
    )
    assert type(optimizer) is kind
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    names = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(decay) == sum(len(g["params"]) for g in optimizer.param_groups) == len(names)
    assert {n: decay[id(p)] for n, p in names.items()} == {
        n: 0.0 if is_step(n) else 0.3 for n in names
    }
    assert any(map(is_step, names))
    rates = [g["lr"] for g in optimizer.param_groups]
    if name == "sgd":  # steps have no momentum, and a rate that makes up for it
        assert [g["momentum"] for g in optimizer.param_groups] == [0.4, 0.0]
        assert rates == [0.2, pytest.approx(0.2 / 0.6)]
    else:
        assert rates == [0.2, 0.2]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_decay_moves_weights_and_leaves_steps(name):
    """Zero gradients: whatever still moves is decay."""
    model = quantize(CNN(input_shape=(1, 8, 8), width=4), QuantSpec())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    settings = LocalTraining(optimizer=name, weight_decay=0.5, lr=0.1)
    optimizer = make_optimizer([model], settings)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]) == (is_step(n) or not before[n].any()), n


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    held = [p for g in make_optimizer([model], LocalTraining()).param_groups for p in g["params"]]
    assert [id(p) for p in held] == [id(p) for p in model[1].parameters()]


# Augmentation -------------------------------------------------------------------------------------


def cut_by_hand(x, down, right, mirrored):
    """The window of one image (C, H, W), pixel by pixel."""
    channels, height, width = x.shape
    top, left = height // 8, width // 8
    out = torch.zeros_like(x)
    for c, i, j in np.ndindex(channels, height, width):
        row = i + down - top
        column = (width - 1 - j if mirrored else j) + right - left
        if 0 <= row < height and 0 <= column < width:
            out[c, i, j] = x[c, row, column]
    return out


@settings(deadline=None, max_examples=20)
@given(
    count=st.integers(1, 5),
    channels=st.integers(1, 3),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_crop_flip_is_a_window_of_each_image(count, channels, height, width, seed):
    x = torch.rand(count, channels, height, width) + 1
    before = x.clone()
    out = crop_flip(x, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    down, right = (
        torch.randint(2 * (side // 8) + 1, (count, 1), generator=generator)
        for side in (height, width)
    )
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    for i in range(count):
        assert torch.equal(out[i], cut_by_hand(x[i], down[i], right[i], mirrored[i]))
    assert torch.equal(x, before)


def test_every_shift_up_to_four_pixels_and_both_sides_occur_as_often():
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(20_000, 1, 32, 32)
    x[:, 0, 16, 16] = 1
    found = crop_flip(x, generator)[:, 0].flatten(1).argmax(1)
    rows, columns = found // 32, found % 32
    assert sorted(rows.unique().tolist()) == list(range(12, 21))
    counts = torch.bincount(rows, minlength=32)[12:21]
    assert (counts - 20_000 / 9).abs().max() < 5 * math.sqrt(20_000 / 9)
    # mirrored at 15.5: columns 11 to 19 where it is, 12 to 20 where it is not
    ends = torch.bincount(columns, minlength=32)[[11, 20]]
    assert (ends - 20_000 / 18).abs().max() < 5 * math.sqrt(20_000 / 18)


def test_augmented_samples_are_the_same_batches_and_a_stream_of_the_round():
    mine = data(23, shape=(3, 16, 16))
    plain, augmented = (LocalTraining(batch_size=8, augment=name) for name in ("none", "crop_flip"))

    def drawn(settings, streams):
        return list(samples(mine, settings, streams))

    rows = list(batches(mine.rows, plain, Streams(0, 1, 2).generator("batches")))
    for (x, y), chosen in zip(drawn(plain, Streams(0, 1, 2)), rows, strict=True):
        assert torch.equal(x, mine.x[chosen])
        assert torch.equal(y, mine.y[chosen])
    one, again = drawn(augmented, Streams(0, 1, 2)), drawn(augmented, Streams(0, 1, 2))
    for (x, y), (same_x, same_y), chosen in zip(one, again, rows, strict=True):
        assert torch.equal(x, same_x)
        assert torch.equal(y, same_y)
        assert torch.equal(y, mine.y[chosen])
        assert x.shape == mine.x[chosen].shape
        assert not torch.equal(x, mine.x[chosen])
    first = one[0][0]
    for other in (Streams(1, 1, 2), Streams(0, 2, 2), Streams(0, 1, 3)):
        stream = other.generator("augment")
        assert not torch.equal(crop_flip(mine.x[rows[0]], stream), first)


def test_augmentation_of_signals_is_refused():
    with pytest.raises(
        ValueError, match=r"train\.augment=crop_flip: takes images, got .*\[1, 30\]"
    ):
        next(samples(data(shape=(1, 30)), LocalTraining(augment="crop_flip"), Streams(0, 1, 0)))


# The loop -----------------------------------------------------------------------------------------


def plain_loop(model, mine, settings, streams, optimizer):
    """What anyone would write, with the same batches."""
    model.train()
    streams.seed_dropout()
    total, count = 0.0, 0
    for rows in batches(mine.rows, settings, streams.generator("batches")):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(mine.x[rows]), mine.y[rows])
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
        count += len(rows)
    return total / count


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.01, fused=True),
}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_an_epoch_equals_a_plain_loop_bit_for_bit(name, norm):
    torch.manual_seed(3)
    model = CNN(input_shape=(1, 8, 8), width=4, norm=norm)
    twin, mine, streams = copy.deepcopy(model), data(41), Streams(0, 1, 2)
    settings = LocalTraining(
        epochs=2, batch_size=8, lr=0.05, optimizer=name, momentum=0.9, weight_decay=0.01
    )
    loss = train_epochs(model, mine, settings, streams)
    expected = plain_loop(twin, mine, settings, streams, OPTIMIZERS[name](twin.parameters()))
    assert states_equal(model.state_dict(), twin.state_dict())
    assert loss == pytest.approx(expected, rel=1e-6)


def test_sgd_with_momentum_equals_the_formula():
    """v ← μv + g + λw, w ← w − ηv, in numpy, on a model with a gradient known by hand."""
    lr, momentum, decay = 0.1, 0.9, 0.01
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(12, 5, generator=generator), torch.arange(12) % 3
    model = nn.Linear(5, 3)
    w = model.weight.detach().double().numpy().copy()
    b = model.bias.detach().double().numpy().copy()
    mine = ClientData(x, y, torch.arange(12))
    settings = LocalTraining(
        epochs=3, batch_size=4, lr=lr, momentum=momentum, weight_decay=decay, optimizer="sgd"
    )
    streams = Streams(0, 1, 0)
    loss = train_epochs(model, mine, settings, streams)
    vw, vb, losses = np.zeros_like(w), np.zeros_like(b), []
    for rows in batches(mine.rows, settings, streams.generator("batches")):
        inputs, labels = x[rows].double().numpy(), y[rows].numpy()
        logits = inputs @ w.T + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        losses += (-np.log(p[np.arange(len(labels)), labels])).tolist()
        p[np.arange(len(labels)), labels] -= 1
        vw = momentum * vw + p.T @ inputs / len(labels) + decay * w
        vb = momentum * vb + p.mean(0) + decay * b
        w, b = w - lr * vw, b - lr * vb
    np.testing.assert_allclose(model.weight.detach().numpy(), w, atol=2e-6)
    np.testing.assert_allclose(model.bias.detach().numpy(), b, atol=2e-6)
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_loss_weighs_samples_not_batches():
    """Learning rate 0 over batches of 8 and 3: the mean over all 11 samples."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    mine = data(11)
    with torch.no_grad():
        expected = float(F.cross_entropy(model(mine.x[mine.rows]), mine.y[mine.rows]))
    got = train_epochs(model, mine, LocalTraining(lr=0.0, batch_size=8), Streams(0, 1, 0))
    assert got == pytest.approx(expected, rel=1e-6)


def test_the_optimizer_and_gradients_are_new_in_each_round():
    """A model that other clients have trained gives what a fresh one gives."""
    settings = LocalTraining(batch_size=8, lr=0.05, momentum=0.9)
    model = CNN(input_shape=(1, 8, 8), width=4)
    start = {name: t.clone() for name, t in model.state_dict().items()}
    train_epochs(model, data(20), settings, Streams(0, 1, 0))
    first = {name: t.clone() for name, t in model.state_dict().items()}
    train_epochs(model, data(9, seed=4), settings, Streams(0, 1, 1))
    load_arrays(model, start)
    train_epochs(model, data(20), settings, Streams(0, 1, 0))
    assert states_equal(first, model.state_dict())
    assert not states_equal(first, start)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_divergence_raises(optimizer):
    model = CNN(input_shape=(1, 8, 8), width=4)
    lr = 1e30 if optimizer == "sgd" else 1e38
    with pytest.raises(
        FloatingPointError, match=rf"train\.lr={re.escape(str(lr))}.*train\.optimizer={optimizer}"
    ):
        train_epochs(
            model, data(24), LocalTraining(lr=lr, optimizer=optimizer, epochs=3), Streams(0, 1, 0)
        )


def test_a_weight_that_is_no_number_raises_even_where_the_loss_is_finite():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model.register_parameter("unused", nn.Parameter(torch.tensor([1.0, math.nan])))
    with pytest.raises(FloatingPointError):
        train_epochs(model, data(8), LocalTraining(), Streams(0, 1, 0))


class TinyBatchNorm(nn.Module):
    """Batch norm over 1×1 maps: with one sample there is one value per channel."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 8)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 10)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).flatten(1))


def test_a_single_sample_trains_with_batch_norm_on_one_pixel():
    torch.manual_seed(0)
    model = TinyBatchNorm()
    before = copy.deepcopy(model.state_dict())
    mine = data(1)
    loss = train_epochs(model, mine, LocalTraining(epochs=2), Streams(0, 1, 0))
    after = model.state_dict()
    assert math.isfinite(loss)
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
        assert torch.equal(after[name], before[name]), name  # it has no statistics of its own
    assert not torch.equal(after["conv.weight"], before["conv.weight"])
    # The next client of the same worker normalises by its batch again.
    load_arrays(model, before)
    train_epochs(model, data(5), LocalTraining(), Streams(0, 1, 1))
    assert model.norm.training
    assert int(model.state_dict()["norm.num_batches_tracked"]) == 1


def test_a_last_single_sample_does_not_reach_batch_norm():
    loss = train_epochs(TinyBatchNorm(), data(9), LocalTraining(batch_size=4), Streams(0, 1, 0))
    assert math.isfinite(loss)


def test_batches_of_one_cannot_train_batch_norm_on_one_pixel():
    """Refused before a run by models.build.check_batch_of_one; here it must not pass silently."""
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        train_epochs(TinyBatchNorm(), data(3), LocalTraining(batch_size=1), Streams(0, 1, 0))


# Dropout ------------------------------------------------------------------------------------------


def dropped(streams, before=0):
    torch.manual_seed(before)  # whatever ran before in this process
    torch.rand(before)
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator))
    loss = train_epochs(model, data(20), LocalTraining(lr=0.01, batch_size=5), streams)
    return loss, model.state_dict()


def test_dropout_is_a_stream_of_client_and_round():
    loss, state = dropped(Streams(0, 1, 0))
    again, same = dropped(Streams(0, 1, 0), before=17)
    assert loss == again
    assert states_equal(state, same)


def test_dropout_stream_itself_differs_by_client_round_and_seed():
    def mask(streams):
        streams.seed_dropout()
        return tuple(F.dropout(torch.ones(64), 0.5).tolist())

    masks = [mask(Streams(*name)) for name in ((0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0))]
    assert len(set(masks)) == 4
    assert mask(Streams(0, 1, 0)) == masks[0]


def test_batches_do_not_come_from_the_dropout_stream():
    """A network with dropout sees the batches that one without sees."""
    mine, settings, streams = data(20), LocalTraining(lr=0.0, batch_size=5), Streams(0, 1, 0)
    seen = {}

    class Spy(nn.Module):
        def __init__(self, p):
            super().__init__()
            self.drop, self.linear, self.batches = nn.Dropout(p), nn.Linear(64, 10), []

        def forward(self, x):
            self.batches.append(x.sum().item())
            return self.linear(self.drop(x.flatten(1)))

    for p in (0.0, 0.5):
        spy = Spy(p)
        train_epochs(spy, mine, settings, streams)
        seen[p] = spy.batches
    assert seen[0.0] == seen[0.5]
    assert len(seen[0.0]) == 4


# Loading ------------------------------------------------------------------------------------------


def test_load_arrays_copies_parameters_and_buffers_and_keeps_none():
    source, target = TinyBatchNorm(), TinyBatchNorm()
    source.norm.num_batches_tracked += 7
    arrays = {name: t.clone() for name, t in source.state_dict().items()}
    load_arrays(target, arrays)
    assert states_equal(target.state_dict(), source.state_dict())
    for tensor in arrays.values():
        tensor.zero_()
    assert states_equal(target.state_dict(), source.state_dict())
    assert all(p.requires_grad and p.is_leaf for p in target.parameters())


def test_load_arrays_names_what_is_odd():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"not those of the model: extra$"):
        load_arrays(model, {**model.state_dict(), "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"not those of the model: bias$"):
        load_arrays(model, {"weight": torch.zeros(2, 2)})


def test_load_arrays_refuses_shapes_that_do_not_fit():
    model = nn.Linear(2, 2)
    with pytest.raises((ValueError, RuntimeError)):
        load_arrays(model, {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)})


def test_load_arrays_refuses_shapes_that_broadcast():
    model = nn.Linear(2, 2)
    with pytest.raises((ValueError, RuntimeError)):
        load_arrays(model, {"weight": torch.zeros(1, 2), "bias": torch.zeros(())})


def test_learning_rates_fall_from_round_to_round():
    settings = LocalTraining(lr=0.4, server_lr=0.2, lr_decay=0.5)
    assert settings.in_round(1) == settings
    third = settings.in_round(3)
    assert (third.lr, third.server_lr, third.lr_decay) == (0.1, 0.05, 0.5)
    assert LocalTraining(lr=0.3).in_round(1000).lr == 0.3
    for decay in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"train\.lr_decay=.*: takes a number in \(0, 1\]"):
            LocalTraining(lr_decay=decay)
