"""The plain loop of reward-guided decoding, kept as oracle: one row at a time, k whole texts through the reward one after the
other, the language model without a cache. What ARGS's and PARGS's published scripts do at every token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def step(
    language_model: Any, score: Callable[[Tensor], float], text: Int[Tensor, "position"], k: int, beta: float
) -> tuple[Int[Tensor, "k"], Float[Tensor, "k"]]:
    """The k best next tokens, and log p + beta * r of each. language_model: causal, of transformers; score: of one text."""
    log_probs = language_model(input_ids=text.unsqueeze(0), use_cache=False).logits[0, -1].float().log_softmax(0)
    top = log_probs.topk(k)
    rewards = [score(torch.cat((text, token.unsqueeze(0))).unsqueeze(0)) for token in top.indices]
    return top.indices, top.values + beta * torch.tensor(rewards)


def decode(
    language_model: Any,
    score: Callable[[Tensor], float],
    text: Int[Tensor, "position"],
    k: int,
    beta: float,
    tokens: int,
) -> tuple[Int[Tensor, "longer"], list[Float[Tensor, "k"]]]:
    """Greedy (ARGS, PARGS-G): the text with `tokens` more, and the scores of every step."""
    scores = []
    for _ in range(tokens):
        best, found = step(language_model, score, text, k, beta)
        text = torch.cat((text, best[found.argmax()].unsqueeze(0)))
        scores.append(found)
    return text, scores
