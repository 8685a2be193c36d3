r"""Matching of brackets in LaTeX, also with masked parts: `{}`, `\left..\right`, `\begin..\end` of the same
environment, `$..$`, `$$..$$`, `\(..\)`, `\[..\]`.

    complete      everything is closed, in the right order, and nothing is masked
    completable   the masked (or future) parts can still close everything
    broken        they cannot

A stack is fed from the left. Behind a mask the stack below is unknown, except for the number of its brackets, between `low`
and `high`. A text that can be completed is never called `broken`; without masks the verdict is exact. With masks only
numbers and the brackets between two masks are used, so a broken text may be called completable. Missing arguments and
unknown commands are found by math-core (rewards/latex.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

MARK = re.compile(
    r"\\(?P<side>begin|end)\s*\{(?P<name>[^{}]*)\}|\\(?:left|right)(?![A-Za-z])|\\[A-Za-z]+|\\.|\$\$?|[{}]", re.DOTALL
)
UNFINISHED = re.compile(r"\\(?:(?:begin|end)\s*(?:\{[^{}]*)?|[A-Za-z]*)$")
DOLLARS = re.compile(r"(?:^|[^\\])(?:\\\\)*(\\?)(\$+)$")
BACKSLASHES = re.compile(r"\\+(?:[A-Za-z]+|.)", re.DOTALL)
OPENS = {"{": "{", r"\left": "left", r"\(": "(", r"\[": "["}
CLOSES = {"}": "{", r"\right": "left", r"\)": "(", r"\]": "["}
SLACK = 2  # marks that one masked token may hold or begin, where nothing is known of the vocabulary


@dataclass(frozen=True)
class Brackets:
    """State after the pieces fed so far: the open brackets."""

    stack: tuple[str, ...] = ()  # open since the last mask
    low: int = 0  # of the unknown stack below it
    high: int = 0
    pending: str = ""  # the end of the text, where it may be the beginning of a mark
    masks: int = 0
    fresh: bool = False  # there is no text behind the last mask yet
    is_broken: bool = False

    def feed(self, piece: str | None, slack: int = SLACK) -> Brackets:
        """Return the state after another piece of text, or after a masked token (None), which holds or begins at most
        `slack` marks.
        """
        if self.is_broken:
            return self
        if piece is None:
            open_here = len(self.stack)
            slack += 2 * bool(self.pending)  # what was begun may end in it, one way or another
            return Brackets(
                (), max(0, self.low + open_here - slack), self.high + open_here + slack, "", self.masks + 1, True
            )
        text = self.pending + piece
        cut = _finished(text, self.fresh)
        found, start = replace(self, pending=text[cut:], fresh=self.fresh and cut == 0), 0
        if self.fresh and (
            mark := BACKSLASHES.match(text, 0, cut)
        ):  # one in the mask would make something else of them
            found, start = found._uncertain(), mark.end()
        for mark in MARK.finditer(text, start, cut):
            found = found._read(mark, self.fresh and mark.start() == 0)
        return found

    def state(self, ended: bool = True) -> str:
        """Return complete, completable or broken. ended: no more pieces will come; otherwise any text may follow."""
        whole = self._flushed() if ended else self
        if whole.is_broken or (ended and whole.low + len(whole.stack) > 0):
            return "broken"
        return "complete" if not (whole.masks or whole.stack or whole.pending) else "completable"

    def _flushed(self) -> Brackets:
        """Read the pending characters as they are: a last `$` is a mark, an environment without its brace stays open."""
        left = replace(self, pending="")
        if self.is_broken:
            return self
        if self.pending == "$":
            return left._uncertain() if self.fresh else left._dollar("$")
        return replace(left, is_broken="{" in self.pending and not self.fresh)

    def _read(self, mark: re.Match, escapable: bool) -> Brackets:
        """Read one mark. escapable: a backslash in the mask token before it may change its meaning."""
        if self.is_broken:
            return self
        text = mark[0]
        if escapable:
            return self._uncertain()
        if text[0] == "$":
            return self._dollar(text)
        if mark["side"]:
            kind = mark["name"].strip()
            return self._open(f"begin {kind}") if mark["side"] == "begin" else self._close(f"begin {kind}")
        if text in OPENS:
            return self._open(OPENS[text])
        return self._close(CLOSES[text]) if text in CLOSES else self

    def _uncertain(self) -> Brackets:
        """Return the state behind something that may open or close, or be no bracket."""
        return replace(self, low=max(0, self.low - 2), high=self.high + 2)

    def _open(self, kind: str) -> Brackets:
        return replace(self, stack=(*self.stack, kind))

    def _close(self, kind: str) -> Brackets:
        if self.stack:
            return replace(self, stack=self.stack[:-1], is_broken=self.stack[-1] != kind)
        return replace(self, low=max(0, self.low - 1), high=self.high - 1, is_broken=self.high < 1)

    def _dollar(self, text: str) -> Brackets:
        if self.stack and self.stack[-1] == text:
            return self._close(text)
        if self.stack and self.stack[-1] == "$":  # `$$` between two formulas: one ends, another begins
            return self
        if not self.stack and self.masks:  # ends something in the mask, or begins something
            return self._uncertain()
        return self._open(text)


def _finished(text: str, fresh: bool) -> int:
    """Return how many characters of a text can be read before more of it is known."""
    if fresh and re.fullmatch(r"\\+[A-Za-z]*", text):
        return 0
    tail = UNFINISHED.search(text)
    if tail:
        before = text[: tail.start()]
        if (len(before) - len(before.rstrip("\\"))) % 2 == 0:  # else this backslash is the second of two
            return tail.start()
    dollars = DOLLARS.search(text)
    return len(text) - (len(dollars[2]) - len(dollars[1])) % 2 if dollars else len(text)


def bracket_state(pieces: Iterable[str | None], slack: int = SLACK, ended: bool = True) -> str:
    """Return `complete`, `completable` or `broken`. pieces: texts, and None for each masked token."""
    brackets = Brackets()
    for piece in pieces:
        brackets = brackets.feed(piece, slack)
    return brackets.state(ended)


def pieces_of(tokens: Sequence[int], tokenizer, mask_id: int) -> list[str | None]:
    """Split a row of tokens into texts and masks (None). Tokens between two masks are decoded together."""
    pieces: list[str | None] = []
    run: list[int] = []
    for token in [*tokens, mask_id]:
        if token != mask_id:
            run.append(token)
            continue
        if run:
            pieces.append(tokenizer.decode(run, skip_special_tokens=True))
        pieces.append(None)
        run = []
    return pieces[:-1]


def marks_per_token(tokenizer) -> int:
    """Return the maximal number of marks that one token of the vocabulary can hold or begin."""
    texts = (tokenizer.decode([token]) for token in range(len(tokenizer)))
    return max(1, max(sum(character in "{}\\$" for character in text) for text in texts))
