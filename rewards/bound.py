"""Reward for an order: how likely the model finds a clean text that is revealed in it.

The picks are made on a text of the data set, which is written where they fall (`samplers.loop.TeacherForced`). With A_1, A_2, ...
the sets picked, c_t the canvas before A_t and kappa the law of the picks,

    log p(x) >= E_kappa sum_t log p(x_{A_t} | c_t):

genpolicy's variational bound with its masking channel set to the unmasking law, so that the two cancel. What a sampler loses by
writing several tokens at once is what this bound loses, and nothing is sampled, so that it varies little; each step has its own
reward.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rewards.rules import Reward, RewardOutput


@runtime_checkable
class RevealedText(Protocol):
    """What is read of a trajectory: the row of each step and the log-probability of what was written in it."""

    row: Int[Tensor, " N"]
    log_what: Float[Tensor, " N"]


@runtime_checkable
class Recorded(Protocol):
    """What the reward reads of samples: those with a recorded trajectory."""

    prompt: Bool[Tensor, "row position"]

    @property
    def trajectory(self) -> RevealedText | None: ...


@dataclass
class BoundReward(Reward):
    """log p of the tokens revealed, in nats per position to generate: of each step, and summed over the row."""

    teacher_forced = True

    def __call__(self, samples: Recorded, rows: Mapping[str, Tensor] | None = None) -> RewardOutput:
        trajectory = samples.trajectory
        if trajectory is None:
            raise ValueError("reward=bound reads a recorded trajectory; roll out with record=True")
        length = (~samples.prompt).sum(1).clamp(min=1)
        steps = trajectory.log_what / length[trajectory.row]
        total = torch.zeros(len(length), device=steps.device).index_add_(0, trajectory.row, steps)
        return RewardOutput(total, {"nats_per_token": -total}, steps)
