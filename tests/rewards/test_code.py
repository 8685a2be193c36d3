"""Code out of a model's text: fences, prose around it, what was begun in the prompt, what was cut off."""

import time

import pytest

from rewards.code import CodeTruth, before_end, code_in, code_program, parsable_head, pieces, with_calls

F = "def f(x):\n    return x + 1"


@pytest.mark.parametrize(
    "text",
    [
        F,
        f"```python\n{F}\n```",
        f"Sure! Here's the function:\n```\n{F}\n```\nIt doesn't do more (than that.",
        f"Here's the code:\n\n{F}\n\nThis function doesn't handle (anything else",
        f"{F}\n```\nSome prose.\n```python\nprint(f(input()))\n```",
        f"{F}<|eot_id|><|endoftext|><|endoftext|>",
        f"```python\nprint('an example')\n```\nand\n```py\n{F}\n```",
        f"from the start:\n{F}\ndef g(x):\n    return (",
        f"  ```python\n{F}\n  ```",
    ],
)
def test_code_is_found(text):
    assert code_in(text, "f").rstrip().split("\n\n")[0].strip() == F


@pytest.mark.parametrize(
    "deep", ["-" * 20_000 + "1", "(" * 20_000, "1" + "+1" * 50_000, "a" + ".a" * 50_000, "not " * 20_000 + "a"]
)
def test_what_is_nested_too_deep_is_no_code(deep):
    assert code_in(f"```python\nx = {deep}\n```", "f") == ""
    assert code_in(f"```python\nx = {deep}\n```\n```python\n{F}\n```", "f").rstrip() == F
    assert code_in(f"x = {deep}\n", "f", "def f(x):\n    return ") == ""


@pytest.mark.parametrize(
    "text", ["", "I cannot.", "def f(x", "def g(x):\n    return 1", "```python\nf(1)\n```", "\0", "(" * 500]
)
def test_where_there_is_none(text):
    assert code_in(text, "f") == ""


def test_helpers_and_imports_between_prose_stay():
    text = "import math\n\nFirst a helper, it's short:\ndef g(x):\n    return math.sqrt(x)\n\nAnd so we're done:\ndef f(x):\n    return g(x)"
    code = code_in(text, "f")
    defined: dict = {}
    exec(code, defined)
    assert defined["f"](9) == 3


def test_an_answer_goes_on_from_the_prompt_or_starts_anew():
    before = 'import math\n\ndef help(x):\n    return x\n\n\ndef f(x):\n    """Doc."""\n'
    assert code_in("    return help(x)\n```\nDone, isn't it?", "f", before) == before + "    return help(x)"
    again = code_in("Here:\n```python\ndef f(x):\n    return help(x)\n```", "f", before)
    assert again == before.rstrip("\n") + "\ndef f(x):\n    return help(x)"
    assert code_in("Sorry, I can't.", "f", before) == ""
    assert code_in(" return 2", "f", "def f(x):") == "def f(x): return 2"


TRIED = (
    "try:\n    from math import fsum\nexcept ImportError:\n    fsum = sum\ndef add(a, b):\n    return int(fsum([a, b]))"
)
ASKED = (
    "if hash:\n    plus = int.__add__\nelse:\n    plus = None\n\n@staticmethod\ndef add(a, b):\n    return plus(a, b)"
)


@pytest.mark.parametrize("code", [TRIED, ASKED])
@pytest.mark.parametrize(
    "text",
    [
        "```python\n{}\n```",
        "Here it is:\n```python\n\n{}\n```\nIt isn't long.",
        "```python\n{}\ndef more(",  # cut off
        "{}\n```\nThat is it.",  # the fence was open already
        "{}<|eot_id|><|endoftext|>",
    ],
)
def test_a_fence_may_begin_with_any_statement(text, code):
    defined: dict = {}
    exec(code_in(text.format(code), "add"), defined)
    assert defined["add"](2, 3) == 5


@pytest.mark.parametrize("label", ["solution.py", "Note: this", "python", "numpy.linalg"])
def test_a_line_that_only_names_something_is_no_code(label):
    code = "try:\n    import math\nexcept ImportError:\n    pass\ndef f(x): return 1"
    assert code_in(f"```\n{label}\n{code}\n```", "f") == code


def test_a_word_alone_is_the_name_of_a_language_and_no_code():
    assert code_in(f"```\npython\n{F}\n```", "f") == code_in(f"Sure\n{F}", "f") == F


def test_what_follows_the_head_of_a_fence_is_kept():
    code = code_in("```\nif True:\n    one = 1\nThen, it's easy:\ndef f(x):\n    return x + one\n```", "f")
    defined: dict = {}
    exec(code, defined)
    assert defined["f"](1) == 2


@pytest.mark.parametrize(
    "quoted", ["'</s>'", '"<eos>"', "r'<|eot_id|>'", '"it\'s <eos>"', '"""</s>\n<eos>"""', "'\\'<eos>'"]
)
def test_a_mark_of_the_end_in_a_string_of_a_program_ends_nothing(quoted):
    code = f"def f(x):\n    # it doesn't last\n    y = x\n    return y == {quoted}"
    for text in (code, f"It doesn't work otherwise:\n```python\n{code}\n```", f"{code}<|eot_id|>don't</s>"):
        defined: dict = {}
        exec(code_in(text, "f"), defined)
        assert defined["f"](eval(quoted)) is True


def test_what_was_cut_off_is_cut_back():
    assert parsable_head("a = 1\nb = [1,\n  2,") == "a = 1"
    assert parsable_head('a = 1\n"""never closed\nb = 2') == "a = 1"
    assert parsable_head("def f():\n    a = 1\n    if a:") == "def f():\n    a = 1"
    assert parsable_head("@\n") == parsable_head("") == ""
    assert pieces("a = 1\nprose it is\nb = 2") == ["a = 1", "b = 2"]


def test_long_texts_take_no_long_time():
    prose = "\n".join(f"from line {n} on it isn't code" for n in range(2000))
    started = time.process_time()
    assert code_in(f"{prose}\n{F}\n{prose}", "f") == F
    assert time.process_time() - started < 20


def test_the_end_of_sequence_ends_a_text():
    assert before_end("a<|im_end|>b") == "a" and before_end("a <| b") == "a <| b" and before_end("x</s>") == "x"


def test_a_text_without_code_is_a_program_that_fails():
    program = code_program("no", CodeTruth("", "f", "assert True").dumps())
    with pytest.raises(NameError, match="no code that defines f"):
        exec(program.code, {})


def test_tests_written_for_pytest_are_called():
    tests = """
def test_a(): done.append("a")
def test_fixture(tmp_path): done.append("fixture")
def test_default(x=1): done.append("default")
class TestB:
    def test_c(self): done.append("c")
    def helper(self): done.append("helper")
"""
    done: list = []
    exec(with_calls(tests), {"done": done})
    assert done == ["a", "default", "c"]
    assert with_calls("def test_fixture(tmp_path): pass") == ""
