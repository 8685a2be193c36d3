"""GRPO on where to unmask: groups of rollouts of one prompt, advantages within the group, clipped updates of the policy alone.

Apple's "Learning Unmasking Policies" (2512.09106), section 2: advantage without standard deviation, ratio clipped per decoding
step, no KL. Both are settings here. What differs: a row's inactive steps are not stored, and rows whose advantage is zero are
dropped before the update (with a KL they stay).
"""

from __future__ import annotations

import copy

import torch
from omegaconf import DictConfig
from torch import nn

from losses import clipped_policy_loss, group_advantages, kl_to_reference, per_row_weights, step_advantages
from policy.rollout import Steps, policy_log_probs
from rewards.rules import RewardOutput
from samplers.samples import Samples
from training.processes import ALONE, Processes


class GRPO:
    """algorithm: group_size, inner_updates, clip, advantage_std, kl. Groups are whole in each of the processes."""

    def __init__(self, algorithm: DictConfig, network: nn.Module, processes: Processes = ALONE):
        self.algorithm = algorithm
        if algorithm.group_size < 2:
            raise ValueError(
                f"algorithm.group_size={algorithm.group_size} must be at least 2: advantages compare rollouts of a prompt"
            )
        self.reference = copy.deepcopy(network).requires_grad_(False) if algorithm.kl else None

    def prepare(self, samples: Samples, reward: RewardOutput, network: nn.Module, law) -> Steps:
        """Steps worth learning from, with their advantage and weight."""
        assert samples.trajectory is not None
        trajectory = samples.trajectory
        rows = len(reward.total)
        group, by_std = self.algorithm.group_size, self.algorithm.advantage_std
        if reward.steps is None:
            advantage = group_advantages(reward.total.view(-1, group), by_std).flatten()[trajectory.row]
        else:
            advantage = step_advantages(reward.steps, trajectory.row, trajectory.step, rows, group, by_std)
        steps = Steps(trajectory, advantage, per_row_weights(trajectory.row, rows))
        return steps if self.algorithm.kl else steps.take(advantage.nonzero().squeeze(1))

    def loss(self, network: nn.Module, law, steps: Steps) -> torch.Tensor:
        """Of one chunk of steps; chunks add up to the loss of the batch."""
        log_prob, _ = policy_log_probs(network, law, steps.trajectory)
        loss = clipped_policy_loss(
            log_prob, steps.trajectory.log_where, steps.advantage, steps.weight, self.algorithm.clip
        )
        if self.reference is not None:
            with torch.no_grad():
                reference, _ = policy_log_probs(self.reference, law, steps.trajectory)
            loss = loss + self.algorithm.kl * (steps.weight * kl_to_reference(log_prob, reference)).sum()
        return loss
