"""Vocabulary heads: what pairs are compared by is what the definition says, canvas by canvas."""

from pathlib import Path

import pytest
import torch

from data.pairs import Pairs
from data.preferences import Preference
from load_model import load_model
from rewards.models import VocabularyHead
from rl.vocabulary_head import canvas_pairs, compared, entries, margins, pair_masks

ROOT = Path(__file__).resolve().parents[2]
END = 0
PREFERENCES = [
    Preference("One day", " a cat ran home.", " a cat saw the dog and ran."),
    Preference("", "The end", "A tree"),
    Preference("Once", " x", " x"),  # equal: left out
    Preference("Once", " a" * 20, " b"),  # too long
]


@pytest.fixture(scope="module", params=["example/stories_causal", "example/stories"])
def model(request):
    return load_model(ROOT / request.param)[0]


def head_of(model) -> VocabularyHead:
    torch.manual_seed(0)
    head = VocabularyHead(model.hidden_size, model.vocab_size, "", "mask")
    torch.nn.init.normal_(head.linear.weight, std=0.1)
    torch.nn.init.normal_(head.linear.bias, std=0.1)
    return head


def test_pairs_stand_on_canvases_and_what_does_not_fit_is_counted(model):
    pairs, dropped = canvas_pairs(PREFERENCES, model, 14)
    assert len(pairs) == 2 and dropped == 2
    assert (pairs.chosen[:, -1] == END).all() and pairs.free[1].all() and not pairs.free[0, 0]
    assert (pairs.chosen == pairs.rejected)[~pairs.free].all()
    with pytest.raises(ValueError, match="none of 1 pairs fits a canvas of 14; raise data.canvas"):
        canvas_pairs(PREFERENCES[3:], model, 14)


def test_prefixes_are_compared_from_the_first_difference_to_the_first_end():
    chosen, rejected = torch.tensor([[5, 6, 7, 8, 0, 0, 0]]), torch.tensor([[5, 6, 9, 8, 8, 8, 0]])
    pairs = Pairs(chosen, rejected, torch.tensor([[False, True, True, True, True, True, True]]))
    assert compared(pairs, None, (END,)).tolist() == [[False, False, True, True, True, False, False]]
    turn = torch.where(chosen == 8, 12, chosen)  # another token that ends an answer
    assert compared(Pairs(turn, rejected, pairs.free), None, (END, 12)).tolist() == [
        [False, False, True, True, False, False, False]
    ]
    prompt_ends = Pairs(chosen.clone(), rejected.clone(), pairs.free)
    prompt_ends.chosen[0, 0] = prompt_ends.rejected[0, 0] = END  # an end in the prompt ends no answer
    assert compared(prompt_ends, None, (END,)).tolist() == [[False, False, True, True, True, False, False]]
    masked = torch.tensor([[False, True, False, False, False, True, False]])
    assert compared(pairs, masked, (END,)).tolist() == masked.tolist()
    same = Pairs(chosen, chosen, pairs.free)
    assert not compared(same, masked, (END,)).any() and not compared(same, None, (END,)).any()


@torch.no_grad()
def test_margins_are_those_of_the_definition(model):
    """Each prefix, or each masked canvas, by itself, with the whole vocabulary's values."""
    head, (pairs, _) = head_of(model), canvas_pairs(PREFERENCES, model, 14)
    masked = None if model.causal else pair_masks(pairs, 3)
    found = entries(model, head, pairs, masked, (END,))
    expected, rows, places = [], [], []
    for row, position in compared(pairs, masked, (END,)).nonzero().tolist():
        values = []
        for side in (pairs.chosen[row], pairs.rejected[row]):
            canvas = side.clone()
            if masked is None:
                canvas[position:] = model.mask_id
            else:
                canvas[masked[row]] = model.mask_id
            read = torch.zeros(1, len(canvas), dtype=torch.bool)
            read[0, position] = True
            values.append(float(head(model.hidden(canvas[None], read))[0, side[position]]))
        expected.append(values[0] - values[1])
        rows.append(row)
        places.append(position - int((~pairs.free[row]).sum()))
    torch.testing.assert_close(found.margin, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    assert found.row.tolist() == rows and found.place.tolist() == places
    if model.causal:
        assert torch.equal(margins(found, len(pairs), True), found.margin)
    else:
        means = [torch.tensor(expected)[torch.tensor(rows) == row].mean() for row in range(2)]
        torch.testing.assert_close(margins(found, len(pairs), False), torch.stack(means), atol=1e-4, rtol=1e-4)


def test_masks_are_of_the_pair_alone_and_never_empty():
    free = torch.ones(50, 9, dtype=torch.bool)
    free[:, :2] = False
    pairs = Pairs(torch.zeros(50, 9, dtype=torch.long), torch.ones(50, 9, dtype=torch.long), free)
    whole = pair_masks(pairs, 7)
    assert whole.any(1).all() and not whole[:, :2].any()
    assert torch.equal(pair_masks(pairs.take(torch.arange(20, 30)), 7, 20), whole[20:30])
    assert not torch.equal(pair_masks(pairs, 8), whole)
