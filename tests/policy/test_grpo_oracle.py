"""GRPO against the truth on tabular instances: the optimum by dynamic programming, and the expected gradient by enumeration.

An instance: 12 random modes with random weights over L tokens of V = 3; the model is the exact conditionals of that joint and
writes its best token, so decoding is deterministic given the picks. The reward is 1[the finished canvas is one of the modes]
times the speed factor (L - NFE + 1) / L, the shipped one at alpha = 1. The policy is a table: one logit vector for each canvas.
"""

import copy
from functools import cache
from itertools import combinations, permutations, product
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data.tasks import Prompts
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from policy.actions import BernoulliForced
from policy.base import PolicyNetwork
from policy.grpo import GRPO
from policy.rollout import rollout
from policy.settings import GRPOSettings
from policy.unmasker import PolicyUnmasker, distribution_settings
from rewards.bound import BoundReward
from rewards.rules import RewardOutput, speed_factor
from samplers.heuristics import Confident, Threshold
from samplers.loop import Strategy, TeacherForced, sample
from tests.enumerable import TableLM, inconsistent
from tests.helpers.rewards import SamplesReward
from training.optim import Optimiser
from training.settings import OptimSettings

V, MODES = 3, 12
INSTANCES = 12
SETTINGS = {"group_size": 256, "inner_updates": 2, "clip": 0.5, "advantage_std": False, "kl": 0.0}
OPTIM = {
    "lr": 0.3,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "weight_decay": 0.0,
    "warmup": 0,
    "grad_clip": 1e9,
    "schedule": "constant",
}
ITERATIONS = 60


class Instance:
    """modes Int[mode, position]; model: a TableLM; powers: the number of a canvas is (canvas * powers).sum(1)."""

    def __init__(self, seed, length):
        generator = torch.Generator().manual_seed(seed)
        self.length, self.powers = length, (V + 1) ** torch.arange(length - 1, -1, -1)
        number = torch.randperm(V**length, generator=generator)[: min(MODES, V**length // 2)]
        self.modes = number.unsqueeze(1) // V ** torch.arange(length - 1, -1, -1) % V
        weight = torch.rand(len(number), generator=generator, dtype=torch.float64)
        canvases = torch.arange((V + 1) ** length).unsqueeze(1) // self.powers % (V + 1)
        agrees = ((canvases.unsqueeze(1) == V) | (canvases.unsqueeze(1) == self.modes)).all(2)
        conditionals = torch.einsum("cm,mlv->clv", agrees * weight, nn.functional.one_hot(self.modes, V).double())
        self.model = TableLM(conditionals.clamp(min=1e-30).log())  # uniform where no mode agrees with the canvas
        self.good = (self.modes * self.powers).sum(1)
        best = self.model.table.argmax(-1)
        self.change = ((best - V) * self.powers).tolist()  # of the canvas' number, when a position is written
        self.blank = torch.full((1, length), V)

    def reward(self, samples, rows=None):
        solved = torch.isin((samples.tokens * self.powers).sum(1), self.good).float()
        return RewardOutput(solved * speed_factor(samples.evaluations, self.length, 1.0), {"solved": solved})

    def value(self, canvas, spent):
        """The reward of a finished canvas, in plain numbers."""
        return (canvas in self.good.tolist()) * (self.length - spent + 1) / self.length

    def after(self, canvas, picks):
        return canvas + sum(self.change[canvas][i] for i in picks)


class TablePolicy(PolicyNetwork):
    """Logits looked up by the number of the canvas: the interface of policy.networks."""

    def __init__(self, instance):
        super().__init__()
        self.powers = instance.powers
        self.logits = nn.Parameter(torch.zeros((V + 1) ** instance.length, instance.length))

    def inputs(self, observation, everywhere=False):
        return {"canvas": (observation.tokens * self.powers).sum(1)}

    def scores(self, canvas):
        return self.logits[canvas]


def subsets(positions):
    return [s for size in range(len(positions), -1, -1) for s in combinations(positions, size)]


def optimum(instance):
    """Best reward over every sequence of sets of positions. All finished canvases are worth the same: the fewest steps to one."""
    good = set(instance.good.tolist())

    @cache
    def steps(canvas, masked):
        if not masked:
            return 0 if canvas in good else instance.length + 1
        return 1 + min(
            steps(instance.after(canvas, picks), tuple(i for i in masked if i not in picks))
            for picks in subsets(masked)[:-1]
        )

    fewest = steps((V + 1) ** instance.length - 1, tuple(range(instance.length)))
    return max(0.0, (instance.length - fewest + 1) / instance.length)


def best_heuristic(instance):
    """The best rule and setting, chosen knowing the reward."""
    length = instance.length
    rules = [(Threshold(threshold / 20), 1) for threshold in range(1, 20)]
    rules += [
        (Confident(score), steps) for score in ("margin", "top_prob", "entropy") for steps in range(1, length + 1)
    ]
    rewards = []
    for rule, steps in rules:
        environment = UnmaskingEnvironment(instance.model, DecodeOptions(steps))
        samples = sample(environment, Strategy(rule, TokenRule(0.0)), Prompts(instance.blank))
        rewards.append(float(instance.reward(samples).total))
    return max(rewards)


def expected_reward(instance, network, distribution, negligible=1e-9):
    """Exactly, over every action of `distribution`, a law that always writes something; branches below `negligible` count as 0."""

    def value(canvas, masked, spent, probability):
        if not masked or probability < negligible:
            return instance.value(canvas, spent) if not masked else 0.0
        choices = subsets(masked)[:-1]
        order = torch.zeros(len(choices), instance.length, dtype=torch.long)
        for row, picks in enumerate(choices):
            order[row, list(picks)] = 1
        writable = torch.zeros(instance.length, dtype=torch.bool)
        writable[list(masked)] = True
        logits = network.logits[canvas].detach().expand(len(choices), -1)
        shares = distribution.log_prob(logits, writable.expand(len(choices), -1), order).exp().tolist()
        return sum(
            share
            * value(
                instance.after(canvas, picks),
                tuple(i for i in masked if i not in picks),
                spent + 1,
                probability * share,
            )
            for share, picks in zip(shares, choices, strict=True)
            if probability * share >= negligible
        )

    return value((V + 1) ** instance.length - 1, tuple(range(instance.length)), 0, 1.0)


def train(instance, seed, iterations=ITERATIONS):
    """The product's rollouts, objective and optimiser."""
    network = TablePolicy(instance)
    algorithm, optimiser = (
        GRPO(GRPOSettings(**SETTINGS), network),
        Optimiser(network.parameters(), OptimSettings(**OPTIM), 1),
    )
    unmasker = PolicyUnmasker(network, "bernoulli")
    prompts = Prompts(instance.blank.repeat(SETTINGS["group_size"], 1), {})
    for step in range(iterations):
        samples, reward = rollout(
            instance.model,
            unmasker,
            TokenRule(0.0),
            prompts,
            DecodeOptions(1),
            SamplesReward(lambda samples, rows: instance.reward(samples, rows)),
            10_000 * seed + step,
            record=True,
        )
        steps = algorithm.prepare(samples, reward, network, unmasker.distribution)
        for _ in range(SETTINGS["inner_updates"] if len(steps) else 0):
            algorithm.loss(network, unmasker.distribution, steps).backward()
            optimiser.step(0)
    return network


def check_reaches_the_optimum(seeds):
    """The policy as it is used, by bernoulli_argmax, in closed form. Returns rows (optimum, heuristic, policy)."""
    rows = []
    for seed in seeds:
        instance = Instance(seed, length=7)
        learned = expected_reward(instance, train(instance, seed), BernoulliForced())
        rows.append((optimum(instance), best_heuristic(instance), learned))
        print(f"instance {seed}: optimum {rows[-1][0]:.4f}, best heuristic {rows[-1][1]:.4f}, GRPO {rows[-1][2]:.4f}")
    best, heuristic, learned = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    print(f"mean of {len(rows)}: optimum {best:.4f}, best heuristic {heuristic:.4f}, GRPO {learned:.4f}")
    assert all(policy <= top + 1e-6 for top, _, policy in rows)
    assert learned >= 0.99 * best
    return best, heuristic, learned


def test_grpo_reaches_the_optimum():
    """Of an instance that no heuristic solves as fast."""
    best, heuristic, learned = check_reaches_the_optimum((9,))
    assert heuristic < learned <= best + 1e-6


@pytest.mark.slow
def test_grpo_reaches_the_optimum_of_every_instance():
    best, heuristic, learned = check_reaches_the_optimum(range(INSTANCES))
    assert heuristic < learned <= best + 1e-6


# ---------------------------------------------------------------------------------------- the expected gradient


def trajectories(length, limit):
    """Every sequence of sets of positions, the empty set among them, until all are written or `limit` steps are taken."""
    finished, open_ones = [], [((), tuple(range(length)))]
    for _ in range(limit):
        longer = [
            (path + (s,), tuple(i for i in left if i not in s)) for path, left in open_ones for s in subsets(left)
        ]
        finished += [path for path, left in longer if not left]
        open_ones = [(path, left) for path, left in longer if left]
    return finished + [path for path, _ in open_ones]


class Scripted:
    """Row r follows paths[r], the picks of a step in their order; log-probabilities are those of the policy."""

    def __init__(self, unmasker, paths, length):
        self.unmasker = unmasker
        script = [
            [[picks.index(i) + 1 if i in picks else 0 for i in range(length)] for picks in path]
            + [[0] * length] * (length - len(path))
            for path in paths
        ]
        self.script = torch.tensor(script)

    def choose(self, observation, draws):
        order = self.script[observation.row_id, observation.row_step]
        scores = self.unmasker.network.scores(**self.unmasker.network.inputs(observation))
        learned = distribution_settings(self.unmasker.network)
        return order, self.unmasker.distribution.log_prob(scores, observation.writable, order, **learned)


def path_log_prob(instance, logits, path):
    """Of a sequence of sets under the Bernoulli law, from the formula, in float64."""
    canvas, masked, total = (V + 1) ** instance.length - 1, set(range(instance.length)), logits.new_zeros(())
    for picks in path:
        probability = torch.sigmoid(logits[canvas])
        for i in masked:
            total = total + torch.log(probability[i] if i in picks else 1 - probability[i])
        canvas, masked = instance.after(canvas, picks), masked - set(picks)
    return total


@pytest.mark.parametrize("group, length", [(2, 3), (3, 2)])
def test_expected_gradient_is_the_analytic_one(group, length):
    """Every group of `group` trajectories of at most `length` steps, weighted by its probability; the first inner update.

    A group's loss is -1/G sum_g 1/n_g sum_t ratio_gt (R_g - mean R), n_g its steps, so at ratio 1 its gradient is
    -1/G sum_g (R_g - mean R) / n_g * grad log P(path_g). The members are independent and mean R holds R_g itself with weight
    1/G, so the expectation is -(1 - 1/G) (grad E[R / n] - E[R] grad E[1 / n]): were n constant, that of E[R] up to a factor.
    """
    instance = Instance(5, length)
    network = TablePolicy(instance)
    with torch.no_grad():
        network.logits.copy_(torch.randn(network.logits.shape, generator=torch.Generator().manual_seed(1)))
    paths = trajectories(length, limit=length)
    members = list(product(range(len(paths)), repeat=group))
    environment = UnmaskingEnvironment(instance.model, DecodeOptions(1, patience=1))
    followed = [paths[i] for chosen in members for i in chosen]
    scripted = Scripted(PolicyUnmasker(network, "bernoulli"), followed, length)
    blank = instance.blank.expand(len(followed), -1)
    samples = sample(environment, Strategy(scripted, TokenRule(0.0)), Prompts(blank), record=network.inputs)
    reward = instance.reward(samples)
    assert len(paths) == (length + 1) ** length
    assert samples.steps.tolist() == [len(path) for path in followed]

    logits = network.logits.detach().double().requires_grad_()
    probability = torch.stack([path_log_prob(instance, logits, path) for path in paths]).exp()
    assert float(probability.detach().sum()) == pytest.approx(1)
    one_each = torch.tensor(
        [i * sum(len(paths) ** k for k in range(group)) for i in range(len(paths))]
    )  # groups (i, i, ...)
    rewards, steps = (x[one_each * group].double() for x in (reward.total, samples.steps))
    mean = (probability * rewards).sum().detach()
    objective = (1 - 1 / group) * (probability * (rewards - mean) / steps).sum()
    analytic = -torch.autograd.grad(objective, logits)[0]

    algorithm = GRPO(GRPOSettings(**SETTINGS | {"group_size": group}), network)
    learned = algorithm.prepare(samples, reward, network, scripted.unmasker.distribution)
    weight = probability.detach()[torch.tensor(members)].prod(1) * len(members)  # a batch counts every group the same
    learned.weight = learned.weight * weight[learned.trajectory.row // group].float()
    algorithm.loss(network, scripted.unmasker.distribution, learned).backward()
    assert float(analytic.abs().max()) > 0.01
    torch.testing.assert_close(network.logits.grad.double(), analytic, atol=2e-6, rtol=1e-4)


# ---------------------------------------------------------------------------------------- a reward a step


def ordered_paths(length, counts):
    """Every sequence of ordered picks, counts[t] of them at step t."""
    paths = [()]
    for count in counts:
        left = [tuple(i for i in range(length) if all(i not in picks for picks in path)) for path in paths]
        paths = [
            (*path, picks)
            for path, free in zip(paths, left, strict=True)
            for picks in permutations(free, min(count, len(free)))
        ]
    return paths


def revealed_path(model, network, text, path):
    """(log-probability of the picks by the formula of `FixedCount`, log p of the tokens revealed), in float64."""
    table, repulsion = model.table.detach().double(), distribution_settings(network)["repulsion"]
    canvas = [model.mask_id] * len(text)
    log_picks, log_text = network.logits.new_zeros(()), 0.0
    for picks in path:
        state = int(model.state(torch.tensor([canvas])))
        left = {i: network.logits[state, i] for i in range(len(text)) if canvas[i] == model.mask_id}
        for pick in picks:
            log_picks = log_picks + left[pick] - torch.stack(list(left.values())).logsumexp(0)
            left.pop(pick)
            for i in left:
                if abs(i - pick) <= len(repulsion):
                    left[i] = left[i] - repulsion[abs(i - pick) - 1]
        for pick in picks:
            log_text += float(table[state, pick, text[pick]])
            canvas[pick] = text[pick]
    return log_picks, log_text


def test_expected_gradient_from_a_reward_a_step_is_that_of_the_bound():
    """Four positions in three steps (two picks, one, one), in every order of picks; every group of two, weighted by its probability.

    A step's advantage is its return minus the mean of the group's, itself among them with weight 1/G; returns of the others do
    not depend on its picks and what it earned before has no part in its return. All paths have three steps, so the expectation
    is -(1 - 1/G) / 3 times the gradient of E[bound], in the policy's logits and in its repulsion.
    """
    length, group, counts, text = 4, 2, (2, 1, 1), (1, 0, 2, 2)
    model = inconsistent(vocabulary=V, length=length, seed=3)
    network = TablePolicy(SimpleNamespace(length=length, powers=(V + 1) ** torch.arange(length - 1, -1, -1)))
    network.repulsion = nn.Parameter(torch.tensor([0.03, -0.02]))
    with torch.no_grad():
        network.logits.copy_(torch.randn(network.logits.shape, generator=torch.Generator().manual_seed(1)))
    paths = ordered_paths(length, counts)
    members = list(product(range(len(paths)), repeat=group))
    followed = [paths[i] for chosen in members for i in chosen]
    scripted = Scripted(PolicyUnmasker(network, "fixed"), followed, length)
    strategy = TeacherForced(scripted, torch.tensor(text).expand(len(followed), -1))
    blank = torch.full((len(followed), length), V)
    samples = sample(
        UnmaskingEnvironment(model, DecodeOptions(len(counts))), strategy, Prompts(blank), record=network.inputs
    )
    reward = BoundReward()(samples)

    exact = copy.deepcopy(network).double()
    log_picks, log_text = zip(*(revealed_path(model, exact, text, path) for path in paths), strict=True)
    probability, bound = torch.stack(log_picks).exp(), torch.tensor(log_text, dtype=torch.float64) / length
    assert float(probability.detach().sum()) == pytest.approx(1)
    first_of_pair = reward.total.view(len(paths), len(paths), group)[:, 0, 0]
    torch.testing.assert_close(first_of_pair.double(), bound, atol=1e-5, rtol=0)
    (probability * bound).sum().backward()
    analytic = [-(1 - 1 / group) / len(counts) * parameter.grad for parameter in (exact.logits, exact.repulsion)]

    algorithm = GRPO(GRPOSettings(**SETTINGS | {"group_size": group}), network)
    learned = algorithm.prepare(samples, reward, network, scripted.unmasker.distribution)
    weight = probability.detach()[torch.tensor(members)].prod(1) * len(members)  # a batch counts every group the same
    learned.weight = learned.weight * weight[learned.trajectory.row // group].float()
    algorithm.loss(network, scripted.unmasker.distribution, learned).backward()
    for ours, theirs in zip((network.logits.grad, network.repulsion.grad), analytic, strict=True):
        assert float(theirs.abs().max()) > 1e-3
        torch.testing.assert_close(ours.double(), theirs, atol=2e-6, rtol=1e-4)
