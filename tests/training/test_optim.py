"""The learning-rate schedule, clipping, and the moving average against their formulas."""

import math

import pytest
import torch
from torch import nn

from training.optim import MovingAverage, Optimiser
from training.settings import OptimSettings


def settings(**changes):
    defaults = {
        "lr": 0.1,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.0,
        "warmup": 4,
        "grad_clip": 1.0,
        "schedule": "constant",
    }
    return OptimSettings(**{**defaults, **changes})


def test_warm_up_is_linear_and_then_constant():
    optimiser = Optimiser([nn.Parameter(torch.zeros(2))], settings(), total=100)
    rates = [optimiser.learning_rate(step) for step in range(6)]
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    assert Optimiser([nn.Parameter(torch.zeros(2))], settings(warmup=0), 100).learning_rate(0) == 0.1


def test_the_cosine_goes_to_zero_over_the_run():
    optimiser = Optimiser([nn.Parameter(torch.zeros(2))], settings(schedule="cosine", warmup=0), total=10)
    for step in range(12):
        expected = 0.1 * 0.5 * (1 + math.cos(math.pi * min(1, step / 10)))
        assert optimiser.learning_rate(step) == pytest.approx(expected, abs=1e-7)


def test_an_update_is_adamw_on_the_clipped_gradient():
    start, gradient = torch.tensor([1.0, -2.0]), torch.tensor([30.0, 40.0])
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimiser = Optimiser([ours], settings(weight_decay=0.5), total=10)
    reference = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.999), weight_decay=0.5)
    for step in range(6):
        ours.grad = gradient * (step + 1)
        metrics = optimiser.step(step)
        theirs.grad = gradient / 50  # norm 1
        reference.param_groups[0]["lr"] = 0.1 * min(1, (step + 1) / 4)
        reference.step()
        assert metrics["grad_norm"] == pytest.approx(50 * (step + 1))  # before clipping
        assert metrics["lr"] == pytest.approx(0.1 * min(1, (step + 1) / 4))
        assert torch.allclose(ours, theirs, atol=1e-6)
        assert ours.grad is None


def test_a_parameter_that_took_no_part_has_a_zero_gradient():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    used.sum().backward()
    assert [g.tolist() for g in Optimiser.gradients([used, unused])] == [[1, 1], [0, 0, 0]]


def test_the_average_follows_its_formula():
    """shadow += (1 - d) (weights - shadow), d = min(decay, (1 + n) / (10 + n)) with n counted from 1."""
    weights, frozen = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.zeros(1), requires_grad=False)
    average, expected = MovingAverage([weights, frozen], 0.3), 1.0
    for n in range(1, 9):
        with torch.no_grad():
            weights.fill_(float(n * n))
        average.update([weights, frozen])
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n * n
        assert float(average.shadow_params[0]) == pytest.approx(expected, rel=1e-5)
    assert min(0.3, 2 / 11) < 0.3 == min(0.3, 9 / 18)  # both branches were taken
    assert len(average.shadow_params) == 1
    assert average.state_dict()["num_updates"] == 8
    average.copy_to([weights, frozen])
    assert weights.tolist() == pytest.approx([expected], rel=1e-5)


def test_the_average_is_restored_and_goes_on_alike():
    weights = nn.Parameter(torch.tensor([1.0, 2.0]))
    first, second = MovingAverage([weights], 0.9), MovingAverage([nn.Parameter(torch.zeros(2))], 0.1)
    first.update([weights])
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        weights.mul_(5)
    first.update([weights])
    second.update([weights])
    assert torch.equal(first.shadow_params[0], second.shadow_params[0])
    assert second.decay == 0.9


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"training.ema={decay} must be between 0 and 1"):
        MovingAverage([], decay)


def test_a_gradient_that_is_not_finite_leaves_the_weights_and_shows_in_the_norm():
    weight = nn.Parameter(torch.ones(2))
    optimiser = Optimiser([weight], settings(), total=10)
    weight.grad = torch.tensor([1.0, float("nan")])
    metrics = optimiser.step(0)
    assert math.isnan(metrics["grad_norm"]) and weight.tolist() == [1.0, 1.0]
