"""Reward for text: the likelihood under a causal judge, with a floor on the entropy of the tokens.

Likelihood alone rewards repetition: a sample that says one word over and over has a low perplexity. Unigram entropy
next to generative perplexity is how Zheng et al. (arXiv 2409.02908) show such samples up; what differs: here it is a
penalty below a floor, in a reward.
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
    tokens: prompt and answer. ends: tokens that end an answer (dlm/ends.py); none of packed texts, which go on behind them.
    Speed enters as the log of its factor, so as a factor on the likelihood: times a negative log-likelihood it would reward
    being slow.
    """

    judge: Callable[[Int[Tensor, "row position"], Bool[Tensor, "row position"]], Float[Tensor, " row"]]
    entropy_floor: float
    weight: float = 1.0
    alpha: float = 0.0
    ends: tuple[int, ...] = ()

    def __call__(self, samples: Finished, rows: Mapping[str, Tensor] | None = None) -> RewardOutput:
        """Reward of finished samples, prompt included; `rows` is not read."""
        counted = samples.prompt | before_end(samples.tokens, ~samples.prompt, self.ends)
        likelihood = self.judge(samples.tokens, counted)
        entropy = unigram_entropy(samples.tokens, counted).float()
        penalty = self.weight * torch.relu(self.entropy_floor - entropy)
        log_speed = speed_factor(samples.evaluations, (~samples.prompt).sum(1), 1.0).log()
        terms = {"log_likelihood": likelihood, "entropy": entropy, "penalty": penalty, "log_speed": log_speed}
        return RewardOutput(likelihood - penalty + self.alpha * log_speed, terms)
