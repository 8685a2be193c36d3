"""Best of N: N samples that differ, the best of them, at N times the cost; and a published one that compared N equal samples."""

import pytest
import torch

from dlm.environment import UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from dlm.token_rule import TokenRule
from samplers.best_of import BestOf
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import Strategy, sample
from tests.enumerable import RandomLM, dependent_joint, fits, from_joint


def rewards(tokens, start):
    return (tokens * 7 ** torch.arange(tokens.shape[1])).sum(1).float()


def decode(model, count, rows=(0, 1, 2), seed=0, token_sampler=None, reward=rewards):
    canvas = torch.full((len(rows), 5), model.mask_id)
    strategy = Strategy(UNMASKING_RULES["leftmost" if model.causal else "random"](), token_sampler or TokenRule())
    arguments = model, Prompts(canvas), DecodeOptions(5), seed, torch.tensor(rows)
    decoder = BestOf(strategy, count, reward)
    return decoder.decode(*arguments), decoder.candidates(*arguments)[1]


def test_no_two_rows_share_a_sample():
    seen = []

    def keep(tokens, start):
        seen.append(tokens)
        return rewards(tokens, start)

    decode(RandomLM(40, spread=0.1), 8, reward=keep)
    assert len(seen[0].unique(dim=0)) == 24  # of 40^5 texts


@pytest.mark.parametrize("causal", [False, True])
def test_ten_samples_differ_and_the_best_is_kept(causal):
    model = RandomLM(6, causal=causal, spread=0.5)
    kept, seen = decode(model, 10)
    assert all(len(row.unique()) >= 8 for row in seen)
    assert torch.equal(rewards(kept.tokens, None), seen.max(1).values)
    assert kept.evaluations.tolist() == [50, 50, 50] and (kept.tokens != model.mask_id).all()


def test_a_nucleus_of_nothing_would_be_greedy_and_is_refused():
    with pytest.raises(ValueError, match="top_p=0.0 must be in"):
        TokenRule(1.0, 0.0, 10)
    seen = decode(RandomLM(6, spread=0.5), 10, token_sampler=TokenRule(top_k=4))[1]
    assert all(len(row.unique()) >= 6 for row in seen)


def test_one_of_one_is_plain_sampling_and_rows_do_not_know_their_batch():
    model = RandomLM(6)
    kept, _ = decode(model, 1)
    plain = sample(
        UnmaskingEnvironment(model, DecodeOptions(5)),
        Strategy(UNMASKING_RULES["random"](), TokenRule()),
        Prompts(torch.full((3, 5), 6)),
        0,
    )
    assert torch.equal(kept.tokens, plain.tokens)
    whole, alone = decode(model, 4, rows=(3, 7, 9))[0], decode(model, 4, rows=(7,))[0]
    assert torch.equal(whole.tokens[1], alone.tokens[0])


def test_the_law_is_that_of_the_best_of_n_draws():
    joint = dependent_joint(vocabulary=3, length=2, seed=3)
    model = from_joint(joint)
    worth = torch.tensor([0.3, 0.9, 0.1, 0.7, 0.2, 0.5, 0.8, 0.4, 0.6])
    order = sorted((float(worth[3 * a + b]), (a, b)) for a in range(3) for b in range(3))
    law, below = {}, 0.0
    for _, text in order:
        chance = float(joint[text])
        law[text], below = (below + chance) ** 3 - below**3, below + chance
    score = lambda tokens, start: worth[3 * tokens[:, 0] + tokens[:, 1]]
    canvas = torch.full((20_000, 2), model.mask_id)
    decoder = BestOf(Strategy(UNMASKING_RULES["random"](), TokenRule()), 3, score)
    kept = decoder.decode(model, Prompts(canvas), DecodeOptions(2))
    fits(kept.tokens, law)


def test_the_worst_reward_is_never_chosen_and_a_row_without_another_ends_no_other():
    worst = lambda tokens, start: torch.where(torch.arange(len(tokens)) % 3 < 2, -torch.inf, 1.0)  # the last of three
    arguments = RandomLM(6), Prompts(torch.full((2, 2), 6)), DecodeOptions(2)
    decoder = BestOf(Strategy(UNMASKING_RULES["random"](), TokenRule()), 3, worst)
    kept, found = decoder.decode(*arguments), decoder.candidates(*arguments)[1]
    assert found.argmax(1).tolist() == [2, 2]
    dead = lambda tokens, start: torch.where(torch.arange(len(tokens)) < 3, -torch.inf, worst(tokens, start))
    decoder = BestOf(decoder.decoder, 3, dead)
    again, found = decoder.decode(*arguments), decoder.candidates(*arguments)[1]
    assert found[0].tolist() == [-torch.inf] * 3 and torch.equal(again.tokens[1], kept.tokens[1])


def test_a_reward_that_is_no_number_stops_it():
    with pytest.raises(FloatingPointError, match=r"reward of a sample is not a finite number \(row 0"):
        decode(RandomLM(6), 2, reward=lambda tokens, start: rewards(tokens, start) * torch.nan)
