"""Batches of rollouts and of pairs: which canvases are made of which rows, by which draws, and what the loss of pairs is."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

import rl.train
from data.pairs import Pairs
from data.tasks import Prompts, TextTask
from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.likelihood import Elbo, MeanField, ReplayedTrajectory, ScoreEntropy, log_likelihood
from dlm.options import DecodeOptions
from rewards.rules import RewardOutput
from rl.preferences import Preferences, margins
from rl.rollouts import Batch
from rl.settings import RLTrainingSettings
from rl.train import Rollouts
from samplers.heuristics import Random
from samplers.loop import Strategy, sample
from tests.enumerable import RandomLM, dependent_joint, from_joint, inconsistent, random_radd
from tests.helpers.rewards import SamplesReward
from training.learner import Learner
from training.processes import ALONE
from training.usage import composed
from unmask.build import read_settings


def batch_of(advantage, valid):
    rows = len(advantage)
    tokens, free = torch.zeros(rows, 3, dtype=torch.long), torch.ones(rows, 3, dtype=torch.bool)
    return Batch(tokens, free, torch.zeros_like(tokens), None, torch.tensor(advantage), torch.tensor(valid), 0, 0)


def test_rows_below_their_group_are_pushed_down():
    assert batch_of([1.0, -1.0, 0.0], [True] * 3).push_down.tolist() == [False, True, False]


def test_rows_without_a_reward_have_no_canvases():
    views = batch_of([1.0, 0.0, -1.0], [True, False, True]).views(Elbo(2))
    assert views.row.tolist() == [0, 0, 2, 2]


def ended_rows(tokens, unmasked_at):
    """Rows whose answer ends at token 1; -1: filled up behind it."""
    tokens, unmasked_at = torch.tensor(tokens), torch.tensor(unmasked_at)
    rows = len(tokens)
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), unmasked_at, None, torch.zeros(rows),
                 torch.ones(rows, dtype=torch.bool), 0, 0, ends=(1,))  # fmt: skip


def test_a_likelihood_is_of_the_answer_and_its_end_and_not_of_what_fills_the_canvas():
    joint = dependent_joint(2, 3)
    model, log_p = from_joint(joint), lambda *tokens: float(joint[tokens].sum().log())
    filled = ended_rows([[0, 1, 1], [1, 1, 1]], [[0, 1, -1], [0, -1, -1]])
    expected = [log_p(0, 1), log_p(1)]  # marginals: the tail stays open
    for estimator, tolerance in ((Elbo(2000), 0.03), (ReplayedTrajectory(), 1e-5)):
        found = log_likelihood(model, estimator, filled.tokens, filled.views(estimator)).sum(1)
        assert found.tolist() == pytest.approx(expected, abs=tolerance)
        assert filled.decided(estimator).sum(1).tolist() == [2, 1]
    alone = log_likelihood(model, MeanField(), filled.tokens, filled.views(MeanField())).sum(1)
    assert float(alone[0]) == pytest.approx(log_p(0) + float(joint[:, 1].sum().log()), abs=1e-5)
    # a token that was drawn behind the place of the end, before the end was
    early = ended_rows([[0, 1, 0]], [[1, 2, 0]])
    found = {name: float(log_likelihood(model, one, early.tokens, early.views(one)).sum())
             for name, one in (("elbo", Elbo(2000)), ("trajectory", ReplayedTrajectory()))}  # fmt: skip
    assert found["trajectory"] == pytest.approx(log_p(0, 1, 0), abs=1e-5)
    assert found["elbo"] == pytest.approx(log_p(0, 1), abs=0.03)


def test_noise_levels_know_of_positions_that_stay_open():
    """Of 8 positions 2 are decided and 6 stay masked: at every level at least 6 / 8 are."""
    model, told = random_radd(), []
    model.sigma_of = lambda share: told.append(share) or None
    model.log_scale = lambda sigma: torch.zeros_like(sigma)
    batch = ended_rows([[0, 1, *[1] * 6]], [[0, 1, *[-1] * 6]])
    views = batch.views(ScoreEntropy(8))
    log_likelihood(model, ScoreEntropy(8), batch.tokens, views)
    (share,) = told
    torch.testing.assert_close(share, (6 + 2 * -torch.expm1(-views.sigma.double())) / 8)


def test_updates_divide_by_the_positions_that_were_decided(monkeypatch):
    config = composed("train_rl", ["rl.batch_size=4", "rl.group_size=2", "rl.kl_beta=0.0", "sampler.steps=6"])
    model, canvas = inconsistent(3, 6), torch.full((2, 6), 3)
    task = TextTask.__new__(TextTask)  # this much of it is read
    task.ends, task.prompts = (1,), lambda count, seed: Prompts(canvas, {})
    learner = Still.__new__(Still)
    learner.processes, seen = ALONE, []
    loss = rl.train.policy_loss
    monkeypatch.setattr(rl.train, "policy_loss", lambda *given: seen.append(given[3]) or loss(*given))
    reward = SamplesReward(lambda samples, rows: RewardOutput(torch.arange(4.0)))
    decoder = Strategy(Random(), TokenRule())
    made = Rollouts(
        model,
        learner,
        None,
        Elbo(2),
        task,
        reward,
        decoder,
        read_settings(RLTrainingSettings, config),
        lambda directory: None,
    )
    made.iteration(0)
    assert made.batch is not None
    ended = made.batch.tokens == 1
    expected = (ended.cumsum(1) - ended.long()) == 0
    assert torch.equal(seen[0], expected) and 4 < int(expected.sum()) < 24


def test_padding_is_not_written():
    canvas = torch.tensor([[9, 1, 9, 9], [9, 9, 2, 9]])
    start = torch.tensor([1, 0])
    free = Prompts(canvas, start=start).open_positions(9)
    assert free.tolist() == [[False, False, True, True], [True, True, False, True]]


def test_rows_of_a_part_of_a_batch_are_drawn_as_in_the_whole():
    model, canvas = RandomLM(5, max_length=6), torch.full((6, 6), 5)

    def decoded(rows, first_row):
        environment = UnmaskingEnvironment(model, DecodeOptions(3))
        return sample(
            environment, Strategy(Random(), TokenRule()), Prompts(canvas[:rows], first_row=first_row), 3
        ).tokens

    whole = decoded(6, 0)
    assert torch.equal(decoded(4, 2), whole[2:]) and not torch.equal(decoded(4, 0), whole[2:])
    logits, row, place = torch.zeros(64, 9), torch.arange(64), torch.zeros(64, dtype=torch.long)
    assert torch.equal(Draws(1, first=7).categorical(logits, row, place, place),
                       Draws(1).categorical(logits, row + 7, place, place))  # fmt: skip


def test_a_margin_is_that_of_the_chosen_over_the_rejected():
    new = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.5, 0.0], [4.0, 0.0]])
    assert margins(new, torch.zeros_like(new)).tolist() == [2.5, -4.0]


class Still(Learner):
    """Its weights stay."""

    def update(self):
        return {}


@pytest.mark.parametrize("step", [0, 1])
def test_the_loss_of_pairs_is_that_of_the_definition(step):
    """-log sigmoid(beta * margin) of the mean field, whose one canvas has all behind the prompt masked."""
    model = random_radd()
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (torch.randint(11, (2, 12), generator=generator) for _ in range(2))
    free = torch.ones_like(chosen, dtype=torch.bool)
    free[:, :3] = False
    rejected = torch.where(free, rejected, chosen)
    pairs, seeds = Pairs(chosen, rejected, free), []

    class Noted(MeanField):
        def views(self, free, draws, unmasked_at=None):
            seeds.append(draws.seed)
            return super().views(free, draws, unmasked_at)

    first = random_radd()  # the model that training started from
    first.backbone.output_layer.linear.weight += torch.randn(first.backbone.output_layer.linear.weight.shape) / 3

    @contextmanager
    def reference():
        yield first

    config = RLTrainingSettings.of({"seed": 0, "rl": {"batch_size": 2, "kl_beta": 0.3}, "training": {"chunk": 64},
                               "eval": {"batch_size": 2}})  # fmt: skip
    learner = Still.__new__(Still)  # this much of it is read
    learner.processes = ALONE
    made = Preferences(model, learner, reference, Noted(), pairs, pairs, config, lambda directory: None)
    found = made.iteration(step)

    def gain(rows):
        views = MeanField().views(free, Draws(0))
        return sum(sign * log_likelihood(one, MeanField(), rows, views).sum(1)
                   for sign, one in ((1, model), (-1, first)))  # fmt: skip

    margin = gain(chosen) - gain(rejected)
    assert found["loss"] == pytest.approx(float(-F.logsigmoid(0.3 * margin).mean()), abs=1e-4)
    assert found["margin"] == pytest.approx(float(margin.mean()), abs=1e-3) and margin.abs().min() > 0.05
    made.iteration(step + 1)
    assert seeds[0] != seeds[1]  # every iteration has masks of its own
