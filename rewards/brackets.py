r"""Whether the brackets of LaTeX match, piece by piece, also where parts are still masked: `{}`, `\left..\right`, `\begin..\end`
of the same environment, `$..$`, `$$..$$`, `\(..\)`, `\[..\]`.

    complete      everything is closed, in the right order, and nothing is masked
    completable   what is masked (or, of a text that goes on, what is to come) can still close everything
    broken        it cannot

A stack, fed from the left. Behind a mask the stack below is unknown but for how many brackets it can hold, from `low` to `high`.
`broken` is never said of what can be completed; without masks the verdict is exact. With masks it looks at numbers and at the
brackets between two masks, so it may call completable what is not. Brackets alone: a missing argument or an unknown command is
math-core's to find (rewards/latex.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

MARK = re.compile(
    r"\\(?P<side>begin|end)\s*\{(?P<name>[^{}]*)\}|\\(?:left|right)(?![A-Za-z])|\\[A-Za-z]+|\\.|\$\$?|[{}]", re.DOTALL
)
UNFINISHED = re.compile(r"(?:\\(?:begin|end)\s*\{[^{}]*|\\(?:begin|end)\s*|\\[A-Za-z]*|\$)$")
OPENS = {"{": "{", r"\left": "left", r"\(": "(", r"\[": "["}
CLOSES = {"}": "{", r"\right": "left", r"\)": "(", r"\]": "["}
SLACK = 2  # marks that one masked token may hold or begin, where nothing is known of the vocabulary


@dataclass(frozen=True)
class Brackets:
    """What is open after the pieces fed so far."""

    stack: tuple[str, ...] = ()  # open since the last mask
    low: int = 0  # of the unknown stack below it
    high: int = 0
    pending: str = ""  # the end of the text, where it may be the beginning of a mark
    masks: int = 0
    fresh: bool = False  # nothing stands behind the last mask yet
    is_broken: bool = False

    def feed(self, piece: str | None, slack: int = SLACK) -> Brackets:
        """With another piece of text, or, None, a masked token, which holds or begins at most `slack` marks."""
        if self.is_broken:
            return self
        if piece is None:
            open_here = len(self.stack)
            slack += 2 * bool(self.pending)  # what was begun may end in it, one way or another
            return Brackets((), max(0, self.low + open_here - slack), self.high + open_here + slack, "", self.masks + 1, True)
        text = self.pending + piece
        if not text:
            return self
        tail = UNFINISHED.search(text)
        # A backslash that is itself escaped begins nothing.
        cut = tail.start() if tail and not _is_escaped(text, tail.start()) else len(text)
        found = replace(self, pending=text[cut:])
        for mark in MARK.finditer(text, 0, cut):
            found = found._read(mark, self.fresh and mark.start() == 0)
        return replace(found, fresh=self.fresh and cut == 0)

    def state(self, ended: bool = True) -> str:
        """ended: no more pieces will come; else any text may."""
        whole = self._flushed() if ended else self
        if whole.is_broken or (ended and whole.low + len(whole.stack) > 0):
            return "broken"
        return "complete" if not (whole.masks or whole.stack or whole.pending) else "completable"

    def _flushed(self) -> Brackets:
        """What was pending, read as it stands: a last `$` is one, an environment without its brace is open for ever."""
        if self.pending == "$":
            mark = MARK.match("$")
            assert mark is not None
            return replace(self, pending="")._read(mark, self.fresh)
        if self.pending.endswith("}") or "{" not in self.pending:
            return replace(self, pending="")
        return replace(self, pending="", is_broken=True)

    def _read(self, mark: re.Match, escapable: bool) -> Brackets:
        """escapable: a backslash in the mask before it may make it something else."""
        if self.is_broken:
            return self
        text = mark[0]
        if escapable:
            return replace(self, low=max(0, self.low - 2), high=self.high + 2)
        if text[0] == "$":
            return self._dollar(text)
        if mark["side"]:
            kind = mark["name"].strip()
            return self._open(f"begin {kind}") if mark["side"] == "begin" else self._close(f"begin {kind}")
        if text in OPENS:
            return self._open(OPENS[text])
        return self._close(CLOSES[text]) if text in CLOSES else self

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
            return replace(self, low=max(0, self.low - 2), high=self.high + 2)
        return self._open(text)


def _is_escaped(text: str, place: int) -> bool:
    before = len(text[:place]) - len(text[:place].rstrip("\\"))
    return before % 2 == 1


def bracket_state(pieces: Iterable[str | None], slack: int = SLACK, ended: bool = True) -> str:
    """`complete`, `completable` or `broken`. pieces: texts, None for each masked token."""
    brackets = Brackets()
    for piece in pieces:
        brackets = brackets.feed(piece, slack)
    return brackets.state(ended)


def pieces_of(tokens: Sequence[int], tokenizer, mask_id: int) -> list[str | None]:
    """A row of tokens as texts and masks: tokens between two masks are decoded together."""
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
    """The most marks that one token of the vocabulary can hold or begin."""
    texts = (tokenizer.decode([token]) for token in range(len(tokenizer)))
    return max(1, max(sum(character in "{}\\$" for character in text) for text in texts))
