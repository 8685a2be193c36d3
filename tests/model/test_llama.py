"""Rows of different lengths and spans run together: each is what it is alone, to the last bit, and no padding is computed."""

import pytest
import torch

from dlm.masked_lm import POSITIONS_PER_FORWARD, LlamaLM
from model.llama import BidirectionalLlama, LlamaShape, Padded, RowByRow, Span

PADS = torch.tensor([0, 5, 30, 5, 17, 0, 28])
LENGTH = 40


def model(shifted):
    torch.manual_seed(0)
    network = BidirectionalLlama(LlamaShape(64, 3, 4, 2, 96, 50, biases=shifted)).requires_grad_(False).eval()
    network.reset_parameters()
    return LlamaLM(network, 49, LENGTH, shifted)


def batch(share=0.3):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(50, (len(PADS), LENGTH), generator=generator)
    behind = torch.arange(LENGTH) >= PADS[:, None]
    read = (torch.rand(tokens.shape, generator=generator) < share) & behind
    read[:, -1] = True
    read[torch.arange(len(PADS)), PADS] = True  # where a shifted model has nothing to its left
    return tokens, read


@pytest.mark.parametrize("shifted", [False, True], ids=["llada", "dream"])
@pytest.mark.parametrize("per_forward", [1024, 64])
def test_a_packed_row_is_the_row_alone_to_the_last_bit(shifted, per_forward, monkeypatch):
    monkeypatch.setitem(POSITIONS_PER_FORWARD, "cpu", per_forward)
    lm, (tokens, read) = model(shifted), batch()
    counts = read.sum(1).tolist()
    together = lm.hidden(tokens, read, start=PADS).split(counts)
    shuffled = torch.tensor([3, 6, 0, 2])
    some = lm.hidden(tokens[shuffled], read[shuffled], start=PADS[shuffled]).split(read[shuffled].sum(1).tolist())
    for row, pad in enumerate(PADS.tolist()):
        alone = lm.hidden(tokens[row : row + 1, pad:], read[row : row + 1, pad:])
        assert torch.equal(together[row], alone)
        if row in shuffled:
            assert torch.equal(some[shuffled.tolist().index(row)], alone)


@pytest.mark.parametrize("shifted", [False, True], ids=["llada", "dream"])
def test_spans_against_what_is_kept_are_those_of_the_row_alone(shifted):
    """A whole run, then other tokens in a span of each row; three rows stay out, so that the memory is used in part."""
    lm, (tokens, read) = model(shifted), batch()
    end = torch.full_like(PADS, LENGTH)
    memory = lm.new_memory(len(PADS), LENGTH, tokens.device)
    lm.hidden_spans(tokens, read, PADS, PADS, end, memory, torch.arange(len(PADS)))
    rows, first, last = torch.tensor([0, 2, 4, 6]), torch.tensor([32, 32, 32, 36]), torch.tensor([36, 36, 40, 40])
    changed = tokens.roll(1, 0)
    place = torch.arange(LENGTH)
    asked = read[rows] | (place == first[:, None])
    asked &= (place >= first[:, None]) & (place < last[:, None])
    before = [(key.clone(), value.clone()) for key, value in memory]
    together = lm.hidden_spans(changed[rows], asked, PADS[rows], first, last, memory, rows).split(asked.sum(1).tolist())
    for number, row in enumerate(rows.tolist()):
        pad, zero = int(PADS[row]), torch.tensor([0])
        own = [(key[row : row + 1, :, pad:].clone(), value[row : row + 1, :, pad:].clone()) for key, value in before]
        alone = lm.hidden_spans(
            changed[row : row + 1, pad:], asked[number : number + 1, pad:], zero,
            first[number : number + 1] - pad, last[number : number + 1] - pad, own, zero,
        )  # fmt: skip
        assert torch.equal(together[number], alone)
        for kept, expected in zip(memory, own, strict=True):
            assert torch.equal(kept[0][row, :, pad:], expected[0][0])
            assert torch.equal(kept[1][row, :, pad:], expected[1][0])
    for row in (1, 3, 5):
        assert all(torch.equal(new[0][row], old[0][row]) for new, old in zip(memory, before, strict=True))


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("width", [None, 3])
def test_one_call_with_a_mask_is_attention_row_by_row(kept, width):
    """What runs on a GPU against what runs on a CPU."""
    spans = [Span([1, 4], 0, 2, 9), Span([0], 3, 4, 8), Span([2, 3], 1, 1, 10)]
    total = sum(len(span.rows) * span.size for span in spans)
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    query, key, value = draw(5 * width if width else total, 4, 8), draw(total, 2, 8), draw(total, 2, 8)
    memory = (draw(6, 2, 10, 8), draw(6, 2, 10, 8)) if kept else None
    copy = None if memory is None else tuple(part.clone() for part in memory)
    ours = Padded(spans, query.device)(query, key, value, width, memory)
    expected = RowByRow(spans)(query, key, value, width, copy)
    assert torch.allclose(ours, expected, atol=1e-5)
    if kept:
        assert all(torch.equal(new, old) for new, old in zip(memory, copy, strict=True))


def test_no_padding_is_computed(monkeypatch):
    lm, (tokens, read) = model(False), batch()
    seen = []
    run = lm.backbone.run
    monkeypatch.setattr(lm.backbone, "run", lambda tokens, *rest: seen.append(len(tokens)) or run(tokens, *rest))
    lm.hidden(tokens, read, start=PADS)
    assert seen == [int((LENGTH - PADS).sum())]
