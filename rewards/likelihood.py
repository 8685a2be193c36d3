"""Reward for text: the likelihood under a causal judge, with a floor on the entropy of the tokens.

Likelihood alone rewards repetition: a sample that says one word over and over has a low perplexity. Unigram entropy
next to generative perplexity is how Zheng et al. (arXiv 2409.02908) show such samples up; what differs: here it is a
penalty below a floor, in a reward.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rewards.rules import Finished, RewardOutput, speed_factor


def unigram_entropy(tokens: Int[Tensor, "row position"]) -> Float[Tensor, " row"]:
    """Entropy, in nats, of the token frequencies in each row: 0 for one token repeated, log L for L different ones."""
    rows, length = tokens.shape
    ordered = tokens.sort(dim=1).values
    starts = torch.ones_like(ordered)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    run = starts.cumsum(1) - 1  # which distinct token of its row a place holds
    counts = torch.zeros(rows, length, device=tokens.device)
    counts.scatter_add_(1, run, torch.ones_like(counts))
    return torch.special.entr(counts / length).sum(1)


@dataclass
class LikelihoodReward:
    """Log-likelihood under `judge` - weight * relu(entropy_floor - unigram entropy) + alpha * log speed, in nats.

    `judge(tokens Int[row, position]) -> Float[row]` is the mean log-probability per token. Speed enters as the log of
    its factor, so as a factor on the likelihood: times a negative log-likelihood it would reward being slow.
    """

    judge: Callable[[Int[Tensor, "row position"]], Float[Tensor, " row"]]
    entropy_floor: float
    weight: float = 1.0
    alpha: float = 0.0

    def __call__(self, samples: Finished, rows: Mapping[str, Tensor] | None = None) -> RewardOutput:
        """Reward of finished samples, prompt included; `rows` is not read."""
        likelihood = self.judge(samples.tokens)
        entropy = unigram_entropy(samples.tokens)
        penalty = self.weight * torch.relu(self.entropy_floor - entropy)
        log_speed = speed_factor(samples.evaluations, (~samples.prompt).sum(1), 1.0).log()
        terms = {"log_likelihood": likelihood, "entropy": entropy, "penalty": penalty, "log_speed": log_speed}
        return RewardOutput(likelihood - penalty + self.alpha * log_speed, terms)
