"""Answers out of text, and whether they are right: GSM8K numbers, MATH expressions.

As in "Learning Unmasking Policies" (2512.09106), whose answers stand in `<answer>` tags or in a box. What differs: `1,234` is
1234 (there: 1 in a box and 234 in tags), signs and decimals are read, and MATH is judged by math-verify, with the published
comparison of normalised strings as an option.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from math_verify import parse, verify

NUMBER = re.compile(r"[-+]?\$?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)")
FORMAT = re.compile(r"^\s*<reasoning>.*?</reasoning>\s*<answer>.*?</answer>\s*$", re.DOTALL)


def numbers(text: str) -> list[float]:
    """Every number of a text, thousands separators and dollar signs read."""
    return [float(found[0].replace(",", "").replace("$", "")) for found in NUMBER.finditer(text)]


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


def number_answer(text: str) -> float | None:
    """The answer of a GSM8K text: in the last box, else in the last `<answer>`, else after `####`, else the last number."""
    inside = boxed(text)
    if inside is None and "<answer>" in text:
        inside = text.rsplit("<answer>", 1)[1].split("</answer>")[0]
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
    """`<reasoning>` and `<answer>`, each closed, and nothing else."""
    return FORMAT.match(text) is not None


def plain(expression: str) -> str:
    """The published normalisation of a LaTeX answer: spelling only, nothing is computed."""
    text = expression.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    text = text.replace("^{\\circ}", "").replace("^\\circ", "").replace("\\$", "").replace("\\%", "").replace("%", "")
    text = text.split("\\text{ ")[0].replace(" .", " 0.").replace("{.", "{0.")
    text = "0" + text if text.startswith(".") else text
    if text.count("=") == 1 and len(text.split("=")[0].strip()) <= 2:
        text = text.split("=")[1]
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = "\\frac{1}{2}" if text == "0.5" else text
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)


def is_right_expression(text: str, truth: str, by: str = "verify") -> bool:
    """by: `verify` (math-verify: equal in value) or `string` (the published rule). truth: a MATH solution or its answer."""
    if by not in ("verify", "string"):
        raise ValueError(f"by={by!r} is unknown; use verify or string")
    given = boxed(text)
    if given is None and "<answer>" in text:
        given = text.rsplit("<answer>", 1)[1].split("</answer>")[0].strip()
    wanted = boxed(truth) or truth
    if given is None:
        return False
    if by == "string":
        return plain(given) == plain(wanted)
    # Its time limits use a signal, which only a main thread may; what a model writes here is short.
    gold, answer = (parse(f"${side}$", parsing_timeout=None) for side in (wanted, given))  # pyright: ignore[reportArgumentType]
    return bool(verify(gold, answer, timeout_seconds=None))


CHECKS: dict[str, Callable[[str, str], bool]] = {"gsm8k": is_right_number, "math": is_right_expression}
