"""Link codecs: exact bytes, packing changes no value, error bounds, gradient rules."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quant.codec import ALPHA, CODECS, LinkSettings, make_codec
from quant.dense import Affine
from quant.sparse import TopK

properties = settings(deadline=None, max_examples=25)
FP32_MAX = torch.finfo(torch.float32).max
TINY = 2.0**-149
ALL = {
    **{name: make_codec(name) for name in CODECS},
    "randtopk half": TopK(0.4, alpha=0.9),
    "sign scaled": make_codec("sign", scaled_sign=True),
    "int8 random": Affine(8, stochastic=True),
    "int4 channels": Affine(4, per_channel=True),
    "int2 channels random": Affine(2, per_channel=True, stochastic=True),
}
DENSE = [name for name in ALL if "topk" not in name]
AFFINE = [name for name in ALL if name.startswith("int")]
each = pytest.mark.parametrize("codec", ALL.values(), ids=ALL.keys())
each_dense = pytest.mark.parametrize("codec", [ALL[name] for name in DENSE], ids=DENSE)
each_affine = pytest.mark.parametrize("codec", [ALL[name] for name in AFFINE], ids=AFFINE)
each_top = pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 1.0])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def floats(limit=FP32_MAX):
    numbers = st.floats(-limit, limit, width=32)
    special = [0.0, -0.0, 1.0, -1.0, TINY, -TINY, 1e-40, 1e38, -1e38, limit, -limit, 65520.0]
    return numbers | st.sampled_from([s for s in special if abs(s) <= limit])


@st.composite
def tensors(draw, limit=FP32_MAX, least_dims=1, least_side=0):
    shape = hnp.array_shapes(
        min_dims=least_dims, max_dims=4, min_side=max(1, least_side), max_side=6
    )
    shape = draw(shape)
    if least_side == 0 and draw(st.integers(0, 9)) == 0:
        shape = (0, *shape[1:])
    array = draw(hnp.arrays(np.float32, shape, elements=floats(limit)))
    tensor = torch.from_numpy(array)
    if tensor.dim() == 4 and draw(st.booleans()):
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor


def bits_equal(a, b):
    return a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))


def grid(codec, x):
    """Step and ends of each value's range, in float64."""
    axes = tuple(axis for axis in range(x.dim()) if axis != 1)
    wide = x.double()
    if codec.per_channel and x.dim() > 2:
        low, high = wide.amin(axes, keepdim=True), wide.amax(axes, keepdim=True)
    else:
        low, high = wide.amin(), wide.amax()
    return (high - low) / (2**codec.bits - 1), low, high


@each
@properties
@given(x=tensors(), seed=st.integers(0, 99))
@example(x=torch.tensor([[-FP32_MAX, FP32_MAX, 0.0]]), seed=0)
@example(x=torch.tensor([[0.0, TINY, 300 * TINY, -7 * TINY]]), seed=0)
@example(x=torch.zeros(2, 3, 4, 4), seed=0)
@example(x=torch.full((1, 1), -0.0), seed=0)
@example(x=torch.zeros(0, 3, 4, 4), seed=0)
def test_packing_changes_no_bit_and_bytes_are_exact(codec, x, seed):
    before = x.clone()
    packet = codec.encode(x, generator(seed))
    arrived = codec.decode(packet)
    passed, support = codec.transmit(x, generator(seed))
    assert bits_equal(arrived, passed)
    assert arrived.stride() == passed.stride() or x.numel() == 0
    assert arrived.dtype == torch.float32
    assert arrived.isfinite().all()
    sent = sum(len(part.contiguous().numpy().tobytes()) for part in packet.payload)
    assert packet.num_bytes == sent == codec.num_bytes(x.shape)
    assert bits_equal(x, before)
    if support is None:
        assert codec.support(packet) is None
    else:
        assert torch.equal(codec.support(packet), support)


@each
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 1, 1), (2, 1, 4, 4), (1, 3, 2, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_restored(codec, shape, memory_format):
    x = torch.randn(shape, generator=generator()).to(memory_format=memory_format)
    x = torch.empty(shape, memory_format=memory_format).copy_(x)
    assert codec.decode(codec.encode(x, None)).stride() == x.stride()
    assert codec.transmit(x, None)[0].stride() == x.stride()


@each
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, ::2],
        lambda x: x.transpose(2, 3),
        lambda x: x[:1, :1].expand(3, 4, -1, -1),
        lambda x: x.contiguous(memory_format=torch.channels_last)[:, :, 1:],
    ],
)
def test_views_travel_by_their_values(codec, view):
    x = view(torch.randn(4, 6, 5, 5, generator=generator()))
    expected, _ = codec.transmit(x.clone(memory_format=torch.contiguous_format), None)
    assert torch.equal(codec.transmit(x, None)[0], expected)
    assert torch.equal(codec.decode(codec.encode(x, None)), expected)


@each
@properties
@given(shape=hnp.array_shapes(max_dims=4, max_side=9))
def test_bytes_follow_from_the_shape(codec, shape):
    x = torch.randn(shape, generator=generator())
    assert codec.encode(x, generator()).num_bytes == codec.num_bytes(shape)
    assert codec.num_bytes(torch.Size(shape)) == codec.num_bytes(list(shape))


def test_bytes_by_hand():
    shape = (32, 16, 14, 14)  # 100352 values, 3136 a sample, 12 bits an index
    sizes = {name: codec.num_bytes(shape) for name, codec in ALL.items()}
    assert sizes["fp32"] == 401408
    assert sizes["fp16"] == 200704
    assert sizes["int8"] == 100360
    assert sizes["int4"] == 50184
    assert sizes["int2"] == 25096
    assert sizes["int4 channels"] == 50176 + 16 * 8
    assert sizes["sign"] == 12544
    assert sizes["sign scaled"] == 12548
    assert sizes["topk"] == sizes["randtopk"] == 32 * 314 * 4 + 32 * 314 * 12 // 8
    assert make_codec("topk").gradient_shape(shape) == (32, 314)
    assert make_codec("int8").gradient_shape(shape) == shape


def test_fp32_is_free():
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    codec = make_codec("fp32")
    assert codec.transmit(x, None)[0] is x
    assert codec.encode(x, None).payload[0].data_ptr() == x.data_ptr()
    assert codec.gradient(x, x, None) is x


def test_fp32_passes_on_what_is_not_finite():
    x = torch.tensor([math.nan, math.inf])
    assert make_codec("fp32").transmit(x, None)[0] is x


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [name for name in ALL if name != "fp32"])
def test_what_is_not_finite_is_refused(name, bad):
    x = torch.randn(3, 4, 5, 5, generator=generator())
    x[1, 2, 3, 4] = bad
    for sends in (ALL[name].encode, ALL[name].transmit):
        with pytest.raises(FloatingPointError, match=f"{name.split()[0][-4:]}.*diverged"):
            sends(x, generator())


@each
def test_only_float32_without_a_graph_is_taken(codec):
    for sends in (codec.encode, codec.transmit):
        with pytest.raises(ValueError, match=r"carries float32, got torch\.float64"):
            sends(torch.zeros(2, 2, dtype=torch.float64), None)
        with pytest.raises(ValueError, match="detach"):
            sends(torch.zeros(2, 2, requires_grad=True), None)


# fp16


@properties
@given(x=tensors(limit=65504.0))
def test_fp16_is_numpys(x):
    passed, _ = make_codec("fp16").transmit(x, None)
    expected = x.contiguous().numpy().astype(np.float16).astype(np.float32)
    assert bits_equal(passed.contiguous(), torch.from_numpy(expected))


def test_fp16_saturates():
    x = torch.tensor([1e38, -7e4, 65519.0, 65520.0, 1.0])
    passed, _ = make_codec("fp16").transmit(x, None)
    assert passed.tolist() == [65504.0, -65504.0, 65504.0, 65504.0, 1.0]


@pytest.mark.parametrize("name", ["fp32", "fp16", "sign", "topk"])
@properties
@given(x=tensors())
def test_sending_twice_is_sending_once(name, x):
    once, _ = ALL[name].transmit(x, None)
    twice, _ = ALL[name].transmit(once, None)
    assert torch.equal(once, twice)


# intN


@each_affine
@properties
@given(x=tensors(least_side=1), seed=st.integers(0, 99))
@example(x=torch.tensor([[-FP32_MAX, FP32_MAX, 1e38]]), seed=0)
@example(x=torch.tensor([[0.0, TINY, 300 * TINY]]), seed=0)
@example(x=torch.tensor([[1000.0, 1000.5, 1001.0]]), seed=0)
def test_values_are_within_half_a_step_or_one_and_on_the_grid(codec, x, seed):
    passed, _ = codec.transmit(x, generator(seed))
    step, low, high = grid(codec, x)
    spread = (step * (1 + 1e-6)).clamp(min=TINY) * (1.0 if codec.stochastic else 0.5)
    rounding = 2.0**-22 * torch.maximum(low.abs(), high.abs()) + TINY
    error = (passed.double() - x.double()).abs()
    assert (error <= spread + rounding).all()
    assert len(passed.unique()) <= 2**codec.bits * step.numel()


@each_affine
@properties
@given(value=floats(), shape=hnp.array_shapes(max_dims=4, max_side=4))
def test_a_tensor_of_one_value_arrives_as_it_was(codec, value, shape):
    x = torch.full(shape, value)
    assert torch.equal(codec.transmit(x, generator())[0], x)


@each_affine
def test_zero_stays_zero_after_a_relu(codec):
    x = torch.randn(4, 3, 5, 5, generator=generator()).relu()
    passed, _ = codec.transmit(x, generator())
    assert (passed[x == 0] == 0).all()


@each_affine
def test_values_of_the_grid_arrive_as_they_were(codec):
    codes = torch.randint(0, 2**codec.bits, (5, 3, 7, 7), generator=generator()).float()
    codes[:, :, 0, 0] = 0
    codes[:, :, 0, 1] = 2**codec.bits - 1
    x = 0.25 * codes - 3
    passed, _ = codec.transmit(x, generator())
    assert torch.equal(passed, x)


@each_affine
@properties
@given(x=tensors(least_side=1))
def test_sending_twice_moves_values_by_rounding_errors_alone(codec, x):
    """It may move them, because the largest arrives as worked out from the step."""
    once, _ = codec.transmit(x, None)
    twice, _ = codec.transmit(once, None)
    _, low, high = grid(codec, x)
    assert ((twice - once).abs() <= 2.0**-21 * torch.maximum(low.abs(), high.abs()) + TINY).all()


def test_a_range_for_each_channel():
    x = torch.randn(8, 4, 6, 6, generator=generator())
    x *= torch.tensor([1e-3, 1.0, 30.0, 0.0]).view(1, 4, 1, 1)
    per_channel = Affine(4, per_channel=True)
    passed, _ = per_channel.transmit(x, None)
    whole, _ = Affine(4).transmit(x, None)
    for channel in range(4):
        alone, _ = Affine(4).transmit(x[:, channel], None)
        assert torch.equal(passed[:, channel], alone)
    assert (passed - x).square().mean() < (whole - x).square().mean() / 2
    flat = x.flatten(1)
    assert torch.equal(per_channel.transmit(flat, None)[0], Affine(4).transmit(flat, None)[0])
    assert per_channel.num_bytes(flat.shape) == Affine(4).num_bytes(flat.shape)


@pytest.mark.parametrize(("bits", "per_channel"), [(2, False), (4, True), (8, False)])
def test_stochastic_rounding_is_unbiased(bits, per_channel):
    x = torch.rand(1, 3, 4, 5, generator=generator())
    codec, draws, total = Affine(bits, per_channel, stochastic=True), 1500, torch.zeros(1, 3, 4, 5)
    source = generator(1)
    for _ in range(draws):
        total += codec.transmit(x, source)[0]
    step, _, _ = grid(codec, x)
    deviation = (total / draws - x).abs() / step
    assert deviation.max() < 4.5 * 0.5 / math.sqrt(draws)


def test_draws_come_from_the_generator_alone():
    x = torch.randn(4, 3, 5, 5, generator=generator())
    for name in ("int8 random", "randtopk half"):
        codec = ALL[name]
        state = torch.get_rng_state()
        first, _ = codec.transmit(x, generator(1))
        assert torch.equal(first, codec.transmit(x, generator(1))[0])
        assert not torch.equal(first, codec.transmit(x, generator(2))[0])
        assert torch.equal(state, torch.get_rng_state())
    plain, _ = Affine(8).transmit(x, None)
    assert torch.equal(ALL["int8 random"].transmit(x, None)[0], plain)


# sign


def test_sign_of_zero_is_one():
    x = torch.tensor([0.0, -0.0, TINY, -TINY, 3.0, -FP32_MAX])
    assert make_codec("sign").transmit(x, None)[0].tolist() == [1, 1, 1, -1, 1, -1]


def test_scaled_sign_keeps_the_mean_magnitude():
    x = torch.tensor([[0.5, -1.5], [4.0, 0.0]])
    passed, _ = make_codec("sign", scaled_sign=True).transmit(x, None)
    assert passed.tolist() == [[1.5, -1.5], [1.5, 1.5]]


@properties
@given(x=tensors(limit=4.0))
def test_gradient_of_sign_is_hardtanhs(x):
    """Independent: autograd through clip, whose gradient at ±1 itself torch takes as 1."""
    received = torch.randn(x.shape, generator=generator())
    leaf = x.clone().requires_grad_()
    leaf.clamp(-1, 1).backward(received)
    assert torch.equal(make_codec("sign").gradient(x, received, None), leaf.grad)


@each_dense
def test_other_dense_gradients_pass_straight_through(codec):
    x = torch.rand(4, 3, 5, 5, generator=generator())  # inside ±1: sign too
    received = torch.randn(4, 3, 5, 5, generator=generator(1))
    assert torch.equal(codec.gradient(x, received, None), received)
    assert codec.select(received, None) is received


# topk


@each_top
@properties
@given(x=tensors(least_side=1))
@example(x=torch.zeros(3, 7))
@example(x=torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0, 2.0, 0.0]]))
def test_topk_keeps_the_largest_and_of_equals_the_first(share, x):
    codec = TopK(share)
    passed, support = codec.transmit(x, None)
    rows, kept = x.reshape(len(x), -1), passed.reshape(len(x), -1)
    k = max(1, round(share * rows.shape[1]))
    assert support.shape == (len(x), k) == codec.gradient_shape(x.shape)
    for row, arrived, positions in zip(rows, kept, support, strict=True):
        order = sorted(range(len(row)), key=lambda i: (-abs(row[i].item()), i))
        assert positions.tolist() == sorted(order[:k])
        assert torch.equal(arrived[positions], row[positions])
        assert arrived.count_nonzero() == row[positions].count_nonzero()


@properties
@given(x=tensors(least_side=1), seed=st.integers(0, 99))
def test_randtopk_without_chance_is_topk(x, seed):
    expected, _ = TopK(0.3).transmit(x, None)
    assert torch.equal(TopK(0.3, alpha=0.0).transmit(x, generator(seed))[0], expected)
    assert torch.equal(TopK(0.3, alpha=0.7).transmit(x, None)[0], expected)


@each_top
@pytest.mark.parametrize("alpha", [0.1, 0.6, 1.0])
def test_randtopk_keeps_k_different_values(share, alpha):
    x = torch.randn(50, 2, 3, 5, generator=generator())
    codec = TopK(share, alpha)
    passed, support = codec.transmit(x, generator(1))
    assert support.shape == codec.gradient_shape(x.shape)
    assert (support.diff(dim=1) > 0).all()
    assert ((support >= 0) & (support < 30)).all()
    assert torch.equal(codec.select(passed, support), codec.select(x, support))
    assert passed.count_nonzero() == support.numel()


@pytest.mark.parametrize(("k", "alpha"), [(5, 0.1), (5, 0.5), (15, 0.5), (15, 1.0)])
def test_randtopk_chances(k, alpha):
    """Against drawing one place after the other, as the paper states it."""
    features, samples = 20, 4000
    x = torch.arange(features, 0, -1).float().repeat(samples, 1)
    _, support = TopK(k / features, alpha).transmit(x, generator())
    frequency = torch.bincount(support.flatten(), minlength=features) / samples
    rng = np.random.default_rng(0)
    expected = np.zeros(features)
    for _ in range(samples):
        top, rest = list(range(k)), list(range(k, features))
        for _ in range(k):
            pool = rest if rest and rng.random() < alpha else top
            expected[pool.pop(rng.integers(len(pool)))] += 1 / samples
    assert (frequency - torch.from_numpy(expected)).abs().max() < 4.5 * math.sqrt(0.5 / samples)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_gradient_of_topk_is_that_of_a_mask(memory_format, alpha):
    """Independent: autograd through x · mask; only the kept part crosses back, packed."""
    x = torch.randn(4, 3, 5, 5, generator=generator()).contiguous(memory_format=memory_format)
    codec, down = TopK(0.2, alpha), make_codec("fp32")
    passed, support = codec.transmit(x, generator(1))
    received = torch.randn(4, 3, 5, 5, generator=generator(2))
    leaf = x.clone().requires_grad_()
    mask = passed != 0
    (leaf * mask).backward(received)
    packet = down.encode(codec.select(received, support), None)
    assert packet.num_bytes == down.num_bytes(codec.gradient_shape(x.shape)) == 4 * 15 * 4
    gradient = codec.gradient(x, down.decode(packet), support)
    assert torch.equal(gradient, leaf.grad)
    assert gradient.stride() == x.stride()
    assert torch.equal(codec.gradient(x, received, support), gradient)


@pytest.mark.parametrize("shape", [(), (3, 0), (2, 3, 0, 4)])
def test_topk_needs_something_to_choose_from(shape):
    codec = make_codec("topk")
    for sends in (lambda: codec.transmit(torch.zeros(shape), None), lambda: codec.num_bytes(shape)):
        with pytest.raises(ValueError, match="samples of one value or more"):
            sends()


# settings


@pytest.mark.parametrize(
    ("key", "value", "takes"),
    [
        ("up", "int3", "fp32, fp16"),
        ("down", "", "fp32, fp16"),
        ("rounding", "up", "nearest, stochastic"),
        ("k", 0.0, r"a share in \(0, 1\]"),
        ("k", 1.5, r"a share in \(0, 1\]"),
        ("k", math.nan, r"a share in \(0, 1\]"),
    ],
)
def test_settings_name_the_key(key, value, takes):
    with pytest.raises(ValueError, match=rf"^link\.{key}={value}: takes {takes}"):
        LinkSettings(**{key: value})


def test_settings_reach_the_codecs():
    up, down = LinkSettings("randtopk", "sign", k=0.25).codecs()
    assert up == TopK(0.25, ALPHA)
    assert down.scaled
    up, down = LinkSettings("int4", "int2", per_channel=True, rounding="stochastic").codecs()
    assert up == Affine(4, True, True)
    assert down == Affine(2, True, True)
    assert not LinkSettings("sign").codecs()[0].scaled
    with pytest.raises(ValueError, match="int7 is not a codec"):
        make_codec("int7")
