"""Decoders that edit, against the same decoding in plain Python on models whose outputs are tables."""

import pytest
import torch

from dlm.environment import TokenRule
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.editing import Edit
from samplers.heuristics import Threshold
from samplers.loop import Strategy
from tests.enumerable import TableLM, inconsistent

V, LENGTH = 3, 4
MODEL = inconsistent(V, LENGTH, seed=7)


def canvases(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (rows, LENGTH), generator=generator)
    return tokens.masked_fill(torch.rand(rows, LENGTH, generator=generator) < 0.8, V)


def edited(canvas, threshold, edit_threshold, rounds, remask, block=LENGTH, model=MODEL):
    """(finished canvas, evaluations) of one row in plain Python."""
    table, given, row, evaluations = model.table.detach().exp(), [t != V for t in canvas], list(canvas), 0
    for first in range(0, LENGTH, block):
        places = [i for i in range(first, first + block) if not given[i]]
        used = 0
        if not places:
            continue
        while True:
            predicted = table[int(model.state(torch.tensor([row])))]
            open_places, before = [i for i in places if row[i] == V], list(row)
            full, changed = not open_places, False
            p, v = (found.tolist() for found in predicted.max(1))
            may_edit = used < rounds if full or remask else True
            evaluations += 1
            sure = [i for i in open_places if p[i] > threshold] or sorted(open_places, key=lambda i: -p[i])[:1]
            for i in sure:
                row[i] = v[i]
            for i in places:
                if before[i] != V and v[i] != before[i] and p[i] > edit_threshold and may_edit:
                    row[i], changed = V if remask else v[i], True
            used += changed if remask else full
            if V in [row[i] for i in places]:
                continue
            if edit_threshold >= 1 or used >= rounds or (full and not changed):
                break
    return row, evaluations


@pytest.mark.parametrize("remask", [False, True])
@pytest.mark.parametrize("block", [2, 4])
@pytest.mark.parametrize(
    "threshold, edit_threshold, rounds", [(0.5, 0.0, 16), (0.6, 0.5, 3), (0.4, 0.6, 0), (0.9, 1, 4)]
)
def test_every_row_is_that_of_the_rule_in_plain_python(threshold, edit_threshold, rounds, block, remask):
    canvas = canvases(30, seed=block)
    rule = Edit(TokenRule(0.0), threshold, edit_threshold, rounds, remask)
    options = DecodeOptions(4, block_length=None if block == LENGTH else block)
    samples = rule.decode(MODEL, Prompts(canvas), options, seed=1)
    for row in range(len(canvas)):
        expected, evaluations = edited(canvas[row].tolist(), threshold, edit_threshold, rounds, remask, block)
        assert samples.tokens[row].tolist() == expected and int(samples.evaluations[row]) == evaluations
    assert int(samples.steps.max()) <= rule.most_steps(options, LENGTH)
    assert torch.equal(samples.tokens[samples.prompt], canvas[samples.prompt])


def test_without_edits_it_is_the_threshold_rule():
    canvas = canvases(40, seed=3)
    for tokens in (TokenRule(0.0), TokenRule()):
        plain = Strategy(Threshold(0.55), tokens).decode(MODEL, Prompts(canvas), DecodeOptions(4), seed=5)
        samples = Edit(tokens, 0.55, 1.0).decode(MODEL, Prompts(canvas), DecodeOptions(4), seed=5)
        assert torch.equal(samples.tokens, plain.tokens) and torch.equal(samples.evaluations, plain.evaluations)


def test_a_cycle_of_two_ends_at_the_cap():
    table = torch.zeros(3**2, 2, 2)
    table[:, :, 0] = 3.0  # every canvas says 0, but (0, 0), which says 1
    table[0] = torch.tensor([[0.0, 3.0], [0.0, 3.0]])
    model, rounds = TableLM(table), 5
    samples = Edit(TokenRule(0.0), 0.5, 0.0, rounds).decode(model, Prompts(torch.full((1, 2), 2)), DecodeOptions(2))
    assert samples.evaluations.tolist() == [1 + rounds]
    assert samples.tokens.tolist() == [[1, 1]]  # an odd number of changes
    assert samples.revisions.tolist() == [2 * rounds]


def test_a_budget_ends_it_with_every_position_committed():
    rule = Edit(TokenRule(0.0), 0.3, 0.0, 16)
    samples = rule.decode(MODEL, Prompts(canvases(30, seed=9)), DecodeOptions(4, budget=2), seed=1)
    assert int(samples.evaluations.max()) == 2 and not (samples.tokens == V).any()


def test_rows_decode_the_same_alone():
    canvas, rule = canvases(6, seed=4), Edit(TokenRule(), 0.5, 0.4, 4, True)
    whole = rule.decode(MODEL, Prompts(canvas), DecodeOptions(4), seed=3)
    for row in range(6):
        alone = rule.decode(MODEL, Prompts(canvas[row : row + 1]), DecodeOptions(4), seed=3, row_id=torch.tensor([row]))
        assert torch.equal(alone.tokens[0], whole.tokens[row]) and alone.evaluations[0] == whole.evaluations[row]
