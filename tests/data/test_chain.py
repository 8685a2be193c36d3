"""Chain arithmetic: answers by plain arithmetic, the split, the checker, rows that resume."""

import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.chain import (
    EOS,
    EQUALS,
    LABEL,
    MASK,
    MODULUS,
    STEPS,
    WORDS,
    ChainRows,
    chain_tokenizer,
    chains,
    given_answer,
    is_held_out,
    is_right,
    prompt_length,
    share_right,
)  # fmt: skip


def by_hand(text: str) -> tuple[list[int], list[str]]:
    """Running values of a prompt, by Python's own arithmetic."""
    start, *steps = text.removesuffix(" ?").split()
    values, labels, value = [], [], int(start)
    for label, step in zip(steps[::2], steps[1::2], strict=True):
        value = {"+": operator.add, "-": operator.sub, "*": operator.mul}[step[0]](value, int(step[1:])) % MODULUS
        values.append(value)
        labels.append(label)
    return values, labels


@given(st.integers(0, 1000), st.integers(1, 8), st.booleans())
def test_values_are_those_of_arithmetic_and_every_text_of_a_problem_is_right(seed, steps, held_out):
    generator = torch.Generator().manual_seed(seed)
    problems = chains(3, steps, generator, held_out)
    tokenizer, length = chain_tokenizer(), 2 * steps + 4
    assert (is_held_out(problems) == held_out).all()
    kept = torch.rand(3, steps, generator=generator) < 0.5
    text = problems.answers(kept, length)
    assert is_right(text, problems.values()[:, -1]).all()
    for row, prompt in enumerate(problems.prompts().tolist()):
        assert len(prompt) == prompt_length(steps)
        values, labels = by_hand(tokenizer.decode(prompt))
        assert problems.values()[row].tolist() == values
        shown = [word for i in range(steps) if kept[row, i] for word in (labels[i], str(values[i]))]
        words = [*shown, "=", str(values[-1])]
        assert tokenizer.decode(text[row].tolist()).split() == words + ["<eos>"] * (length - len(words))


def test_the_checker_reads_what_stands_behind_the_first_equals_sign_before_the_end():
    rows = torch.tensor([
        [LABEL, 3, EQUALS, 5, EOS, EOS], [EOS, EQUALS, 5, EOS, EOS, EOS], [EQUALS, EOS, 5, EOS, EOS, EOS],
        [LABEL, 5, LABEL, 5, LABEL, EQUALS], [EQUALS, LABEL, EQUALS, 5, EOS, EOS], [EQUALS, MASK, EOS, EOS, EOS, EOS],
    ])  # fmt: skip
    assert given_answer(rows).tolist() == [5, -1, -1, -1, -1, -1]


def test_the_share_that_is_right_counts_steps_before_the_end_and_the_result():
    values = torch.tensor([[3, 1, 4]])
    texts = [  # (text, how many of the three steps and the result are right)
        ([LABEL, 3, LABEL + 1, 1, LABEL + 2, 4, EQUALS, 4], 4), ([LABEL + 2, 4, LABEL, 3, EQUALS, 4, EOS, EOS], 3),
        ([LABEL, 3, LABEL + 1, 2, EQUALS, 2, EOS, EOS], 1), ([EQUALS, 4, EOS, LABEL, 3, LABEL + 1, 1, EOS], 1),
        ([LABEL, 3, LABEL, 3, LABEL, 3, LABEL, 3], 1), ([LABEL, MASK, 3, LABEL + 1, MASK, 1, EQUALS, MASK], 0),
    ]  # fmt: skip
    for text, parts in texts:
        assert share_right(torch.tensor([text]), values).item() == pytest.approx(parts / 4)


def test_a_tenth_is_held_out_and_the_mask_is_the_last_word():
    drawn = chains(4000, 8, torch.Generator().manual_seed(0))
    assert not is_held_out(drawn).any()
    assert len(WORDS) == MASK + 1 and len(STEPS) == 4
    assert chain_tokenizer().mask_token_id == MASK and chain_tokenizer().eos_token_id == EOS


def test_rows_go_on_where_they_were():
    rows = ChainRows(4, 12, 0.7, seed=3)
    rows.next(5)
    again = ChainRows(4, 12, 0.7, seed=3)
    again.load_state_dict(rows.state_dict())
    tokens, given_ = rows.next_puzzles(5)
    assert torch.equal(again.next(5), tokens) and not torch.equal(rows.next(5), tokens)
    assert given_.sum(1).tolist() == [prompt_length(4)] * 5
    assert not torch.equal(ChainRows(4, 12, 0.7, 3).next(5), ChainRows(4, 12, 0.7, 4).next(5))


def test_batches_of_shorter_problems_end_where_all_do():
    rows, lengths = ChainRows(5, 14, 0.7, seed=1, fewest=2), set()
    for _ in range(20):
        tokens, given_ = rows.next_puzzles(3)
        assert tokens.shape == (3, prompt_length(5) + 14) and (given_.sum(1) == prompt_length(5)).all()
        shown = [text.split() for text in chain_tokenizer().batch_decode(tokens[:, : prompt_length(5)])]
        assert all(words[-1] == "?" for words in shown)
        prompts = [" ".join(word for word in words if word != "<eos>") for words in shown]
        lengths |= {(len(prompt.split()) - 2) // 2 for prompt in prompts}
        answer = given_answer(tokens[:, prompt_length(5) :])
        assert answer.tolist() == [by_hand(prompt)[0][-1] for prompt in prompts]
    assert lengths == {2, 3, 4, 5}
