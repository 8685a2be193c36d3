"""GRPO for unmasking policies: groups of rollouts of one prompt, advantages within the group, clipped updates of the
policy only.

Source: "Learning Unmasking Policies" (2512.09106), section 2: advantage without standard deviation, ratio clipped per
decoding step, no KL. Both are settings here. Rollouts of experts may join a group (`policy/experts.py`). What differs:
inactive steps of a row are not stored, and rows with advantage zero are dropped before the update (with a KL they stay).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from losses import clipped_policy_loss, group_advantages, kl_to_reference, per_row_weights, step_advantages, with_expert
from policy.base import PolicyNetwork
from policy.experts import Rollouts, joined
from policy.rollout import Steps, policy_log_probs, recomputed
from policy.settings import GRPOSettings
from rewards.rules import RewardOutput
from samplers.samples import Samples
from training.processes import ALONE, Processes


class GRPO:
    """The GRPO objective. Each process has whole groups."""

    def __init__(self, algorithm: GRPOSettings, network: PolicyNetwork, processes: Processes = ALONE):
        self.algorithm = algorithm
        if algorithm.group_size < 2:
            raise ValueError(
                f"algorithm.group_size={algorithm.group_size} must be at least 2: advantages compare rollouts of a prompt"
            )
        self.reference = copy.deepcopy(network).requires_grad_(False) if algorithm.kl else None

    def prepare(
        self, samples: Samples, reward: RewardOutput, network: PolicyNetwork, distribution, chunk: int = 1024,
        experts: Sequence[Rollouts] = (),
    ) -> Steps:  # fmt: skip
        """Return the steps to learn from, with advantage and weight.

        Args:
            experts: one rollout of each prompt from each expert. Their old log-probability is that of the mixture under the
                current network, computed `chunk` steps at a time.
        """
        assert samples.trajectory is not None
        trajectory, total, expert = samples.trajectory, reward.total, None
        group, by_std = self.algorithm.group_size, self.algorithm.advantage_std
        if experts:
            trajectory, total, expert = joined((samples, reward), experts, group)
        rows, members = len(total), group + len(experts)
        if reward.steps is None:
            advantage = group_advantages(total.view(-1, members), by_std).flatten()[trajectory.row]
        else:
            advantage = step_advantages(reward.steps, trajectory.row, trajectory.step, rows, group, by_std)
        steps = Steps(trajectory, advantage, per_row_weights(trajectory.row, rows), expert=expert)
        steps = steps if self.algorithm.kl else steps.take(advantage.nonzero().squeeze(1))
        if steps.expert is not None and bool(steps.expert.any()):
            index = steps.expert.nonzero().squeeze(1)
            log_prob, _ = recomputed(network, distribution, steps.trajectory.take(index), chunk)
            steps.trajectory.log_positions[index] = with_expert(log_prob, group, len(experts))
        return steps

    def loss(self, network: PolicyNetwork, distribution, steps: Steps) -> torch.Tensor:
        """Return the loss of one chunk of steps. Chunks add up to the loss of the batch."""
        log_prob, _ = policy_log_probs(network, distribution, steps.trajectory)
        compared, own = log_prob, steps.weight
        if steps.expert is not None:
            mixed = with_expert(log_prob, self.algorithm.group_size, len(self.algorithm.experts.thresholds))
            compared, own = torch.where(steps.expert, mixed, log_prob), steps.weight.masked_fill(steps.expert, 0.0)
        loss = clipped_policy_loss(
            compared, steps.trajectory.log_positions, steps.advantage, steps.weight, self.algorithm.clip
        )
        if self.reference is not None:  # an expert's actions are not drawn from the policy
            with torch.no_grad():
                reference, _ = policy_log_probs(self.reference, distribution, steps.trajectory)
            loss = loss + self.algorithm.kl * (own * kl_to_reference(log_prob, reference)).sum()
        return loss
