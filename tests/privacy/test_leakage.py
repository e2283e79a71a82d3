"""Distance correlation against an independent formula and its invariances; Laplace noise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.leakage import channel_leakage, distance_correlation, laplace_noise

properties = settings(deadline=None, max_examples=30)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_definition(x, y):
    """Székely's sums over pairs, written out in float64."""

    def centred(points):
        n = len(points)
        a = np.array([[math.dist(p, q) for q in points] for p in points])
        rows = [sum(a[i]) / n for i in range(n)]
        whole = sum(rows) / n
        return [[a[i][j] - rows[i] - rows[j] + whole for j in range(n)] for i in range(n)]

    def covariance(a, b):
        return sum(p * q for u, v in zip(a, b, strict=True) for p, q in zip(u, v, strict=True))

    a, b = centred(x.double().tolist()), centred(y.double().tolist())
    variances = covariance(a, a) * covariance(b, b)
    return math.sqrt(covariance(a, b) / math.sqrt(variances)) if variances else 0.0


@properties
@given(n=st.integers(2, 12), p=st.integers(1, 4), q=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_against_the_definition(n, p, q, seed):
    x, noise = draw(n, p, seed=seed), draw(n, q, seed=seed + 1)
    y = x.sum(1, keepdim=True).sign() + noise
    assert float(distance_correlation(x, y)) == pytest.approx(by_definition(x, y), abs=1e-4)
    assert float(distance_correlation(y, x)) == pytest.approx(by_definition(x, y), abs=1e-4)


def test_of_itself_moved_turned_and_scaled_is_1():
    x = draw(50, 3)
    turn = torch.linalg.qr(draw(3, 3, seed=1)).Q
    assert float(distance_correlation(x, x)) == pytest.approx(1, abs=1e-5)
    assert float(distance_correlation(x, -7 * x @ turn + 100)) == pytest.approx(1, abs=1e-4)
    y = draw(50, 2, seed=2) + x[:, :2]
    moved = distance_correlation(0.01 * x @ turn - 3, y * 1000 + 5)
    assert float(moved) == pytest.approx(float(distance_correlation(x, y)), abs=1e-4)


def test_independent_samples_have_little_and_dependent_ones_more():
    x = torch.linspace(-1, 1, 1200).unsqueeze(1)
    independent, square = draw(1200, 1, seed=1), x.square()
    assert float(distance_correlation(x, independent)) < 0.08
    # A correlation that Pearson's does not see.
    assert float(distance_correlation(x, square)) > 0.4
    assert abs(float(torch.corrcoef(torch.cat([x, square], 1).T)[0, 1])) < 1e-4


def test_leading_axes_are_cases_of_their_own():
    x, z = draw(20, 5), draw(3, 20, 4, seed=1)
    together = distance_correlation(x, z)
    assert together.shape == (3,)
    for case, value in zip(z, together, strict=True):
        assert torch.equal(distance_correlation(x, case), value)


@pytest.mark.parametrize("kind", ["real", "bits", "all equal", "pairs equal"])
def test_gradients_are_finite_where_samples_coincide(kind):
    x = draw(16, 6)
    z = {
        "real": draw(16, 4, seed=1),
        "bits": draw(16, 4, seed=1).sign(),
        "all equal": torch.ones(16, 4),
        "pairs equal": draw(8, 4, seed=1).repeat(2, 1),
    }[kind].requires_grad_()
    value = distance_correlation(x, z)
    value.backward()
    assert torch.isfinite(z.grad).all()
    assert (float(value.detach()) == 0 and not z.grad.any()) is (kind == "all equal")


def test_gradient_by_finite_differences():
    x = draw(5, 3).double()
    z = draw(5, 2, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: distance_correlation(x, z), z)


def test_descending_it_makes_the_leakage_smaller():
    x, z = draw(32, 4), draw(32, 4) + 0.1
    z.requires_grad_()
    before = distance_correlation(x, z)
    for _ in range(50):
        (gradient,) = torch.autograd.grad(distance_correlation(x, z), z)
        z = (z - 0.5 * gradient / gradient.norm()).detach().requires_grad_()
    assert float(distance_correlation(x, z.detach())) < float(before.detach()) - 0.2


@pytest.mark.parametrize(
    ("x", "z"), [((1, 2), (1, 2)), ((3, 2), (4, 2)), ((3,), (3, 1)), ((0, 2), (0, 2))]
)
def test_what_is_no_pairs_is_refused(x, z):
    with pytest.raises(ValueError, match="two or more pairs"):
        distance_correlation(torch.zeros(x), torch.zeros(z))


# Channels ----------------------------------------------------------------------------------------


def test_channels_are_compared_with_the_pooled_input():
    x = draw(10, 1, 16)
    pooled = x.view(10, 8, 2).mean(2)
    z = torch.stack([pooled * 3 + 1, draw(10, 8, seed=1)], 1)
    leakage = channel_leakage(x, z)
    assert leakage.shape == (2,)
    assert float(leakage[0]) == pytest.approx(1, abs=1e-4)
    assert float(leakage[1]) == pytest.approx(by_definition(pooled, z[:, 1]), abs=1e-4)


def test_images_and_flat_activations():
    x = draw(9, 3, 8, 8)
    z = draw(9, 5, 4, 4, seed=1)
    pooled = torch.nn.functional.avg_pool2d(x, 2).flatten(1)
    leakage = channel_leakage(x, z)
    assert leakage.shape == (5,)
    for channel in range(5):
        expected = by_definition(pooled, z[:, channel].flatten(1))
        assert float(leakage[channel]) == pytest.approx(expected, abs=1e-4)
    assert torch.equal(channel_leakage(x, z)[2:3], channel_leakage(x, z[:, 2:3]))
    flat = channel_leakage(x, x.flatten(1))
    assert flat.shape == (1,)
    assert float(flat) == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="equal dimensions, got 4 and 3"):
        channel_leakage(x, draw(9, 5, 16))


# Noise -------------------------------------------------------------------------------------------


def test_noise_has_the_scale_of_each_place_in_the_batch():
    """Laplace of scale b: mean 0, mean |noise| b, and e⁻² of it beyond 2b."""
    generator = torch.Generator().manual_seed(0)
    z = torch.zeros(20_000, 2, 2)
    z[0] = torch.tensor([[1.0, 2.0], [4.0, 0.0]])
    noise = laplace_noise(z, 2.0, generator) - z
    scale = z[0] / 2
    assert not noise[:, 1, 1].any()  # does not vary in the batch
    vary = scale > 0
    size = noise.abs().mean(0)
    assert torch.allclose(size[vary], scale[vary], rtol=0.05)
    assert (noise.mean(0).abs() <= 0.03 * scale).all()
    beyond = (noise.abs() > 2 * scale).double().mean(0)
    assert torch.allclose(beyond[vary], torch.tensor(math.exp(-2)).double(), atol=0.01)


def test_noise_on_bits_flips_as_often_as_it_says():
    z = torch.ones(20_000, 1)
    z[::2] = -1
    flipped = laplace_noise(z, 1.5, torch.Generator().manual_seed(1)).sign() != z
    assert float(flipped.double().mean()) == pytest.approx(math.exp(-0.75) / 2, abs=0.01)


def test_noise_comes_from_its_generator_and_passes_the_gradient():
    z = draw(8, 3).requires_grad_()
    one, other = (laplace_noise(z, 1.0, torch.Generator().manual_seed(5)) for _ in range(2))
    before = torch.get_rng_state()
    third = laplace_noise(z, 1.0, torch.Generator().manual_seed(6))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    one.backward(torch.full_like(z, 2.0))
    assert torch.equal(z.grad, torch.full_like(z, 2.0))


def test_noise_of_nothing_and_of_no_epsilon():
    generator = torch.Generator()
    assert laplace_noise(torch.zeros(0, 3), 1.0, generator).shape == (0, 3)
    single = draw(1, 3)
    assert torch.equal(laplace_noise(single, 1.0, generator), single)
    for epsilon in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"privacy\.epsilon=.*: takes a positive number"):
            laplace_noise(single, epsilon, generator)


def test_of_bfloat16_what_is_found_is_of_float32():
    x, z = draw(12, 3, 4, 4), draw(12, 2, 4, 4, seed=1).bfloat16()
    assert torch.equal(channel_leakage(x, z), channel_leakage(x, z.float()))
    one, other = (
        laplace_noise(values, 5.0, torch.Generator().manual_seed(2)) for values in (z, z.float())
    )
    assert one.dtype == torch.float32 and torch.equal(one, other)
