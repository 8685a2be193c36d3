"""A budget of evaluations: never passed, nothing left masked, the last evaluation writes all, and only choices are recorded."""

import pytest
import torch

from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from policy.networks import DitConfidence
from policy.rollout import policy_log_probs
from policy.unmasker import PolicyUnmasker
from samplers.heuristics import UNMASKING_RULES, Confident, Random, Threshold
from samplers.loop import Strategy, sample
from tests.enumerable import RandomLM, exact_law, fits, inconsistent

MODEL = RandomLM(5, max_length=12)
BLANK = torch.full((6, 12), MODEL.mask_id)
ONE_BY_ONE = Threshold(1.0)  # would take 12 evaluations


def policy(seed=0):
    torch.manual_seed(seed)
    return DitConfidence(hidden_dim=8, feedforward_dim=8, time_embed_dim=4, time_period=10)


@pytest.mark.parametrize("name", UNMASKING_RULES)
def test_no_rule_passes_its_budget_and_none_leaves_a_mask(name):
    for budget in (1, 2, 5):
        samples = sample(
            UnmaskingEnvironment(MODEL, DecodeOptions(12, budget=budget)),
            Strategy(UNMASKING_RULES[name](), TokenRule()),
            Prompts(BLANK),
        )
        assert int(samples.evaluations.max()) <= budget
        assert not (samples.tokens == MODEL.mask_id).any()


@pytest.mark.parametrize("budget", [2, 3, 5])
def test_guidance_counts_twice_within_a_budget(budget):
    environment = UnmaskingEnvironment(MODEL, DecodeOptions(12, budget=budget, guidance=0.5))
    canvas = torch.cat((torch.zeros(6, 2, dtype=torch.long), BLANK[:, 2:]), 1)
    for rule in (ONE_BY_ONE, PolicyUnmasker(policy())):
        samples = sample(environment, Strategy(rule, TokenRule()), Prompts(canvas, prompt_length=2))
        assert int(samples.evaluations.max()) == budget - budget % 2 and not (samples.tokens == MODEL.mask_id).any()


@pytest.mark.parametrize("guidance", [-1.0, float("nan"), float("inf")])
def test_guidance_is_a_weight(guidance):
    with pytest.raises(ValueError, match="must be a finite number of at least 0"):
        UnmaskingEnvironment(MODEL, DecodeOptions(12, guidance=guidance))


def test_the_last_evaluation_writes_all_that_is_left():
    samples = sample(
        UnmaskingEnvironment(MODEL, DecodeOptions(12, budget=4)), Strategy(ONE_BY_ONE, TokenRule(0.0)), Prompts(BLANK)
    )
    assert samples.evaluations.tolist() == [4] * 6
    counts = torch.stack([(samples.unmasked_at == step).sum(1) for step in range(4)], 1)
    assert counts.tolist() == [[1, 1, 1, 9]] * 6


def test_the_last_evaluation_leaves_no_choice_of_positions():
    """Its positions have probability 1, whatever the policy says of them; the tokens are drawn as ever."""
    environment = UnmaskingEnvironment(MODEL, DecodeOptions(12, budget=torch.tensor([1, 2])))
    observation = environment.reset(Prompts(BLANK[:2]))
    decision = Strategy(PolicyUnmasker(policy(), "bernoulli"), TokenRule()).decide(observation, Draws(0))
    assert (decision.order[0] > 0).all() and not (decision.order[1] > 0).all()
    assert decision.log_positions[0] == 0 and decision.log_positions[1] < 0 and (decision.log_tokens < 0).all()


def test_an_evaluation_that_wrote_nothing_is_at_hand_still():
    """Steps that unmask no position read what is known already: the budget allows as many evaluations as before."""

    class PausesOnce:
        def choose(self, observation, draws):
            order, log_positions = ONE_BY_ONE.choose(observation, draws)
            return order * (observation.row_step > 0).unsqueeze(1), log_positions

    seen = []
    look = lambda observation: seen.append((int(observation.left), float(observation.time))) or {}
    environment = UnmaskingEnvironment(MODEL, DecodeOptions(12, budget=3))
    samples = sample(environment, Strategy(PausesOnce(), TokenRule(0.0)), Prompts(BLANK[:1]), record=look)
    assert seen == [(3, pytest.approx(1 / 3)), (3, pytest.approx(1 / 3)), (2, 0.5), (1, 1.0)]
    assert samples.evaluations.tolist() == [3] and samples.steps.tolist() == [4]


@pytest.mark.parametrize("name", ["random", "leftmost", "top_prob", "dilated"])
def test_rules_of_a_fixed_count_spread_their_masks_over_the_budget(name):
    samples = sample(
        UnmaskingEnvironment(MODEL, DecodeOptions(12, budget=5)),
        Strategy(UNMASKING_RULES[name](), TokenRule(0.0)),
        Prompts(BLANK),
    )
    counts = torch.stack([(samples.unmasked_at == step).sum(1) for step in range(5)], 1)
    assert counts.tolist() == [[3, 3, 2, 2, 2]] * 6
    few = sample(
        UnmaskingEnvironment(MODEL, DecodeOptions(3, budget=5)),
        Strategy(UNMASKING_RULES[name](), TokenRule(0.0)),
        Prompts(BLANK),
    )
    assert few.evaluations.tolist() == [3] * 6  # fewer steps than evaluations: no more than were asked for


def test_a_budget_that_is_large_enough_changes_nothing():
    strategy = Strategy(Threshold(0.4), TokenRule(0.7))
    free = sample(UnmaskingEnvironment(MODEL, DecodeOptions(12)), strategy, Prompts(BLANK), seed=3)
    capped = sample(UnmaskingEnvironment(MODEL, DecodeOptions(12, budget=12)), strategy, Prompts(BLANK), seed=3)
    assert torch.equal(free.tokens, capped.tokens) and torch.equal(free.evaluations, capped.evaluations)


def test_one_evaluation_draws_every_position_by_itself():
    model = inconsistent(vocabulary=3, length=3, seed=4)
    canvas = torch.full((20_000, 3), model.mask_id)
    drawn = sample(
        UnmaskingEnvironment(model, DecodeOptions(3, budget=1)), Strategy(Confident(), TokenRule()), Prompts(canvas)
    ).tokens
    fits(drawn, exact_law(model, "random", 1))


def test_rows_have_budgets_of_their_own_whatever_their_batch():
    budget = torch.tensor([1, 2, 3, 4, 5, 6])
    strategy = Strategy(Random(), TokenRule())
    whole = sample(UnmaskingEnvironment(MODEL, DecodeOptions(12, budget=budget)), strategy, Prompts(BLANK), seed=1)
    assert whole.evaluations.tolist() == budget.tolist()
    for rows in ([3], [5, 0], [4, 2, 1]):
        rows = torch.tensor(rows)
        part = sample(
            UnmaskingEnvironment(MODEL, DecodeOptions(12, budget=budget[rows])), strategy, Prompts(BLANK[rows]), 1, rows
        )
        assert torch.equal(part.tokens, whole.tokens[rows])


def test_time_is_one_over_the_evaluations_left():
    seen = []
    look = lambda observation: seen.append((observation.time, observation.last)) or {"time": observation.time}
    sample(
        UnmaskingEnvironment(MODEL, DecodeOptions(12, budget=3)),
        Strategy(ONE_BY_ONE, TokenRule(0.0)),
        Prompts(BLANK[:1]),
        record=look,
    )
    assert [float(time) for time, _ in seen] == pytest.approx([1 / 3, 1 / 2, 1])
    assert [bool(last) for _, last in seen] == [False, False, True]


@pytest.mark.parametrize("action", ["bernoulli", "bernoulli_argmax", "plackett_luce"])
def test_only_steps_with_a_choice_are_recorded_and_their_likelihood_is_replayed(action):
    network = policy()
    unmasker = PolicyUnmasker(network, action)
    budget = torch.tensor([1, 2, 3, 2, 4, 12])
    environment = UnmaskingEnvironment(MODEL, DecodeOptions(12, patience=4, budget=budget))
    samples = sample(environment, Strategy(unmasker, TokenRule()), Prompts(BLANK), record=network.inputs)
    trajectory = samples.trajectory
    assert 0 not in trajectory.row.tolist()  # its one evaluation was no choice
    assert not (samples.tokens == MODEL.mask_id).any()
    with torch.no_grad():
        again, _ = policy_log_probs(network, unmasker.distribution, trajectory)
    torch.testing.assert_close(again, trajectory.log_positions, atol=1e-5, rtol=0)


def test_what_a_budget_does_not_go_with_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        UnmaskingEnvironment(MODEL, DecodeOptions(12, budget=0))
    with pytest.raises(ValueError, match="blocks"):
        UnmaskingEnvironment(MODEL, DecodeOptions(12, block_length=4, budget=3))
    with pytest.raises(ValueError, match="causal"):
        UnmaskingEnvironment(RandomLM(5, causal=True), DecodeOptions(12, budget=3))
