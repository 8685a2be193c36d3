"""Data sets of questions: what is asked, how an answer begins, what is right, and what is said where a data set cannot be had."""

import json
import sys
from pathlib import Path

import pytest
from reasoning_gym.factory import DATASETS as GYM

from data import questions
from data.questions import CODE_PREFIX, canvases, check_runnable, encode, formatted, load_questions, right
from dlm.prompts import Prompts
from load_model import load_model
from rewards import sandbox
from rewards.sandbox import SandboxError, check_sandbox

ROOT = Path(__file__).parents[2]
OWN = str(ROOT / "tests" / "questions")


def usable() -> bool:
    """Whether there is a sandbox."""
    try:
        check_sandbox()
    except SandboxError:
        return False
    return True


needs_bwrap = pytest.mark.skipif(not usable(), reason="bubblewrap is not here, or makes no sandbox")


@needs_bwrap
def test_humaneval():
    evens, quadruple = load_questions("humaneval", "test", OWN)
    assert evens.dataset == "humaneval" and "def evens(numbers: List[int])" in evens.prompt
    assert evens.prefix.startswith(CODE_PREFIX + "from typing import List\n") and evens.prefix.endswith('"""\n')
    texts = {
        "    return [n for n in numbers if n % 2 == 0]\n```\nDone, isn't it?": True,
        "    return numbers\n```": False,
        "```python\ndef evens(numbers: List[int]):\n    return list(filter(lambda n: not n % 2, numbers))\n```": True,
        "    import os; os._exit(0)": False,
        "I can't.": False,
    }
    assert right([evens] * len(texts), list(texts)) == list(texts.values())
    own = "```\ndef quadruple(x):\n    return double(double(x))\n```"  # its helper stands in the prompt
    assert right([quadruple, evens], [own, own]) == [True, False]
    assert quadruple.is_right(own, quadruple.truth)


@needs_bwrap
def test_mbpp():
    (add,) = load_questions("mbpp", "test", OWN)
    assert "assert add(1, 2) == 3" in add.prompt and add.prefix == CODE_PREFIX
    assert right([add, add], ["def add(a, b):\n    return a + b\n```", "def add(a, b):\n    return 3\n```"]) == [
        True,
        False,
    ]


@needs_bwrap
def test_kodcode(capsys):
    (area,) = load_questions("kodcode", "train", OWN)
    assert "2 questions are left out" in capsys.readouterr().err
    assert area.prefix == CODE_PREFIX + "def area(side):\n"
    good = "    if side < 0:\n        raise ValueError('negative')\n    return side ** 2\n```"
    assert right([area, area], [good, "    return side ** 2\n```"]) == [True, False]


def test_the_hub_has_one_split_of_kodcode(monkeypatch):
    rows = [
        json.loads((Path(OWN) / "kodcode" / "train.jsonl").read_text().splitlines()[0]) | {"question": str(n)}
        for n in range(600)
    ]
    monkeypatch.setattr(
        "datasets.load_dataset", lambda hub_id, configuration, split: rows if split == "train" else None
    )
    train, test = load_questions("kodcode", "train"), load_questions("kodcode", "test", count=3)
    assert len(train) == 100 and [q.prompt.split()[-1] for q in test] == ["100", "101", "102"]


def test_the_hub_is_asked_by_the_published_names(monkeypatch):
    asked = []

    def hub(*given, split):
        asked.append((*given, split))
        return [{"problem": "1+1", "solution": r"\boxed{2}", "question": "1+1", "answer": "#### 2", "level": 1}]

    monkeypatch.setattr("datasets.load_dataset", hub)
    (gsm8k,), (math,) = load_questions("gsm8k", "train"), load_questions("math", "test")
    assert asked == [("openai/gsm8k", "main", "train"), ("ankner/math-500", None, "test")]
    assert gsm8k.truth == "#### 2" and gsm8k.prefix == ""
    assert math.truth == r"\boxed{2}" and math.prefix == "<reasoning>\n"


@pytest.mark.parametrize("name", ["gsm8k", "math", "humaneval", "mbpp", "kodcode"])
def test_an_unreachable_data_set_says_how_to_give_a_path(name, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no route")))
    with pytest.raises(
        ValueError,
        match=rf"cannot be had \(ConnectionError\); give a directory .--data_dir DIR, .* with DIR/{name}/test.jsonl",
    ):
        load_questions(name, "test")


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("gsm", "test", "'gsm' is unknown.*did you mean 'gsm8k'"),
        ("rg:countdwn", "test", "did you mean 'countdown'"),
        ("composite", "test", "is unknown"),
        ("countdown", "dev", "no split 'dev'; use one of train, validation, test"),
        (
            "humaneval",
            "train",
            "holds none of .*humaneval/train.jsonl.* JSONL with `prompt` and `test` and `entry_point`",
        ),
    ],
)
def test_what_is_not_there(name, split, message):
    with pytest.raises(ValueError, match=message):
        load_questions(name, split, OWN if name == "humaneval" else None, 1)


def test_without_reasoning_gym_its_names_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match="'countdown'.*pip install reasoning-gym"):
        load_questions("countdown", "test")


def test_a_line_that_lacks_a_column_is_named(tmp_path):
    (tmp_path / "mbpp").mkdir()
    (tmp_path / "mbpp" / "test.jsonl").write_text('{"text": "Add.", "code": ""}\n')
    with pytest.raises(ValueError, match=r"test.jsonl line 1 lacks test_list, test_setup_code; a line is {\"text\":"):
        load_questions("mbpp", "test", str(tmp_path))


def test_a_file_of_questions_that_is_none_is_named_with_its_line(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    for second, message in (
        ("{", "line 2 is not JSON"),
        ('"text"', "line 2: a line is"),
        ('{"question": "1"}', "line 2 lacks answer"),
    ):
        (tmp_path / "gsm8k" / "test.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n' + second)
        with pytest.raises(ValueError, match=message):
            load_questions("gsm8k", "test", str(tmp_path))
    (tmp_path / "mbpp").mkdir()
    row = {"text": "Add.", "code": "def f(): pass", "test_list": ["f()"], "test_setup_code": ""}
    (tmp_path / "mbpp" / "mbpp.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="line 1 lacks task_id"):
        load_questions("mbpp", "test", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gsm8k", b"", r"gsm8k/test.jsonl holds no questions; a line is"),
        ("gsm8k", b"\n\n", r"gsm8k/test.jsonl holds no questions"),
        ("gsm8k", b'{"question": "caf\xe9", "answer": "18"}', r"gsm8k/test.jsonl is not UTF-8"),
        ("gsm8k", b'{"question": "a", "answer": "eighteen"}', r"line 1: `answer` ends in 'eighteen', expected a number"),
        ("gsm8k", b'{"question": "a", "answer": "5\\n#### 3:30"}', r"line 1: `answer` ends in .*3:30', expected a number"),
        ("gsm8k", b'{"question": "a", "answer": null}', r"line 1: `answer` is None, expected str"),
        ("gsm8k", b'{"question": "a", "answer": true}', r"line 1: `answer` is True, expected str"),
        ("math", b'{"question": "a", "answer": "1"}\n{"question": ["a"], "answer": "1"}', r"line 2: `question` is \['a'\], expected str"),
        ("mbpp", b'{"text": "a", "code": "", "test_list": "assert f()", "test_setup_code": ""}', r"`test_list` is 'assert f\(\)', expected list"),
    ],
)  # fmt: skip
def test_a_file_of_questions_whose_rows_cannot_be_judged_is_refused(name, content, message, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "test.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_questions(name, "test", str(tmp_path))


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_an_answer_may_be_a_number(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "test.jsonl").write_text('{"question": "a", "answer": 18}\n{"question": "b", "answer": -0.5}')
    asked = load_questions(name, "test", str(tmp_path))
    assert [question.truth for question in asked] == ["18", "-0.5"]
    assert (
        right(asked, [r"\boxed{18}", r"\boxed{-\frac12}"])
        == [True, True]
        == [not r for r in right(asked, ["18.5"] * 2)]
    )


def test_a_split_of_the_published_mbpp_without_rows_is_refused(tmp_path):
    (tmp_path / "mbpp").mkdir()
    row = {"text": "Add.", "code": "def f(): pass", "test_list": ["f()"], "test_setup_code": "", "task_id": 601}
    (tmp_path / "mbpp" / "mbpp.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="holds no question of the test split, whose ids are 11 to 510"):
        load_questions("mbpp", "test", str(tmp_path))


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="there are no prompts"):
        Prompts.from_ids([], 8, 0)


def test_kodcode_tests_that_are_no_python_are_left_out(tmp_path, capsys):
    (tmp_path / "kodcode").mkdir()
    row = json.loads((Path(OWN) / "kodcode" / "train.jsonl").read_text().splitlines()[0]) | {"test": "def ("}
    (tmp_path / "kodcode" / "train.jsonl").write_text(json.dumps(row))
    assert load_questions("kodcode", "train", str(tmp_path)) == []
    assert "1 questions are left out, their tests cannot run (tests that are no Python)" in capsys.readouterr().err


def test_countdown_by_its_own_rule():
    train, test = load_questions("countdown", "train", count=3), load_questions("rg:countdown", "test", count=3)
    assert not {q.prompt for q in train} & {q.prompt for q in test}
    assert [q.prompt for q in load_questions("countdown", "train", count=2)] == [q.prompt for q in train[:2]]
    told = json.loads(train[0].truth)
    assert str(told["target"]) in train[0].prompt and all(str(n) in train[0].prompt for n in told["numbers"])
    assert right(train[:1], [f"<answer>{told['target']}</answer>"]) == [False]


@pytest.mark.parametrize("name", ["sudoku", "gsm_symbolic", "mini_sudoku", "chain_sum"])
def test_truths_of_reasoning_gym_are_right_by_themselves(name):
    asked = load_questions(name, "test", count=2)
    assert right(asked, [f"<reasoning>so</reasoning>\n<answer>\n{q.truth}\n</answer>" for q in asked]) == [True, True]
    assert right(asked, [q.truth for q in asked]) == [True, True]
    assert right(asked, [q.truth.replace(q.truth[0], str(int(q.truth[0]) + 1)) for q in asked]) == [False, False]
    assert right(asked, ["", "<answer></answer>"]) == [False, False]


def test_no_score_evaluates_an_answer_in_this_process(tmp_path):
    """Those of reasoning-gym that do are judged in the sandbox; Countdown by a rule that evaluates nothing."""
    left = tmp_path / "left"
    attack = f"__import__('pathlib').Path({str(left)!r}).touch()"
    for name in (
        "puzzle24",
        "n_queens",
        "string_insertion",
        "spiral_matrix",
        "binary_matrix",
        "polynomial_multiplication",
    ):
        (question,) = load_questions(name, "test", count=1)
        assert question.program is not None
    for name in ("countdown", "chain_sum", "polynomial_equations", "sudoku"):
        (question,) = load_questions(name, "test", count=1)
        assert question.program is None and not question.is_right(attack, question.truth) and not left.exists()
    assert {"countdown", "puzzle24"} <= GYM.keys()


@needs_bwrap
@pytest.mark.slow
def test_a_score_that_evaluates_is_taken_in_the_sandbox():
    (question,) = load_questions("spiral_matrix", "test", count=1)
    attack = "__import__('os')._exit(0)"
    assert right([question] * 2, [question.truth, attack]) == [True, False]


def test_code_is_refused_before_any_text_where_there_is_no_sandbox(monkeypatch):
    check_sandbox.cache_clear()
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    code, text = load_questions("mbpp", "test", OWN), load_questions("math", "test", OWN)
    with pytest.raises(SandboxError, match="--unsandboxed"):
        check_runnable(code)
    with pytest.raises(SandboxError, match="install it"):
        right(code, ["def add(a, b):\n    return a + b"])
    check_runnable(text)
    check_runnable(code, unsandboxed=True)
    assert right(code, ["def add(a, b):\n    return a + b"], unsandboxed=True) == [True]


def test_math_by_value_or_by_spelling():
    text = r"\boxed{2/4}"
    for by, expected in (("verify", True), ("string", False)):
        (question,) = load_questions("math", "test", OWN, math_by=by)
        assert right([question], [text]) == [expected]


def test_the_format_counts_what_is_prefixed():
    (question,) = load_questions("math", "test", OWN)
    text = "half\n</reasoning>\n<answer>\n\\boxed{0.5}\n</answer>"
    texts = [text + "<|eot_id|><|endoftext|>", "<reasoning>" + text, text + "<answer>2</answer>", "<answer>2</answer>"]
    assert formatted([question] * 4, texts) == [True, False, False, False]


def test_a_prefix_stands_behind_the_template():
    model, _ = load_model(ROOT / "example" / "stories")
    question = load_questions("math", "test", OWN)[0]
    decoded = model.tokenizer.decode(encode(model, question.prompt, question.prefix))
    assert decoded.endswith(question.prompt[-10:] + "\n\n<reasoning>\n")
    model.tokenizer.chat_template = "{% for m in messages %}USER {{ m.content }} ASSISTANT {% endfor %}"
    decoded = model.tokenizer.decode(encode(model, "Add.", "Here: "))
    assert decoded == "USER Add. ASSISTANT Here: "
    short = questions.Question("Add.", "", str.startswith, "Here: ")
    made = canvases(model, [short, short], 4)
    assert made.canvas[0, : made.prompt_length].tolist() == encode(model, "Add.", "Here: ")


def test_the_published_mbpp_file_holds_all_splits(shared):
    data = str(shared / "data")
    counts = {split: len(load_questions("mbpp", split, data)) for split in ("prompt", "test", "validation", "train")}
    assert counts == {"prompt": 10, "test": 500, "validation": 90, "train": 374}
    with pytest.raises(ValueError, match="no split 'dev'"):
        load_questions("mbpp", "dev", data)


@needs_bwrap
def test_references_of_mbpp_pass_their_tests(shared):
    rows = {
        row["task_id"]: row
        for row in map(json.loads, (shared / "data" / "mbpp" / "mbpp.jsonl").read_text().splitlines())
    }
    asked = load_questions("mbpp", "test", str(shared / "data"), 16)
    assert all(right(asked, [f"```python\n{rows[11 + n]['code']}\n```\nThat's all." for n in range(16)]))
    assert not any(right(asked, [f"```python\n{rows[12 + n]['code']}\n```" for n in range(16)]))
