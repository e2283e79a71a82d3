"""The reconstruction attack finds what is there, and nothing where nothing is."""

import pytest
import torch

from privacy.attacks import reconstruct


def signals(num, seed):
    """Sines of random phase and height, (num, 1, 32)."""
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(num, 1, generator=generator) * 6.28
    height = torch.rand(num, 1, generator=generator) + 0.5
    return (height * torch.sin(torch.linspace(0, 6.28, 32) + phase)).unsqueeze(1)


def images(num, side, seed):
    """Products of two sines, (num, 1, side, side)."""
    x = signals(2 * num, seed)[..., :side]
    return x[:num, :, :, None] * x[num:, :, None, :]


def test_it_draws_the_input_from_the_input_and_the_mean_from_noise():
    x, test_x = signals(600, 0), signals(200, 1)
    open_cut = reconstruct((x, x), (test_x, test_x), epochs=8, hidden=64)
    assert open_cut.mse < 0.05 * open_cut.mean_mse
    generator = torch.Generator().manual_seed(2)
    noise, test_noise = (torch.randn(n, 16, generator=generator) for n in (600, 200))
    closed = reconstruct((noise, x), (test_noise, test_x), epochs=3)
    assert closed.mse > 0.9 * closed.mean_mse
    assert open_cut.ssim is closed.ssim is None
    assert open_cut.mean_mse == closed.mean_mse == pytest.approx(float(test_x.var()), rel=0.1)


def test_bits_give_away_less_than_what_they_are_the_signs_of():
    x, test_x = signals(600, 0), signals(200, 1)
    real = reconstruct((x, x), (test_x, test_x))
    bits = reconstruct((x.sign(), x), (test_x.sign(), test_x))
    assert real.mse < bits.mse < bits.mean_mse


def test_images_have_a_similarity():
    x, test_x = images(300, 8, 0), images(60, 8, 1)
    found = reconstruct((x, x), (test_x, test_x), epochs=10, hidden=64)
    blind = reconstruct((torch.zeros(300, 1), x), (torch.zeros(60, 1), test_x), epochs=2)
    assert found.ssim > blind.ssim + 0.3
    small, test_small = images(20, 4, 0), images(20, 4, 1)
    assert reconstruct((small, small), (test_small, test_small), epochs=1).ssim is None


def test_the_seed_decides_and_the_global_generator_stays():
    x = signals(50, 0)
    before = torch.get_rng_state()
    one, other, third = (reconstruct((x, x), (x, x), epochs=1, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert one == other != third
    z = (2 * x).requires_grad_()
    assert reconstruct((z, x), (z, x), epochs=1).mse > 0
    assert z.grad is None


@pytest.mark.parametrize("sizes", [(0, 0, 5, 5), (5, 5, 0, 0), (5, 4, 5, 5), (5, 5, 5, 4)])
def test_what_is_no_pairs_is_refused(sizes):
    z, x, test_z, test_x = (torch.zeros(size, 1, 8) for size in sizes)
    with pytest.raises(ValueError, match="takes pairs"):
        reconstruct((z, x), (test_z, test_x))
