"""Prompts with worked examples before the question, for base models. The examples come from the train split and have the
format of the instructions."""

from __future__ import annotations

import re
from dataclasses import replace

from data.questions import Question
from rewards.answers import boxed


def with_examples(questions: list[Question], examples: list[Question]) -> list[Question]:
    """Return each question behind worked examples, whose answers have the format of the instructions."""
    worked_examples = [f"{example.prompt}\n{worked(example.truth)}\n\n" for example in examples]
    return [replace(question, prompt="".join([*worked_examples, question.prompt])) for question in questions]


def worked(answer: str) -> str:
    r"""Convert an answer of GSM8K (`... #### 72`) or MATH (`... \boxed{72} ...`) to the format of the instructions."""
    steps, _, result = re.sub(r"<<[^<>]*>>", "", answer).partition("####")
    if not result and (inside := boxed(answer)) is not None:
        result = f"\\boxed{{{inside}}}"
    reasoning = f"<reasoning>\n{steps.strip()}\n</reasoning>"
    return f"{reasoning}\n<answer>\n{result.strip()}\n</answer>" if result else reasoning
