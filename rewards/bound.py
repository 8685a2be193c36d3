"""Reward for an order of commits: the log-likelihood of a clean text that is revealed in this order.

Positions are selected on a text of the data set, whose tokens are committed there (`samplers.loop.TeacherForced`). With
A_1, A_2, ... the selected sets, c_t the canvas before A_t and kappa the distribution of the selections,

    log p(x) >= E_kappa sum_t log p(x_{A_t} | c_t):

genpolicy's variational bound with its masking channel set to the unmasking policy, so that the two cancel. The bound loses
what a sampler loses by committing several tokens at once. No token is sampled, so it has a low variance; each step has its
own reward.
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
    """Fields of a trajectory that this reward uses: the row of each step, and the log-probability of the tokens committed in
    it."""

    row: Int[Tensor, " N"]
    log_tokens: Float[Tensor, " N"]


@runtime_checkable
class Recorded(Protocol):
    """Samples with a recorded trajectory."""

    prompt: Bool[Tensor, "row position"]

    @property
    def trajectory(self) -> RevealedText | None: ...


@dataclass
class BoundReward(Reward):
    """Reward: log-probability of the revealed tokens, in nats per position to generate, of each step and summed over the row."""

    teacher_forced = True

    def __call__(self, samples: Recorded, rows: Mapping[str, Tensor] | None = None) -> RewardOutput:
        trajectory = samples.trajectory
        if trajectory is None:
            raise ValueError("reward=bound reads a recorded trajectory; roll out with record=True")
        length = (~samples.prompt).sum(1).clamp(min=1)
        steps = trajectory.log_tokens / length[trajectory.row]
        total = torch.zeros(len(length), device=steps.device).index_add_(0, trajectory.row, steps)
        return RewardOutput(total, {"nats_per_token": -total}, steps)
