"""The token sampler: temperature, top-p and top-k as a function of logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class TokenRule:
    """The token sampler: categorical at a temperature (0: greedy), restricted to the top_k best tokens (0: all), then to
    the smallest set of tokens with probability at least top_p.
    """

    temperature: float | int = 1.0
    top_p: float | int = 1.0
    top_k: int = 0

    def __post_init__(self):
        if self.temperature != 0 and not 1e-6 <= self.temperature <= 1e6:  # beyond, float32 logits overflow
            raise ValueError(f"temperature={self.temperature} must be 0 (the most likely token) or from 1e-6 to 1e6")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be in (0, 1]; 1 keeps every token")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be at least 0; 0 keeps every token")

    def __call__(self, logits: Float[Tensor, "read vocabulary"]) -> Float[Tensor, "read vocabulary"]:
        """Return the logits of the distribution to draw from. For the greedy rule: those of temperature 1, with the cuts."""
        logits = logits / self.temperature if self.temperature not in (0, 1) else logits
        if self.top_k and self.top_k < logits.shape[1]:
            worst = logits.topk(self.top_k, dim=1).values[:, -1:]
            logits = logits.masked_fill(logits < worst, -torch.inf)
        if self.top_p < 1:
            ordered, index = logits.softmax(1).sort(dim=1, descending=True)
            before = ordered.double().cumsum(1) - ordered  # the token that crosses top_p stays in
            logits = logits.masked_fill((before >= self.top_p).gather(1, index.argsort(1)), -torch.inf)
        return logits
