"""Reward for text: the likelihood under a causal judge, with a floor on the entropy of the tokens.

Likelihood alone rewards repetition: a sample that repeats one word has a low perplexity. Zheng et al. (arXiv 2409.02908)
detect such samples by unigram entropy beside generative perplexity. What differs: here it is a penalty below a floor, in a
reward.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.ends import before_end
from rewards.measures import unigram_entropy
from rewards.rules import Finished, Reward, RewardOutput, speed_factor


@dataclass
class LikelihoodReward(Reward):
    """Log-likelihood under `judge` - weight * relu(entropy_floor - unigram entropy) + alpha * log speed, in nats.

    `judge(tokens Int[row, position], counted Bool[row, position]) -> Float[row]` is the mean log-probability of the counted
    tokens: prompt and response. ends: tokens that end an answer (dlm/ends.py); empty for packed texts, which continue
    behind them. Speed is the log of its factor: as a factor of a negative log-likelihood it would reward slow decoding.
    """

    judge: Callable[[Int[Tensor, "row position"], Bool[Tensor, "row position"]], Float[Tensor, " row"]]
    entropy_floor: float
    weight: float = 1.0
    alpha: float = 0.0
    ends: tuple[int, ...] = ()

    def __call__(self, samples: Finished, rows: Mapping[str, Tensor] | None = None) -> RewardOutput:
        """Score finished samples, prompt included. `rows` is not used."""
        counted = samples.prompt | before_end(samples.tokens, ~samples.prompt, self.ends)
        likelihood = self.judge(samples.tokens, counted)
        entropy = unigram_entropy(samples.tokens, counted).float()
        penalty = self.weight * torch.relu(self.entropy_floor - entropy)
        log_speed = speed_factor(samples.evaluations, (~samples.prompt).sum(1), 1.0).log()
        terms = {"log_likelihood": likelihood, "entropy": entropy, "penalty": penalty, "log_speed": log_speed}
        return RewardOutput(likelihood - penalty + self.alpha * log_speed, terms)
