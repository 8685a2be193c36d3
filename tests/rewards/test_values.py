"""Values out of text: a number written in fifty ways is that number in every checker, and no other number is; expressions are exact
and bounded; what is equal in value to SymPy is found in a process that ends in time."""

import json
import threading
import time
from fractions import Fraction

import pytest
from hypothesis import example as pinned
from hypothesis import given, settings
from hypothesis import strategies as st

import rewards.equality
from rewards.answers import is_right_countdown, is_right_expression, is_right_number
from rewards.equality import end_worker, equal_in_value
from rewards.values import DEEPEST, expression, normal, number_of, same_number, words

# ------------------------------------------------------------------------------------------------------- fifty ways to write


def grouped(separator: str):
    return lambda number: f"{number:,}".replace(",", separator)


DIGITS = {
    "plain": str,
    **{f"groups by {separator!r}": grouped(separator) for separator in (
        ",", "{,}", ",\\!", "\\,", "\\;", "\\ ", "~", "\u202f", "\u2009", "\u00a0",
    )},
    "zeros": "{}.00".format, "point": "{}.".format, "full width": lambda n: str(n).translate({48 + d: 0xFF10 + d for d in range(10)}),
    "plus": "+{}".format, "fraction": lambda n: f"\\frac{{{3 * n}}}{{3}}", "dfrac": lambda n: f"\\dfrac{{{2 * n}}}2",
    "slash": lambda n: f"{7 * n}/7", "difference": lambda n: f"{n + 9} - 9", "sum": lambda n: f"{n - 1} + 1",
    "product": lambda n: f"2 \\times {n} \\div 2", "brackets": "\\left({}\\right)".format, "square root": lambda n: f"\\sqrt{{{n * n}}}",
    "power": lambda n: f"{n}^1", "exponent": lambda n: f"{n}0e-1", "scientific": lambda n: f"{n / 10} \\times 10^{{1}}",
    "mixed": lambda n: f"{n - 1}\\frac{{1}}{{2}} + \\frac12", "equation": lambda n: f"{n - 5} + 5 = {n}", "minus twice": "-(-{})".format,
}  # fmt: skip
AROUND = {
    "bare": "{}", "dollars": "${}$", "display": "$${}$$", "brackets": "\\[{}\\]", "parentheses": "\\({}\\)", "bold": "**{}**",
    "text": "\\text{{{}}}", "mathbf": "\\mathbf{{{}}}", "braces": "{{{}}}", "style": "\\displaystyle {}", "spaces": "\\ {} \\quad ",
    "lines": "\n  {}\n", "full stop": "{}.", "comma": "{},", "name": "x = {}", "about": "about {}", "sentence": "The answer is {}.",
    "colon": "Answer: {}", "approximately": "\\approx {}",
}  # fmt: skip
UNITS = {
    "none": "{}", "words": "{} apples", "text": "{}\\text{{ apples}}", "metres": "{}\\,\\text{{m}}^2", "square": "{} cm²",
    "attached": "{}km", "per": "{} dollars per day", "slash": "{} km/h", "percent": "{}\\%", "degrees": "{}^\\circ",
    "dollar": "\\${}", "euro": "€{}", "dollars": "{} dollars",
}  # fmt: skip
MARKS = (
    "\\boxed{{{}}}",
    "<answer>{}</answer>",
    "$\\boxed{{{}}}$",
    "<answer>\\boxed{{{}}}</answer>",
    "<answer>\n{}\n</answer>",
)


@st.composite
def written(draw) -> tuple[int, str, str]:
    """(number, one way to write it, that as an answer)."""
    number = draw(st.integers(2, 9_999_999))
    units = ["none"] if (how := draw(st.sampled_from(list(DIGITS)))) == "plus" else list(UNITS)
    text = UNITS[draw(st.sampled_from(units))].format(DIGITS[how](number))
    text = AROUND[draw(st.sampled_from(list(AROUND)))].format(text)
    return number, text, draw(st.sampled_from(MARKS)).format(text)


def test_there_are_fifty():
    assert len(DIGITS) + len(AROUND) + len(UNITS) - 2 >= 50


@settings(max_examples=150, deadline=None)
@given(written())
@pinned((1000, "1{,}000,", r"\boxed{1{,}000,}"))
def test_a_number_is_right_however_it_is_written(example):
    number, _, answer = example
    assert is_right_number(answer, f"so\n#### {number:,}")
    assert is_right_expression(answer, f"so \\boxed{{{number}}}")


@settings(max_examples=50, deadline=None)
@given(written(), st.integers(1, 8))
@pinned((1000, "1{,}000,", r"\boxed{1{,}000,}"), 1)
def test_another_number_is_wrong_however_it_is_written(example, cut):
    number, text, answer = example
    near = {number + 1, number - 1, -number, 10 * number, number % 10**cut, int(str(number)[:cut])}
    near |= {int("".join(filter(str.isdecimal, part)) or 0) for part in text.split()}  # a part of what is written
    for other in near - {number}:
        assert not is_right_number(answer, str(other)) and not is_right_expression(answer, str(other)), other
    assert not is_right_number(answer, f"{number}.000002") and not is_right_number(answer, f"{number}.4")


FRACTIONS = (
    "\\frac{{{a}}}{{{b}}}", "\\dfrac{{{a}}}{{{b}}}", "\\tfrac{{{a}}}{{{b}}}", "{a}/{b}", "{a} / {b}", "{a} \\div {b}",
    "\\left(\\frac{{{a}}}{{{b}}}\\right)", "x = \\frac{{{a}}}{{{b}}}", "{a}⁄{b}", "\\frac{{{a}\\cdot 3}}{{{b}\\cdot 3}}",
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.integers(2, 99), st.sampled_from(FRACTIONS), st.sampled_from(MARKS))
def test_a_fraction_is_its_value(above, below, form, mark):
    value = Fraction(above, below)
    texts = [form.format(a=above, b=below)]
    if above > below and above % below:
        whole, rest = divmod(above, below)
        texts += [f"{whole} {rest}/{below}", f"{whole}\\frac{{{rest}}}{{{below}}}"]
    for text in texts:
        assert number_of(text, boxed=True) == value
        assert is_right_expression(mark.format(text), f"\\frac{{{above}}}{{{below}}}")
        assert not is_right_expression(mark.format(text), f"\\frac{{{above + 1}}}{{{below}}}")
        assert is_right_number(mark.format(text), str(above)) == (value == above)
        assert is_right_number(mark.format(text), str(below)) == (value == below)


# --------------------------------------------------------------------------------------------------------------- Countdown

SPELLINGS = (
    {"*": "*", "/": "/", "-": "-"}, {"*": "\\times", "/": "\\div", "-": "-"}, {"*": "×", "/": "÷", "-": "−"}, {"*": "\\cdot ", "/": "/", "-": "–"},
)  # fmt: skip


@st.composite
def countdown(draw) -> tuple[str, int, list[int]]:
    """(an expression of whole values, its value, its numbers)."""
    numbers = draw(st.lists(st.integers(1, 99), min_size=2, max_size=5))
    text, value = str(numbers[0]), numbers[0]
    for number in numbers[1:]:
        sign = draw(st.sampled_from("+-*/" if value % number == 0 else "+-*"))
        value = {"+": value + number, "-": value - number, "*": value * number, "/": value // number}[sign]
        text = f"({text}) {sign} {number}"
    return text, value, numbers


AROUND_EXPRESSIONS = ("{}", "**{}**", "\\[{}\\]", "${}$", "{} = {target}")


@settings(max_examples=60, deadline=None)
@given(countdown(), st.sampled_from(SPELLINGS), st.sampled_from(MARKS), st.sampled_from(AROUND_EXPRESSIONS))
def test_an_expression_of_countdown_is_right_however_it_is_written(example, signs, mark, around):
    text, value, numbers = example
    spelled = "".join(signs.get(character, character) for character in text)
    answer = mark.format(around.format(spelled, target=value))

    def is_right(**truth) -> bool:
        return is_right_countdown(answer, json.dumps({"numbers": numbers, "target": value} | truth))

    assert is_right() and is_right(numbers=[*numbers, 100], all=False)
    assert not is_right(target=value + 1) and not is_right(target=-value - 1)
    assert not is_right(numbers=[*numbers, 100]) and not is_right(numbers=numbers[1:])
    assert not is_right(numbers=[numbers[0] + 100, *numbers[1:]])


# ------------------------------------------------------------------------------------------------------------- expressions


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-2^2", -4), ("2^3^2", 512), ("2^{-2}", Fraction(1, 4)), ("8^{2/3}", 4), ("(-8)^{1/3}", -2), ("\\sqrt[3]{27}", 3),
        ("6/2*3", 9), ("10 - 4 - 3", 3), ("-3 + 5", 2), ("2 * -3", -6), ("3(1 + 2)", 9), ("(1 + 2)(3)", 9), ("2\\sqrt{16}", 8),
        ("\\frac{1}{2}\\frac{4}{3}", Fraction(2, 3)), ("[1 + 2] * {3}", 9), ("1e-3", Fraction(1, 1000)), ("(-1)^{10**9}", None),
        ("0.1\\overline{6}", Fraction(1, 6)), ("12.\\overline{3}", Fraction(37, 3)), ("1^{1000000000}", 1), ("0^5", 0), ("-1 1/4", Fraction(-5, 4)),
    ],
)  # fmt: skip
def test_expressions_are_exact(text, value):
    found = expression(text)
    assert found is not None and found.number == value if value is not None else found is None or found.number == 1


@pytest.mark.parametrize(
    "text",
    ["", "1 +", "+", "--3", "1 / 0", "0^0", "0^{-1}", "1 // 2", "x + 1", "f(1)", "'a' * 3", "1 + 2 = 3", "(1, 2)", "(1", "1)", "()",
     "(1]", "1 2", "1/2 3/4", "4{10}", "5!", "1,2", "7 % 2", "__import__('os').system('true')", "1+" * 400 + "1", "\0", "\\frac{1}",
     "\\sqrt{2}", "(-4)^{1/2}", "(" * 300 + "1" + ")" * 300, "^".join("1" * 200), "(" * (DEEPEST + 1) + "1" + ")" * (DEEPEST + 1)],
)  # fmt: skip
def test_what_is_no_expression(text):
    assert expression(text) is None


@pytest.mark.parametrize("text", ["9^{9^{9}}", "2^{10000}", "(1/3)^{10000}", "10^{-10000}", "9^{9^{9^{9}}}"])
def test_a_power_too_large_to_hold_is_none(text):
    with pytest.raises(OverflowError):
        expression(text)
    assert number_of(text, boxed=True) is None and not is_right_expression(f"\\boxed{{{text}}}", "3")


def test_the_tolerance():
    assert same_number(Fraction("18.0000009"), Fraction(18)) and not same_number(Fraction("18.000001"), Fraction(18))
    assert not same_number(Fraction(18) + Fraction(1, 3), Fraction(18))
    assert not same_number(Fraction(2, 10**7), Fraction(1, 10**7)) and not same_number(Fraction(1, 10**9), Fraction(0))


@pytest.mark.parametrize(
    "mark",
    [
        "(",
        "1 ",
        "1,",
        "**a ",
        "$",
        "{",
        "\\frac",
        "=",
        "1+",
        "-",
        "\\text{",
        "`",
        "_",
        "</a",
        "1\\,",
        "9^",
        "1.",
        "is ",
        "√",
    ],
)
def test_long_texts_are_read_in_time(mark):
    start = time.process_time()
    for text in (mark * (4000 // len(mark)), "<answer>" + mark * (4000 // len(mark))):
        is_right_number(text, "5")
    assert time.process_time() - start < 0.5


def test_the_normal_form_is_stable_and_leaves_rows_of_matrices():
    matrix = "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}"
    for text in (
        matrix,
        "(-\\infty,3)",
        "\\frac{1}{2}",
        "x_1 + \\sqrt{2}",
        "\\text{two words}",
        "1,250",
        "0.\\overline{3}",
    ):
        assert normal(text) == text == normal(f"$${text}$$")
    assert normal("10² cm") == "10^{2} cm" and normal("2½") == "2 1/2" and normal("5\\!\\left(2\\right)") == "5(2)"


def test_words():
    assert words("\\text{(C)}") == words("**C**.") == "c" and words("\\textbf{No  Solution}") == "no solution"
    assert words("p - q") is None and words("2 cats") is None and words("\\pi") is None


# ------------------------------------------------------------------------------------------------- equal in value to SymPy


@pytest.fixture
def own_worker():
    equal_in_value.cache_clear()
    yield
    end_worker()
    equal_in_value.cache_clear()


def test_an_answer_without_end_is_wrong_in_time_in_any_thread_and_the_next_is_judged(monkeypatch, own_worker):
    monkeypatch.setattr(rewards.equality, "TIME_LIMIT", 0)  # the rest of the second that has begun
    found = []
    thread = threading.Thread(target=lambda: found.append(is_right_expression("\\boxed{x + 9^{9^{9^{9}}}}", "x")))
    thread.start()
    thread.join(60)
    assert found == [False] and rewards.equality._worker is None
    monkeypatch.setattr(rewards.equality, "TIME_LIMIT", 3)
    assert is_right_expression("\\boxed{b + a}", "a+b")


def test_a_worker_that_was_killed_is_replaced(own_worker):
    assert equal_in_value("a+b", "b+a")
    assert rewards.equality._worker is not None
    rewards.equality._worker.process.kill()
    rewards.equality._worker.process.wait()
    assert not equal_in_value("a+c", "c+a") and equal_in_value("a+d", "d+a")


def test_what_is_asked_again_needs_no_worker(own_worker):
    assert equal_in_value("a+b", "b+a")
    end_worker()
    assert equal_in_value("a+b", "b+a") and rewards.equality._worker is None


def test_brackets_without_end_are_read_in_time():
    start = time.process_time()
    assert not is_right_number("\\boxed{" + "\\frac{1}{" * 5000 + "}", "1")
    assert not is_right_number("(" * 10_000 + "1" + ")" * 10_000, "1")
    assert time.process_time() - start < 3
