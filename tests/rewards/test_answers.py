"""Answers out of text: separators, signs, boxes, tags; values and spellings of MATH."""

import json
from pathlib import Path

import pytest

from rewards.answers import (
    CHECKS,
    boxed,
    has_format,
    is_right_countdown,
    is_right_expression,
    is_right_number,
    number_answer,
    plain,
    plain_answer,
    with_braces,
)

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{1,234} it is", 1234),
        (r"\boxed{3} no, \boxed{\text{about } 4}", 4.0),
        ("<reasoning>2+2=4</reasoning><answer>\n$1,234\n</answer>", 1234.0),
        (r"\boxed{1{,}234}", 1234.0),
        (r"\boxed{1,\!234}", 1234.0),
        (r"\boxed{36\text{ cm}^2}", 36.0),
        (r"\boxed{36 \, \text{cm}^{2}}", 36.0),
        ("<answer>36 cm^2</answer>", 36.0),
        ("<answer>x^2 = 49</answer>", 49.0),
        ("6 and 7\n#### -18", -18.0),
        ("it is 41, no, 42", 42.0),
        ("nothing", None),
    ],
)
def test_the_answer_of_a_text(text, answer):
    assert number_answer(text) == answer


def test_a_box_comes_before_a_tag_and_a_tag_before_a_marker():
    assert number_answer(r"\boxed{3} <answer>4</answer> #### 5") == 3 == number_answer(r"<answer>4</answer> \boxed{3}")
    assert number_answer("<answer>4</answer> #### 5") == 4
    assert is_right_expression(r"<answer>4</answer> \boxed{a}", "a") and not is_right_expression(
        r"<answer>a</answer> \boxed{4}", "a"
    )
    told = json.dumps({"numbers": [1, 2], "target": 3})
    assert is_right_countdown(r"\boxed{1 + 2} <answer>1 - 2</answer>", told)
    assert not is_right_countdown(r"\boxed{1 - 2} <answer>1 + 2</answer>", told)


@pytest.mark.parametrize("inside", ["x = 3, y = 18", "3 apples. 18 pears", "x = 3; y = 18", "x=3,y=18"])
def test_a_box_holds_one_answer(inside):
    assert number_answer(rf"\boxed{{{inside}}}") is None and not is_right_expression(rf"\boxed{{{inside}}}", "18")
    assert number_answer(f"<answer>{inside}</answer>") == 18  # prose: its last clause


@pytest.mark.parametrize("near", ["18.4", "17.6", "18.00001", "17.99999"])
def test_a_number_beside_the_right_one_is_wrong(near):
    assert not is_right_number(f"<answer>{near}</answer>", "#### 18") and not is_right_expression(
        rf"\boxed{{{near}}}", "18"
    )
    assert is_right_number("<answer>18.0000001</answer>", "#### 18")


def test_a_number_is_right_whatever_its_spelling():
    truth = "He has 1,000 + 234.\n#### 1,234"
    assert is_right_number("<answer>1234.0</answer>", truth)
    assert is_right_number(r"\boxed{\$1,234}", truth)
    assert not is_right_number("<answer>234</answer>", truth)
    assert not is_right_number("", truth)


def test_what_stands_behind_the_end_is_no_answer():
    assert is_right_number("The answer is 5.<|endoftext|> foo 7", "#### 5")
    assert is_right_expression(r"\boxed{\frac12}<|endoftext|>\boxed{3}", r"\boxed{0.5}")
    assert not is_right_number("<answer>\u22125</answer>", "5") and not is_right_number("so 18-24", "24")


def test_boxes_are_matched_by_their_braces():
    assert boxed(r"\boxed{\frac{1}{2}} and more") == r"\frac{1}{2}"
    assert boxed(r"\fbox{a} \boxed{b{c}d}") == "b{c}d"
    assert boxed(r"\boxed{\left\{ x \right. } and }") == r"\left\{ x \right."
    assert boxed(r"\boxed{5} or \boxed{} or \boxed{...}") == "5" and boxed(r"\boxed 7 apples") == "7"
    assert boxed("<answer>\\boxed{a \\text{never closed\n</answer}") == r"a \text{never closed}"
    assert boxed(r"\boxedtext{1}") is None
    assert boxed("none") is None


@pytest.mark.parametrize(
    ("given", "truth", "verify", "string"),
    [
        (r"\boxed{0.5}", r"\boxed{\frac12}", True, True),
        (r"\boxed{\dfrac{1}{2}}", r"\boxed{\frac{1}{2}}", True, True),
        (r"\boxed{2/4}", r"\boxed{\frac{1}{2}}", True, False),
        (r"\boxed{\frac1{72}}", r"\boxed{\frac{1}{72}}", True, True),
        (r"\boxed{\frac12 + \frac3{x}}", r"\boxed{\frac{1}{2}+\frac{3}{x}}", True, True),
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
    assert has_format("<reasoning>a</reasoning><answer>b</answer><|eot_id|><|endoftext|>")
    for text in (
        "<answer>b</answer>",
        "<reasoning>a</reasoning>",
        "<reasoning>a<answer>b</answer>",
        "<reasoning>a</reasoning><answer>b</answer><answer>c</answer>",
        "<reasoning>a</reasoning><answer>b</answer> and more",
        "<answer>b</answer><reasoning>a</reasoning>",
    ):
        assert not has_format(text)
    assert plain(r"x=\tfrac12") == r"\frac{1}{2}"


@pytest.mark.parametrize(
    ("given", "braced"),
    [
        (r"\frac12", r"\frac{1}{2}"),
        (r"2\frac{1}{2}-\fracab3", r"2\frac{1}{2}-\frac{a}{b}3"),
        (r"\frac1{72}x", r"\frac{1}{72}x"),
        (r"\frac{72}1", r"\frac{72}1"),  # as published
        (r"\frac12+\frac1", r"\frac12+\frac1"),
        (r"\frac", r"\frac"),
        ("", ""),
    ],
)
def test_braces_of_fractions(given, braced):
    assert with_braces(given) == braced == with_braces(braced)
    assert plain(r"\dfrac a b") == plain(r"\frac{a}{b}")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not here")
def test_every_truth_of_gsm8k_is_right_by_itself():
    rows = [json.loads(line) for line in (SHARED / "gsm8k" / "test.jsonl").read_text().splitlines()]
    assert all(is_right_number(row["answer"], row["answer"]) for row in rows)


def test_an_answer_without_a_form_of_its_own():
    assert plain_answer("<answer>1</answer> no <answer>\n2\n</answer><|eot_id|>") == "2"
    assert plain_answer(" 3 + 4 <|endoftext|><|endoftext|>") == "3 + 4"
    assert plain_answer("<answer>never closed") == "never closed"


def test_countdown_uses_each_number_as_it_is_told():
    every = json.dumps({"numbers": [6, 61, 94, 4], "target": 309})
    some = json.dumps({"numbers": [6, 61, 94, 4, 5], "target": 309, "all": False})
    right = "<reasoning>94*4</reasoning><answer>94*4 - 61 - 6</answer>"
    for text in (right, r"\boxed{94 \times 4 - 61 - 6 = 309}", "94*4 - 61 - 6 = 376 - 67 = 309"):
        assert is_right_countdown(text, every) and is_right_countdown(text, some)
    assert not is_right_countdown(right, json.dumps({"numbers": [6, 61, 94, 4, 5], "target": 309}))
    for wrong in (
        "309",
        "94*4 - 61 - 3 - 3",
        "94*4 - 61 - 7",
        "94*4 - 61 - 6 = 308",
        "94*4 - 61 - 6 - 309",
        "(94*4 - 61 - 6) ** 1",
        "94*4 - 61.0 - 6",
        "94*4 - 61 - 6 + x",
        "6*61 - 94 + 4 + 4 + 4 + 4 + 4 + 4 + 4 + 4 + 4 + 1",
    ):
        assert not is_right_countdown(wrong, every) and not is_right_countdown(wrong, some)


def test_a_power_without_end_is_wrong_in_time():
    assert not is_right_expression(r"\boxed{9^{9^{9^{9}}}}", r"\boxed{3}")


def test_checks_by_name():
    assert CHECKS["gsm8k"]("so 5", "#### 5") and CHECKS["gsm_symbolic"]("<answer>1,288</answer>", "1288")
    assert set(CHECKS) == {"gsm8k", "math", "humaneval", "mbpp", "kodcode", "countdown", "gsm_symbolic"}
