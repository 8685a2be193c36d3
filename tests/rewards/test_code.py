"""Code out of a model's text: fences, prose around it, what was begun in the prompt, what was cut off."""

import time

import pytest

from rewards.code import CodeTruth, before_end, code_in, code_program, given_functions, parsable_head, pieces

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


def runs(text: str, entry: str = "f", before: str = "") -> dict:
    """What the code of a text defines."""
    defined: dict = {}
    exec(code_in(text, entry, before), defined)
    return defined


DRAFT, FINAL = "def f(x):\n    return x", "def f(x):\n    return 2 * x"


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{DRAFT}\n```\nThat is wrong. Final:\n```python\n{FINAL}\n```\n",
        f"```\n{DRAFT}\n```\nNow\n```\n{FINAL}\n```\nand so it's done.",
        f"{DRAFT}\n```\nNo, it has to be doubled:\n```python\n{FINAL}\n```",
        f"{DRAFT}\n```\nNo, it has to be doubled:\n```\n{FINAL}\n```",
        f"~~~py\n{DRAFT}\n~~~\n~~~py\n{FINAL}\n~~~",
        f"```python\n{FINAL}\n```\nUse it:\n```python\nprint(f(2))\n```",
        f"```python\n{FINAL}\n```\nOr, cut off:\n```python\ndef f(x):\n    return (",
        f"First\n\n{DRAFT}\n\nand then, which is right,\n\n{FINAL}\n",
        f"```python\n{FINAL}\n```\nIt was\n\n{DRAFT}\n\nat first.",
    ],
)
def test_of_several_programs_the_last_complete_one_in_a_fence_is_the_answer(text):
    assert runs(text)["f"](2) == 4


def test_a_later_program_replaces_what_goes_on_from_the_prompt():
    head = "def f(x):\n"
    assert runs("    return x\n```\nNo:\n```python\ndef f(x):\n    return 2 * x\n```", before=head)["f"](2) == 4
    assert runs("    return 2 * x\n```\nUse:\n```python\nprint(f(1))\n```", before=head)["f"](2) == 4


@pytest.mark.parametrize(
    "text",
    [
        "1. Code:\n\n   ```python\n   def f(x):\n       return 2 * x\n   ```\n",
        "Answer:\n\n    def f(x):\n        return 2 * x\n\nDone.",
        "```python\ndef f(x):\n    return 2 * x```\nHere ``` closes a fence.",
        "- so\n\n\t```python\n\tdef f(x):\n\t    return 2 * x\n\t```\n- done",
        "1. Code:\n\n   ```python\n   import math\n\n   def f(x):\n       if x:\n           return 2 * x\n   ```\n2. `f(1)`",
        '```python\ndef f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return 2 * x\n```\n',
        "```python\ndef f(x):\n    '''Twice.\n\n    ```python\n    def f(x): return 0\n    ```\n    '''\n    return 2 * x\n```\nIt isn't long.",
        '    """Twice.\n    ```\n    f(1)\n    ```\n    """\n    return 2 * x\n```\nDone.',
        'def f(x):\n    """It isn\'t closed.\n```\nAgain:\n```python\ndef f(x):\n    """Twice."""\n    return 2 * x\n```',
        "```python\r\ndef f(x):\r\n    return 2 * x\r\n```\r\nDone",
        "````python\ndef f(x):\n    return 2 * x\n````",
        "``` python title=\"f.py\"\ndef f(x):\n    return 2 * x\n```",
    ],
)  # fmt: skip
def test_fences_in_lists_and_in_strings(text):
    assert runs(text, before="def f(x):\n" if text.startswith("    ") else "")["f"](2) == 4


@pytest.mark.parametrize("mark", ["\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\u2029"])
def test_only_line_feeds_end_a_line(mark):
    code = f"def f():\n    return '{mark}'\ndef g(): return {mark!r}"
    assert runs(f"```python\n{code}\n```\n")["f"]() == mark
    assert runs(f"It's this:\n{code}\n")["f"]() == mark
    assert runs(f"{code}\r\nx = [1,")["g"]() == mark


def test_functions_of_the_prompt_are_those_of_the_tests():
    source = 'import math\n\ndef half(x):\n    return x / 2\n\ndef f(x):\n    """Doc."""\n'
    assert given_functions(source, "f") == "import math\ndef half(x):\n    return x / 2"
