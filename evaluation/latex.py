"""Quality of the formulas in texts: validity, matching brackets, structure, variety, length. Pure functions of texts.

`formula_measures` is logged in training and compared between SFT and RL. A text is valid if it has a formula and all of its
pieces are valid (rewards/latex.py); its brackets match if everything that it opens is closed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.brackets import bracket_state
from rewards.latex import score, spans, structures

COMPLEX = {"frac", "sqrt", "sum", "int", "matrix"}
LETTER = re.compile(r"(\\[A-Za-z]+)|\\.|[A-Za-z0-9]+|\s+", re.DOTALL)


def skeleton(formula: str) -> str:
    r"""Remove letters and numbers from a formula: `\frac{a}{b+1}` becomes `\frac{}{+}`."""
    return LETTER.sub(lambda found: found[1] or "", formula)


def formulas_of(text: str, bare: bool = False) -> list[str]:
    """Return the formulas of a text, without dollars. bare: the text is one formula."""
    return [text.strip()] if bare else [piece.text.strip() for piece in spans(text)[0]]


def formula_measures(texts: Sequence[str], bare: bool = False) -> dict[str, float]:
    """Shares of texts in [0, 1], and the mean length in characters:

        validity     has a formula and all its pieces are valid
        brackets     all brackets and dollars match (a text without a formula counts as 0)
        complex      has a fraction, root, sum (or product), integral or matrix
        distinct     different texts, over all texts
        skeletons    different skeletons, over all texts

    Raises ValueError for no texts.
    """
    if not texts:
        raise ValueError("there are no texts to measure; give at least one")
    found = [formulas_of(text, bare) for text in texts]
    count = len(texts)
    return {
        "validity": sum(score(text, bare)["valid"] == 1 for text in texts) / count,
        "brackets": sum(bool(f) and bracket_state([text]) == "complete" for f, text in zip(found, texts, strict=True))
        / count,
        "complex": sum(any(structures(formula) & COMPLEX for formula in formulas) for formulas in found) / count,
        "distinct": len({text.strip() for text in texts}) / count,
        "skeletons": len({tuple(map(skeleton, formulas)) for formulas in found}) / count,
        "length": sum(map(len, texts)) / count,
    }
