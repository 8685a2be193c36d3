r"""A reward for LaTeX: the share of valid formulas of a text, and bonuses for their contents.

    python -m rewards.latex FILE [--bare]      # one line of a text file is one text

Formulas are `$..$`, `$$..$$`, `\(..\)`, `\[..\]`, environments outside of these (align, equation, gather and similar ones),
or, with --bare, the whole text. math-core judges each formula; its verdicts are KaTeX's (docs/latex.md). The correct part
of a broken formula is a dense term. Bonuses are capped and paid for valid formulas only:

    total = .6 valid + .1 progress + valid (.15 structure + .1 commands + .05 length - .3 repetition)

valid: share of valid pieces (0 for a text without a formula); progress: mean share of a piece before its first error;
structure: of fractions, roots, sums, integrals, limits, binomials, matrices, up to 3 kinds; commands: up to 5 different
ones; length: 1 inside a window of characters; repetition: share of repeated four-token runs, or of repeated formulas.

What differs from SEDD-LaTeX-RLHF, whose reward counts brackets and words: there `}}}{{{ \frac\frac $$ $$` has the best
score, 1.0, and `$\frac{1}{2}$` the worst, -0.6. Here no text of broken formulas, words or dollars comes near a valid
formula. LaTeX outside of a formula, empty or invisible formulas, words in place of letters, text alone, sums without a
term, comments and definitions of commands are broken pieces.
"""

from __future__ import annotations

if __name__ == "__main__":
    from training.interrupt import end_in_one_line

    end_in_one_line()  # before the imports below, which take seconds

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from jaxtyping import Bool, Int
from math_core import LatexError, LatexToMathML
from torch import Tensor

from dlm.ends import before_end, end_tokens, texts_of
from rewards.brackets import bracket_state, marks_per_token, pieces_of
from rewards.rules import Finished, Reward, RewardOutput, each_row

LONGEST = 2000  # characters; math-core reads recursively, and some 5,000 of `\sqrt\sqrt...` overflow its stack
WEIGHTS = {"valid": 0.6, "progress": 0.1, "structure": 0.15, "commands": 0.1, "length": 0.05, "repetition": 0.3}
WINDOW = (4, 200)  # characters of formulas
FREE_REPETITION = 0.2  # matrices and sums repeat this much

CONVERTER = LatexToMathML(fancy_error=False, allow_unreliable_rendering=True, macros={"mbox": r"\text{#1}"})
# Environments that begin mathematics themselves.
DISPLAYED = "align|flalign|alignat|equation|gather|multline|eqnarray|displaymath|math"
DELIMITER = re.compile(rf"\\\\|\\\$|\$\$|\$|\\[()\[\]]|\\begin\s*\{{(?P<name>(?:{DISPLAYED})\*?)\}}")
# Environments that math-core does not know, and equivalent ones.
SAME_AS = {"split": "aligned", "alignedat": "aligned", "smallmatrix": "matrix", "flalign": "align", "alignat": "align",
           "eqnarray": "align", "displaymath": "equation*", "math": "equation*"}  # fmt: skip
UNKNOWN = re.compile(rf"\\(begin|end)\s*\{{({'|'.join(SAME_AS)})(\*?)\}}(?:\s*\{{\d+\}})?")
CLOSER = {"$": "$", "$$": "$$", r"\(": r"\)", r"\[": r"\]"}
STRAY = re.compile(r"\\[A-Za-z]|[{}^_]")
TOKEN = re.compile(r"\\(?:begin|end)\{[^{}]*\}|\\[A-Za-z]+|\\.|\S", re.DOTALL)
COMMAND = re.compile(r"\\([A-Za-z]+)")
# Names of commands and environments, and the contents of \text, are no letters of the formula.
NAMES = re.compile(
    r"\\(?:begin|end)\s*\{[^{}]*\}|\\(?:text\w*|mbox|math(?:rm|bf|sf|tt|it|normal)|operatorname\*?)\s*\{[^{}]*\}|\\[A-Za-z]+"
)
FORBIDDEN = re.compile(
    r"(?<!\\)(?:\\\\)*(%|\\(?:(?:re)?newcommand|providecommand|def|let|gdef|edef|xdef|DeclareMathOperator)\b)"
)
WORD = re.compile(
    r"(?<![A-Za-z])(?:[A-Za-z]{5,}|(?:"
    r"frac|sqrt|sum|int|lim|prod|log|exp|sin|cos|tan|alpha|beta|gamma|delta|epsilon|theta|lambda|sigma|"
    r"omega|infty|partial|nabla|cdot|times|left|right|begin|end|matrix|pmatrix|bmatrix|cases|text|the|and|"
    r"with|from|over|limit"
    r")(?![A-Za-z]))"
)
# Three short words in a row are prose; `dx dy dz` are not.
PROSE = re.compile(r"(?<![A-Za-z])(?!d[a-z]\b)[a-z]{2,}(?:\s+(?!d[a-z]\b)[a-z]{2,}){2,}(?![A-Za-z])")
NOTHING = re.compile(
    r"\\(?:quad|qquad|left|right|big\w*|Big\w*|displaystyle|textstyle|limits|nolimits)(?![A-Za-z])|\\[\s,;:!.]"
    r"|\\[hv]?phantom\s*\{[^{}]*\}|\\(?:hspace|vspace|color)\*?\s*\{[^{}]*\}|\\(?:begin|end)\s*\{[^{}]*\}"
    r"|\\(?:text\w*|mbox|math\w+|operatorname\*?)\s*\{\s*\}"
)
TEXT = re.compile(r"\\(?:text\w*|mbox|math(?:rm|bf|sf|tt|it|normal)|operatorname\*?)\s*\{([^{}]*)\}")
STANDS = re.compile(r"\\[A-Za-z]|[^\W_]|[-+=<>*/|]")
# Sums, integrals, limits with their bounds, at the end: there is nothing that they are of.
OF_NOTHING = re.compile(
    r"\\(?:sum|prod|lim|oint|i{0,3}int)(?![A-Za-z])(?:\s*[_^]\s*(?:\{[^{}]*\}|\\[A-Za-z]+|[^\s{}\\]))*\s*$"
)
HOLLOW = re.compile(r"(?:\\[A-Za-z]+|[\]}^_])\s*\{\s*\}")
COMMANDS = {
    "frac": "[dtc]?frac", "sqrt": "sqrt", "sum": "sum|prod", "int": "i{0,3}int|oint", "lim": "lim", "binom": "[dt]?binom",
}  # fmt: skip
STRUCTURE = {name: re.compile(rf"\\(?:{command})(?![A-Za-z])") for name, command in COMMANDS.items()} | {
    "matrix": re.compile(r"\\begin\s*\{(?:[pbBvV]?matrix|array|cases)\*?\}")
}


@dataclass(frozen=True)
class FormulaVerdict:
    """Verdict on one formula. progress: share of it before the first error, 1 without an error."""

    valid: bool
    progress: float
    reason: str = ""


@lru_cache(maxsize=100_000)
def verdict(formula: str) -> FormulaVerdict:
    """Judge a formula without its dollars: math-core accepts it, it is not empty, and it is not prose."""
    if len(formula) > LONGEST:
        return FormulaVerdict(False, 0.0, f"longer than {LONGEST} characters")
    if forbidden := FORBIDDEN.search(formula):
        return FormulaVerdict(False, forbidden.start(1) / len(formula), f"{forbidden[1]} is not for formulas")
    known = UNKNOWN.sub(lambda found: f"\\{found[1]}{{{SAME_AS[found[2]]}{found[3]}}}".replace("**", "*"), formula)
    rest = NOTHING.sub(" ", known)
    if not STANDS.search(rest):
        return FormulaVerdict(False, 0.0, "nothing stands in it")
    if not STANDS.search(TEXT.sub(" ", rest)) and len(" ".join(TEXT.findall(rest)).split()) > 1:
        return FormulaVerdict(False, 0.0, "it is text alone")
    letters = NAMES.sub(" ", formula)
    if word := WORD.search(letters) or PROSE.search(letters):
        return FormulaVerdict(False, 0.0, f"{word[0]!r} is no product of letters")
    try:
        CONVERTER.convert_with_local_state(known, displaystyle=True)
    except LatexError as error:
        place, _, reason = str(error).partition(": ")
        return FormulaVerdict(False, min(1.0, int(place) / len(known)), reason)
    if last := OF_NOTHING.search(rest):
        return FormulaVerdict(False, last.start() / len(rest), f"nothing follows {last[0].strip()}")
    return FormulaVerdict(True, 1.0)


def is_valid(formula: str) -> bool:
    """Return whether a formula, without its dollars, is valid."""
    return verdict(formula).valid


@dataclass(frozen=True)
class Piece:
    """A formula of a text without its delimiters, or an environment with them. closed: its end is in the text."""

    text: str
    closed: bool = True


def spans(text: str) -> tuple[list[Piece], str]:
    r"""Return (formulas, all other text). A formula without an end runs to the end of the text. `\$` is a dollar sign."""
    pieces: list[Piece] = []
    outside: list[str] = []
    opener, start, place = "", 0, 0
    while mark := DELIMITER.search(text, place):
        place = mark.end()
        if not opener and mark["name"]:
            outside.append(text[start : mark.start()])
            end = re.compile(rf"\\end\s*\{{{re.escape(mark['name'])}\}}").search(text, place)
            place = start = end.end() if end else len(text)
            pieces.append(Piece(text[mark.start() : place], closed=end is not None))
        elif not opener and mark[0] in CLOSER:
            opener = mark[0]
            outside.append(text[start : mark.start()])
            start = place
        elif (
            opener == "$" and mark[0] == "$$" and text[start : mark.start()].strip()
        ):  # two formulas next to each other
            pieces.append(Piece(text[start : mark.start()]))
            if text.startswith("$$$", mark.start()):  # the second is displayed
                opener, place = "", mark.start() + 1
            start = place
        elif opener and mark[0] == CLOSER[opener]:
            pieces.append(Piece(text[start : mark.start()]))
            opener, start = "", place
    if opener:
        pieces.append(Piece(text[start:], closed=False))
    else:
        outside.append(text[start:])
    return pieces, " ".join(outside)


def structures(formula: str) -> set[str]:
    """Return the kinds of structure in a formula."""
    return {name for name, pattern in STRUCTURE.items() if pattern.search(formula)}


def repetition(formulas: Sequence[str]) -> float:
    """Return in [0, 1] the share of repeated four-token runs above a free share, or of repeated formulas."""
    tokens = TOKEN.findall(" ".join(formulas))
    runs = list(zip(*(tokens[start:] for start in range(4)), strict=False))
    again = 1 - len(set(runs)) / len(runs) if runs else 0.0
    copies = 1 - len(set(formulas)) / len(formulas) if formulas else 0.0
    return max(copies, max(0.0, again - FREE_REPETITION) / (1 - FREE_REPETITION))


def score(
    text: str, bare: bool = False, weights: Mapping[str, float] = WEIGHTS, window: tuple[int, int] = WINDOW
) -> dict[str, float]:
    """Return the terms of a text and `total`. bare: the text is a formula, without dollars."""
    pieces, outside = ([Piece(text)], "") if bare else spans(text)
    verdicts = [verdict(piece.text) if piece.closed else FormulaVerdict(False, 0.0, "not closed") for piece in pieces]
    if STRAY.search(outside) or re.search(r"\\[)\]]", outside):
        verdicts.append(FormulaVerdict(False, 0.0, "LaTeX outside of a formula"))
    good = [piece.text for piece, judged in zip(pieces, verdicts, strict=False) if judged.valid]
    filled = [formula for formula in good if not HOLLOW.search(formula)]
    low, high = window
    length = sum(map(len, good))
    kinds = set().union(*map(structures, filled))
    commands = {name for formula in filled for name in COMMAND.findall(formula)}
    terms = {
        "valid": len(good) / max(1, len(verdicts)),
        "progress": sum(judged.progress for judged in verdicts) / max(1, len(verdicts)),
        "structure": min(len(kinds), 3) / 3,
        "commands": min(len(commands), 5) / 5,
        "length": min(1.0, length / low, max(0.0, 2 - length / high)),
        "repetition": repetition(good),
    }
    bonus = sum(weights[name] * terms[name] for name in ("structure", "commands", "length"))
    bonus -= weights["repetition"] * terms["repetition"]
    total = weights["valid"] * terms["valid"] + weights["progress"] * terms["progress"] + terms["valid"] * bonus
    return {"total": total, **terms}


def unfinished(pieces: Sequence[str | None], slack: int, weights: Mapping[str, float] = WEIGHTS) -> dict[str, float]:
    """Return the terms of a text with masked positions: nothing is valid yet, and progress is whether its brackets can
    still match.
    """
    progress = float(bracket_state(pieces, slack) != "broken")
    return {"total": weights["progress"] * progress, **dict.fromkeys(WEIGHTS, 0.0), "progress": progress}


def written(
    tokens: Int[Tensor, "row position"], given: Bool[Tensor, "row position"], tokenizer, mask_id: int
) -> list[str]:
    """Return the responses up to their end (dlm/ends.py), without masked positions."""
    answer = before_end(tokens, ~given, end_tokens(tokenizer))
    return texts_of(tokens, answer & (tokens != mask_id), tokenizer)


class LatexReward(Reward):
    """The reward of the generated text. Every term is logged.

    Rows with masked positions are scored by their brackets (term `still_masked`). A row that cannot be scored has no reward
    (`each_row`).
    """

    def __init__(
        self, tokenizer, mask_id: int, bare: bool = False, weights: Mapping[str, float] = WEIGHTS,
        window: tuple[int, int] = WINDOW,
    ):  # fmt: skip
        if wrong := sorted(weights.keys() ^ WEIGHTS.keys()):
            raise ValueError(f"reward.terms: {', '.join(wrong)} unknown or missing; give {', '.join(WEIGHTS)}")
        if not 0 < window[0] <= window[1]:
            raise ValueError(f"reward.window={list(window)} must be two numbers above 0, the smaller first")
        self.tokenizer, self.mask_id, self.bare = tokenizer, mask_id, bare
        self.weights, self.window = dict(weights), window
        self.slack = marks_per_token(tokenizer)

    def __call__(self, samples: Finished, rows: Mapping[str, Tensor] | None = None) -> RewardOutput:
        texts = written(samples.tokens, samples.prompt, self.tokenizer, self.mask_id)
        answer = before_end(samples.tokens, ~samples.prompt, end_tokens(self.tokenizer))
        masked = ((samples.tokens == self.mask_id) & answer).any(1).tolist()

        def terms(row: int) -> dict[str, float]:
            if masked[row]:
                left = samples.tokens[row][answer[row]].tolist()
                found = unfinished(pieces_of(left, self.tokenizer, self.mask_id), self.slack, self.weights)
            else:
                found = score(texts[row], self.bare, self.weights, self.window)
            return {**found, "still_masked": float(masked[row])}

        return each_row(terms, range(len(texts)), samples.tokens.device)


def main(arguments: Sequence[str]) -> int:
    """Print the terms of each line and their means, as a table."""
    parser = argparse.ArgumentParser(prog="rewards.latex", description="Scores the lines of a text file.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--bare", action="store_true", help="a line is a formula, without dollars")
    options = parser.parse_args(arguments)
    if not options.file.is_file():
        parser.error(f"there is no file {options.file}; give a text file, one text a line")
    try:
        lines = [line for line in options.file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        parser.error(f"{options.file} is not UTF-8 (byte {error.start}); convert it first")
    if not lines:
        parser.error(f"{options.file} has no text; give one with a text a line")
    scores = [score(line, options.bare) for line in lines]
    print("  ".join(f"{name:>10}" for name in scores[0]) + "  text")
    for line, terms in zip(lines, scores, strict=True):
        displayed = "".join(character if character.isprintable() else "?" for character in line[:60])
        print("  ".join(f"{value:10.3f}" for value in terms.values()) + f"  {displayed}")
    means = {name: sum(terms[name] for terms in scores) / len(scores) for name in scores[0]}
    print("  ".join(f"{value:10.3f}" for value in means.values()) + f"  mean of {len(lines)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
