"""The tables of docs/tasks.md: which forms of an answer are read, as what, and which are refused."""

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from rewards.answers import is_right_countdown, is_right_expression, is_right_number, number_answer

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
AROUND = (r"\boxed{%s}", "<answer>%s</answer>", "<reasoning>17</reasoning>\n<answer>\n%s\n</answer><|eot_id|>")
COUNTDOWN = json.dumps({"numbers": [87, 85, 60], "target": 62})


def table(heading: str) -> list[list[str]]:
    """The cells of the rows of the first table under a heading."""
    section = re.split(rf"^#+ {heading}\n", PAGE, flags=re.MULTILINE)[1]
    lines = re.split(r"^#", section, flags=re.MULTILINE)[0].split("\n")
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in lines if line.startswith("|")]
    assert rows and rows[1][0].startswith("---")
    return rows[2:]


def examples(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def number(cell: str) -> Fraction | None:
    return None if cell == "none" else Fraction(cell)


@pytest.mark.parametrize("row", table("How an answer is parsed"), ids=lambda row: row[0])
def test_where_an_answer_stands(row):
    assert number_answer(*examples(row[0])) == number(row[1])


@pytest.mark.parametrize("row", table("Numbers"), ids=lambda row: row[0])
def test_how_a_number_is_read(row):
    wanted = number(row[2])
    assert len(examples(row[1])) > 0
    for example in examples(row[1]):
        assert [number_answer(around % example) for around in AROUND] == [wanted] * 3, example
        for digits in re.findall(r"\d+", example):  # a part of what stands there is never its value
            right = wanted is not None and Fraction(digits) == wanted
            assert all(is_right_number(around % example, digits) == right for around in AROUND), (example, digits)
        if wanted is not None and wanted.denominator == 1:
            assert is_right_expression(AROUND[0] % example, str(wanted)), example


@pytest.mark.parametrize("row", table("Countdown"), ids=lambda row: row[0])
def test_how_an_expression_is_read(row):
    (right,), (wrong,) = map(examples, row)
    assert is_right_countdown(right, COUNTDOWN) and not is_right_countdown(wrong, COUNTDOWN)


@pytest.mark.parametrize("row", table("MATH"), ids=lambda row: row[0])
def test_how_expressions_compare(row):
    ((truth,), right, wrong) = map(examples, row)
    for around in AROUND[:2]:
        assert [text for text in right if not is_right_expression(around % text, rf"so \boxed{{{truth}}}")] == []
        assert [text for text in wrong if is_right_expression(around % text, rf"so \boxed{{{truth}}}")] == []
