"""Feynman-Kac steering (2501.06848): particles of any strategy, weighted by the expected reward of each state.

The reward r of a state is that of the text so far (causal models), or log mean exp over the rewards of M completions of a
canvas. All masks of a completion are drawn at once, from the evaluation that the next step needs anyway. Potentials G_t of
a step, and their sum log psi:

    difference   lambda (r_t - r_t-1)            log psi = lambda r_t
    max          lambda max of r_1 .. r_t
    sum          lambda (r_1 + .. + r_t)

At the end log phi = lambda r for all three. What differs from the paper: log Z is estimated. As in its code, the first
difference is taken to r = 0 of an empty canvas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.observation import Observation
from dlm.token_rule import TokenRule

POTENTIALS = ("difference", "max", "sum")


@dataclass
class Steering:
    """The potential of FK steering, for `samplers.smc.particle_filter`.

    Args:
        score: reward of finished texts, and of beginnings of texts for a causal model.
        scale: lambda.
        completions: M.
        seed: of the completions; they are independent of the particles' draws.
    """

    score: Callable[[Int[Tensor, "row position"]], Float[Tensor, "row"]]
    scale: float = 1.0
    potential: str = "difference"
    completions: int = 4
    token_sampler: TokenRule = field(default_factory=TokenRule)
    seed: int = 0

    def __post_init__(self):
        if self.potential not in POTENTIALS:
            raise ValueError(f"potential={self.potential!r} is unknown; use one of {', '.join(POTENTIALS)}")
        if self.completions < 1:
            raise ValueError(f"completions={self.completions} must be at least 1")
        self._far: Tensor | None = None  # the largest reward so far, or their sum
        self._total: Tensor | None = None  # log psi

    def expected(self, observation: Observation) -> Float[Tensor, "row"]:
        """Estimate the reward of each state."""
        tokens, masked = observation.tokens, observation.masked
        if observation.environment.model.causal:
            written = int((~masked).sum(1).max())
            return self._scored(tokens[:, :written])
        rewards = []
        for number in range(self.completions):
            draws = Draws(-1 - self.seed * self.completions - number)
            rewards.append(self._scored(observation.draw(masked, self.token_sampler, draws)[0]))
        return torch.stack(rewards).logsumexp(0) - math.log(self.completions)

    def _scored(self, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row"]:
        """Score each distinct text once."""
        texts, place = torch.unique(tokens, dim=0, return_inverse=True)
        return self.score(texts).to(tokens.device)[place]

    def log_psi(self, observation: Observation) -> Float[Tensor, "row"]:
        reward = self.expected(observation).double()
        if self.potential == "difference":
            return self.scale * reward
        if self._far is None or self._total is None:
            self._far, self._total = reward, torch.zeros_like(reward)
        elif self.potential == "max":
            self._far = torch.maximum(self._far, reward)
        else:
            self._far = self._far + reward
        self._total = self._total + self.scale * self._far
        return self._total

    def final(
        self, tokens: Int[Tensor, "finished position"], rows: Int[Tensor, "finished"]
    ) -> Float[Tensor, "finished"]:
        return self.scale * self._scored(tokens)

    def select(self, index: Int[Tensor, "row"]) -> None:
        if self._far is not None and self._total is not None:
            self._far, self._total = self._far[index], self._total[index]
