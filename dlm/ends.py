"""End of a response: the only definition, for rewards, rollouts, guidance, twists and evaluation.

A response is the generated text up to its first end token: the end of sequence, or the end of a turn (LLaDA's `<|eot_id|>`,
Dream's `<|im_end|>`). Neither the end token nor any token behind it belongs to the response. `samplers.samples.Samples`
applies this to decoded rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

# That end a turn or a text, beside the tokenizer's own end of sequence: LLaDA's, Dream's, and those of other chat templates.
TURNS = ("<|eot_id|>", "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>")


def end_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Return the end of sequence and the end-of-turn tokens of the tokenizer; empty without an end of sequence."""
    if tokenizer is None or tokenizer.eos_token_id is None:
        return ()
    end = tokenizer.eos_token_id
    turns = tokenizer.convert_tokens_to_ids(list(TURNS))
    return (end, *(turn for turn in turns if turn not in (None, end, tokenizer.unk_token_id)))


def is_end(tokens: Int[Tensor, "*row position"], ends: Sequence[int]) -> Bool[Tensor, "*row position"]:
    """Mark tokens that are one of `ends`."""
    return torch.isin(tokens, torch.as_tensor(ends, dtype=tokens.dtype, device=tokens.device))


def before_end(
    tokens: Int[Tensor, "row position"], free: Bool[Tensor, "row position"], ends: Sequence[int]
) -> Bool[Tensor, "row position"]:
    """Mark the positions of the response: those of `free` (the generated ones) before the first of `ends` at one of them."""
    return free & ((is_end(tokens, ends) & free).cumsum(1) == 0)


def with_end(
    tokens: Int[Tensor, "row position"], free: Bool[Tensor, "row position"], ends: Sequence[int]
) -> Bool[Tensor, "row position"]:
    """Mark the positions of the response and of its end token. The positions behind are only filled up."""
    end = is_end(tokens, ends) & free
    return free & (end.cumsum(1) - end.long() == 0)


def has_end(
    tokens: Int[Tensor, "row position"], free: Bool[Tensor, "row position"], ends: Sequence[int]
) -> Bool[Tensor, "row"]:
    """Mark rows whose response contains an end token."""
    return (is_end(tokens, ends) & free).any(1)


def texts_of(
    tokens: Int[Tensor, "row position"], kept: Bool[Tensor, "row position"], tokenizer: Any, special: bool = False
) -> list[str]:
    """Return the kept tokens of each row as text. special: keep special tokens, which are dropped otherwise."""
    rows = zip(tokens.tolist(), kept.tolist(), strict=True)
    ids = [[token for token, is_kept in zip(row, keep, strict=True) if is_kept] for row, keep in rows]
    return tokenizer.batch_decode(ids, skip_special_tokens=not special)
