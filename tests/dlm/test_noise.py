"""Noise schedules: formulas, derivatives, the Tweedie rate, and what a configuration may ask for."""

import math

import pytest
import torch

from dlm.noise import GeometricNoise, LogLinearNoise, build_noise, reveal_rate

TIMES = torch.linspace(1e-3, 1, 50, dtype=torch.float64)


def test_log_linear_masks_a_share_that_grows_linearly():
    sigma, rate = LogLinearNoise()(TIMES)
    assert torch.allclose(-torch.expm1(-sigma), (1 - 1e-3) * TIMES, rtol=1e-12)
    # The weight of t-DCE, sigma' / (exp(sigma) - 1), is then 1 / t.
    assert torch.allclose(rate / torch.expm1(sigma), 1 / TIMES, rtol=1e-9)


def test_geometric_goes_from_sigma_min_to_sigma_max():
    noise = GeometricNoise(1e-4, 20.0)
    assert torch.allclose(noise(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))[0].log(),
                          torch.tensor([1e-4, (1e-4 * 20) ** 0.5, 20.0], dtype=torch.float64).log())  # fmt: skip


@pytest.mark.parametrize("noise", [LogLinearNoise(), GeometricNoise(1e-3, 5.0)], ids=str)
def test_the_rate_is_the_derivative(noise):
    times = TIMES.clone().requires_grad_()
    sigma, rate = noise(times)
    (derivative,) = torch.autograd.grad(sigma.sum(), times)
    assert torch.allclose(rate, derivative, rtol=1e-12)


@pytest.mark.parametrize("noise", [LogLinearNoise(), GeometricNoise(1e-3, 5.0)], ids=str)
def test_reveal_rates_multiply_up_to_the_whole_interval(noise):
    """To stay masked from t to s and from s to r is to stay masked from t to r; at time 0 everything is revealed."""
    stays = lambda t, s: 1 - reveal_rate(noise, t, s)
    assert stays(0.9, 0.5) * stays(0.5, 0.2) == pytest.approx(stays(0.9, 0.2), rel=1e-9)
    assert reveal_rate(noise, 0.3, 0.0) == 1


def test_the_reveal_rate_of_log_linear_is_one_over_the_steps_left():
    for steps in (4, 64):
        for step in range(steps):
            t, s = 1 - step / steps, 1 - (step + 1) / steps
            assert reveal_rate(LogLinearNoise(), t, s) == pytest.approx(1 / (steps - step), rel=1e-9)


def test_a_published_section_builds_its_schedule():
    assert build_noise({"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20}) == LogLinearNoise()
    assert build_noise({"type": "geometric", "sigma_min": 1e-3, "sigma_max": 5}) == GeometricNoise(1e-3, 5)
    with pytest.raises(ValueError, match="noise.type='cosine' is unknown; use 'loglinear' or 'geometric'"):
        build_noise({"type": "cosine"})


@pytest.mark.parametrize(("low", "high"), [(-1, 20), (0, 20), (20, 1e-4), (math.nan, 20), (1e-4, math.inf)])
def test_a_schedule_has_a_range(low, high):
    with pytest.raises(ValueError, match="are no range; set 0 < sigma_min < sigma_max"):
        build_noise({"type": "geometric", "sigma_min": low, "sigma_max": high})
