"""Rewards for tests."""

from collections.abc import Callable
from dataclasses import dataclass

from rewards.rules import Reward, RewardOutput


@dataclass
class SamplesReward(Reward):
    """A function of samples and rows as a reward."""

    function: Callable[..., RewardOutput]

    def __call__(self, samples, rows=None):
        return self.function(samples, rows)
