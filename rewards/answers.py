"""Answers out of text, and whether they are right: GSM8K numbers, MATH expressions, Countdown; code is in rewards/code.py.

As in "Learning Unmasking Policies" (2512.09106), whose answers stand in `<answer>` tags or in a box. What differs: `1,234` is
1234 (there: 1 in a box and 234 in tags), signs and decimals are read, powers of units are not, and MATH is judged by math-verify,
with the published comparison of normalised strings as an option.
"""

from __future__ import annotations

import ast
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

from math_verify import parse, verify

from rewards.code import before_end, is_right_code

NUMBER = re.compile(r"(?:(?<![\w)])[-+])?\$?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)")
SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})
THIN_SPACE = re.compile(r"(?<=\d)\\,(?=\d{3}(?!\d))")  # that LaTeX sets between thousands
POWER_OF_UNIT = re.compile(r"(?<=[A-Za-z}])\s*\^\s*(?:\{\s*[-+]?\d+\s*\}|[-+]?\d(?:\.\d+)?)")  # cm^2, \text{ cm}^{3}
COMPARISONS = ("verify", "string")  # of MATH's answers: by value, or by spelling as published
TIME_LIMIT = 3  # seconds of math-verify a side
FORMAT = re.compile(r"^\s*<reasoning>.*?</reasoning>\s*<answer>.*?</answer>\s*$", re.DOTALL)


def numbers(text: str) -> list[float]:
    """Every number of a text, thousands separators (also LaTeX's) and dollar signs read. A sign stands before a number and behind
    none; the power of a unit is no number."""
    text = THIN_SPACE.sub(",", text.translate(SIGNS).replace("\\!", "").replace("{,}", ","))
    found = [match[0].replace(",", "").replace("$", "") for match in NUMBER.finditer(POWER_OF_UNIT.sub("", text))]
    return [float(number) for number in found]


def boxed(text: str) -> str | None:
    r"""What stands in the last \boxed or \fbox, braces matched; None where there is none."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].removeprefix("\\boxed").removeprefix("\\fbox").lstrip()
    if not rest.startswith("{"):
        return rest.split()[0].split("$")[0] if rest.split() else None
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place].strip()
    return None


def tagged(text: str) -> str | None:
    """What stands in the last `<answer>`, closed or not; None where there is none."""
    if "<answer>" not in text:
        return None
    return text.rsplit("<answer>", 1)[1].split("</answer>")[0].strip()


def plain_answer(text: str) -> str:
    """The answer of a text of no special form: in the last `<answer>`, else all of it; without what follows its end."""
    text = before_end(text)
    inside = tagged(text)
    return text.strip() if inside is None else inside


def number_answer(text: str) -> float | None:
    """The answer of a GSM8K text: in the last box, else in the last `<answer>`, else after `####`, else the last number; what
    stands behind the end of sequence is no text."""
    text = before_end(text)
    inside = boxed(text)
    inside = tagged(text) if inside is None else inside
    if inside is None and "####" in text:
        found = numbers(text.rsplit("####", 1)[1])
        return found[0] if found else None
    found = numbers(text if inside is None else inside)
    return found[-1] if found else None


def is_right_number(text: str, truth: str) -> bool:
    """truth: a GSM8K answer, or what follows its `####`."""
    given, wanted = number_answer(text), numbers(truth.rsplit("####", 1)[-1])
    return given is not None and bool(wanted) and abs(given - wanted[-1]) < 1e-6


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
    if by == "string":
        return plain(given) == plain(wanted)
    # Its time limits use a signal, which only a main thread may. Elsewhere 9^{9^{9}} would hold everything up.
    seconds = TIME_LIMIT if threading.current_thread() is threading.main_thread() else None
    gold, answer = (parse(f"${side}$", parsing_timeout=seconds) for side in (wanted, given))  # pyright: ignore[reportArgumentType]
    return bool(verify(gold, answer, timeout_seconds=seconds))


OPERATIONS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda a, b: a + b, ast.Sub: lambda a, b: a - b, ast.Mult: lambda a, b: a * b, ast.Div: lambda a, b: a / b,
}  # fmt: skip


def countdown_value(expression: str) -> tuple[Fraction, list[int]] | None:
    """Exact value of an expression of whole numbers, + - * / and brackets, and the numbers that it holds; None where it is
    anything else, or divides by zero. Nothing is evaluated as Python."""
    used: list[int] = []

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used.append(node.value)
            return Fraction(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
            return OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        raise ValueError(f"{type(node).__name__} is no part of an expression")

    if len(expression) > 500:
        return None
    try:
        return value(ast.parse(expression.strip().translate(SIGNS), mode="eval").body), used
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def is_right_countdown(text: str, truth: str) -> bool:
    """Whether the expression reaches the target with the numbers given. truth: JSON of `numbers`, `target` and, where not all
    numbers have to be used, `"all": false`. An expression with an equals sign is none."""
    told = json.loads(truth)
    found = countdown_value(plain_answer(text))
    if found is None or found[0] != told["target"]:
        return False
    used, given = Counter(found[1]), Counter(told["numbers"])
    return used == given if told.get("all", True) else used <= given


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
