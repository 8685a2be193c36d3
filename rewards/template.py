"""The template of reward models: how a prompt and an answer become one row of token ids, in training and in decoding."""

from __future__ import annotations

from typing import Any

from dlm.encoding import text_ids

KINDS = (
    "full",
    "prefix",
    "mask",
)  # what a reward model was trained to read: whole answers, prefixes, canvases with masks


def encode(tokenizer: Any, prompt: str, answer: str, finished: bool = True) -> tuple[list[int], list[int]]:
    """Return (ids of the prompt, ids of the answer), each encoded separately; a row is their concatenation.

    The template of every reward model, in training and decoding: `[CLS] prompt [SEP] answer [SEP]` for an encoder's
    tokenizer; prompt, answer and end of sequence for a causal one, behind its start token if it always writes one.

    Args:
        finished: the answer has its end token.
    """
    prompt_ids, answer_ids = (text_ids(tokenizer, text) if text else [] for text in (prompt, answer))
    if tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None:
        start, between = [tokenizer.cls_token_id], [tokenizer.sep_token_id] if prompt else []
    else:
        start, between = [token for token in tokenizer.encode("")[:1] if token == tokenizer.bos_token_id], []
    return start + prompt_ids + between, answer_ids + ([end_id(tokenizer)] if finished else [])


def fitted(tokenizer: Any, prompt: str, answer: str, finished: bool, longest: int) -> list[int]:
    """Apply `encode` and cut the row to `longest` tokens: the beginning of the prompt is dropped first, then that of the
    answer, never the start token.
    """
    before, after = encode(tokenizer, prompt, answer, finished)
    row, front = before + after, encode(tokenizer, "", "", finished=False)[0]
    return row if len(row) <= longest else front + row[len(row) - longest + len(front) :]


def end_id(tokenizer: Any) -> int:
    """Return the id that ends an answer. ValueError for a tokenizer without one."""
    ends = (tokenizer.sep_token_id if tokenizer.cls_token_id is not None else None, tokenizer.eos_token_id)
    end = next((token for token in ends if token is not None), None)
    if end is None:
        raise ValueError("the tokenizer has no end of sequence, which ends an answer; set its eos_token")
    return end
