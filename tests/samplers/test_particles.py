"""Weights and resampling schemes: children by probability, the dead have none, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.particles import SCHEMES, Weights, check_scheme, due

SEEDS = 4000


def weights(*rows):
    log = torch.tensor(rows, dtype=torch.float64)
    return Weights(log, torch.zeros(len(log), dtype=torch.float64))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_particle_of_probability_w_has_k_w_children_on_average(name):
    probability = torch.tensor([0.5, 0.0, 0.26, 0.03, 0.21, 0.0], dtype=torch.float64)
    particles = len(probability)
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(SEEDS, particles, dtype=torch.float64, generator=generator)
    ancestors = SCHEMES[name](probability.expand(SEEDS, -1), uniforms)
    children = torch.nn.functional.one_hot(ancestors, particles).sum(1).double()
    assert children[:, probability == 0].sum() == 0
    expected = probability * particles
    error = children.std(0, correction=0).clamp(min=1e-9) / math.sqrt(SEEDS)
    assert ((children.mean(0) - expected).abs() < 4.5 * error + 1e-6).all()
    if name in ("systematic", "residual"):
        assert (children >= expected.floor()).all()
    if name == "systematic":
        assert (children <= expected.ceil()).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([-math.inf, -700.0, -3.0, 0.0, 2.5, 710.0]), min_size=1, max_size=7),
       st.sampled_from([0.0, 2.0**-53, 0.25, 0.5, 1 - 2.0**-53]), st.sampled_from(sorted(SCHEMES)))  # fmt: skip
def test_the_dead_never_have_children(log, uniform, name):
    if max(log) == -math.inf:
        return
    probability = weights(log).probability
    ancestors = SCHEMES[name](probability, torch.full_like(probability, uniform))
    assert ancestors.shape == probability.shape
    assert (probability.gather(1, ancestors) > 0).all()


def test_weights_estimate_z_across_resampling():
    before = weights([0.0, math.log(3)], [-math.inf, math.log(4)])
    assert torch.allclose(before.log_normalizer.exp(), torch.tensor([2.0, 2.0], dtype=torch.float64))
    after = before.resampled(torch.tensor([True, False]))
    assert torch.equal(after.log[0], torch.zeros(2, dtype=torch.float64))
    assert torch.equal(after.log[1], before.log[1])
    assert torch.allclose(after.log_normalizer, before.log_normalizer)
    again = after.times(torch.tensor([[math.log(5), math.log(5)], [torch.nan, 0.0]], dtype=torch.float64))
    assert torch.allclose(
        again.log_normalizer.exp(), torch.tensor([10.0, 2.0], dtype=torch.float64)
    )  # the dead stay dead
    assert torch.equal(before.effective, torch.tensor([1.6, 1.0], dtype=torch.float64))


def test_a_dead_filter_is_worth_nothing_and_changes_no_other():
    both = weights([0.0, math.log(3)], [-math.inf, -math.inf])
    both.check(3)
    assert both.dead.tolist() == [False, True]
    assert both.log_normalizer.exp().tolist() == pytest.approx([2, 0]) and both.effective.tolist() == [1.6, 0]
    assert both.probability.tolist() == [pytest.approx([0.25, 0.75]), [0.5, 0.5]]
    assert due(weights([0.0, -9.0, -9.0], [-math.inf] * 3), "ess").tolist() == [True, False]
    assert due(both, "every").tolist() == [True, False]
    assert both.times(torch.full((2, 2), torch.nan, dtype=torch.float64)).log[1].tolist() == [-math.inf] * 2
    for scheme in SCHEMES.values():
        assert bool((scheme(both.probability, torch.full((2, 2), 0.5, dtype=torch.float64)) < 2).all())


def test_who_resamples():
    both = weights([0.0, 0.0, 0.0, -9.0], [0.0, -9.0, -9.0, -9.0])
    assert due(both, "ess").tolist() == [False, True]
    assert due(both, "every").tolist() == [True, True]
    assert due(both, "never").tolist() == [False, False]


def test_what_is_refused():
    with pytest.raises(ValueError, match="resample='often' is unknown; use one of ess, every, never"):
        check_scheme("often", "systematic", False)
    with pytest.raises(ValueError, match="scheme='best' is unknown"):
        check_scheme("ess", "best", False)
    with pytest.raises(ValueError, match="systematic does not; use multinomial"):
        check_scheme("ess", "systematic", True)
    with pytest.raises(FloatingPointError, match=r"step 7: the log potential of 1 of 4 particles is NaN.*\(sample 1\)"):
        weights([0.0, 0.0], [math.nan, 0.0]).check(7)
