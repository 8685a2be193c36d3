"""A new reward: how much of a sample reads the same from both ends, and how fast it was written.

To train on it, move the class to rewards/, give it configs/reward/palindrome.yaml (`name: palindrome`, `alpha: 0.0`) and a line
in `build_reward` of unmask/build.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from rewards.rules import Finished, RewardOutput, speed_factor


@dataclass
class PalindromeReward:
    """Share of positions that equal their mirror image, times the speed factor to the power alpha."""

    alpha: float = 0.0

    def __call__(self, samples: Finished, rows: Mapping[str, Tensor] | None = None) -> RewardOutput:
        mirrored = (samples.tokens == samples.tokens.flip(1)).float().mean(1)
        speed = speed_factor(samples.evaluations, (~samples.prompt).sum(1), self.alpha)
        return RewardOutput(mirrored * speed, {"mirrored": mirrored, "speed": speed})
