"""What an update sees: replayed log-probabilities, chunks, dropped rows, PPO's values and targets, imitation."""

import pytest
import torch

from data.tasks import Prompts, TextTask
from dlm.environment import TokenRule
from dlm.options import DecodeOptions
from policy import train as loops
from policy.actions import ACTIONS, FOR_SAMPLING
from policy.dit_hidden import DitHidden
from policy.grpo import GRPO
from policy.networks import DitConfidence, HiddenMLP
from policy.ppo import PPO
from policy.rollout import policy_log_probs, rollout
from policy.settings import GRPOSettings, PolicyTrainingSettings, PPOSettings
from policy.unmasker import PolicyUnmasker, distribution_settings
from rewards.rules import RewardOutput
from tests.enumerable import RandomLM
from tests.helpers.rewards import SamplesReward
from training.optim import MovingAverage, Optimiser
from training.processes import Processes
from training.settings import OptimSettings

LENGTH, WIDTH = 6, 4
NO_EXPERTS = {"experts": {"thresholds": [], "block_length": None}}
GRPO_SETTINGS = {
    "name": "grpo", "group_size": 4, "inner_updates": 2, "clip": 0.5, "advantage_std": False, "kl": 0.0, **NO_EXPERTS,
}  # fmt: skip
PPO_SETTINGS = {"name": "ppo", "group_size": 1, "inner_updates": 2, "clip": 0.2, "gae_decay": 0.95, "value_weight": 0.5}
OPTIM = {
    "lr": 1e-2,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "weight_decay": 0.0,
    "warmup": 0,
    "grad_clip": 1.0,
    "schedule": "constant",
}


class WideRandomLM(RandomLM):
    """RandomLM whose hidden state also holds features that a policy can read."""

    def __init__(self):
        super().__init__(5, max_length=LENGTH)
        self.hidden_size = WIDTH
        self.features = torch.randn(1024, WIDTH - 1, generator=torch.Generator().manual_seed(9))

    def hidden_rows(self, tokens, read, sigma):
        place = super().hidden_rows(tokens, read, sigma)
        return torch.cat([place / 1024, self.features[place[:, 0].long()]], 1)

    def head(self, hidden):
        return super().head((hidden[:, :1] * 1024).round())


MODEL = WideRandomLM()


def network_of(kind, seed=0):
    torch.manual_seed(seed)
    if kind == "hidden_mlp":
        return HiddenMLP(WIDTH)
    sizes = {"hidden_dim": 8, "feedforward_dim": 8, "time_embed_dim": 4, "confidences_top_p": 2, "value_head": True}
    if kind == "dit_confidence":
        return DitConfidence(**sizes)
    network = DitConfidence(**sizes, repulsion=3, hidden_size=WIDTH)  # "repelled"
    torch.nn.init.uniform_(network.repulsion, -0.2, 0.2)
    return network


@SamplesReward
def some_reward(samples, rows=None):
    """Any function of the row that differs between rows, but for the first group of four, which agrees."""
    total = samples.tokens.float().mean(1) / samples.evaluations.clamp(min=1)
    total[:4] = 0.3
    return RewardOutput(total)


def rolled_out(kind, action, rows=16, reward=some_reward, steps=4):
    network = network_of(kind)
    unmasker = PolicyUnmasker(network, action)
    canvas = torch.full((rows, LENGTH), MODEL.mask_id)
    canvas[:, 2] = 1  # given
    samples, scored = rollout(
        MODEL, unmasker, TokenRule(), Prompts(canvas, {}), DecodeOptions(steps), reward, seed=1, record=True
    )
    return network, unmasker.distribution, samples, scored


def gradient(network, losses):
    network.zero_grad()
    for loss in losses:
        loss.backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in network.parameters()]


def assert_same(ours, theirs):
    assert any((g != 0).any() for g in theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


# ---------------------------------------------------------------------------------------- replay


@pytest.mark.parametrize("kind", ["hidden_mlp", "dit_confidence"])
@pytest.mark.parametrize("action", ACTIONS)
def test_replay_has_the_log_probability_it_had(kind, action):
    network, distribution, samples, _ = rolled_out(kind, action)
    trajectory = samples.trajectory
    assert len(trajectory.row) == int(samples.steps.sum())
    again, _ = policy_log_probs(network, distribution, trajectory)
    torch.testing.assert_close(again.detach(), trajectory.log_positions, atol=2e-6, rtol=0)
    if kind == "dit_confidence":  # the value head reads the same trunk
        with_value, value = policy_log_probs(network, distribution, trajectory, value=True)
        torch.testing.assert_close(with_value, again)
        assert value.shape == again.shape
    assert not trajectory.writable[:, 2].any() and trajectory.log_positions.isfinite().all()


@pytest.mark.parametrize("steps", [2, 3])
def test_replay_of_picks_that_repel_has_the_log_probability_it_had(steps):
    """Three or two picks a step, of five positions; without the repulsion it is another one."""
    network, distribution, samples, _ = rolled_out("repelled", "fixed", steps=steps)
    trajectory = samples.trajectory
    again, _ = policy_log_probs(network, distribution, trajectory)
    assert torch.exp(again.detach() - trajectory.log_positions).sub(1).abs().max() < 5e-6
    repulsion, network.repulsion = network.repulsion, None
    without, _ = policy_log_probs(network, distribution, trajectory)
    several = (trajectory.order > 0).sum(1) > 1
    assert several.any() and ((without - again).abs() > 1e-3)[several & (trajectory.step == 0)].all()
    network.repulsion = repulsion
    for_repulsion = torch.autograd.grad(again.sum(), repulsion)[0]
    assert (for_repulsion != 0).all()  # it learns with the rest


@pytest.mark.parametrize("action", sorted(ACTIONS.keys() - {"fixed"}))
def test_picks_that_repel_each_other_need_a_fixed_count(action):
    message = (
        f"the positions that this policy selects repel each other, and action '{action}' has no repulsion; use fixed"
    )
    with pytest.raises(ValueError, match=message):
        PolicyUnmasker(network_of("repelled"), action)


def test_what_is_recorded_rebuilds_the_rollout():
    """Every row's steps are 0, 1, 2, ... and its picks are the positions written at them."""
    _, _, samples, _ = rolled_out("dit_confidence", "bernoulli")
    trajectory = samples.trajectory
    for row in range(16):
        mine = trajectory.row == row
        assert trajectory.step[mine].tolist() == list(range(int(samples.steps[row])))
        for step, order in zip(trajectory.step[mine].tolist(), trajectory.order[mine], strict=True):
            assert torch.equal(order > 0, samples.unmasked_at[row] == step)


# ---------------------------------------------------------------------------------------- GRPO


@pytest.mark.parametrize("kind", ["hidden_mlp", "dit_confidence"])
def test_chunks_and_dropped_rows_leave_the_gradient(kind):
    network, distribution, samples, scored = rolled_out(kind, "bernoulli")
    algorithm = GRPO(GRPOSettings.of(GRPO_SETTINGS), network)
    steps = algorithm.prepare(samples, scored, network, distribution)
    assert set(steps.trajectory.row.tolist()) == set(range(4, 16))  # the group that agrees teaches nothing
    whole = gradient(network, [algorithm.loss(network, distribution, steps)])
    chunks = [steps.take(index) for index in torch.arange(len(steps)).split(7)]
    assert_same(gradient(network, [algorithm.loss(network, distribution, chunk) for chunk in chunks]), whole)
    everything = GRPO(GRPOSettings.of(GRPO_SETTINGS | {"kl": 1e-30}), network)  # a KL keeps every step
    all_steps = everything.prepare(samples, scored, network, distribution)
    assert len(all_steps) == len(samples.trajectory.row) > len(steps)
    assert_same(gradient(network, [everything.loss(network, distribution, all_steps)]), whole)


def test_grpo_gradient_from_the_formula():
    """-1/rows sum over rows of A / steps * grad log-probability of the row's picks, A = R - mean R of the group."""
    network, distribution, samples, scored = rolled_out("dit_confidence", "plackett_luce")
    algorithm = GRPO(GRPOSettings.of(GRPO_SETTINGS), network)
    ours = gradient(
        network, [algorithm.loss(network, distribution, algorithm.prepare(samples, scored, network, distribution))]
    )
    reward = scored.total.view(4, 4)
    advantage = (reward - reward.mean(1, keepdim=True)).flatten()
    log_prob, _ = policy_log_probs(network, distribution, samples.trajectory)
    per_row = torch.zeros(16).index_add_(0, samples.trajectory.row, log_prob)
    assert_same(ours, gradient(network, [-(advantage * per_row / samples.steps).mean()]))


def test_kl_is_to_the_policy_that_training_starts_from():
    network, distribution, samples, scored = rolled_out("hidden_mlp", "bernoulli")
    algorithm = GRPO(GRPOSettings.of(GRPO_SETTINGS | {"kl": 0.5}), network)
    without = GRPO(GRPOSettings.of(GRPO_SETTINGS), network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05)
    assert all(not p.requires_grad for p in algorithm.reference.parameters())
    steps = algorithm.prepare(samples, scored, network, distribution)
    extra = algorithm.loss(network, distribution, steps) - without.loss(network, distribution, steps)
    new, _ = policy_log_probs(network, distribution, steps.trajectory)
    old, _ = policy_log_probs(algorithm.reference, distribution, steps.trajectory)
    expected = 0.5 * (steps.weight * (torch.exp(old - new) - 1 - (old - new))).sum()
    torch.testing.assert_close(extra, expected, atol=1e-6, rtol=1e-4)


def test_a_group_needs_two():
    with pytest.raises(ValueError, match="algorithm.group_size=1 must be at least 2"):
        GRPO(GRPOSettings.of(GRPO_SETTINGS | {"group_size": 1}), network_of("hidden_mlp"))


# ---------------------------------------------------------------------------------------- PPO


def test_ppo_advantages_and_targets_are_those_of_a_plain_loop():
    network, distribution, samples, scored = rolled_out("dit_confidence", "bernoulli")
    steps = PPO(PPOSettings.of(PPO_SETTINGS), network).prepare(samples, scored, network, distribution)
    trajectory = samples.trajectory
    value = network.forward_with_value(**trajectory.inputs)[1].detach()
    advantage = torch.zeros_like(value)
    for row in range(16):
        index = (trajectory.row == row).nonzero().squeeze(1).tolist()
        running = 0.0
        for t in reversed(range(len(index))):
            at_end = t == len(index) - 1
            following = 0.0 if at_end else float(value[index[t + 1]])
            delta = (float(scored.total[row]) if at_end else 0.0) + following - float(value[index[t]])
            running = delta + 0.95 * running
            advantage[index[t]] = running
    torch.testing.assert_close(steps.target, advantage + value, atol=1e-5, rtol=1e-5)
    normal = (advantage - advantage.mean()) / advantage.std(correction=0)
    torch.testing.assert_close(steps.advantage, normal, atol=1e-4, rtol=1e-4)


def test_ppo_gradient_from_the_formula():
    network, distribution, samples, scored = rolled_out("dit_confidence", "bernoulli")
    algorithm = PPO(PPOSettings.of(PPO_SETTINGS), network)
    steps = algorithm.prepare(samples, scored, network, distribution)
    whole = gradient(network, [algorithm.loss(network, distribution, steps)])
    assert (network.value_proj.weight.grad != 0).any()
    chunks = [steps.take(index) for index in torch.arange(len(steps)).split(11)]
    assert_same(gradient(network, [algorithm.loss(network, distribution, chunk) for chunk in chunks]), whole)
    log_prob, value = policy_log_probs(network, distribution, samples.trajectory, value=True)
    formula = -(steps.advantage * log_prob).mean() + 0.5 * 0.5 * ((value - steps.target) ** 2).mean()
    assert_same(gradient(network, [formula]), whole)


def test_ppo_refuses_a_network_without_a_value():
    with pytest.raises(ValueError, match="algorithm=ppo needs a value head; use policy=dit_confidence"):
        PPO(PPOSettings.of(PPO_SETTINGS), network_of("hidden_mlp"))


# ---------------------------------------------------------------------------------------- iterations


class BlankTask(TextTask):
    """Blank canvases and random rows."""

    def __init__(self):
        pass

    def prompts(self, count, seed):
        return Prompts(torch.full((count, LENGTH), MODEL.mask_id), {})

    def clean(self, count, seed):
        tokens = torch.randint(0, 5, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
        return tokens, torch.zeros_like(tokens, dtype=torch.bool)


def learner_of(network):
    parameters = list(network.parameters())
    alone = Processes(0, 1, torch.device("cpu"))
    return loops.Learner(
        network, Optimiser(parameters, OptimSettings(**OPTIM), 10), MovingAverage(parameters, 0.9), alone
    )


def config_of(algorithm, **training):
    return PolicyTrainingSettings.of({
        "seed": 0, "algorithm": algorithm,
        "sampler": {"temperature": 1.0, "steps": 3} | dict.fromkeys(("budgets", "block_length", "cache", "refresh")),
        "training": {"chunk": 1000, "accum": 1, "batch_size": 8, **training},
    }, strict=False)  # fmt: skip


def learning(name, config, network, task, reward=some_reward, learner=None):
    """An algorithm of the configuration, ready for iterations."""
    return loops.LEARNING[name](MODEL, learner or learner_of(network), task, reward, config)


def test_a_batch_without_advantages_changes_nothing():
    network = network_of("hidden_mlp")
    before = [p.clone() for p in network.parameters()]
    config = config_of(GRPO_SETTINGS | {"action": "bernoulli"})
    same = SamplesReward(lambda samples, rows: RewardOutput(torch.full((len(samples.tokens),), 0.7)))
    learner = learner_of(network)
    metrics = learning("grpo", config, network, BlankTask(), same, learner).iteration(0)
    assert learner.updates == 0 and "loss" not in metrics and metrics["reward"] == pytest.approx(0.7)
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


class NotedTask(BlankTask):
    """Notes the seeds it is asked with."""

    def __init__(self):
        self.seeds = []

    def prompts(self, count, seed):
        self.seeds.append(seed)
        return super().prompts(count, seed)

    def clean(self, count, seed):
        self.seeds.append(seed)
        return super().clean(count, seed)


def noting(monkeypatch, name, kept):
    """`loops.NAME`, which notes its arguments in `kept`."""
    honest = getattr(loops, name)

    def noted(*arguments, **more):
        kept.append((arguments, more))
        return honest(*arguments, **more)

    monkeypatch.setattr(loops, name, noted)


@pytest.mark.parametrize("algorithm", ["grpo", "imitation", "variational"])
def test_every_iteration_has_draws_of_its_own(algorithm, monkeypatch):
    """Its prompts and what is drawn on them; the same iteration of a resumed run has the same."""
    teaching = {"expert": "threshold", "setting": 0.5, "block_length": None, "reinforce": 0.0, "only_correct": False}
    config = config_of(GRPO_SETTINGS | {"action": "bernoulli"} | teaching | {"name": algorithm})
    network = network_of("hidden_mlp")
    task, drawn = NotedTask(), []
    made = learning(algorithm, config, network, task)
    noting(
        monkeypatch, {"grpo": "rollout", "imitation": "teacher_loss", "variational": "masking_path"}[algorithm], drawn
    )
    for step in (0, 1, 2, 1):
        made.iteration(step)
    place = {"grpo": 6, "imitation": 5, "variational": 5}[algorithm]
    seeds = [getattr(arguments[place], "seed", arguments[place]) for arguments, _ in drawn]
    for own in (seeds, task.seeds):
        assert len(set(own)) == 3 and own[1] == own[3]


def test_rollouts_of_a_prompt_share_its_budget(monkeypatch):
    """Else a group compares rollouts that were allowed more with rollouts that were allowed less."""
    config, network, drawn = config_of(GRPO_SETTINGS | {"action": "bernoulli"}), network_of("hidden_mlp"), []
    config.sampler.budgets, config.training.batch_size = [1, 2, 3, 5], 32
    noting(monkeypatch, "rollout", drawn)
    learning("grpo", config, network, BlankTask()).iteration(0)
    ((arguments, _),) = drawn
    budget = arguments[4].budget.view(8, 4)
    assert (budget == budget[:, :1]).all() and len(budget[:, 0].unique()) > 1


def test_a_kl_is_to_the_policy_that_a_warm_start_leaves(monkeypatch):
    def imitate(self, teaching, rows, step):
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.add_(1.0)
        return {"loss": float(-step)}

    monkeypatch.setattr(loops.GRPOLearning, "imitate", imitate)
    warm = {"updates": 2, "expert": "threshold", "setting": 0.5, "block_length": None, "only_correct": False}
    config = config_of(GRPO_SETTINGS | {"kl": 0.1, "action": "bernoulli", "warm_start": warm})
    made, lines = learning("grpo", config, network_of("hidden_mlp"), BlankTask()), []
    made.say = lines.append
    made.warm_start()
    pairs = zip(made.objective.reference.parameters(), made.network.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert lines == ["learnt from threshold 0.5: loss 2.000 to 1.000"]


class SomebodyElse(Processes):
    """The other of two processes has steps to learn from, this one has none."""

    def mean(self, values):
        return {"steps": 0.5} if values == {"steps": 0.0} else values

    def sum_(self, tensor):
        return tensor

    def average_(self, tensors):
        assert all((tensor == 0).all() for tensor in tensors)
        for tensor in tensors:
            tensor.fill_(0.5)


@pytest.mark.parametrize("kind", ["dit_confidence", "dit_hidden"])
@pytest.mark.parametrize("algorithm", [GRPO_SETTINGS, PPO_SETTINGS], ids=["grpo", "ppo"])
def test_a_process_with_nothing_to_learn_from_joins_every_update(algorithm, kind):
    """Under grpo all its advantages are zero; under ppo its rows had one evaluation each, which was no choice."""
    network = DitHidden(WIDTH, 2, 8, time_embed_dim=4, value_head=True) if kind == "dit_hidden" else network_of(kind)
    before = torch.cat([p.detach().flatten() for p in network.parameters()])
    config, learner = config_of(algorithm | {"action": "bernoulli"}), learner_of(network)
    if algorithm is PPO_SETTINGS:
        config.sampler.budgets = [1]
    learner.processes = SomebodyElse(1, 2, torch.device("cpu"))
    same = SamplesReward(lambda samples, rows: RewardOutput(torch.full((len(samples.tokens),), 0.7)))
    config.training.batch_size = 16  # 8 here
    metrics = learning(algorithm["name"], config, network, BlankTask(), same, learner).iteration(0)
    assert learner.updates == algorithm["inner_updates"] and metrics["loss"] == 0 and metrics["grad_norm"] > 0
    after = torch.cat([p.detach().flatten() for p in network.parameters()])
    assert (after < before).all()  # moved by the other's gradient, all of it


@pytest.mark.parametrize("algorithm", [GRPO_SETTINGS, PPO_SETTINGS], ids=["grpo", "ppo"])
def test_an_iteration_makes_every_inner_update_whatever_the_chunk(algorithm):
    after = []
    for chunk in (1000, 5):
        network = network_of("dit_confidence")
        config = config_of(algorithm | {"action": "bernoulli"}, chunk=chunk)
        learner = learner_of(network)
        metrics = learning(algorithm["name"], config, network, BlankTask(), learner=learner).iteration(0)
        assert learner.updates == 2 and metrics["grad_norm"] > 0
        after.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    torch.testing.assert_close(
        *after, atol=2e-3, rtol=0
    )  # Adam turns rounding near a zero gradient into part of a step
    assert (after[0] - after[1]).abs().mean() < 1e-5


def test_accumulated_parts_average_over_the_batch():
    """Without the score term, parts of a batch add up to its gradient: same picks, since the paths are drawn part by part."""
    config = config_of({"name": "variational", "reinforce": 0.0}, accum=2)
    network = network_of("hidden_mlp")
    tokens, given = BlankTask().clean(8, loops.step_seed(0, 0, 0))
    seen = []
    learner = learner_of(network)
    learner.update = lambda: seen.extend(p.grad.clone() for p in network.parameters()) or {}
    learning("variational", config, network, BlankTask(), learner=learner).iteration(0)
    halves = []
    for number in range(2):
        part = slice(4 * number, 4 * number + 4)
        path = loops.masking_path(
            MODEL, network, tokens[part], given[part], 3, loops.Draws(loops.step_seed(0, 0, 0) * 1009 + number)
        )
        halves.append(loops.bound_loss(network, path, given[part], 0.0)[0])
    assert_same(seen, gradient(network, [sum(halves) / 2]))


CASES = [(kind, action) for kind in ("hidden_mlp", "dit_confidence") for action in ACTIONS] + [("repelled", "fixed")]


@pytest.mark.parametrize("kind, action", CASES)
def test_imitation_learns_the_picks_of_a_rule(kind, action):
    network = network_of(kind)
    warm = {"updates": 20, "expert": "threshold", "setting": 0.5, "block_length": None, "only_correct": False}
    config = config_of(GRPO_SETTINGS | {"action": action, "warm_start": warm}, chunk=40, batch_size=64)
    made, losses = learning("grpo", config, network, BlankTask()), []
    imitate = made.imitate
    made.imitate = lambda *given: losses.append(imitate(*given)["loss"]) or {"loss": losses[-1]}
    made.warm_start()
    assert len(losses) == 20 and sum(losses[-3:]) < sum(losses[:3])  # every loss is that of another batch


def test_a_process_draws_its_rollouts_as_they_are_in_the_whole_batch():
    """The second half of a batch, numbered from its first row on, is decoded as the second half is in one process."""
    unmasker = PolicyUnmasker(network_of("hidden_mlp"), "bernoulli")
    canvas = torch.full((8, LENGTH), MODEL.mask_id)
    whole, half = Prompts(canvas, {}), Prompts(canvas[4:], {}, first_row=4)
    found = [
        rollout(MODEL, unmasker, TokenRule(), p, DecodeOptions(4), some_reward, 1, False)[0].tokens
        for p in (whole, half)
    ]
    assert torch.equal(found[0][4:], found[1]) and not torch.equal(found[0][:4], found[1])


def test_the_moving_average_follows_every_update():
    network = network_of("hidden_mlp")
    learner, before = learner_of(network), [p.detach().clone() for p in network.parameters()]
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.update()
    after = [p.detach().clone() for p in network.parameters()]
    learner.average.copy_to(network.parameters())
    for old, new, mean in zip(before, after, network.parameters(), strict=True):
        assert not torch.equal(mean, old) and not torch.equal(mean, new)


def test_the_temperature_divides_the_scores():
    seen = [PolicyUnmasker(network_of("hidden_mlp"), action, 0.25).distribution.temperature for action in FOR_SAMPLING]
    assert seen == [0.25] * len(FOR_SAMPLING)


def test_repulsion_is_in_units_of_twenty_nats():
    network = network_of("repelled")
    torch.testing.assert_close(distribution_settings(network)["repulsion"], 20 * network.repulsion)
