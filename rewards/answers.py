"""Extraction and checking of answers: GSM8K numbers, MATH expressions, Countdown. Code is in rewards/code.py.

As in "Learning Unmasking Policies" (2512.09106) and d1 (2504.12216), answers are in `<answer>` tags or in a box. What
differs: one normal form and one parser of values serve all three (rewards/values.py; docs/tasks.md has the table of
accepted forms), and MATH is compared by value, with the published comparison of normalized strings as an option.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

from rewards.code import before_end, is_right_code
from rewards.equality import equal_in_value
from rewards.values import normal, number_of, same_number, sides, words

COMPARISONS = ("verify", "string")  # of MATH's answers: by value, or by spelling as published
FORMAT = re.compile(r"^\s*<reasoning>.*?</reasoning>\s*<answer>.*?</answer>\s*$", re.DOTALL)
BASE = re.compile(r"\(?(?:\\text\s*\{)?([0-9A-Z]+)\}?\)?\s*(?:_\s*\{?(?:\\text\s*\{)?\s*(\w+)\s*\}*)?")  # 4210_{5}
BROKEN_NUMBER = re.compile(r"(?<![_^\d])(?<![_^]\{)\d+\s+\d")
PREFACE = re.compile(r"^[^\\=<>]*\b(?:is|are|equals|be)\b:?\s*|^[A-Za-z ]{3,}:\s*", re.DOTALL)  # the answer is


def boxed(text: str) -> str | None:
    r"""Return the contents of the last nonempty \boxed or \fbox (`\boxed{...}` counts as nonempty); None if there is none."""
    for found in reversed(list(re.finditer(r"\\(?:boxed|fbox)(?![A-Za-z])\s*", text))):
        if (inside := _braced(text[found.end() :])).strip(" ."):
            return inside
    return None


def _braced(text: str) -> str:
    """Return the contents of the braces at the beginning of a text.

    If they stay open, as at the end of a canvas, the rest of the line up to a tag. For a text without braces, its first
    word.
    """
    if not text.startswith("{"):
        return text.split()[0].split("$")[0] if text.split() else ""
    text, depth = text.split("</")[0], 0
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):  # \{ and \} are characters
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return text[1 : brace.start()].strip()
    inside = text[1:].strip().split("\n")[0].rstrip("<>/ ")
    return inside + "}" * (inside.count("{") - inside.count("}"))


def tagged(text: str) -> str | None:
    """Return the contents of the last nonempty `<answer>`, closed or not; None without any tag, "" if all are empty."""
    if "<answer>" not in text:
        return None
    insides = [part.split("</answer>")[0].strip() for part in text.split("<answer>")[1:]]
    return next((inside for inside in reversed(insides) if inside), "")


def plain_answer(text: str) -> str:
    """Return the answer of a text without special form: the last `<answer>`, else the whole text, up to the end token."""
    text = before_end(text)
    inside = tagged(text)
    return text.strip() if inside is None else inside


def given_answer(text: str) -> tuple[str, bool]:
    """Return (the answer of a text, whether it is a box).

    The answer is in the last box, else in the last `<answer>`, else behind the last `####` to the end of its line, else the
    whole text. Text behind the end of sequence is ignored.
    """
    text = before_end(text)
    if (inside := boxed(text)) is not None:
        return inside, True
    if (inside := tagged(text)) is not None:
        return inside, False
    return (text.rsplit("####", 1)[1].strip().split("\n")[0] if "####" in text else text), False


def number_truth(truth: str) -> Fraction | None:
    """Return the number of a GSM8K solution, or of the part behind its `####`; None if there is none."""
    return number_of(truth.rsplit("####", 1)[-1], boxed=True)


def number_answer(text: str) -> Fraction | None:
    """Return the value of the answer of a GSM8K text; None if it has none."""
    return number_of(*given_answer(text))


def is_right_number(text: str, truth: str) -> bool:
    """Return whether a text answers a GSM8K question. truth: the solution, or the part behind its `####`."""
    given, wanted = number_answer(text), number_truth(truth)
    return given is not None and wanted is not None and same_number(given, wanted)


def has_format(text: str) -> bool:
    """Return whether a text is `<reasoning>` and `<answer>`, each once and closed, and nothing else before the end of
    sequence.
    """
    text = before_end(text)
    once = all(text.count(tag) == 1 for tag in ("<reasoning>", "</reasoning>", "<answer>", "</answer>"))
    return once and FORMAT.match(text) is not None


def with_braces(text: str) -> str:
    r"""Rewrite each \frac with single characters (\frac12, \fracab, \frac1{72}) as \frac{1}{2} and so on.

    As in the published code, a text in which one of them lacks a part is unchanged.
    """
    if any(len(part) < 2 and not part.startswith("{") for part in text.split("\\frac")[1:]):
        return text
    both_plain = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    return re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", both_plain)


def plain(expression: str) -> str:
    """Apply the published normalization of a LaTeX answer: spelling only, nothing is computed."""
    text = expression.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "").replace("\\%", "").replace("%", "")
    text = text.split("\\text{ ")[0].replace(" .", " 0.").replace("{.", "{0.")
    text = "0" + text if text.startswith(".") else text
    if text.count("=") == 1 and len(text.split("=")[0].strip()) <= 2:
        text = text.split("=")[1]
    text = with_braces(re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text).replace(" ", ""))
    text = "\\frac{1}{2}" if text == "0.5" else text
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)


def is_right_expression(text: str, truth: str, by: str = "verify") -> bool:
    """Return whether a text answers a MATH question.

    Args:
        text: the model's text.
        truth: a MATH solution or its answer.
        by: `verify` (math-verify: equal in value, lists in any order) or `string` (the published rule).
    """
    if by not in COMPARISONS:
        raise ValueError(f"by={by!r} is unknown; use {' or '.join(COMPARISONS)}")
    text = before_end(text)
    given = tagged(text) if (inside := boxed(text)) is None else inside
    wanted = boxed(truth) or truth
    if given is None:
        return False
    return plain(given) == plain(wanted) if by == "string" else is_same_expression(given, wanted)


def is_same_expression(given: str, wanted: str) -> bool:
    """Return whether two answers of MATH have the same value.

    Words are compared by their letters, numbers exactly, numbers of another base by their digits, all else by math-verify.
    """
    answer, gold = normal(given), normal(wanted)
    if answer == gold:
        return True
    name = words(wanted)
    if name is not None and ("\\text" in gold or len(name) > 3):  # `east` is no product of letters, and so not `seat`
        return name in (words(given), words(PREFACE.sub("", given)))
    number = number_of(wanted, boxed=True)
    try:
        value = sides(given, boxed=True)
    except OverflowError:
        return False
    if number is not None and (value is None or (value and value[-1] is not None)):
        return value is not None and value[-1] is not None and same_number(value[-1].number, number)
    based = BASE.fullmatch(answer), BASE.fullmatch(gold)
    if any(map(_base, based)):
        return _same_digits(*based)
    answer = PREFACE.sub("", answer)
    return not BROKEN_NUMBER.search(answer) and equal_in_value(gold, answer)


def _base(number: re.Match[str] | None) -> str:
    """Return the base that a number names; empty for a number without a base, and for anything else."""
    return "" if number is None else number[2] or ""


def _same_digits(given: re.Match[str] | None, wanted: re.Match[str] | None) -> bool:
    """Return whether two numbers have the same digits and not two different bases. A number without a base has that of the
    other."""
    if given is None or wanted is None:
        return False
    return given[1] == wanted[1] and len({_base(given), _base(wanted)} - {""}) == 1


def is_right_countdown(text: str, truth: str) -> bool:
    """Return whether an expression reaches the target with the given numbers.

    Args:
        text: the model's text. All sides of an equation (`3 * 4 + 5 = 17`) must equal the target.
        truth: JSON of `numbers`, `target` and, if not all numbers must be used, `"all": false`.
    """
    puzzle = json.loads(truth)
    try:
        found = sides(*given_answer(text))
    except OverflowError:
        return False
    given = Counter(puzzle["numbers"])

    def uses_them(literals: tuple[Fraction, ...]) -> bool:
        used = Counter(map(int, literals))
        return used == given if puzzle.get("all", True) else used <= given

    values = [value for value in found or () if value is not None and value.is_elementary]
    if not found or len(values) < len(found) or any(value.number != puzzle["target"] for value in values):
        return False
    return any(uses_them(value.literals) for value in values)


# Verifiers by name of the data set. Other data sets of reasoning-gym need their entry (data/questions.py).
CHECKS: dict[str, Callable[[str, str], bool]] = {
    "gsm8k": is_right_number,
    "math": is_right_expression,
    "humaneval": is_right_code,
    "mbpp": is_right_code,
    "kodcode": is_right_code,
    "countdown": is_right_countdown,
    "gsm_symbolic": is_right_number,
}
