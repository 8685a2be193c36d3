"""Expert steering: the mixture by enumeration, an expert's gradient by hand, advantages over G + E, what is recorded, refusals."""

from itertools import product
from math import exp, log

import pytest
import torch
from torch import nn

from data.tasks import Prompts, TextTask
from dlm.environment import TokenRule
from dlm.options import DecodeOptions
from losses import clipped_policy_loss, with_expert
from policy import train as loops
from policy.actions import Bernoulli
from policy.base import PolicyNetwork
from policy.experts import check_experts, expert_rollouts, joined
from policy.grpo import GRPO
from policy.networks import DitConfidence
from policy.rollout import policy_log_probs, rollout
from policy.settings import ExpertsSettings, GRPOSettings, PolicyTrainingSettings
from policy.unmasker import PolicyUnmasker
from rewards.bound import BoundReward
from rewards.rules import RewardOutput
from tests.enumerable import RandomLM
from tests.helpers.rewards import SamplesReward
from training.optim import MovingAverage, Optimiser
from training.processes import Processes
from training.settings import OptimSettings

MODEL = RandomLM(5, max_length=12)
LENGTH, PROMPT, GROUP = 8, 2, 3
SETTINGS = {"name": "grpo", "group_size": GROUP, "inner_updates": 2, "clip": 0.2, "advantage_std": False, "kl": 0.0,
            "action": "bernoulli", "experts": {"thresholds": [0.9, 0.5], "block_length": 4}}  # fmt: skip
OPTIM = {"lr": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "warmup": 0, "grad_clip": 1.0,
         "schedule": "constant"}  # fmt: skip


def network_of(**settings):
    torch.manual_seed(0)
    return DitConfidence(hidden_dim=8, feedforward_dim=8, time_embed_dim=4, smart_init=-1.0, **settings)


def prompts_of(rows):
    canvas = torch.full((rows, PROMPT + LENGTH), MODEL.mask_id)
    canvas[:, :PROMPT] = torch.arange(rows).unsqueeze(1) % 5
    return Prompts(canvas, {}, prompt_length=PROMPT)


@SamplesReward
def some_reward(samples, rows=None):
    return RewardOutput(samples.tokens.float().mean(1) / samples.evaluations)


def groups(network, settings=SETTINGS, prompts=2):
    """(law, own rollouts, experts' rollouts) of `prompts` groups."""
    asked, unmasker = prompts_of(prompts), PolicyUnmasker(network, "bernoulli")
    own = rollout(MODEL, unmasker, TokenRule(0.0), asked.repeat(GROUP), DecodeOptions(1), some_reward, 1, True)
    experts = expert_rollouts(
        MODEL, network, ExpertsSettings(**settings["experts"]), TokenRule(0.0), asked, some_reward, 1, DecodeOptions(1)
    )
    return unmasker.distribution, own, experts


# ---------------------------------------------------------------------------------------- the mixture


@pytest.mark.parametrize("group, shown", [(4, [(1, 0, 0)]), (3, [(1, 1, 0), (0, 0, 1)]), (1, [(1, 1, 1)])])
def test_the_likelihood_of_an_experts_picks_is_that_of_the_mixture_they_are_drawn_from(group, shown):
    """A member of the group at random: the policy draws each set of picks with its probability, an expert makes its own."""
    logits, members = torch.tensor([[0.3, -1.2, 0.8]]), group + len(shown)
    writable, probability = torch.ones(1, 3, dtype=torch.bool), {}
    picks_of = lambda picks: torch.tensor([picks])
    for picks in product((0, 1), repeat=3):
        policy = 1.0
        for logit, pick in zip(logits[0].tolist(), picks, strict=True):
            policy *= 1 / (1 + exp(-logit)) if pick else 1 / (1 + exp(logit))
        probability[picks] = group / members * policy + sum(picks == own for own in shown) / members
    assert sum(probability.values()) == pytest.approx(1)
    for own in shown:
        log_prob = Bernoulli().log_prob(logits, writable, picks_of(own))
        assert float(with_expert(log_prob, group, len(shown)).exp()) == pytest.approx(probability[own], rel=1e-5)


def test_the_ratio_of_an_experts_step_stays_below_g_plus_1_and_impossible_picks_have_a_gradient():
    impossible = torch.tensor([-200.0, -torch.inf], requires_grad=True)
    old, new = with_expert(impossible, 7, 2), with_expert(torch.zeros(2), 7, 2)
    torch.testing.assert_close((new - old).exp(), torch.full((2,), 8.0))
    old.sum().backward()
    assert torch.equal(impossible.grad, torch.zeros(2))


class OneLogit(PolicyNetwork):
    """The same logit at every position."""

    def __init__(self, logit):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit))

    def inputs(self, observation, everywhere=False):
        return {"masked": observation.masked}

    def scores(self, masked):
        return self.logit.expand(masked.shape)


def test_the_gradient_of_an_experts_row_by_hand():
    """Two masks, a group of G = 2 and one expert, which writes one position and then the other. At the first update
    d loss / d logit = -1/3 sum over rows of A / steps * sum over its steps of c * d log p / d logit, with c = 1 for the policy's
    own and 2 p / (2 p + 1) for the expert's."""
    model, s = RandomLM(5, max_length=2), 1 / (1 + exp(-0.4))
    network, distribution = OneLogit(0.4), Bernoulli()
    settings = {**SETTINGS, "group_size": 2, "experts": {"thresholds": [1.0], "block_length": 1}}
    asked, unmasker = Prompts(torch.full((1, 2), 5), {}), PolicyUnmasker(network, "bernoulli")
    own = rollout(model, unmasker, TokenRule(0.0), asked.repeat(2), DecodeOptions(1), some_reward, 3, True)
    experts = expert_rollouts(model, network, ExpertsSettings(**settings["experts"]), TokenRule(0.0), asked, some_reward, 3,
                              DecodeOptions(1))  # fmt: skip
    rewards = [0.1, 0.5, 0.9]
    own, experts = (
        (own[0], RewardOutput(torch.tensor(rewards[:2]))),
        [(experts[0][0], RewardOutput(torch.tensor(rewards[2:])))],
    )
    assert experts[0][0].steps.tolist() == [2]
    algorithm = GRPO(GRPOSettings.of(settings), network)
    algorithm.loss(network, distribution, algorithm.prepare(*own, network, distribution, experts=experts)).backward()
    d = 0.0
    for row, (samples, reward) in enumerate([(own[0], 0.1), (own[0], 0.5), (experts[0][0], 0.9)]):
        mine = samples.trajectory.row == row % 2
        steps = int(mine.sum())
        for writable, order in zip(samples.trajectory.writable[mine], samples.trajectory.order[mine], strict=True):
            selected, left = int((order > 0).sum()), int(writable.sum() - (order > 0).sum())
            p = s**selected * (1 - s) ** left
            share = 2 * p / (2 * p + 1) if row == 2 else 1.0
            d -= (reward - 0.5) / 3 / steps * share * (selected * (1 - s) - left * s)
    assert abs(d) > 1e-3 and network.logit.grad.item() == pytest.approx(d, rel=1e-4)


# ---------------------------------------------------------------------------------------- groups of G + E


def test_groups_are_joined_in_order_and_advantages_are_over_all_members():
    network = network_of()
    distribution, own, experts = groups(network)
    trajectory, total, expert = joined(own, experts, GROUP)
    assert total.tolist() == [
        float(reward)
        for prompt in range(2)
        for reward in (*own[1].total[GROUP * prompt :][:GROUP], *(one[1].total[prompt] for one in experts))
    ]
    members = GROUP + len(experts)
    assert set(trajectory.row[expert].tolist()) == {3, 4, 8, 9} and set(trajectory.row.tolist()) == set(range(10))
    steps = GRPO(GRPOSettings.of(SETTINGS), network).prepare(*own, network, distribution, experts=experts)
    mean = total.view(2, members).mean(1).repeat_interleave(members)
    torch.testing.assert_close(steps.advantage, (total - mean)[steps.trajectory.row])
    counts = torch.bincount(trajectory.row)
    torch.testing.assert_close(steps.weight, 1.0 / (10 * counts[steps.trajectory.row]))


@pytest.mark.parametrize("chunk", [1000, 3])
def test_the_first_update_has_ratio_one_and_the_formulas_gradient_whatever_the_chunk(chunk):
    network = network_of()
    distribution, own, experts = groups(network)
    algorithm = GRPO(GRPOSettings.of(SETTINGS), network)
    steps = algorithm.prepare(*own, network, distribution, chunk=chunk, experts=experts)
    log_prob, _ = policy_log_probs(network, distribution, steps.trajectory)
    mixed = torch.where(steps.expert, torch.log(GROUP / 5 * log_prob.exp() + 1 / 5), log_prob)
    torch.testing.assert_close(mixed, steps.trajectory.log_positions, atol=1e-5, rtol=1e-5)
    assert (steps.trajectory.log_positions[steps.expert] >= log(1 / 5) - 1e-5).all()
    expected = torch.autograd.grad(
        clipped_policy_loss(mixed, mixed.detach(), steps.advantage, steps.weight, 0.2), network.output_proj.weight
    )[0]
    for index in torch.arange(len(steps)).split(chunk):
        algorithm.loss(network, distribution, steps.take(index)).backward()
    torch.testing.assert_close(network.output_proj.weight.grad, expected, atol=1e-6, rtol=1e-4)


def test_a_kl_leaves_experts_out():
    network = network_of()
    distribution, own, experts = groups(network)
    algorithm = GRPO(GRPOSettings.of(SETTINGS | {"kl": 0.5}), network)
    with torch.no_grad():
        network.output_proj.bias.add_(0.3)
    steps = algorithm.prepare(*own, network, distribution, experts=experts)
    without = GRPO(GRPOSettings.of(SETTINGS), network)
    own_steps = steps.take((~steps.expert).nonzero().squeeze(1))
    extra = algorithm.loss(network, distribution, steps) - without.loss(network, distribution, steps)
    expected = algorithm.loss(network, distribution, own_steps) - without.loss(network, distribution, own_steps)
    torch.testing.assert_close(extra, expected, atol=1e-6, rtol=1e-4)
    assert float(extra.detach()) > 1e-3


@pytest.mark.parametrize("settings", [{}, {"read_all": True}, {"hidden_size": 1}], ids=str)
def test_experts_write_in_blocks_while_every_mask_counts_and_a_step_costs_one_evaluation(settings):
    _, _, experts = groups(network_of(**settings))
    for samples, _ in experts:
        assert torch.equal(samples.evaluations, samples.steps)
        trajectory = samples.trajectory
        assert torch.equal(trajectory.writable, trajectory.inputs["masked"])
        blocks = samples.unmasked_at[:, PROMPT:].unflatten(1, (-1, 4))
        assert (blocks[:, 1].amin(1) > blocks[:, 0].amax(1)).all()
        expected = trajectory.step.float() / LENGTH
        torch.testing.assert_close(trajectory.inputs["time"], expected)
    assert experts[0][0].steps.float().mean() > experts[1][0].steps.float().mean()  # 0.9 is slower than 0.5


# ---------------------------------------------------------------------------------------- in training


class PromptTask(TextTask):
    def __init__(self):
        pass

    def prompts(self, count, seed):
        return prompts_of(count)


def test_iterations_with_experts_learn_from_them_and_log_them():
    """Groups of own rollouts and experts go through whole iterations; what the gradient of each is, the tests above say."""
    network = network_of()
    parameters = list(network.parameters())
    learner = loops.Learner(
        network, Optimiser(parameters, OptimSettings(**OPTIM), 10), MovingAverage(parameters, 0.9),
        Processes(0, 1, torch.device("cpu")),
    )  # fmt: skip
    config = PolicyTrainingSettings.of({
        "seed": 0, "algorithm": {**SETTINGS, "clip": 1e6}, "training": {"chunk": 50, "batch_size": 6, "accum": 1},
        "sampler": {"temperature": 0.0, "steps": 1, "budgets": None, "block_length": None, "cache": None, "refresh": None},
    })  # fmt: skip
    in_blocks = SamplesReward(
        lambda samples, rows: RewardOutput(
            (samples.unmasked_at[:, PROMPT + 4 :].amin(1) > samples.unmasked_at[:, PROMPT : PROMPT + 4].amax(1)).float()
        )
    )
    made = loops.GRPOLearning(MODEL, learner, PromptTask(), in_blocks, config)
    before = [parameter.detach().clone() for parameter in parameters]
    for step in range(3):
        metrics = made.iteration(step)
    assert metrics["expert_reward"] == 1 and metrics["expert_nfe"] > 2
    assert metrics["expert_lead"] == pytest.approx(1 - metrics["reward"])
    assert learner.updates == 6
    assert any(not torch.equal(parameter, old) for parameter, old in zip(parameters, before, strict=True))


@pytest.mark.parametrize(
    "experts, block_length, reward, message",
    [
        (
            {"thresholds": [1.5]},
            None,
            some_reward,
            r"thresholds=\[1.5\] must be .* each a finite number of at least 0 and at most 1",
        ),
        ({"block_length": 3}, None, some_reward, "block_length=3 does not divide the 8 positions"),
        ({}, 4, some_reward, "not with sampler.block_length=4"),
        ({}, None, BoundReward(), "which reward=bound is not"),
    ],
)
def test_what_experts_do_not_go_with_is_refused(experts, block_length, reward, message):
    with pytest.raises(ValueError, match=message):
        check_experts(
            ExpertsSettings(**{"thresholds": [0.9], "block_length": 4, **experts}), prompts_of(2), reward, block_length
        )
    check_experts(ExpertsSettings(**SETTINGS["experts"]), prompts_of(2), some_reward, LENGTH)
