"""A learned or packaged reward (rewards/models.py) of finished samples, a floor on entropy, and a judge that is not
maximized.

Policies and models exploit errors of a learned reward. Two figures show this: `judge`, the score by a reward that took no
part in training (another network, trained on other pairs, or the ground truth), and the entropy of the tokens, with a
penalty below a floor as in rewards/likelihood.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dlm.ends import before_end, end_tokens, has_end, texts_of
from rewards.latex import written
from rewards.measures import unigram_entropy
from rewards.models import TextReward
from rewards.rules import Finished, Reward, RewardOutput, speed_factor


def given_texts(tokens: Int[Tensor, "row position"], given: Bool[Tensor, "row position"], tokenizer: Any) -> list[str]:
    """Return the prompts as text, without padding and other special tokens."""
    return texts_of(tokens, given, tokenizer)


class LearnedReward(Reward):
    """score - weight * relu(entropy_floor - entropy) + alpha * log speed, of the responses up to their end.

    Terms: `score`, `judge` if there is one, `entropy` (nats, of the response's tokens), `words`, `penalty`.
    """

    def __init__(
        self, reward: TextReward, tokenizer: Any, mask_id: int, judge: TextReward | None = None, entropy_floor: float = 0.0,
        weight: float = 1.0, alpha: float = 0.0,
    ):  # fmt: skip
        self.reward, self.judge, self.tokenizer, self.mask_id = reward, judge, tokenizer, mask_id
        self.entropy_floor, self.weight, self.alpha = entropy_floor, weight, alpha

    def __call__(self, samples: Finished, rows: Mapping[str, Tensor] | None = None) -> RewardOutput:
        """Score finished samples. `rows` is not used."""
        device = samples.tokens.device
        texts = written(samples.tokens, samples.prompt, self.tokenizer, self.mask_id)
        prompts = given_texts(samples.tokens, samples.prompt, self.tokenizer)
        ends = end_tokens(self.tokenizer)
        finished = has_end(samples.tokens, ~samples.prompt, ends).tolist()
        score = self.reward.score_texts(prompts, texts, finished).to(device)
        answer = before_end(samples.tokens, ~samples.prompt, ends)
        entropy = unigram_entropy(samples.tokens, answer).float()
        penalty = self.weight * torch.relu(self.entropy_floor - entropy)
        log_speed = speed_factor(samples.evaluations, (~samples.prompt).sum(1), 1.0).log()
        words = torch.tensor([float(len(text.split())) for text in texts], device=device)
        terms = {"score": score, "entropy": entropy, "words": words, "penalty": penalty, "log_speed": log_speed}
        if self.judge is not None:
            terms["judge"] = self.judge.score_texts(prompts, texts, finished).to(device)
        return RewardOutput(score - penalty + self.alpha * log_speed, terms)
