"""A user's prompts as a task: any iterable of texts, with a function that verifies answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from data.questions import PromptReader, Question
from data.tasks import QuestionTask
from data.text import EndlessRows
from dlm.ends import end_tokens

HELD_OUT = 10  # one prompt in so many is held out


@runtime_checkable
class CheckedPrompts(Protocol):
    """Prompts with a checker. `check(prompt, answer)` returns whether the answer is right, or how right it is from 0 to 1."""

    def __iter__(self): ...

    def check(self, prompt: str, answer: str) -> float: ...


class PromptTask(QuestionTask):
    """Prompts that are drawn without repeats until all were drawn; a tenth of them, at least one, is held out.

    Args:
        prompts: an iterable of texts; with a method `check` its checker is used.
        answer_length: positions behind a prompt.
        seed: of the order of the prompts.

    Raises:
        ValueError: for an object that is no iterable of texts, fewer than two prompts, or a prompt that does not fit the model.
    """

    def __init__(self, model: PromptReader, prompts: Any, answer_length: int, seed: int = 0):
        if model.tokenizer is None:
            raise ValueError("the model's tokenizer cannot be loaded, and prompts are text; add tokenizer.json to it")
        self.name = type(prompts).__name__
        self.checked = prompts if isinstance(prompts, CheckedPrompts) else None
        texts = prompt_texts(prompts)
        if len(texts) < 2:
            raise ValueError(f"the task {self.name} has one prompt, and one is held out; give at least 2")
        self.model, self.tokenizer, self.length = model, model.tokenizer, answer_length
        self.ends, self.datasets, self.unsandboxed = end_tokens(model.tokenizer), ["prompts"], True
        self.left_out: Counter[str] = Counter()
        self.questions = [Question(text, "", is_right=lambda *_: False, dataset="prompts") for text in texts]
        self.dataset_of = [0] * len(texts)
        for number, question in enumerate(self.questions):
            self._is_kept(question, f"prompt {number} of the task {self.name}", None)
        shuffled = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
        held_out = max(1, len(texts) // HELD_OUT)
        self.rows = EndlessRows(shuffled[held_out:, None], seed)
        self.valid = self.held_out = self.made(shuffled[:held_out])

    def right(self, tokens: Int[Tensor, "row position"], rows: Mapping[str, Tensor]) -> Float[Tensor, "row"]:
        """Return the checker's verdict on each answer. ValueError for a task without a checker, or a verdict that is no
        number."""
        if self.checked is None:
            raise no_checker(self.name)
        prompts = [self.questions[number].prompt for number in rows["question"].tolist()]
        answers = zip(prompts, self.written(tokens), strict=True)
        return torch.tensor([verdict(self.checked, prompt, answer) for prompt, answer in answers])


def prompt_texts(prompts: Any) -> list[str]:
    """Return the prompts of a user's task. ValueError for an object that is not an iterable of texts, or is empty."""
    name = type(prompts).__name__
    if isinstance(prompts, str) or not isinstance(prompts, Iterable):
        raise ValueError(f"the task {prompts!r} of type {name} has no `__iter__`; give an iterable of prompts")
    texts = list(prompts)
    if not texts:
        raise ValueError(f"the task {name} has no prompts, since its `__iter__` yields nothing; give some")
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"the task {name} has a prompt {wrong[0]!r} that is no text; make every prompt a str")
    return texts


def verdict(task: CheckedPrompts, prompt: str, answer: str) -> float:
    """Return the checker's verdict on an answer. ValueError if it is no finite number."""
    found = task.check(prompt, answer)
    value = found.item() if isinstance(found, np.generic) else found
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise ValueError(
            f"`check` of the task {type(task).__name__} returned {found!r}; return True, False or a finite number"
        )
    return float(value)


def no_checker(name: str) -> ValueError:
    """Return the error message for a task without a checker and without a reward."""
    return ValueError(
        f"the task {name} has no `check`, so nothing says which answers are right; add it, or give a reward"
    )
