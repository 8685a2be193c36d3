"""Questions with known answers: GSM8K and MATH from the hub or from files, and chain arithmetic, which needs neither.

A file is JSONL with `question` and `answer`. Prompts of a batch have different lengths: they are padded on the left, and the
model never sees the padding. The instructions are those of "Learning Unmasking Policies" (2512.09106), the same while a policy is
trained and while it is evaluated (there they differ).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from datasets import load_dataset
from jaxtyping import Int
from torch import Tensor

from data.chain import chain_tokenizer, chains
from data.prompts import Prompts
from rewards.answers import CHECKS

REASONING = "Respond in the following format:\n<reasoning>\nYour reasoning here\n</reasoning>\n<answer>\n...\n</answer>"
INSTRUCTIONS = {
    "gsm8k": REASONING,
    "math": REASONING
    + "\nYou are a math expert. Solve the problem step by step and wrap the final answer in \\boxed{}.",
}
# (hub id, its configuration, question and answer columns)
HUB = {
    "gsm8k": ("openai/gsm8k", "main", "question", "answer"),
    "math": ("ankner/math-500", None, "problem", "solution"),
}
DATASETS = (*HUB, "chain")


@runtime_checkable
class Reader(Protocol):
    """What is needed of a masked model to put questions to it."""

    tokenizer: Any
    mask_id: int
    max_length: int


@dataclass
class Question:
    """prompt: what is asked, as the model is to see it; truth: what `is_right` compares with."""

    prompt: str
    truth: str
    is_right: Callable[[str, str], bool]


def load_questions(name: str, split: str, data_dir: str | None = None, count: int | None = None) -> list[Question]:
    """The first `count` questions of a data set. data_dir: holds NAME/SPLIT.jsonl (or DIR/NAME500/...), looked at before the hub.

    Raises ValueError for an unknown name, and, where the hub cannot be reached, one that says how to give a directory.
    """
    if name == "chain":
        return _chain_questions(count or 512, split)
    if name not in HUB:
        raise ValueError(f"data set {name!r} is unknown; use one of {', '.join(DATASETS)}")
    hub_id, configuration, question, answer = HUB[name]
    local = [] if data_dir is None else [Path(data_dir) / folder / f"{split}.jsonl" for folder in (name, f"{name}500")]
    file = next((path for path in local if path.is_file()), None)
    if file is not None:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        pairs = [(row["question"], row["answer"]) for row in rows]
    elif data_dir is not None:
        raise ValueError(
            f"{data_dir} holds none of {', '.join(map(str, local))}; JSONL with `question` and `answer` is expected"
        )
    else:
        try:
            loaded = load_dataset(hub_id, configuration, split=split)
        except Exception as error:  # whatever keeps it from us, the way out is the same
            raise ValueError(
                f"{hub_id} cannot be had ({type(error).__name__}); give --data_dir DIR with DIR/{name}/{split}.jsonl "
                '(a line: {"question":, "answer":})'
            ) from error
        pairs = [(row[question], row[answer]) for row in loaded]  # pyright: ignore
    return [Question(f"{INSTRUCTIONS[name]}\n\n{asked}", truth, CHECKS[name]) for asked, truth in pairs[:count]]


def _chain_questions(count: int, split: str) -> list[Question]:
    problems = chains(count, 8, torch.Generator().manual_seed(11), held_out=split == "test")
    tokenizer, truths = chain_tokenizer(), problems.values()[:, -1].tolist()

    def is_right(text: str, truth: str) -> bool:
        words = text.split("<eos>")[0].split()
        return "=" in words and words[words.index("=") + 1 :][:1] == [truth]

    return [Question(str(tokenizer.decode(row)), str(truth), is_right)
            for row, truth in zip(problems.prompts().tolist(), truths, strict=True)]  # fmt: skip


def encode(model: Reader, prompt: str) -> list[int]:
    """A user's message in the tokenizer's chat template, the answer to follow; the bare text where it has none."""
    if getattr(model.tokenizer, "chat_template", None):
        message = [{"role": "user", "content": prompt}]
        prompt = model.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return model.tokenizer.encode(prompt, add_special_tokens=False)


def canvases(model: Reader, prompts: list[str], length: int) -> Prompts:
    """Prompts padded on the left, `length` masks behind them. ValueError names the row of a prompt that does not fit."""
    tokens: list[list[int]] = [encode(model, prompt) for prompt in prompts]
    for row, own in enumerate(tokens):
        if len(own) + length > model.max_length:
            raise ValueError(
                f"prompt {row} has {len(own)} tokens, with {length} to write more than the model's {model.max_length}; shorten it"
            )
        if model.mask_id in own:
            raise ValueError(f"prompt {row} holds the mask token as text; take it out")
    width = max(len(own) for own in tokens)
    canvas = torch.full((len(tokens), width + length), model.mask_id)
    for row, own in enumerate(tokens):
        canvas[row, :width] = torch.tensor([0] * (width - len(own)) + own)
    start: Int[Tensor, "row"] = torch.tensor([width - len(own) for own in tokens])
    return Prompts(canvas, {}, None, width, start)


def right(questions: list[Question], texts: list[str]) -> list[bool]:
    """Whether each text answers its question, by the check of that question's data set."""
    return [question.is_right(text, question.truth) for question, text in zip(questions, texts, strict=True)]
