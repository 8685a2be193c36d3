"""P2 and PRISM: exact counts after every step, the scores that decide, and the rules against plain Python."""

import math
from dataclasses import dataclass
from itertools import product

import pytest
import torch

from dlm.environment import TokenRule
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.planning import KAPPA, P2, PRISM
from tests.enumerable import TableLM, fits, inconsistent

V, LENGTH = 3, 4
MODEL = inconsistent(V, LENGTH, seed=7)


def canvases(rows, seed, share=0.8):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (rows, LENGTH), generator=generator)
    return tokens.masked_fill(torch.rand(rows, LENGTH, generator=generator) < share, V)


class Counted:
    """The number of open positions of each row after every step, and the canvases."""

    def __init__(self):
        self.open, self.tokens = [], []

    def __call__(self, observation, place):
        self.open.append(dict(zip(place.tolist(), observation.masked.sum(1).tolist(), strict=True)))
        self.tokens.append(dict(zip(place.tolist(), observation.tokens.tolist(), strict=True)))


# --------------------------------------------------------------------------------------------------------------------- P2


def planned_path(canvas, steps, schedule="linear", eta=1.0, reads="shown"):
    """(finished canvas, canvases) of one row of P2 at temperature 0, in plain Python."""
    table, row = MODEL.table.detach().double().log_softmax(-1), list(canvas)
    free, path = [i for i in range(LENGTH) if canvas[i] == V], []
    for step in range(1, steps + 1):
        predicted = table[int(MODEL.state(torch.tensor([row])))]
        drawn = {i: int(predicted[i].argmax()) for i in free}
        score = {}
        for i in free:
            token = row[i] if row[i] != V and reads == "shown" else drawn[i]
            score[i] = float(predicted[i, token]) * (eta if row[i] != V else 1.0)
            if eta == 0 and row[i] != V:
                score[i] = 1.0
        kappa = float(KAPPA[schedule](torch.tensor(step / steps, dtype=torch.float64)))
        masked = sorted(free, key=lambda i: score[i])[: int(len(free) * (1 - kappa) + 1e-9)]
        row = [V if i in masked else drawn[i] if i in free and row[i] == V else token for i, token in enumerate(row)]
        path.append(list(row))
    return row, path


@pytest.mark.parametrize("reads", ["shown", "drawn"])
@pytest.mark.parametrize("schedule, eta", [("linear", 1.0), ("square", 2.0), ("sine", 0.0), ("root", 0.5)])
def test_every_canvas_of_p2_is_that_of_plain_python(schedule, eta, reads):
    canvas, steps, counted = canvases(40, seed=2), 6, Counted()
    samples = P2(TokenRule(0.0), schedule, eta, reads).decode(
        MODEL, Prompts(canvas), DecodeOptions(steps), seed=1, on_step=counted
    )
    for row in range(len(canvas)):
        expected, path = planned_path(canvas[row].tolist(), steps, schedule, eta, reads)
        assert samples.tokens[row].tolist() == expected
        for step, tokens in enumerate(counted.tokens):
            if row in tokens:
                assert tokens[row] == path[step]
    assert bool(samples.revisions.any()) == (eta > 0)


@pytest.mark.parametrize("schedule", KAPPA)
@pytest.mark.parametrize("score", ["probability", "random"])
def test_as_many_positions_are_masked_as_the_schedule_says(schedule, score):
    steps, counted = 5, Counted()
    samples = P2(TokenRule(), schedule, score=score).decode(
        MODEL, Prompts(torch.full((30, LENGTH), V)), DecodeOptions(steps), seed=4, on_step=counted
    )
    for step, numbers in enumerate(counted.open, start=1):
        kappa = float(KAPPA[schedule](torch.tensor(step / steps, dtype=torch.float64)))
        assert set(numbers.values()) == {int(LENGTH * (1 - kappa) + 1e-9)}
    assert KAPPA[schedule](torch.tensor(1.0, dtype=torch.float64)) == 1 and not (samples.tokens == V).any()


def test_a_sure_other_token_saves_a_wrong_one_only_where_the_drawn_token_is_scored():
    """The reading of the code and that of the paper, at a canvas that shows 0 where the model is sure of 1."""
    probability = torch.full((3**2, 2, 2), 0.5)
    probability[8] = torch.tensor([[0.9, 0.1], [0.6, 0.4]])  # blank: 0 at the first position
    probability[2] = torch.tensor([[0.01, 0.99], [0.2, 0.8]])  # (0, mask): the first should have been 1
    model = TableLM(probability.log())
    changed = {}
    for reads in ("shown", "drawn"):
        samples = P2(TokenRule(0.0), "square", reads=reads).decode(
            model, Prompts(torch.full((1, 2), 2)), DecodeOptions(5), seed=0
        )
        changed[reads] = samples.revisions.tolist()
    assert changed["drawn"] == [0] and changed["shown"][0] > 0


def test_random_scores_that_keep_committed_tokens_are_ancestral_sampling_with_equal_counts():
    steps = 2
    samples = P2(TokenRule(), "linear", 0.0, score="random").decode(
        MODEL, Prompts(torch.full((6000, LENGTH), V)), DecodeOptions(steps), seed=9
    )
    table, law = MODEL.table.detach().double().softmax(-1), {}
    blank = [V] * LENGTH
    pairs = [(i, j) for i in range(LENGTH) for j in range(i)]
    for pair in pairs:
        for first in product(range(V), repeat=2):
            half = list(blank)
            chance = 1 / len(pairs)
            for place, token in zip(pair, first, strict=True):
                half[place] = token
                chance *= float(table[-1, place, token])
            predicted = table[int(MODEL.state(torch.tensor([half])))]
            rest = [i for i in range(LENGTH) if i not in pair]
            for second in product(range(V), repeat=2):
                whole, weight = list(half), chance
                for place, token in zip(rest, second, strict=True):
                    whole[place] = token
                    weight *= float(predicted[place, token])
                law[tuple(whole)] = law.get(tuple(whole), 0.0) + weight
    fits(samples.tokens, law)
    assert not samples.revisions.any() and (samples.evaluations == steps).all()


# ------------------------------------------------------------------------------------------------------------------ PRISM


@dataclass
class TableQuality:
    """A quality that is a fixed number for each position and token."""

    values: torch.Tensor

    def log_quality(self, observation, positions, draws):
        place = torch.arange(observation.tokens.shape[1])
        found = self.values[place, observation.tokens.clamp(max=self.values.shape[1] - 1)]
        return torch.where(positions, found, 0.0)


WIDE = inconsistent(2, 7, seed=3)
QUALITY = TableQuality(-torch.rand(7, 2, generator=torch.Generator().manual_seed(5)))


def test_prism_masks_the_tokens_of_lowest_quality_and_keeps_the_planned_number():
    steps, count, counted = 7, 2, Counted()
    prompts = Prompts(torch.full((20, 7), 2))
    rule = PRISM(TokenRule(), "count", count, quality=QUALITY)
    samples = rule.decode(WIDE, prompts, DecodeOptions(steps), seed=2, on_step=counted)
    before = dict.fromkeys(range(20), [2] * 7)
    for step, canvas in enumerate(counted.tokens, start=1):
        for row, tokens in canvas.items():
            generated = [i for i in range(7) if before[row][i] != 2]
            remasked = [i for i in generated if tokens[i] == 2]
            active = count < len(generated) < 7 - count
            worst = sorted(generated, key=lambda i: float(QUALITY.values[i, before[row][i]]))
            expected = worst[: min(count, 7 - math.ceil(7 * step / steps))] if active else []
            assert sorted(remasked) == sorted(expected)
            assert sum(token != 2 for token in tokens) == math.ceil(7 * step / steps)
            before[row] = tokens
    assert (samples.revisions > 2).all() and not (samples.tokens == 2).any()
    assert (samples.evaluations == steps).all()


def test_the_prompt_is_never_masked_and_blocks_have_their_own_plan():
    canvas = torch.full((10, 8), 2)
    canvas[:, 1], canvas[:, 6] = 1, 0
    model, quality = inconsistent(2, 8, seed=3), TableQuality(-torch.rand(8, 2))
    counted = Counted()
    samples = PRISM(TokenRule(), "count", 1, quality=quality).decode(
        model, Prompts(canvas), DecodeOptions(8, block_length=4), seed=1, on_step=counted
    )
    assert torch.equal(samples.tokens[samples.prompt], canvas[samples.prompt])
    assert [set(numbers.values()) for numbers in counted.open] == [{5}, {4}, {3}, {2}, {1}, {0}]


def test_the_binomial_form_masks_as_many_as_its_law_says():
    """At step i of 7 one position a step is committed: sigma = min(eta, (1 - (i + 1) / 7) / (i / 7))."""
    counted, rows, eta = Counted(), 4000, 0.3
    rule = PRISM(TokenRule(), "binomial", eta=eta, quality=QUALITY)
    rule.decode(WIDE, Prompts(torch.full((rows, 7), 2)), DecodeOptions(7), seed=2, on_step=counted)
    before = torch.tensor([counted.tokens[2][row] for row in range(rows)])
    after = torch.tensor([counted.tokens[3][row] for row in range(rows)])
    number = ((before != 2) & (after == 2)).sum(1)
    law = {(n,): math.comb(3, n) * eta**n * (1 - eta) ** (3 - n) for n in range(4)}
    law[0,] += law.pop((3,))  # not if as many would be masked as are generated
    fits(number[:, None], law)


def test_remasking_begins_and_ends_with_its_share_of_the_steps():
    counted = Counted()
    rule = PRISM(TokenRule(), "count", 1, begin=3 / 7, end=5 / 7, quality=QUALITY)
    samples = rule.decode(WIDE, Prompts(torch.full((20, 7), 2)), DecodeOptions(7), seed=2, on_step=counted)
    assert set(samples.history[:, 4].tolist()) == {3, 4}


def test_by_confidence_the_surest_positions_are_committed():
    rule = PRISM(TokenRule(0.0), "count", 9, order="confidence", quality=QUALITY)  # never more than 9
    samples = rule.decode(WIDE, Prompts(torch.full((1, 7), 2)), DecodeOptions(7), seed=2)
    table, row = WIDE.table.detach(), [2] * 7
    for _ in range(7):
        predicted = table[int(WIDE.state(torch.tensor([row])))].max(1)
        place = max((i for i in range(7) if row[i] == 2), key=lambda i: float(predicted.values[i]))
        row[place] = int(predicted.indices[place])
    assert samples.tokens[0].tolist() == row


@pytest.mark.parametrize(
    "rule",
    [P2(TokenRule(), "sine", 1.5), P2(TokenRule(), score="random"), PRISM(TokenRule(), "binomial", eta=0.5)],
    ids=str,
)
def test_rows_decode_the_same_alone_and_within_a_budget(rule):
    canvas = canvases(6, seed=8)
    whole = rule.decode(MODEL, Prompts(canvas), DecodeOptions(5), seed=3)
    for row in range(6):
        alone = rule.decode(MODEL, Prompts(canvas[row : row + 1]), DecodeOptions(5), seed=3, row_id=torch.tensor([row]))
        assert torch.equal(alone.tokens[0], whole.tokens[row]) and alone.evaluations[0] == whole.evaluations[row]
    short = rule.decode(MODEL, Prompts(canvas), DecodeOptions(5, budget=2), seed=3)
    assert int(short.evaluations.max()) == 2 and not (short.tokens == V).any()


def test_the_quality_decides_in_p2():
    values = torch.tensor([[-90.0, -90.0], *[[-0.1, -0.1]] * 6])  # the first position is always doubtful
    rule = P2(TokenRule(), reads="quality", quality=TableQuality(values))
    samples = rule.decode(WIDE, Prompts(torch.full((20, 7), 2)), DecodeOptions(7), seed=2)
    assert (samples.unmasked_at[:, 0] >= 5).all()  # of the last two open positions, any may be committed first
    reopened = samples.history[samples.history[:, 1] == 0]
    assert len(reopened) > 10 and (reopened[:, 4] == reopened[:, 3] + 1).all()


def test_bad_settings_are_one_sentence():
    with pytest.raises(ValueError, match="reads='seen' is unknown; use one of shown, drawn, quality"):
        P2(TokenRule(), reads="seen")
    with pytest.raises(ValueError, match="reads=quality needs a source of quality"):
        P2(TokenRule(), reads="quality")
    with pytest.raises(ValueError, match="form='all' is unknown; use one of count, binomial"):
        PRISM(TokenRule(), "all")
