"""Feynman-Kac steering: the three potentials by hand, what is expected of a state, and log Z without bias."""

from itertools import product
from math import exp, log

import pytest
import torch

from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.observation import Decision
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.fk import Steering
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import Strategy
from samplers.smc import Diagnostics, Plain, particle_filter
from tests.enumerable import RandomLM, dependent_joint, exact_law, from_joint


def reward(tokens):
    return (tokens.float() @ torch.linspace(0.2, 1.0, tokens.shape[1])) / 3


@pytest.mark.parametrize("name", ["difference", "max", "sum"])
def test_the_potentials_are_products_of_those_of_the_steps(name):
    rewards = torch.tensor([[1, 3, 2], [2, 0, 1]])  # the reward of a beginning is its last token
    steering = Steering(lambda tokens: tokens[:, -1].float(), 0.5, name)
    environment = UnmaskingEnvironment(RandomLM(4, causal=True), DecodeOptions(4))
    environment.reset(Prompts(torch.full((2, 4), 4)))
    total = torch.zeros(2, dtype=torch.float64)
    for step in range(3):
        order = (torch.arange(4) == step).long().expand(2, -1)
        zeros = torch.zeros(2)
        observation = environment.step(Decision(order, order * rewards[:, step : step + 1], zeros, zeros))
        so_far = rewards[:, : step + 1]
        log_g = {
            "difference": so_far[:, -1] - (so_far[:, -2] if step else 0), "max": so_far.amax(1), "sum": so_far.sum(1),
        }[name]  # fmt: skip
        total = total + 0.5 * log_g.double()
        assert torch.allclose(steering.log_psi(observation).double(), total)
        if step == 1:  # the second particle becomes the first one's child
            child = torch.tensor([0, 0])
            steering.select(child)
            environment.select(child)
            rewards, total = rewards[child], total[child]


def test_a_canvas_is_expected_to_be_as_good_as_its_completions():
    model = from_joint(dependent_joint(3, 3, seed=1))
    environment = UnmaskingEnvironment(model, DecodeOptions(3))
    canvas = torch.tensor([[1, 3, 3]]).expand(2, -1)
    observation = environment.reset(Prompts(canvas))
    p_of = model.log_probs(canvas[:1])[0].detach().exp()
    texts = list(product(range(3), repeat=2))
    chances = [float(p_of[1, a] * p_of[2, b]) for a, b in texts]
    rewards = [float(reward(torch.tensor([[1, a, b]]))) for a, b in texts]
    exact = log(sum(chance * exp(value) for chance, value in zip(chances, rewards, strict=True)))
    found = Steering(reward, completions=400).expected(observation)
    assert (found - exact).abs().max() < 0.08
    assert environment.forwards == 1  # and the next step reads what was read
    observation.read(observation.writable)
    assert environment.forwards == 1


def test_completions_are_averaged_as_likelihoods_not_as_rewards():
    model = from_joint(dependent_joint(3, 3, seed=1))
    rewards = []
    score = lambda tokens: rewards.append(3 * reward(tokens)) or rewards[-1]
    found = Steering(score, completions=8).expected(
        UnmaskingEnvironment(model, DecodeOptions(3)).reset(Prompts(torch.full((1, 3), 3)))
    )
    values = torch.cat(rewards).double()
    assert len(values) == 8 and values.max() > values.min() + 1
    assert float(found) == pytest.approx(log(values.exp().mean()), abs=1e-5)


@pytest.mark.parametrize("resample", ["every", "ess"])
@pytest.mark.parametrize("name", ["difference", "max", "sum"])
def test_log_z_is_that_of_the_strategy_whatever_the_potential(name, resample):
    model = from_joint(dependent_joint(3, 3, seed=2))
    law = exact_law(model, "confidence", 2)
    truth = sum(p * exp(1.5 * float(reward(torch.tensor([tokens])))) for tokens, p in law.items())
    canvas = torch.full((3000, 3), model.mask_id)
    steering = Steering(reward, 1.5, name, completions=2)
    base = Plain(Strategy(UNMASKING_RULES["confidence"](), TokenRule()))
    found = particle_filter(UnmaskingEnvironment(model, DecodeOptions(2)), base, steering, Prompts(canvas), 4, resample)
    z = found.log_z.exp()
    assert abs(float(z.mean()) - truth) < 4.5 * float(z.std()) / 3000**0.5


def test_a_causal_model_is_steered_by_beginnings_every_few_steps():
    model = RandomLM(4, causal=True)
    seen = []

    def beginning(tokens):
        seen.append(tokens.shape[1])
        assert (tokens != model.mask_id).all()
        return reward(tokens)

    base = Plain(Strategy(UNMASKING_RULES["leftmost"](), TokenRule()))
    canvas = torch.full((2, 9), model.mask_id)
    steering, steps = Steering(beginning, 2.0), Diagnostics()
    particle_filter(
        UnmaskingEnvironment(model, DecodeOptions(9)),
        base,
        steering,
        Prompts(canvas),
        4,
        "every",
        interval=3,
        collect=steps,
    )
    assert seen == [3, 6, 9]
    assert [resampled.tolist() for resampled in steps.resampled] == [[number in (3, 6)] * 2 for number in range(1, 10)]


def test_what_is_refused():
    with pytest.raises(ValueError, match="potential='mean' is unknown; use one of difference, max, sum"):
        Steering(reward, potential="mean")
    with pytest.raises(ValueError, match="completions=0 must be at least 1"):
        Steering(reward, completions=0)
