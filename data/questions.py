"""Questions with known answers, for training and evaluation: GSM8K, MATH, code with tests, reasoning-gym, chain
arithmetic.

    questions = load_questions("gsm8k", "test", count=100)
    prompts = canvases(model, questions, length=256)
    solved = right(questions, texts)               # programs of a batch run at the same time, in a sandbox

Data sets come from the hub or from DIR/NAME/SPLIT.jsonl. Those of reasoning-gym and chain arithmetic are generated, with
different seeds for training and tests. Prompts of different lengths are padded on the left, and the model never sees
padding. Instructions and prefixes follow "Learning Unmasking Policies" (2512.09106); the instructions are the same in
training and evaluation (there they differ). As there, `<reasoning>` begins the answers to GSM8K and MATH in evaluation
only.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from data.catalogue import DATASETS, HUB
from data.chain import chain_tokenizer, chains
from data.text import json_lines
from dlm.encoding import check_ids, message_ids, text_ids
from dlm.ends import end_tokens as end_tokens  # found here as well
from dlm.prompts import Prompts
from rewards.answers import CHECKS, COMPARISONS, has_format, is_right_expression, number_truth, plain_answer
from rewards.code import CodeTruth, code_program, given_functions
from rewards.needs import missing
from rewards.sandbox import Program, check_sandbox, run_programs
from training.hub import hide_data_bars, load_split, prepare

REASONING = "Respond in the following format:\n<reasoning>\nYour reasoning here\n</reasoning>\n<answer>\n...\n</answer>"
EXPERT = "You are an expert Python programmer."
INSTRUCTIONS = {
    "gsm8k": REASONING,
    "math": REASONING
    + "\nYou are a math expert. Solve the problem step by step and wrap the final answer in \\boxed{}.",
    "humaneval": f"{EXPERT} Complete this function so that it does what its docstring says.",
    "mbpp": f"{EXPERT} Write a Python function for the task below. It has to pass the tests that follow.",
    "kodcode": EXPERT,
}
CODE_PREFIX = "Here is the completed function:\n```python\n"
# (hub id, its configuration, its columns). Files of GSM8K and MATH have `question` and `answer`, the others the same columns.
KINDS: dict[str, type] = {"test_list": list, "test_info": list, "task_id": int}  # other columns are text
MBPP_IDS = {
    "prompt": (1, 10),
    "test": (11, 510),
    "validation": (511, 600),
    "train": (601, 974),
}  # of the published file
KODCODE_HELD_OUT = 500  # the hub has one split: its last questions are the test
GYM_SEEDS = {
    "train": 0,
    "validation": 500_000_000,
    "test": 1_000_000_000,
}  # question n of a split is a function of seed + n
MADE = 512  # questions of a data set without end, where no count is given


@runtime_checkable
class PromptReader(Protocol):
    """The attributes of a masked model that questions need."""

    tokenizer: Any
    mask_id: int
    vocab_size: int
    max_length: int


@dataclass
class Question:
    """A question with its verifier.

    prompt: the question in the form that the model sees; truth: reference answer for `is_right(text, truth)`; prefix: beginning
    of the answer behind the chat template, not part of `text`; program: function that returns the program to run, if the verifier
    needs one.
    """

    prompt: str
    truth: str
    is_right: Callable[[str, str], bool]
    prefix: str = ""
    dataset: str = ""
    program: Callable[[str, str], Program] | None = None


def load_questions(
    name: str, split: str, data_dir: str | None = None, count: int | None = None, math_by: str = "verify"
) -> list[Question]:
    """Return the first `count` questions of a data set.

    Args:
        name: one of DATASETS, or any data set of reasoning-gym, as NAME or rg:NAME.
        data_dir: contains NAME/SPLIT.jsonl (or DIR/NAME500/...), and is searched before the hub.
        count: for generated data sets 512 by default.
        math_by: `verify` or `string`, see `is_right_expression`.

    Raises:
        ValueError: a name or comparison is unknown, a file lacks a column, or the hub cannot be reached (the message
            explains how to give a directory).
    """
    if math_by not in COMPARISONS:
        raise ValueError(f"math_by={math_by!r} is unknown; use {' or '.join(COMPARISONS)}")
    if name == "chain":
        return _chain_questions(count or MADE, split)
    if name not in HUB:
        return _gym_questions(name.removeprefix("rg:"), split, count or MADE)
    rows = _rows(name, split, data_dir)
    if name == "kodcode":
        return _kodcode_questions(rows, count)
    if name == "humaneval":
        return [_humaneval_question(row) for row in rows[:count]]
    if name == "mbpp":
        return [_mbpp_question(row) for row in rows[:count]]
    check = partial(is_right_expression, by=math_by) if name == "math" else CHECKS[name]
    prefix = "<reasoning>\n" if split == "test" else ""  # as published: written for the model in evaluation alone
    return [Question(f"{INSTRUCTIONS[name]}\n\n{row['question']}", row["answer"], check, prefix, name)
            for row in rows[:count]]  # fmt: skip


def right(questions: Sequence[Question], texts: Sequence[str], unsandboxed: bool = False) -> list[bool]:
    """Return whether each text answers its question. Programs run at the same time, in the sandbox unless `unsandboxed`.

    Raises:
        SandboxError: a program has to run and there is no sandbox.
    """
    pairs = list(zip(questions, texts, strict=True))
    programs = {place: question.program(text, question.truth)
                for place, (question, text) in enumerate(pairs) if question.program}  # fmt: skip
    verdicts = dict(zip(programs, run_programs(list(programs.values()), unsandboxed), strict=True))
    return [verdicts[place].passed if place in verdicts else bool(question.is_right(text, question.truth))
            for place, (question, text) in enumerate(pairs)]  # fmt: skip


def formatted(questions: Sequence[Question], texts: Sequence[str]) -> list[bool]:
    """Return whether each text, with its prefix, is `<reasoning>` and `<answer>`, each once and closed, and nothing else."""
    return [has_format(question.prefix + text) for question, text in zip(questions, texts, strict=True)]


def check_runnable(questions: Sequence[Question], unsandboxed: bool = False) -> None:
    """Raise SandboxError, before any text is generated, if `right` would."""
    if not unsandboxed and any(question.program for question in questions):
        check_sandbox()


def _rows(name: str, split: str, data_dir: str | None) -> list[dict[str, Any]]:
    """Return the rows of a data set, from the directory if given, else from the hub; GSM8K and MATH as `question` and
    `answer`.
    """
    hub_id, configuration, columns = HUB[name]
    keys: tuple[str, ...] = ("question", "answer") if name in ("gsm8k", "math") else columns
    if data_dir is not None:
        return _local_rows(name, split, Path(data_dir), keys)
    hide_data_bars()
    whole = "train" if name == "kodcode" else split
    prepare(hub_id, "data set")
    try:
        loaded: Iterable[Any] = load_split(hub_id, configuration, split=whole)
    except Exception as error:  # the advice is the same for every reason
        raise ValueError(
            f"{hub_id} cannot be had ({type(error).__name__}); "
            f"give a directory (--data_dir DIR, in training data.data_dir=DIR) with DIR/{name}/{split}.jsonl "
            f"(a line: {_line(keys)})"
        ) from error
    rows: list[dict[str, Any]] = [dict(zip(keys, (row[column] for column in columns), strict=True)) for row in loaded]
    if name == "kodcode":
        return rows[-KODCODE_HELD_OUT:] if split == "test" else rows[:-KODCODE_HELD_OUT]
    return rows


def _local_rows(name: str, split: str, directory: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    files = [directory / folder / f"{split}.jsonl" for folder in (name, f"{name}500")]
    if name == "mbpp":
        files[1] = directory / name / "mbpp.jsonl"  # as published: all splits in one
    file = next((path for path in files if path.is_file()), None)
    if file is None:
        expected = " and ".join(f"`{column}`" for column in columns)
        raise ValueError(f"{directory} holds none of {', '.join(map(str, files))}; JSONL with {expected} is expected")
    columns = (*columns, "task_id") if file.name == "mbpp.jsonl" else columns
    rows = []
    for place, row in json_lines(file):
        if not isinstance(row, dict):
            raise ValueError(f"{place}: a line is {_line(columns)}")
        if missing := [column for column in columns if column not in row]:
            raise ValueError(f"{place} lacks {', '.join(missing)}; a line is {_line(columns)}")
        rows.append(_checked(name, place, row, columns))
    if not rows:
        raise ValueError(f"{file} holds no questions; a line is {_line(columns)}")
    return _of_mbpp_split(rows, split, file) if file.name == "mbpp.jsonl" else rows


def _of_mbpp_split(rows: list[dict[str, Any]], split: str, file: Path) -> list[dict[str, Any]]:
    """Return the questions of MBPP that belong to a split, by their numbers. ValueError if there is none."""
    if split not in MBPP_IDS:
        raise ValueError(f"mbpp has no split {split!r}; use one of {', '.join(MBPP_IDS)}")
    low, high = MBPP_IDS[split]
    rows = [row for row in rows if low <= row["task_id"] <= high]
    if not rows:
        raise ValueError(f"{file} holds no question of the {split} split, whose ids are {low} to {high}; add some")
    return rows


def _checked(name: str, place: str, row: dict[str, Any], columns: tuple[str, ...]) -> dict[str, Any]:
    """Check the columns of a row; an answer may be a number.

    Raises:
        ValueError: names the place and the column, also for an answer to GSM8K without a number.
    """
    answer: Any = row.get("answer")
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        row = row | {"answer": str(answer)}
    for column in columns:
        if not isinstance(row[column], KINDS.get(column, str)) or isinstance(row[column], bool):
            kind = KINDS.get(column, str).__name__
            raise ValueError(f"{place}: `{column}` is {row[column]!r:.60}, expected {kind}; mend that line")
    if name == "gsm8k" and number_truth(str(row["answer"])) is None:
        raise ValueError(f"{place}: `answer` ends in {str(row['answer'])[-60:]!r}, expected a number; mend that line")
    return row


def _line(columns: tuple[str, ...]) -> str:
    return "{" + ", ".join(f'"{column}":' for column in columns) + "}"


def _code_question(name: str, prompt: str, truth: CodeTruth) -> Question:
    return Question(prompt, truth.dumps(), CHECKS[name], CODE_PREFIX + truth.before, name, code_program)


def _humaneval_question(row: dict[str, Any]) -> Question:
    prompt = f"{INSTRUCTIONS['humaneval']}\n\n```python\n{row['prompt'].rstrip()}\n```"
    before = row["prompt"].rstrip() + "\n"
    tests = f"{given_functions(before, row['entry_point'])}\n{row['test']}\ncheck({row['entry_point']})"
    return _code_question("humaneval", prompt, CodeTruth(before, row["entry_point"], tests))


def _mbpp_question(row: dict[str, Any]) -> Question:
    """Build a question. The requested name is the reference's function that the first test calls."""
    tests = row["test_list"]
    defined = re.findall(r"^(?:def|class)\s+(\w+)", row["code"], re.MULTILINE)
    entry = next((name for name in reversed(defined) if re.search(rf"\b{name}\s*\(", tests[0])), None)
    if entry is None:
        raise ValueError(
            f"the first test of an MBPP row calls nothing that its code defines: {tests[0]!r}; mend that row"
        )
    prompt = f"{INSTRUCTIONS['mbpp']}\n\n{row['text'].strip()}\n\n" + "\n".join(tests)
    is_class = re.search(rf"^class\s+{entry}\b", row["code"], re.MULTILINE) is not None
    truth = CodeTruth("", entry, "\n".join([row["test_setup_code"], *tests]), is_class=is_class)
    return _code_question("mbpp", prompt, truth)


def _kodcode_questions(rows: list[dict[str, Any]], count: int | None) -> list[Question]:
    """Return the questions whose tests can all run. Reports the number of others, and their most frequent needs, on
    stderr.
    """
    left_out: Counter[str] = Counter()

    def made():
        for row in rows:
            if why := _cannot_run(row["test"]):
                left_out[why] += 1
                continue
            info, tests = row["test_info"][0], row["test"]
            before, is_class = (
                info["function_declaration"].rstrip() + "\n",
                info["function_declaration"].startswith("class"),
            )
            truth = CodeTruth(before, info["function_name"], tests, packages=True, collect=True, is_class=is_class)
            yield _code_question("kodcode", f"{INSTRUCTIONS['kodcode']}\n\n{row['question'].strip()}", truth)

    questions = list(islice(made(), count))
    if left_out:
        why = ", ".join(f"{reason} in {times}" if times > 1 else reason for reason, times in left_out.most_common(10))
        print(f"kodcode: {left_out.total()} questions are left out, their tests cannot run ({why})", file=sys.stderr)
    return questions


def _cannot_run(tests: str) -> str:
    """Return the first requirement of tests that is missing or not provided; "" if they can run."""
    try:
        needed = missing(tests)
    except SyntaxError:
        return "tests that are no Python"
    absent = [f"no {module} here" for module in sorted(_imported(tests)) if importlib.util.find_spec(module) is None]
    return next(iter([*absent, *needed]), "")


def _imported(tests: str) -> set[str]:
    """Return top-level packages outside the standard library that tests import; `solution` is the tested module, `pytest`
    is provided.
    """
    names = set()
    for node in ast.walk(ast.parse(tests)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"solution", "pytest"}


def _gym_questions(name: str, split: str, count: int) -> list[Question]:
    """Generate questions by reasoning-gym. An answer is right if its score is full; Countdown and gsm_symbolic use our
    verifiers.

    If the score evaluates the answer as Python, that happens in the sandbox.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ValueError(
            f"data set {name!r} is unknown; use one of {', '.join(DATASETS)}; those of reasoning-gym (rg:NAME) need "
            "`pip install reasoning-gym`"
        )
    import reasoning_gym  # slow to import, and an extra: imported only when needed
    from reasoning_gym.dataset import ProceduralDataset
    from reasoning_gym.factory import DATASETS as KNOWN

    if name not in KNOWN or name == "composite":
        near = difflib.get_close_matches(name, [*DATASETS, *KNOWN], n=1)
        raise ValueError(
            f"data set {name!r} is unknown; use one of {', '.join(DATASETS)}, NAME being a data set of reasoning-gym"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    if split not in GYM_SEEDS:
        raise ValueError(f"{name} has no split {split!r}; use one of {', '.join(GYM_SEEDS)}")
    data = reasoning_gym.create_dataset(name, seed=GYM_SEEDS[split], size=count)
    evaluates = re.search(r"\b(eval|exec|parse_expr)\(", inspect.getsource(sys.modules[type(data).__module__]))
    own_score = type(data).score_answer is not ProceduralDataset.score_answer

    def full_marks(entry: dict[str, Any], text: str, truth: str) -> bool:
        try:
            return data.score_answer(plain_answer(text), entry) > 0.999
        except Exception:  # not every score expects what a model may write
            return False

    def scored(index: int, text: str, truth: str) -> Program:
        # The score evaluates the answer, so it is taken where a program runs, not where its tests do.
        return Program(f"""
import reasoning_gym
def score():
    data = reasoning_gym.create_dataset({name!r}, seed={GYM_SEEDS[split]}, size={count})
    return data.score_answer({plain_answer(text)!r}, data[{index}])
""", "assert score() > 0.999", packages=True)  # fmt: skip

    def in_sandbox(index: int, text: str, truth: str) -> bool:
        return run_programs([scored(index, text, truth)])[0].passed

    questions = []
    for index, entry in enumerate(data):
        prompt, truth = f"{REASONING}\n\n{entry['question']}", str(entry["answer"])
        if name == "countdown":
            truth = json.dumps({key: entry["metadata"][key] for key in ("numbers", "target")})
        if name in CHECKS:
            questions.append(Question(prompt, truth, CHECKS[name], dataset=name))
        elif evaluates and own_score:
            check, program = partial(in_sandbox, index), partial(scored, index)
            questions.append(Question(prompt, truth, check, dataset=name, program=program))
        else:
            questions.append(Question(prompt, truth, partial(full_marks, entry), dataset=name))
    return questions


def _chain_questions(count: int, split: str) -> list[Question]:
    problems = chains(count, 8, torch.Generator().manual_seed(11), held_out=split == "test")
    tokenizer, truths = chain_tokenizer(), problems.values()[:, -1].tolist()

    def is_right(text: str, truth: str) -> bool:
        words = text.split("<eos>")[0].split()
        return "=" in words and words[words.index("=") + 1 :][:1] == [truth]

    return [Question(str(tokenizer.decode(row)), str(truth), is_right, dataset="chain")
            for row, truth in zip(problems.prompts().tolist(), truths, strict=True)]  # fmt: skip


def encode(model: PromptReader, prompt: str, prefix: str = "") -> list[int]:
    """Return a user's message in the tokenizer's chat template, then the beginning of the answer; without a template the
    plain text of both.
    """
    if model.tokenizer.chat_template:
        return message_ids(model.tokenizer, prompt, prefix)
    return text_ids(model.tokenizer, f"{prompt}\n\n{prefix}" if prefix else prompt)


def check_prompt(
    model: PromptReader, tokens: list[int], length: int, name: str, prompt: str, advice: str = "shorten it"
) -> None:
    """Refuse a prompt that contains the mask token or one past the vocabulary, or leaves fewer than `length` positions:
    ValueError shows its end.
    """
    label = f"{name} ({prompt[-60:]!r})"
    check_ids(model, tokens, label)
    if len(tokens) + length > model.max_length:
        raise ValueError(
            f"{label} has {len(tokens)} tokens, with {length} to write more than the model's {model.max_length}; {advice}"
        )


def check_questions(model: PromptReader, questions: Sequence[Question], length: int) -> None:
    """Refuse a question that no canvas can hold. ValueError names its row in the data set."""
    for row, question in enumerate(questions):
        tokens = encode(model, question.prompt, question.prefix)
        check_prompt(model, tokens, length, f"{question.dataset} row {row}", question.prompt)


def questions_hash(questions: Sequence[Question]) -> str:
    """Return a hash of prompts and references, to compare the questions of two evaluations."""
    contents = [(question.prompt, question.truth, question.prefix) for question in questions]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:16]


def canvases(model: PromptReader, prompts: Sequence[str] | Sequence[Question], length: int) -> Prompts:
    """Pad prompts on the left, with `length` open positions behind them; questions with their prefix.

    Raises:
        ValueError: names the row of a prompt that does not fit or contains the mask token.
    """
    tokens = [
        encode(model, each) if isinstance(each, str) else encode(model, each.prompt, each.prefix) for each in prompts
    ]
    for row, (own, each) in enumerate(zip(tokens, prompts, strict=True)):
        check_prompt(model, own, length, f"prompt {row}", each if isinstance(each, str) else each.prompt)
    return Prompts.from_ids(tokens, length, model.mask_id)
