"""Policies that open positions again: exact distributions, replayed likelihoods, and GRPO against the tabular optimum."""

from functools import cache
from itertools import combinations, product

import pytest
import torch
from torch import nn

import unmask
from data.tasks import Prompts
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import RaddLM
from dlm.observation import Decision
from dlm.options import DecodeOptions
from losses import clipped_policy_loss
from model.radd import RADD
from policy.actions import Bernoulli, BernoulliForced, PlackettLuceStop, Trust
from policy.agreement import Agreement
from policy.base import PolicyNetwork
from policy.checkpoints import load_policy, save_policy
from policy.grpo import GRPO
from policy.imitation import Corrected
from policy.ppo import PPO
from policy.rollout import policy_log_probs, rollout
from policy.settings import GRPOSettings, PPOSettings
from policy.unmasker import PolicyReviser, PolicyUnmasker
from rewards.rules import RewardOutput, speed_factor
from tests.enumerable import TableLM
from tests.helpers.rewards import SamplesReward
from tests.policy.test_actions import outcomes
from training.optim import Optimiser
from training.settings import OptimSettings

V = 3

# ------------------------------------------------------------------------------------------------ action distributions

LOGITS = torch.tensor([0.4, -1.0, 9.0, 1.3])  # the largest is not selectable
SELECTABLE = torch.tensor([True, True, False, True])
FORCED = {"none": [], "one": [1], "two": [0, 3]}
DISTRIBUTIONS = [
    Bernoulli(), BernoulliForced(), BernoulliForced(temperature=2.0, beta=0.7), PlackettLuceStop(),
    PlackettLuceStop(stop_logit=-1.5, temperature=0.5),
]  # fmt: skip


def forced_mask(name):
    mask = torch.zeros(4, dtype=torch.bool)
    mask[FORCED[name]] = True
    return mask


@pytest.mark.parametrize("name", FORCED)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
def test_frequencies_are_the_probabilities_whatever_must_be_selected(distribution, name):
    rows, forced = 40_000, forced_mask(name)
    orders = outcomes(distribution, SELECTABLE)
    log_probs = distribution.log_prob(
        LOGITS.expand(len(orders), -1), SELECTABLE.expand(len(orders), -1), orders, forced.expand(len(orders), -1)
    )
    probability = log_probs.double().exp()
    assert abs(float(probability.sum()) - 1) < 2e-5
    nothing = float(probability[(orders == 0).all(1)])
    assert nothing > 0.01 if name == "none" or isinstance(distribution, Bernoulli) else nothing == 0
    uniforms = torch.rand(rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = distribution.sample(LOGITS.expand(rows, -1), SELECTABLE.expand(rows, -1), uniforms, forced.expand(rows, -1))
    base = torch.tensor([1, 5, 25, 125])
    frequency = torch.stack([((drawn * base).sum(1) == code).double().mean() for code in (orders * base).sum(1)])
    assert abs(float(frequency.sum()) - 1) < 1e-12
    error = (probability * (1 - probability) / rows).sqrt()
    assert ((frequency - probability).abs() <= 4.5 * error + 1e-6).all()


def test_without_open_positions_trust_may_select_nothing():
    low = torch.full((2, 3), -2.0)
    forced = torch.tensor([[True, False, False], [False, False, False]])
    selected = Trust(threshold=0.5).sample(low, torch.ones_like(forced), torch.zeros(2, 3, dtype=torch.float64), forced)
    assert selected.tolist() == [[1, 0, 0], [0, 0, 0]]


# ---------------------------------------------------------------------------------------------------- network, rollouts


def board_model(seed=0, length=6):
    torch.manual_seed(seed)
    config = {"tokens": 4, "model": {"hidden_size": 16, "n_blocks": 1, "n_heads": 2, "length": length, "dropout": 0.0}}
    network = RADD(config)
    nn.init.normal_(network.output_layer.linear.weight)
    return RaddLM(network.eval())


def reviser(seed=0, **arguments):
    torch.manual_seed(seed)
    network = Agreement(6, relations=2, candidates=2, width=8, top_k=3, revises=True, **arguments)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network


def rolled(network, action, rows=24, budget=5, seed=0):
    prompts = Prompts(torch.full((rows, 6), 4), {})
    prompts.canvas[:, 0] = 1
    reward = SamplesReward(lambda samples, _: RewardOutput((samples.tokens == 2).float().mean(1)))
    options = DecodeOptions(1, budget=torch.full((rows,), budget))
    unmasker = PolicyUnmasker(network, action)
    samples, scored = rollout(board_model(), unmasker, TokenRule(), prompts, options, reward, seed, True)
    return samples, scored, unmasker.distribution


@pytest.mark.parametrize("action", ["bernoulli", "bernoulli_argmax", "plackett_luce"])
def test_recorded_steps_have_the_log_probability_they_had(action):
    network = reviser()
    samples, _, distribution = rolled(network, action)
    trajectory = samples.trajectory
    assert int(samples.revisions.sum()) > 10
    again, _ = policy_log_probs(network, distribution, trajectory)
    torch.testing.assert_close(again, trajectory.log_positions, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(again).all() and (again < 0).any()
    assert (trajectory.order > 0)[trajectory.opened.logical_not() & trajectory.writable].any()
    assert not (trajectory.order > 0)[~trajectory.writable].any()
    assert not trajectory.writable[:, 0].any()  # the prompt


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_grpo_and_ppo_learn_the_logits_of_opening_again(algorithm):
    network = reviser(value_head=algorithm == "ppo")
    samples, scored, distribution = rolled(network, "bernoulli")
    objective = GRPO(GRPOSettings(group_size=8), network) if algorithm == "grpo" else PPO(PPOSettings(), network)
    steps = objective.prepare(samples, scored, network, distribution)
    objective.loss(network, distribution, steps).backward()
    assert network.reopen_proj.weight.grad.abs().sum() > 0 and network.reopened_weight.grad.abs().sum() > 0
    log_prob, _ = policy_log_probs(network, distribution, steps.trajectory)
    at_once = clipped_policy_loss(log_prob, steps.trajectory.log_positions, steps.advantage, steps.weight, 0.2)
    expected = -(steps.advantage * steps.weight).sum()  # the first update has ratio 1
    torch.testing.assert_close(at_once, expected, atol=1e-5, rtol=1e-5)


def test_a_new_reviser_unmasks_as_the_policy_that_it_continues():
    plain = Agreement(6, relations=2, candidates=2, width=8, top_k=3)
    torch.manual_seed(1)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.5)
    extended = Agreement(6, relations=2, candidates=2, width=8, top_k=3, revises=True)
    missing = extended.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {name.split(".")[0] for name in missing} == {"reopen_proj", "reopened_weight", "reviser"}
    environment = UnmaskingEnvironment(board_model(), DecodeOptions(1, revise=True, budget=9))
    observation = environment.reset(Prompts(torch.full((2, 6), 4)))
    order = torch.zeros(2, 6, dtype=torch.long)
    order[:, :3] = 1
    zeros = torch.zeros(2)
    observation = environment.step(Decision(order, torch.ones_like(order), zeros, zeros))
    old, new = plain.scores(**plain.inputs(observation)), extended.scores(**extended.inputs(observation))
    assert torch.equal(old[:, 3:], new[:, 3:])
    assert (new[:, :3].sigmoid() < 0.02).all()


def test_looking_at_a_full_canvas_costs_no_evaluation():
    network = reviser()
    with torch.no_grad():
        network.reopen_proj.weight.zero_()
        network.reopen_proj.bias.fill_(-50.0)
        network.output_proj.bias.fill_(50.0)
    samples, _, _ = rolled(network, "bernoulli")
    assert samples.evaluations.tolist() == [1] * 24 and samples.steps.tolist() == [2] * 24


def test_corrected_canvases_have_mistakes_and_labels_tell_them():
    model, network = board_model(), reviser()
    answers = torch.randint(4, (16, 6), generator=torch.Generator().manual_seed(2))
    teacher = Corrected(TokenRule(0.0), answers, network)
    seen = []

    def record(observation):
        seen.append((observation.tokens, observation.masked, teacher.right(observation), observation.row_id))
        return {}

    teacher.decode(model, Prompts(torch.full((16, 6), 4)), DecodeOptions(1), record=record)
    for tokens, masked, right, row in seen:
        assert torch.equal(right[~masked], (tokens == answers[row])[~masked])
    wrong = sum(int((~right & ~masked).sum()) for _, masked, right, _ in seen)
    assert wrong > 20


def test_a_policy_without_revision_and_equal_parts_are_refused():
    with pytest.raises(ValueError, match="trained without revision"):
        PolicyReviser(TokenRule(), PolicyUnmasker(Agreement(6)))
    with pytest.raises(ValueError, match="action 'fixed' commits equal parts"):
        PolicyReviser(TokenRule(), PolicyUnmasker(reviser(), "fixed"))


# ------------------------------------------------------------------------------------------------------ tabular optimum

LENGTH, BUDGET, INSTANCES = 3, 4, 12
SETTINGS = {"group_size": 512, "inner_updates": 2, "clip": 0.5, "advantage_std": False, "kl": 0.0}
OPTIM = {"lr": 0.1, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "warmup": 0, "grad_clip": 1e9, "schedule": "constant"}  # fmt: skip


class Instance:
    """A few modes with random weights; the model knows their conditionals exactly and draws its tokens from them, so parallel
    commits may contradict each other. Reward: 1[the canvas is a mode] times the speed factor."""

    def __init__(self, seed, modes=4):
        generator = torch.Generator().manual_seed(seed)
        self.powers = (V + 1) ** torch.arange(LENGTH - 1, -1, -1)
        number = torch.randperm(V**LENGTH, generator=generator)[:modes]
        self.modes = number.unsqueeze(1) // V ** torch.arange(LENGTH - 1, -1, -1) % V
        weight = 0.2 + torch.rand(modes, generator=generator, dtype=torch.float64)
        canvases = torch.arange((V + 1) ** LENGTH).unsqueeze(1) // self.powers % (V + 1)
        agrees = ((canvases.unsqueeze(1) == V) | (canvases.unsqueeze(1) == self.modes)).all(2)
        table = torch.einsum("cm,mlv->clv", agrees * weight, nn.functional.one_hot(self.modes, V).double())
        table = torch.where(table.sum(2, keepdim=True) > 0, table, torch.ones_like(table))
        self.law = table / table.sum(2, keepdim=True)
        self.model = TableLM(self.law.clamp(min=1e-30).log())
        self.good = {tuple(mode) for mode in self.modes.tolist()}

    def reward(self, samples, rows=None):
        numbers = torch.isin((samples.tokens * self.powers).sum(1), (self.modes * self.powers).sum(1)).float()
        return RewardOutput(numbers * speed_factor(samples.evaluations, BUDGET, 1.0))

    def worth(self, canvas, spent):
        return (canvas in self.good) * (BUDGET - spent + 1) / BUDGET

    def after(self, canvas, selected, reopened):
        """[(probability, canvas)] of committing and opening again: tokens are drawn on the canvas as it was."""
        law = self.law[sum(t * int(p) for t, p in zip(canvas, self.powers, strict=True))]
        found = []
        for tokens in product(range(V), repeat=len(selected)):
            probability, new = 1.0, list(canvas)
            for position, token in zip(selected, tokens, strict=True):
                probability *= float(law[position, token])
                new[position] = token
            for position in reopened:
                new[position] = V
            if probability > 0:
                found.append((probability, tuple(new)))
        return found


def every_subset(positions):
    return [s for size in range(len(positions) + 1) for s in combinations(positions, size)]


def decisions(canvas):
    """[(positions to commit, positions to open again)] that change the canvas."""
    opened = [i for i in range(LENGTH) if canvas[i] == V]
    committed = [i for i in range(LENGTH) if canvas[i] != V]
    return [(s, r) for s in every_subset(opened) for r in every_subset(committed) if s or r]


def closing(instance, canvas, left):
    opened = tuple(i for i in range(LENGTH) if canvas[i] == V)
    spent = BUDGET - left + bool(opened)
    return sum(p * instance.worth(new, spent) for p, new in instance.after(canvas, opened, ()))


def optimum(instance, may_revise=True):
    """Value iteration over canvases and evaluations left. What only opens positions costs no evaluation."""

    @cache
    def value(canvas, left):
        if left == 1:
            return closing(instance, canvas, left)
        found = [] if V in canvas else [instance.worth(canvas, BUDGET - left)]
        for selected, reopened in decisions(canvas):
            if reopened and not may_revise:
                continue
            next_left = left - bool(selected)
            found.append(sum(p * value(new, next_left) for p, new in instance.after(canvas, selected, reopened)))
        return max(found)

    return value((V,) * LENGTH, BUDGET)


class Table(PolicyNetwork):
    """Logits looked up by the canvas and the evaluations left. It starts with large steps: where all positions are committed at
    once, opening some again is worth learning."""

    revises = True

    def __init__(self, powers):
        super().__init__()
        self.powers = powers
        canvases = torch.arange((V + 1) ** LENGTH).unsqueeze(1) // powers % (V + 1)
        self.logits = nn.Parameter(torch.where(canvases == V, 1.5, 0.0).repeat(BUDGET + 1, 1, 1))

    def inputs(self, observation, everywhere=False):
        return {"canvas": (observation.tokens * self.powers).sum(1), "left": observation.left.clamp(0, BUDGET)}

    def scores(self, canvas, left):
        return self.logits[left, canvas]


def expected_reward(instance, network, distribution):
    """Exactly, over every decision of the distribution and every token."""

    @cache
    def value(canvas, left):
        if left == 1:
            return closing(instance, canvas, left)
        open_ones = torch.tensor([token == V for token in canvas])
        choices = [*decisions(canvas), *([((), ())] if V not in canvas else [])]
        order = torch.zeros(len(choices), LENGTH, dtype=torch.long)
        for row, (selected, reopened) in enumerate(choices):
            order[row, [*selected, *reopened]] = 1
        number = sum(t * int(p) for t, p in zip(canvas, instance.powers, strict=True))
        logits = network.logits[left, number].detach().expand(len(choices), -1)
        everywhere = torch.ones_like(order, dtype=torch.bool)
        forced = everywhere & open_ones.any()  # a canvas with open positions changes in every step
        shares = distribution.log_prob(logits, everywhere, order, forced).exp().tolist()
        assert abs(sum(shares) - 1) < 1e-4
        total = 0.0
        for share, (selected, reopened) in zip(shares, choices, strict=True):
            if share < 1e-9:
                continue
            if not selected and not reopened:
                total += share * instance.worth(canvas, BUDGET - left)
                continue
            outcomes = instance.after(canvas, selected, reopened)
            total += share * sum(p * value(new, left - bool(selected)) for p, new in outcomes)
        return total

    return value((V,) * LENGTH, BUDGET)


def train(instance, seed, iterations):
    """The product's rollouts, objective and optimiser."""
    network = Table(instance.powers)
    algorithm = GRPO(GRPOSettings(**SETTINGS), network)
    optimiser = Optimiser(network.parameters(), OptimSettings(**OPTIM), 1)
    unmasker, rows = PolicyUnmasker(network, "bernoulli"), SETTINGS["group_size"]
    prompts = Prompts(torch.full((rows, LENGTH), V), {})
    options = DecodeOptions(1, budget=torch.full((rows,), BUDGET))
    reward = SamplesReward(instance.reward)
    for step in range(iterations):
        found = rollout(instance.model, unmasker, TokenRule(), prompts, options, reward, 10_000 * seed + step, True)
        steps = algorithm.prepare(*found, network, unmasker.distribution)
        for _ in range(SETTINGS["inner_updates"] if len(steps) else 0):
            algorithm.loss(network, unmasker.distribution, steps).backward()
            optimiser.step(0)
    return network


def check_reaches_the_optimum(seeds, iterations):
    rows = []
    for seed in seeds:
        instance = Instance(seed)
        learned = expected_reward(instance, train(instance, seed, iterations), BernoulliForced())
        rows.append((optimum(instance), optimum(instance, may_revise=False), learned))
        print(f"instance {seed}: optimum {rows[-1][0]:.4f}, without revision {rows[-1][1]:.4f}, GRPO {learned:.4f}")
    best, without, learned = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    print(f"mean of {len(rows)}: optimum {best:.4f}, without revision {without:.4f}, GRPO {learned:.4f}")
    assert all(0.995 * top <= policy <= top + 1e-6 for top, _, policy in rows)
    return best, without, learned


def test_grpo_reaches_the_optimum_with_revision():
    best, without, learned = check_reaches_the_optimum((1,), 150)
    assert without < learned <= best + 1e-6


@pytest.mark.slow
def test_grpo_reaches_the_optimum_with_revision_of_every_instance():
    best, without, learned = check_reaches_the_optimum(range(INSTANCES), 800)
    assert without < learned <= best + 1e-6


def test_rollouts_earn_what_the_enumeration_says():
    """The environment and the exact recursion agree on the expected reward of a random policy, within 4.5 standard errors."""
    instance = Instance(3)
    network = Table(instance.powers)
    with torch.no_grad():
        network.logits.copy_(torch.randn(network.logits.shape, generator=torch.Generator().manual_seed(0)))
    rows = 20_000
    decoder = PolicyReviser(TokenRule(), PolicyUnmasker(network, "bernoulli_argmax"))
    samples = decoder.decode(
        instance.model, Prompts(torch.full((rows, LENGTH), V)), DecodeOptions(1, budget=BUDGET), seed=5
    )
    rewards = instance.reward(samples).total.double()
    error = float(rewards.std()) / rows**0.5
    assert abs(float(rewards.mean()) - expected_reward(instance, network, BernoulliForced())) < 4.5 * error
    assert samples.revisions.sum() > rows / 10


# ------------------------------------------------------------------------------------------------------------- entrances


@pytest.fixture
def saved(tmp_path):

    network = reviser()
    save_policy(network, tmp_path / "policy")
    return tmp_path / "policy"


def test_a_saved_policy_that_revises_is_loaded_and_samples_with_a_budget(saved):
    model = board_model(length=8)
    prompts = [[1, 2]] * 8
    options = {"length": 8, "budget": 6, "temperature": 1.0}
    policy = {"path": str(saved), "action": "bernoulli_argmax"}
    found = unmask.sample(model, prompts, strategy="policy", policy=policy, **options)
    assert int(found.samples.revisions.sum()) > 0 and int(found.nfe.max()) <= 6
    again = unmask.sample(model, prompts, strategy=load_policy(saved), policy={"action": "bernoulli_argmax"}, **options)
    assert torch.equal(again.samples.tokens, found.samples.tokens)


def test_a_policy_that_revises_needs_a_budget(saved):
    with pytest.raises(ValueError, match="may never end without a budget of evaluations"):
        unmask.sample(board_model(length=7), [[1]], strategy=load_policy(saved), length=7)


def test_a_threshold_of_reopening_needs_a_policy_that_revises():
    settings = {"policy": {"action": "threshold", "reopen_threshold": 0.5}}
    plain = Agreement(6, relations=2, candidates=2, width=8, top_k=3)
    with pytest.raises(ValueError, match="reopen_threshold=0.5 is for policies that were trained with"):
        unmask.sample(board_model(length=7), [[1]], strategy=plain, length=7, budget=4, **settings)
