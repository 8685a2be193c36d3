"""The bracket checker against enumeration: exact without masks, never `broken` where some filling matches, whatever the pieces."""

from itertools import product

import pytest

from data.text import train_bpe
from rewards.brackets import Brackets, bracket_state, marks_per_token, pieces_of

PIECES = ["{", "}", r"\left(", r"\right)", "$", "x", ""]
ESCAPES = ["{", "}", "\\", r"\left(", r"\begin{a}", r"\end{a}", "left(", "x"]


@pytest.mark.parametrize(
    "text, state",
    [
        ("", "complete"), (r"\frac{1}{2}", "complete"), (r"\left( x \right]", "complete"), (r"\{", "complete"),
        (r"\begin{pmatrix} 1 \end{pmatrix}", "complete"), (r"$a$ and $$b$$ and \(c\) and \[d\]", "complete"),
        ("$x$$y$", "complete"), (r"a \\[2pt] b", "complete"), (r"\\{a}", "complete"), (r"\leftarrow", "complete"),
        ("[0, 1)", "complete"), ("{", "broken"), ("}", "broken"), (r"\left( {x \right) }", "broken"), ("$x", "broken"),
        (r"\begin{a} \end{b}", "broken"), (r"\begin{a", "broken"), (r"\[ x \)", "broken"), (r"${\right)$", "broken"), ("$x$$", "broken"), (r"\\{", "broken"),
    ],
)  # fmt: skip
def test_whole_texts(text, state):
    assert bracket_state([text]) == state


@pytest.mark.parametrize("text, state", [("{x", "completable"), ("}", "broken"), (r"\begin{a} {", "completable"), ("", "complete"),
                                         (r"x \lef", "completable"), ("{x}", "complete"), (r"{ \right", "completable")])  # fmt: skip
def test_beginnings(text, state):
    assert bracket_state([text], ended=False) == state


def matches(text):
    """By removing what stands next to each other, again and again."""
    for name in (r"\\",):
        text = text.replace(name, "")
    for mark in (r"\{", r"\}"):
        text = text.replace(mark, "")
    marks = {r"\left(": "(", r"\right)": ")", r"\begin{a}": "<", r"\end{a}": ">"}
    for mark, sign in marks.items():
        text = text.replace(mark, sign)
    if "\\" in text.replace("\\x", "").replace("\\l", ""):
        return None  # a backslash before something else: not of this test
    text = "".join(character for character in text if character in "{}()<>")
    while (shorter := text.replace("{}", "").replace("()", "").replace("<>", "")) != text:
        text = shorter
    return not text


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_without_masks_the_verdict_is_exact(length):
    for pieces in product(["{", "}", r"\left(", r"\right)", r"\begin{a}", r"\end{a}", "x"], repeat=length):
        expected = "complete" if matches("".join(pieces)) else "broken"
        assert bracket_state(pieces) == expected, pieces


@pytest.mark.parametrize("alphabet", [PIECES, ESCAPES], ids=["dollars", "escapes"])
def test_what_can_be_completed_is_never_broken(alphabet):
    """Every canvas of four pieces over the alphabet and the mask; a mask is any of them. Most that cannot are found."""
    slack = 2
    complete = {pieces for pieces in product(alphabet, repeat=4) if bracket_state(["".join(pieces)]) == "complete"}
    missed = found = 0
    for canvas in product([*alphabet, None], repeat=4):
        if None not in canvas:
            continue
        fillings = product(*(alphabet if piece is None else [piece] for piece in canvas))
        can = any(filling in complete for filling in fillings)
        state = bracket_state(canvas, slack)
        assert state != "complete"
        assert state == "completable" or not can, canvas
        if not can:
            missed += state == "completable"
            found += state == "broken"
    assert found > 0.4 * (found + missed)


def test_pieces_may_cut_anything_anywhere():
    text = r"$\left( \frac{a}{b} \right)$ \begin{pmatrix} 1 \end{pmatrix} $$\{x\}$$ \\{y}"
    for size in (1, 2, 3, 5):
        assert bracket_state([text[n : n + size] for n in range(0, len(text), size)]) == "complete"
    state = Brackets()
    for character in text[:-1]:
        state = state.feed(character)
    assert state.state(ended=False) == "completable" and state.state() == "broken"


@pytest.mark.parametrize(
    "pieces, state",
    [
        ([r"\frac{1}{", None, "}"], "completable"), ([r"\left( ", None, r" \right)"], "completable"), ([None], "completable"),
        ([None, "{"], "completable"), ([None, "x{"], "broken"), ([None, "\\\\{x"], "completable"), ([r"{ \right)", None], "broken"), (["{" * 5, None, "}"], "broken"),
        ([r"\begin{a} x", None, r"\end{b} \end{a} {"], "broken"), ([None, r"left( x \right)"], "completable"),
        ([r"\be", None, r"a} x \end{a}"], "completable"), ([r"\begin{pm", None, r"rix} x \end{pmatrix}"], "completable"),
    ],
)  # fmt: skip
def test_with_masks(pieces, state):
    assert bracket_state(pieces) == state


def test_rows_of_tokens():
    tokenizer = train_bpe([r"$\frac{a}{b}$ }}$ }}$ }}$"] * 9, 265)
    mask = len(tokenizer)
    tokens = tokenizer(r"$\frac{a}{b}$")["input_ids"]
    assert pieces_of(tokens, tokenizer, mask) == [r"$\frac{a}{b}$"]
    assert pieces_of([*tokens[:1], mask, mask, *tokens[1:]], tokenizer, mask) == [
        tokenizer.decode(tokens[:1]), None, None, tokenizer.decode(tokens[1:]),
    ]  # fmt: skip
    assert pieces_of([mask, *tokens, mask], tokenizer, mask) == [None, r"$\frac{a}{b}$", None]
    assert marks_per_token(tokenizer) >= 2
    for place in range(len(tokens)):  # whatever is masked can be filled in as it was
        pieces = pieces_of(tokens[:place] + [mask] + tokens[place + 1 :], tokenizer, mask)
        assert bracket_state(pieces, marks_per_token(tokenizer)) == "completable"
