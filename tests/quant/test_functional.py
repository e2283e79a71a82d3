"""LSQ against the paper's formula in float64, codes, and the two rules for a step."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.functional import bounds, codes, fake_quantize, initial_step, lsq, minmax_step

ALL_BITS = (2, 3, 4, 5, 6, 7, 8)
LAYOUTS = ("contiguous", "channels_last", "reversed")
properties = settings(deadline=None, max_examples=60)


def lay_out(x, layout):
    """The same values in another order in memory."""
    if layout == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "reversed":  # no usual memory format at all
        axes = tuple(reversed(range(x.dim())))
        return x.permute(axes).contiguous().permute(axes)
    return x.contiguous()


def tensors(seed, shape, per_channel, signed, dtype=torch.float64):
    """x on both sides of the clip range and inside, steps, and an upstream gradient."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, shape) + (0 if signed else 0.7)
    step_shape = (shape[0], *[1] * (len(shape) - 1)) if per_channel else ()
    step = rng.uniform(0.02, 0.6, step_shape)
    return (torch.tensor(a, dtype=dtype) for a in (x, step, rng.normal(0, 1, shape)))


def textbook(x, step, qn, qp, scale, grad):
    """Esser et al. 2020, equations 1 to 3, value by value: v̂, ∂L/∂v, ∂L/∂s."""
    x, step, grad = (np.asarray(a.detach(), dtype=np.float64) for a in (x, step, grad))
    ratio = np.broadcast_to(x / step, x.shape)
    below, above = ratio <= qn, ratio >= qp
    inside = ~(below | above)
    rounded = np.rint(np.clip(ratio, qn, qp))
    slope = np.where(inside, rounded - ratio, np.where(below, qn, qp))
    per_value = grad * slope * scale
    if step.ndim == 0:
        grad_step = per_value.sum()
    else:
        axes = tuple(axis for axis in range(x.ndim) if step.shape[axis] == 1 != x.shape[axis])
        grad_step = per_value.sum(axis=axes, keepdims=True).reshape(step.shape)
    return rounded * step, grad * inside, grad_step


def composed(x, step, qn, qp, scale):
    """The same from operations that autograd differentiates itself."""
    step = step * scale + (step - step * scale).detach()
    ratio = (x / step).clamp(qn, qp)
    return (ratio + (ratio.round() - ratio).detach()) * step


shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


# The forward pass ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ALL_BITS)
def test_bounds(bits):
    assert bounds(bits, signed=True) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert bounds(bits, signed=False) == (0, 2**bits - 1)
    for signed in (True, False):
        qn, qp = bounds(bits, signed)
        assert qp - qn + 1 == 2**bits
        assert qn <= 0 < qp


@properties
@given(
    bits=st.sampled_from(ALL_BITS),
    signed=st.booleans(),
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=300),
    step=st.floats(2**-10, 100.0, width=32),
)
def test_forward_lies_on_the_grid_nearest_and_is_idempotent(bits, signed, values, step):
    qn, qp = bounds(bits, signed)
    x, s = torch.tensor(values), torch.tensor(step)
    before = x.clone()
    out = lsq(x, s, qn, qp, 1.0)
    assert torch.equal(x, before)
    integers = codes(x, s, qn, qp)
    assert integers.dtype == torch.int64
    assert int(integers.min()) >= qn
    assert int(integers.max()) <= qp
    assert torch.equal(out, integers.float() * s)
    assert torch.equal(out, fake_quantize(x, s, qn, qp))
    assert torch.equal(lsq(out, s, qn, qp, 1.0), out)
    assert torch.equal(codes(out, s, qn, qp), integers)
    assert len(out.unique()) <= 2**bits
    # Nearest: no other level is closer, by more than float32's rounding.
    levels = torch.arange(qn, qp + 1, dtype=torch.float64) * s.double()
    best = (x.double()[:, None] - levels).abs().min(1).values
    slack = 1e-6 * (x.double().abs() + qp * s.double())
    assert bool(((x.double() - out.double()).abs() <= best + slack).all())


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("signed", [True, False])
def test_every_level_is_reached_and_signs_are_kept(bits, signed):
    qn, qp = bounds(bits, signed)
    x = torch.linspace(-300, 300, 6001)
    out = lsq(x, torch.tensor(1.0), qn, qp, 1.0)
    assert out.unique().tolist() == list(range(qn, qp + 1))
    assert out[x > 0].min() >= 0
    assert (out[x < 0] == 0).all() if not signed else out[x < -1].max() < 0
    assert (out.diff() >= 0).all()


@properties
@given(
    shape=shapes,
    bits=st.sampled_from(ALL_BITS),
    seed=st.integers(0, 10**6),
    layout=st.sampled_from(LAYOUTS),
)
def test_per_channel_forward_is_each_channel_on_its_own(shape, bits, seed, layout):
    qn, qp = bounds(bits, signed=True)
    x, step, _ = tensors(seed, shape, per_channel=True, signed=True, dtype=torch.float32)
    out = lsq(lay_out(x, layout), step, qn, qp, 1.0)
    for channel in range(shape[0]):
        alone = lsq(x[channel], step[channel].reshape(()), qn, qp, 1.0)
        assert torch.equal(out[channel], alone)


# The backward pass --------------------------------------------------------------------------------


@properties
@given(
    shape=shapes,
    bits=st.sampled_from(ALL_BITS),
    signed=st.booleans(),
    per_channel=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    grad_layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 10**6),
    scale=st.floats(1e-3, 3),
)
def test_gradients_are_the_papers_and_autograds(
    shape, bits, signed, per_channel, layout, grad_layout, seed, scale
):
    qn, qp = bounds(bits, signed)
    x, step, grad = tensors(seed, shape, per_channel, signed)
    x = lay_out(x, layout).requires_grad_()
    step.requires_grad_()
    grad = lay_out(grad, grad_layout)
    out = lsq(x, step, qn, qp, scale)
    grad_x, grad_step = torch.autograd.grad(out, (x, step), grad)
    expected = textbook(x, step, qn, qp, scale, grad)
    for got, want in zip((out, grad_x, grad_step), expected, strict=True):
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-9, atol=1e-11)
    assert grad_step.shape == step.shape

    reference = composed(x, step, qn, qp, scale)
    by_autograd = torch.autograd.grad(reference, (x, step), grad)
    torch.testing.assert_close(out, reference, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close((grad_x, grad_step), by_autograd, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(64,), (16, 40), (8, 6, 50), (8, 6, 7, 9), (8, 6, 1, 1)])
def test_float32_gradients_at_the_size_of_a_layer(shape, layout, per_channel):
    qn, qp = bounds(4, signed=True)
    x, step, grad = tensors(3, shape, per_channel, signed=True, dtype=torch.float32)
    x = lay_out(x, layout).requires_grad_()
    step.requires_grad_()
    scale = 1 / math.sqrt(x.numel() / step.numel() * qp)
    out = lsq(x, step, qn, qp, scale)
    out.backward(grad)
    want = textbook(x, step, qn, qp, scale, grad)
    for got, expected in zip((out, x.grad, step.grad), want, strict=True):
        np.testing.assert_allclose(got.detach().numpy(), expected, rtol=2e-4, atol=2e-5)
    assert step.grad.dtype == step.dtype


@pytest.mark.parametrize("per_channel", [False, True])
def test_memory_format_stays(per_channel):
    x, step, _ = tensors(0, (4, 6, 5, 7), per_channel, signed=True, dtype=torch.float32)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    out = lsq(x, step, -8, 7, 1.0)
    assert out.stride() == x.stride()
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    assert grad.stride() == x.stride()


@pytest.mark.parametrize("per_channel", [False, True])
def test_broadcast_upstream_gradient(per_channel):
    """`sum().backward()` hands down an expanded tensor of stride 0."""
    x, step, _ = tensors(1, (3, 4, 5, 6), per_channel, signed=True)
    x.requires_grad_(), step.requires_grad_()
    lsq(x, step, -8, 7, 0.5).sum().backward()
    _, grad_x, grad_step = textbook(x, step, -8, 7, 0.5, torch.ones_like(x))
    np.testing.assert_allclose(x.grad, grad_x)
    np.testing.assert_allclose(step.grad, grad_step, rtol=1e-9)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("signed", [True, False])
def test_exactly_at_the_clip_bounds_both_gradients_are_those_of_the_outside(
    bits, signed, per_channel
):
    qn, qp = bounds(bits, signed)
    s = 0.25  # a power of two: x / s and qp · s are exact
    near = 2**-10
    at = torch.tensor(
        [qn * s, qp * s, (qn + near) * s, (qp - near) * s, (qn - 3) * s, (qp + 3) * s]
    )
    wanted_x = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    wanted_step = torch.tensor([qn, qp, -near, near, qn, qp])
    for value, grad_x, grad_step in zip(at, wanted_x, wanted_step, strict=True):
        x = torch.full((2, 1), float(value), requires_grad=True)
        step = torch.full((2, 1) if per_channel else (), s, requires_grad=True)
        lsq(x, step, qn, qp, 1.0).backward(torch.ones(2, 1))
        assert x.grad.flatten().tolist() == [grad_x, grad_x]
        assert step.grad.sum().item() == pytest.approx(2 * float(grad_step), abs=1e-6)


@pytest.mark.parametrize("step", [torch.tensor(0.1), torch.full((3, 1), 0.1)])
def test_a_step_without_gradient_leaves_straight_through_for_x(step):
    x = torch.tensor([[0.03, 5.0], [-0.21, -9.0], [0.0, 0.7]], requires_grad=True)
    lsq(x, step, -8, 7, 1.0).sum().backward()
    assert x.grad.tolist() == [[1, 0], [1, 0], [1, 0]]
    assert step.grad is None


def test_a_step_with_gradient_under_an_input_without_one():
    x = torch.tensor([0.03, 5.0, -0.21])
    step = torch.tensor(0.1, requires_grad=True)
    lsq(x, step, -8, 7, 1.0).sum().backward()
    assert step.grad.item() == pytest.approx((0 - 0.3) + 7 + (-2 + 2.1), abs=1e-5)


# Codes --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    bits=st.sampled_from(ALL_BITS),
    signed=st.booleans(),
    where=st.floats(0, 1),
    step=st.floats(0.01, 10),
    seed=st.integers(0, 10**6),
)
def test_stochastic_codes_are_unbiased_and_a_neighbour(bits, signed, where, step, seed):
    """Hoeffding: the mean of n values in {k, k+1} is t off with probability ≤ 2·exp(−2·n·t²)."""
    qn, qp = bounds(bits, signed)
    n, probability = 20_000, 1e-10
    t = math.sqrt(math.log(2 / probability) / (2 * n)) + 1e-4  # and float32's rounding
    ratio = qn + where * (qp - qn)
    noise = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    drawn = codes(torch.full((n,), ratio * step), torch.tensor(step), qn, qp, noise)
    assert abs(drawn.double().mean().item() - ratio) < t
    assert drawn.min() >= max(qn, math.floor(ratio - 1e-4))
    assert drawn.max() <= min(qp, math.ceil(ratio + 1e-4))


@pytest.mark.parametrize("noise", [0.0, 0.5, 1 - 2**-24])
@pytest.mark.parametrize("signed", [True, False])
def test_stochastic_codes_stay_in_range(signed, noise):
    qn, qp = bounds(4, signed)
    x = torch.tensor([-1e6, qn - 0.5, qp + 0.5, 1e6])
    drawn = codes(x, torch.tensor(1.0), qn, qp, torch.full((4,), noise))
    assert drawn.tolist() == [qn, qn, qp, qp]


def test_a_draw_below_the_fraction_rounds_up_and_inputs_are_left_alone():
    x = torch.tensor([-1.25, -0.5, 0.25, 2.75, 3.0])
    before = x.clone()
    for draw, wanted in (
        (0.0, [-1, 0, 1, 3, 3]),
        (0.25, [-1, 0, 0, 3, 3]),
        (0.5, [-1, -1, 0, 3, 3]),
        (0.75, [-2, -1, 0, 2, 3]),
    ):
        noise = torch.full((5,), draw)
        assert codes(x, torch.tensor(1.0), -8, 7, noise).tolist() == wanted
        assert bool((noise == draw).all())
    assert torch.equal(x, before)


@pytest.mark.parametrize("code", [3, 100, -100, -128])
def test_stochastic_codes_of_grid_values_are_exact(code):
    value = torch.tensor([float(code)])
    for draw in (0.0, 0.5, 1 - 2**-24):  # from the least to the most that torch.rand returns
        assert codes(value, torch.tensor(1.0), -128, 127, torch.tensor([draw])).item() == code


# Steps --------------------------------------------------------------------------------------------


@properties
@given(
    shape=shapes,
    seed=st.integers(0, 10**6),
    bits=st.sampled_from(ALL_BITS),
    layout=st.sampled_from(LAYOUTS),
)
def test_steps_by_numpy(shape, seed, bits, layout):
    _, qp = bounds(bits, signed=True)
    x, *_ = tensors(seed, shape, per_channel=False, signed=True)
    flat = np.abs(x.numpy())
    x = lay_out(x, layout).requires_grad_()
    one, peak = initial_step(x, qp), minmax_step(x, qp)
    assert one.shape == peak.shape == torch.Size([])
    assert one.item() == pytest.approx(2 * flat.mean() / math.sqrt(qp))
    assert peak.item() == pytest.approx(flat.max() / qp)
    for axis in range(len(shape)):
        others = tuple(a for a in range(len(shape)) if a != axis)
        each, peaks = initial_step(x, qp, axis), minmax_step(x, qp, axis)
        wanted = 2 * flat.mean(axis=others, keepdims=True) / math.sqrt(qp)
        np.testing.assert_allclose(each, wanted, rtol=1e-12)
        np.testing.assert_allclose(peaks, flat.max(axis=others, keepdims=True) / qp, rtol=1e-12)
    assert not (one.requires_grad or peak.requires_grad)


@pytest.mark.parametrize("rule", [initial_step, minmax_step])
def test_steps_per_channel_of_one_dimension(rule):
    x = torch.tensor([1.0, -2.0, 4.0])
    assert rule(x, 4, 0).tolist() == [float(rule(value, 4)) for value in x]


@pytest.mark.parametrize("bits", ALL_BITS)
def test_minmax_step_gives_the_largest_magnitude_the_largest_code(bits):
    x = torch.tensor([0.3, -0.1, 2.7])
    for signed in (True, False):
        qn, qp = bounds(bits, signed)
        step = minmax_step(x, qp)
        assert codes(x, step, qn, qp)[2] == qp
        assert fake_quantize(x, step, qn, qp)[2] == pytest.approx(2.7, rel=1e-6)
