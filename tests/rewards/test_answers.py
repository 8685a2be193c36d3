"""Answers out of text: separators, signs, boxes, tags; values and spellings of MATH."""

import json
from pathlib import Path

import pytest

from rewards.answers import boxed, has_format, is_right_expression, is_right_number, number_answer, numbers, plain

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,234 eggs and -5, then $3.50", [1234.0, -5.0, 3.5]),
        ("1,234,567.5", [1234567.5]),
        ("7.", [7.0]),
        (".5 of 12,5", [0.5, 12.0, 5.0]),
        ("none", []),
    ],
)
def test_numbers_of_a_text(text, found):
    assert numbers(text) == found


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{1,234} it is", 1234.0),
        (r"\boxed{3} no, \boxed{\text{about } 4}", 4.0),
        ("<reasoning>2+2=4</reasoning><answer>\n$1,234\n</answer>", 1234.0),
        ("6 and 7\n#### -18", -18.0),
        ("it is 41, no, 42", 42.0),
        ("nothing", None),
    ],
)
def test_the_answer_of_a_text(text, answer):
    assert number_answer(text) == answer


def test_a_number_is_right_whatever_its_spelling():
    truth = "He has 1,000 + 234.\n#### 1,234"
    assert is_right_number("<answer>1234.0</answer>", truth)
    assert is_right_number(r"\boxed{\$1,234}", truth)
    assert not is_right_number("<answer>234</answer>", truth)
    assert not is_right_number("", truth)


def test_boxes_are_matched_by_their_braces():
    assert boxed(r"\boxed{\frac{1}{2}} and more") == r"\frac{1}{2}"
    assert boxed(r"\fbox{a} \boxed{b{c}d}") == "b{c}d"
    assert boxed(r"\boxed{never closed") is None
    assert boxed("none") is None


@pytest.mark.parametrize(
    ("given", "truth", "verify", "string"),
    [
        (r"\boxed{0.5}", r"\boxed{\frac12}", True, True),
        (r"\boxed{\dfrac{1}{2}}", r"\boxed{\frac{1}{2}}", True, True),
        (r"\boxed{2/4}", r"\boxed{\frac{1}{2}}", True, False),
        (r"\boxed{3}", r"\boxed{4}", False, False),
        ("<answer>12</answer>", "12", True, True),
        ("twelve", "12", False, False),
    ],
)
def test_expressions_by_value_and_by_spelling(given, truth, verify, string):
    assert is_right_expression(given, truth) == verify
    assert is_right_expression(given, truth, "string") == string


def test_an_unknown_comparison_is_refused():
    with pytest.raises(ValueError, match="use verify or string"):
        is_right_expression("1", "1", "guess")


def test_the_format():
    assert has_format("<reasoning>a</reasoning>\n<answer>b</answer>\n")
    assert not has_format("<answer>b</answer>")
    assert plain(r"x=\tfrac12") == r"\frac{1}{2}"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not here")
def test_every_truth_of_gsm8k_is_right_by_itself():
    rows = [json.loads(line) for line in (SHARED / "gsm8k" / "test.jsonl").read_text().splitlines()]
    assert all(is_right_number(row["answer"], row["answer"]) for row in rows)
