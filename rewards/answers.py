"""Answers out of text, and whether they are right: GSM8K numbers, MATH expressions, Countdown; code is in rewards/code.py.

As in "Learning Unmasking Policies" (2512.09106) and d1 (2504.12216), whose answers stand in `<answer>` tags or in a box. What
differs: one normal form and one reading of values serve all three (rewards/values.py; docs/tasks.md has the table of what is
accepted), and MATH is judged by value, with the published comparison of normalised strings as an option.
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
    r"""What stands in the last \boxed or \fbox that is not empty (`\boxed{...}` is); None where there is none."""
    for found in reversed(list(re.finditer(r"\\(?:boxed|fbox)(?![A-Za-z])\s*", text))):
        if (inside := _braced(text[found.end() :])).strip(" ."):
            return inside
    return None


def _braced(text: str) -> str:
    """What stands in the braces that a text begins with; the rest of the line, up to a tag, where they stay open, as at the end
    of a canvas; the first word of a text that begins with none."""
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
    """What stands in the last `<answer>` that is not empty, closed or not; None where there is none, "" where all are empty."""
    if "<answer>" not in text:
        return None
    insides = [part.split("</answer>")[0].strip() for part in text.split("<answer>")[1:]]
    return next((inside for inside in reversed(insides) if inside), "")


def plain_answer(text: str) -> str:
    """The answer of a text of no special form: in the last `<answer>`, else all of it; without what follows its end."""
    text = before_end(text)
    inside = tagged(text)
    return text.strip() if inside is None else inside


def given_answer(text: str) -> tuple[str, bool]:
    """(where the answer of a text stands, whether that is a box): in the last box, else in the last `<answer>`, else behind the
    last `####`, to the end of its line, else anywhere. What stands behind the end of sequence is no text."""
    text = before_end(text)
    if (inside := boxed(text)) is not None:
        return inside, True
    if (inside := tagged(text)) is not None:
        return inside, False
    return (text.rsplit("####", 1)[1].strip().split("\n")[0] if "####" in text else text), False


def number_truth(truth: str) -> Fraction | None:
    """The number of a GSM8K answer, or of what follows its `####`; None where there is none."""
    return number_of(truth.rsplit("####", 1)[-1], boxed=True)


def number_answer(text: str) -> Fraction | None:
    """The value of the answer of a GSM8K text, where it gives one."""
    return number_of(*given_answer(text))


def is_right_number(text: str, truth: str) -> bool:
    """truth: a GSM8K answer, or what follows its `####`."""
    given, wanted = number_answer(text), number_truth(truth)
    return given is not None and wanted is not None and same_number(given, wanted)


def has_format(text: str) -> bool:
    """`<reasoning>` and `<answer>`, each once and closed, and nothing else before the end of sequence."""
    text = before_end(text)
    once = all(text.count(tag) == 1 for tag in ("<reasoning>", "</reasoning>", "<answer>", "</answer>"))
    return once and FORMAT.match(text) is not None


def with_braces(text: str) -> str:
    r"""Each \frac of one character above, and of one character or a braced part below (\frac12, \fracab, \frac1{72}), as
    \frac{1}{2} and so on. As published, nothing is changed in a text where one of them lacks a part."""
    if any(len(part) < 2 and not part.startswith("{") for part in text.split("\\frac")[1:]):
        return text
    both_plain = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    return re.sub(r"\\frac([^{])\{", r"\\frac{\1}{", both_plain)


def plain(expression: str) -> str:
    """The published normalisation of a LaTeX answer: spelling only, nothing is computed."""
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
    """by: `verify` (math-verify: equal in value, a list of values in any order) or `string` (the published rule). truth: a MATH
    solution or its answer."""
    if by not in COMPARISONS:
        raise ValueError(f"by={by!r} is unknown; use {' or '.join(COMPARISONS)}")
    text = before_end(text)
    given = tagged(text) if (inside := boxed(text)) is None else inside
    wanted = boxed(truth) or truth
    if given is None:
        return False
    return plain(given) == plain(wanted) if by == "string" else is_same_expression(given, wanted)


def is_same_expression(given: str, wanted: str) -> bool:
    """Whether two answers of MATH have the same value: words by their letters, numbers exactly, numbers of another base by their
    digits, all else by math-verify."""
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
    based = [BASE.fullmatch(side) for side in (answer, gold)]
    if any(found is not None and found[2] for found in based):
        return all(based) and based[0][1] == based[1][1] and len({found[2] for found in based if found[2]}) == 1  # pyright: ignore
    answer = PREFACE.sub("", answer)
    return not BROKEN_NUMBER.search(answer) and equal_in_value(gold, answer)


def is_right_countdown(text: str, truth: str) -> bool:
    """Whether the expression reaches the target with the numbers given. truth: JSON of `numbers`, `target` and, where not all
    numbers have to be used, `"all": false`. All sides of an equation (`3 * 4 + 5 = 17`) have to be the target."""
    told = json.loads(truth)
    try:
        found = sides(*given_answer(text))
    except OverflowError:
        return False
    given = Counter(told["numbers"])

    def uses_them(literals: tuple[Fraction, ...]) -> bool:
        used = Counter(map(int, literals))
        return used == given if told.get("all", True) else used <= given

    values = [value for value in found or () if value is not None and value.is_elementary]
    if not found or len(values) < len(found) or any(value.number != told["target"] for value in values):
        return False
    return any(uses_them(value.literals) for value in values)


# By name of the data set: whether a text answers what `truth` says. Others of reasoning-gym need its entry (data/questions.py).
CHECKS: dict[str, Callable[[str, str], bool]] = {
    "gsm8k": is_right_number,
    "math": is_right_expression,
    "humaneval": is_right_code,
    "mbpp": is_right_code,
    "kodcode": is_right_code,
    "countdown": is_right_countdown,
    "gsm_symbolic": is_right_number,
}
