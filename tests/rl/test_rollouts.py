"""Batches of rollouts and of pairs: which canvases are made of which rows, by which draws, and what the loss of pairs is."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from data.pairs import Pairs
from data.tasks import Prompts
from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.likelihood import Elbo, MeanField, log_likelihood
from policy.train import Learner
from rl.preferences import Preferences, margins
from rl.rollouts import Batch, writable
from samplers.loop import Strategy, sample
from samplers.where import Random
from tests.enumerable import RandomLM, random_radd
from training.processes import ALONE


def batch_of(advantage, valid):
    rows = len(advantage)
    tokens, free = torch.zeros(rows, 3, dtype=torch.long), torch.ones(rows, 3, dtype=torch.bool)
    return Batch(tokens, free, torch.zeros_like(tokens), None, torch.tensor(advantage), torch.tensor(valid), 0, 0)


def test_rows_below_their_group_are_pushed_down():
    assert batch_of([1.0, -1.0, 0.0], [True] * 3).push_down.tolist() == [False, True, False]


def test_rows_without_a_reward_have_no_canvases():
    views = batch_of([1.0, 0.0, -1.0], [True, False, True]).views(Elbo(2))
    assert views.row.tolist() == [0, 0, 2, 2]


def test_padding_is_not_written():
    canvas = torch.tensor([[9, 1, 9, 9], [9, 9, 2, 9]])
    start = torch.tensor([1, 0])
    free = writable(Prompts(canvas, {}, start=start), 9)
    assert free.tolist() == [[False, False, True, True], [True, True, False, True]]


def test_rows_of_a_part_of_a_batch_are_drawn_as_in_the_whole():
    model, canvas = RandomLM(5, max_length=6), torch.full((6, 6), 5)

    def decoded(rows, first_row):
        environment = UnmaskingEnvironment(model, 3)
        return sample(environment, Strategy(Random(), TokenRule()), canvas[:rows], 3, first_row=first_row).tokens

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
        def views(self, free, draws, written_at=None):
            seeds.append(draws.seed)
            return super().views(free, draws, written_at)

    first = random_radd()  # the model that training started from
    first.backbone.output_layer.linear.weight += torch.randn(first.backbone.output_layer.linear.weight.shape) / 3

    @contextmanager
    def reference():
        yield first

    config = OmegaConf.create({"seed": 0, "rl": {"batch_size": 2, "kl_beta": 0.3}, "training": {"chunk": 64},
                               "eval": {"batch_size": 2}})  # fmt: skip
    learner = Still.__new__(Still)  # this much of it is read
    learner.processes = ALONE
    made = Preferences(model, learner, reference, Noted(), pairs, pairs, config)
    found = made.iteration(step, print)

    def gain(rows):
        views = MeanField().views(free, Draws(0))
        return sum(sign * log_likelihood(one, MeanField(), rows, views).sum(1)
                   for sign, one in ((1, model), (-1, first)))  # fmt: skip

    margin = gain(chosen) - gain(rejected)
    assert found["loss"] == pytest.approx(float(-F.logsigmoid(0.3 * margin).mean()), abs=1e-4)
    assert found["margin"] == pytest.approx(float(margin.mean()), abs=1e-3) and margin.abs().min() > 0.05
    made.iteration(step + 1, print)
    assert seeds[0] != seeds[1]  # every iteration has masks of its own
