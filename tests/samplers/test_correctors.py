"""Informed correctors: an exact Gibbs step, what is chosen, and what it costs."""

from itertools import product

import pytest
import torch

from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.observation import Decision
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.correctors import Informed, margins
from samplers.quality import left_out
from tests.enumerable import dependent_joint, fits, from_joint, inconsistent

V, LENGTH = 3, 3
JOINT = dependent_joint(V, LENGTH, seed=4)
MODEL = from_joint(JOINT)
LAW = {tuple(index.tolist()): float(JOINT[tuple(index)]) for index in (JOINT >= 0).nonzero()}


def corrected_law(law, count):
    """The law after one corrector step at `count` uniform positions at once, by enumeration."""
    subsets = [s for s in product((False, True), repeat=LENGTH) if sum(s) == count]
    found = dict.fromkeys(law, 0.0)
    for tokens, weight in law.items():
        for subset in subsets:
            conditionals = [
                JOINT[tuple(slice(None) if i == j else tokens[j] for j in range(LENGTH))] for i in range(LENGTH)
            ]
            choices = [
                [(v, float(conditionals[i][v] / conditionals[i].sum())) for v in range(V)] if subset[i] else [(tokens[i], 1.0)]
                for i in range(LENGTH)
            ]  # fmt: skip
            for picked in product(*choices):
                chance = weight / len(subsets)
                for _, p in picked:
                    chance *= p
                found[tuple(v for v, _ in picked)] += chance
    return found


def decoded(rows, seed=3, steps=LENGTH, model=MODEL, **settings):
    rule = Informed(TokenRule(), **settings)
    return rule.decode(model, Prompts(torch.full((rows, model.length), model.mask_id)), DecodeOptions(steps), seed)


def test_one_uniform_position_is_a_gibbs_step():
    """One position a step samples the joint itself, and Gibbs steps leave it as it is."""
    assert max(abs(corrected_law(LAW, 1)[key] - LAW[key]) for key in LAW) < 1e-15
    samples = decoded(5000, select="uniform", count=1, rounds=2)
    fits(samples.tokens, LAW)
    assert samples.revisions.sum() > 5000
    assert (samples.evaluations == 3 + 6).all()  # the first corrector steps follow one committed token


class Filled(Informed):
    """Fills every position in its first step, with one token each of a given law, and then corrects."""

    def revise(self, observation, draws):
        if int(observation.row_step[0]):
            return super().revise(observation, draws)
        zeros = torch.zeros(len(observation.tokens))
        going_on = torch.ones(len(zeros), dtype=torch.bool)
        return Decision(torch.ones_like(observation.tokens), FILLED[observation.row_id], zeros, zeros, None, going_on)


ROWS = 6000
FILLED = torch.tensor(list(LAW))[
    torch.multinomial(JOINT.flatten(), ROWS, replacement=True, generator=torch.Generator().manual_seed(1))
]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_corrector_step_has_the_law_of_its_enumeration(count):
    """Several positions at once are not a Gibbs step: their law is another one, and it is sampled too."""
    rule = Filled(TokenRule(), count=count, rounds=1, select="uniform")
    samples = rule.decode(MODEL, Prompts(torch.full((ROWS, LENGTH), V)), DecodeOptions(1), seed=5)
    law = corrected_law(LAW, count)
    fits(samples.tokens, law)
    assert (samples.evaluations == count).all()
    distance = sum(abs(law[key] - LAW[key]) for key in LAW) / 2
    assert (distance > 0.05) == (count > 1)


def test_states_without_a_token_are_those_of_the_masked_position():
    model = inconsistent(3, 4, seed=1)
    tokens = torch.tensor([[0, 3, 1, 2], [2, 1, 3, 0]])
    environment = UnmaskingEnvironment(model, DecodeOptions(4, revise=True, max_steps=9))
    observation = environment.reset(Prompts(tokens))
    draws, positions = Draws(0), tokens < 3

    states = left_out(observation, positions, None, draws)
    for row, position in positions.nonzero().tolist():
        canvas = tokens[row].clone()
        canvas[position] = 3
        assert states[row, position].tolist() == [float(model.state(canvas[None])), position]
        logits = model.table.detach()[int(model.state(canvas[None])), position]
        shown = int(tokens[row, position])
        others = [float(logits[v]) for v in range(3) if v != shown]
        found = margins(observation, states, positions)[row, position]
        assert float(found.detach()) == pytest.approx(float(logits[shown]) - max(others), abs=1e-5)
    assert environment.evaluations.tolist() == [3, 3] and environment.forwards == 1
    left_out(observation, positions, 2, draws)
    assert environment.evaluations.tolist() == [5, 5]


def test_the_lowest_margin_is_drawn_again_without_noise():
    model = inconsistent(2, 3, seed=6)
    seen = []

    class Watched(Informed):
        def correct(self, observation, correcting, draws):
            chosen, tokens, log_tokens = super().correct(observation, correcting, draws)
            committed = observation.revisable & correcting
            if committed.any():
                states = left_out(observation, committed, None, draws)
                lowest = margins(observation, states, committed).masked_fill(~committed, torch.inf).argmin(1)
                rows = committed.any(1)
                assert torch.equal(chosen[rows].long().argmax(1), lowest[rows]) and (chosen.sum(1) == rows).all()
                seen.append(int(rows.sum()))
            return chosen, tokens, log_tokens

    rule = Watched(TokenRule(), select="margin", noise=0.0, rounds=1)
    rule.decode(model, Prompts(torch.full((30, 3), 2)), DecodeOptions(3), seed=2)
    assert seen == [30, 30, 30]


def test_rows_decode_the_same_alone_and_in_blocks():
    model = inconsistent(2, 4, seed=5)
    canvas = torch.full((5, 4), 2)
    canvas[1, 0], canvas[2, 3] = 1, 0
    rule, options = Informed(TokenRule(), 1, 2, noise=0.5), DecodeOptions(4, block_length=2)
    whole = rule.decode(model, Prompts(canvas), options, seed=3)
    assert not (whole.tokens == 2).any() and torch.equal(whole.tokens[whole.prompt], canvas[whole.prompt])
    assert whole.steps.tolist() == [12] * 5
    for row in range(5):
        alone = rule.decode(model, Prompts(canvas[row : row + 1]), options, seed=3, row_id=torch.tensor([row]))
        assert torch.equal(alone.tokens[0], whole.tokens[row]) and alone.evaluations[0] == whole.evaluations[row]


def test_without_corrector_steps_it_commits_equal_parts():
    samples = decoded(200, rounds=0)
    assert (samples.evaluations == LENGTH).all() and not samples.revisions.any()
