"""Labels of a quality head, by enumeration of all draws: what they are the probability of, and where they are."""

from collections import defaultdict
from itertools import permutations, product

import pytest
import torch

from data.settings import ChainSettings
from data.tasks import ChainTask, Task
from dlm.draws import Draws
from dlm.environment import TokenRule
from dlm.observation import Decision
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from rl.quality import SomeOfEach, decoded_canvases, filled_texts
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import StepDecoder, Strategy
from tests.enumerable import dependent_joint, from_joint, inconsistent, random_radd
from tests.every_draw import Chosen, every_run

LENGTH, VOCABULARY = 3, 2


class ChosenMasks(Chosen):
    """All masks at probability `share`, all orders of filling, all tokens."""

    def __init__(self, script, share):
        super().__init__(script)
        object.__setattr__(self, "share", share)

    def uniform(self, stream, row_id, row_step, positions):
        if stream == "mask":
            below = [self.choose([1 - self.share, self.share]) for _ in range(positions)]
            places = torch.arange(1, positions + 1, dtype=torch.float64) / (positions + 1)  # all different
            return torch.where(torch.tensor(below) == 1, self.share * places, self.share + (1 - self.share) * places)[
                None
            ]
        assert stream == "order"
        orders = list(permutations(range(positions)))
        return (
            torch.tensor([orders[self.choose([1 / len(orders)] * len(orders))]], dtype=torch.float64) + 0.5
        ) / positions


def every_labelled(model, joint, count, share, monkeypatch, given=None):
    """[(probability, canvas, position, label)] of all texts, masks, orders and fillings."""
    found = []
    given = torch.zeros(1, LENGTH, dtype=torch.bool) if given is None else given
    monkeypatch.setattr("tests.every_draw.Chosen", lambda script, pinned: ChosenMasks(script, share))
    for text in product(range(VOCABULARY), repeat=LENGTH):

        def run(draws, text=text):
            return filled_texts(model, torch.tensor([text]), given, torch.tensor([share]), count, TokenRule(1.0), draws)

        for probability, rows in every_run(run, monkeypatch):
            weight = float(joint[text]) * probability
            for position in rows.labelled[0].nonzero().flatten().tolist():
                found.append((weight, tuple(rows.tokens[0].tolist()), position, bool(rows.right[0, position])))
    return found


def counted(found):
    """{(canvas, position): the share of right labels}: the head that minimises the cross-entropy, by counting."""
    total, right = defaultdict(float), defaultdict(float)
    for weight, canvas, position, label in found:
        total[canvas, position] += weight
        right[canvas, position] += weight * label
    return {key: right[key] / total[key] for key in total if total[key] > 1e-12}


def leave_one_out(joint, canvas, position):
    """P(x_i = y_i | the other tokens of the canvas) of the data."""
    index = tuple(
        slice(None) if i == position or token == VOCABULARY else slice(token, token + 1)
        for i, token in enumerate(canvas)
    )
    law = joint[index].sum([axis for axis in range(LENGTH) if axis != position])
    return float(law[canvas[position]] / law.sum())


@pytest.mark.parametrize("exact", [True, False])
def test_with_one_filled_position_the_best_head_is_the_leave_one_out_probability_whatever_the_model_is(
    exact, monkeypatch
):
    joint = dependent_joint(VOCABULARY, LENGTH)
    model = from_joint(joint) if exact else inconsistent(VOCABULARY, LENGTH, seed=3)
    found = counted(every_labelled(model, joint, 1, 0.6, monkeypatch))
    assert len({position for _, position in found}) == LENGTH
    for (canvas, position), share in found.items():
        assert share == pytest.approx(leave_one_out(joint, canvas, position), abs=1e-9)


def test_with_two_filled_positions_it_is_the_mixture_over_what_the_model_filled(monkeypatch):
    """Which of the tokens shown the model wrote, the head cannot see: of a canvas with two tokens or three, any two may be."""
    joint, share = dependent_joint(VOCABULARY, LENGTH), 0.6
    model = from_joint(joint)
    found = counted(every_labelled(model, joint, 2, share, monkeypatch))
    table = model.table.detach().double().softmax(-1)
    expected_right, expected_total = defaultdict(float), defaultdict(float)
    for text in product(range(VOCABULARY), repeat=LENGTH):
        for masked in product([False, True], repeat=LENGTH):
            weight = float(joint[text]) * share ** sum(masked) * (1 - share) ** (LENGTH - sum(masked))
            if not any(masked):  # at least one is: the first, which has the lowest number
                masked = (True, False, False)
            places = [i for i in range(LENGTH) if masked[i]]
            canvas = [VOCABULARY if masked[i] else text[i] for i in range(LENGTH)]
            state = int(model.state(torch.tensor([canvas])))
            subsets = [(i,) for i in places] if len(places) == 1 else [(i, j) for i in places for j in places if i < j]
            for subset in subsets:
                for tokens in product(range(VOCABULARY), repeat=len(subset)):
                    shown, chance = list(canvas), weight / len(subsets)
                    for i, token in zip(subset, tokens, strict=True):
                        shown[i], chance = token, chance * float(table[state, i, token])
                    for i, token in zip(subset, tokens, strict=True):
                        expected_total[tuple(shown), i] += chance
                        expected_right[tuple(shown), i] += chance * (token == text[i])
    assert found.keys() == {key for key, total in expected_total.items() if total > 1e-12}
    differences = []
    for key, one in found.items():
        assert one == pytest.approx(expected_right[key] / expected_total[key], abs=1e-9)
        differences.append(abs(one - leave_one_out(joint, *key)))
    assert max(differences) > 0.05  # another quantity than leave-one-out


def test_labels_are_at_filled_positions_only_and_never_in_the_prompt(monkeypatch):
    joint = dependent_joint(VOCABULARY, LENGTH)
    given = torch.tensor([[True, False, False]])
    for count in (1, 2, 3):
        found = every_labelled(from_joint(joint), joint, count, 0.6, monkeypatch, given)
        assert {position for _, _, position, _ in found} == {1, 2}
        assert all(canvas[position] != VOCABULARY for _, canvas, position, _ in found)
    model, texts = random_radd(), torch.randint(11, (64, 20), generator=torch.Generator().manual_seed(0))
    given = torch.arange(20).expand(64, -1) < 5
    rows = filled_texts(model, texts, given, torch.linspace(0, 1, 64), 4, TokenRule(1.0), Draws(0))
    masked = rows.tokens == model.mask_id
    assert (
        not (rows.labelled & (given | masked)).any() and rows.labelled.any(1).all() and rows.labelled.sum(1).max() == 4
    )
    untouched = ~masked & ~rows.labelled
    assert (rows.tokens[untouched] == texts[untouched]).all()
    assert (rows.right == (rows.tokens == texts))[rows.labelled].all() and 0 < rows.right[
        rows.labelled
    ].float().mean() < 1


def test_rows_do_not_depend_on_the_batch():
    model, texts = random_radd(), torch.randint(11, (8, 20), generator=torch.Generator().manual_seed(0))
    given, times = torch.zeros(8, 20, dtype=torch.bool), torch.linspace(0.2, 0.9, 8)
    whole = filled_texts(model, texts, given, times, 4, TokenRule(1.0), Draws(5))
    part = filled_texts(model, texts[4:], given[4:], times[4:], 4, TokenRule(1.0), Draws(5, first=4))
    assert torch.equal(whole.tokens[4:], part.tokens) and torch.equal(whole.labelled[4:], part.labelled)


class Solutions(Task):
    """A task whose right text is that of the prompts."""

    def right_text(self, tokens, committed, prompts):
        return prompts.text


def test_own_decodings_are_canvases_of_the_decoding_with_labels_at_all_committed_positions():
    model, rows = random_radd(), 40
    texts = torch.randint(11, (rows, 12), generator=torch.Generator().manual_seed(1))
    canvas = texts.clone()
    canvas[:, 3:] = model.mask_id
    prompts = Prompts(canvas, text=texts)
    found = decoded_canvases(model, Solutions(), prompts, 0.999, 2, TokenRule(1.0), DecodeOptions(4), seed=3)
    seen = []
    Strategy(UNMASKING_RULES["threshold"](0.999), TokenRule(1.0)).decode(
        model, prompts, DecodeOptions(4), 3, on_step=lambda observation, place: seen.append((place, observation.tokens))
    )
    steps = [sum(int((place == row).sum()) for place, _ in seen) for row in range(rows)]
    at = []
    for kept in range(2 * rows):
        row = kept // 2
        shown = [tokens[place.tolist().index(row)] for place, tokens in seen if row in place.tolist()]
        equal = [bool((tokens == found.tokens[kept]).all()) for tokens in shown]
        assert any(equal)
        at.append(equal.index(True))
    assert max(steps) > 1 and len(set(at)) > 1 and at[::2] != at[1::2]  # not always the first or the last
    masked, texts, canvas = found.tokens == model.mask_id, texts.repeat_interleave(2, 0), canvas.repeat_interleave(2, 0)
    assert torch.equal(found.labelled, ~masked & ~found.given) and torch.equal(found.given, canvas != model.mask_id)
    assert torch.equal(found.right[found.labelled], (found.tokens == texts)[found.labelled])


class Step(StepDecoder):
    """Commits one position a step, with the number of the step as its token."""

    def decide(self, observation, draws):
        order = (observation.writable & (observation.writable.cumsum(1) == 1)).long()
        zeros = torch.zeros(len(order))
        return Decision(order, observation.row_step.unsqueeze(1).expand_as(order), zeros, zeros)


def test_each_step_of_a_decoding_is_kept_equally_often():
    rows, steps, model = 3000, 3, random_radd()
    prompts = Prompts(torch.full((rows, steps), model.mask_id))
    kept = SomeOfEach(prompts, 2, Draws(0))
    Step().decode(model, prompts, DecodeOptions(steps), on_step=kept)
    committed = (kept.tokens != model.mask_id).sum(2).flatten()
    assert torch.equal(kept.open, kept.tokens == model.mask_id)
    counts = torch.bincount(committed, minlength=steps + 1)
    assert counts[0] == 0 and (counts[1:] - 2 * rows / steps).abs().max() < 4.5 * (2 * rows / steps) ** 0.5


def test_the_right_text_of_a_chain_is_the_nearest_list_of_steps():
    task = ChainTask(ChainSettings(steps=3, answer_length=10), 8)
    prompts, first = task.valid, task.prompt
    assert torch.equal(
        task.right_text(prompts.text, torch.ones_like(prompts.text, dtype=torch.bool), prompts), prompts.text
    )
    wrong = prompts.text.clone()
    wrong[:, first + 1] = (wrong[:, first + 1] + 1) % 7  # a value or the result
    committed = torch.ones_like(wrong, dtype=torch.bool)
    nearest = task.right_text(wrong, committed, prompts)
    differs = nearest != wrong
    assert torch.equal(nearest[:, :first], prompts.text[:, :first])
    assert (task.right(nearest, prompts.rows) == 1).all()
    assert (differs.sum(1) <= 1).sum() >= 6 and differs[:, first + 1].any()
    committed[:, first + 1] = False  # what is not committed does not count
    assert torch.equal(task.right_text(wrong, committed, prompts)[:, first + 2 :], prompts.text[:, first + 2 :])
