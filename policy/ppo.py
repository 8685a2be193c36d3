"""PPO for unmasking policies: a value head on the policy's trunk, generalized advantages, clipped updates.

Source: Schulman et al. (1707.06347, 1506.02438). The reward comes at the last step of a rollout, or step by step; the
discount is 1. Advantages are normalized over the batch of steps, and every step has the same weight.
"""

from __future__ import annotations

import torch

from losses import clipped_policy_loss, gae, over_deviation, value_loss
from policy.base import PolicyNetwork
from policy.rollout import Steps, policy_log_probs, recomputed
from policy.settings import PPOSettings
from rewards.rules import RewardOutput
from samplers.samples import Samples
from training.processes import ALONE, Processes


class PPO:
    """The PPO objective. processes: the processes that share the batch."""

    def __init__(self, algorithm: PPOSettings, network: PolicyNetwork, processes: Processes = ALONE):
        if network.value_proj is None:
            raise ValueError("algorithm=ppo needs a value head; use policy=dit_confidence, whose value_head it sets")
        self.algorithm, self.processes = algorithm, processes

    def prepare(
        self, samples: Samples, reward: RewardOutput, network: PolicyNetwork, distribution, chunk: int = 1024
    ) -> Steps:
        """Return all steps, with advantage, value target and weight.

        Values are those of the network before its update, computed `chunk` steps at a time.
        """
        assert samples.trajectory is not None
        trajectory = samples.trajectory
        if reward.failed:  # rows without a reward teach nothing
            trajectory = trajectory.take((~reward.total.isnan())[trajectory.row].nonzero().squeeze(1))
        if len(trajectory.row) == 0:  # every row was written in the one evaluation that it had
            self.processes.moments(trajectory.log_positions)
            return Steps(trajectory, trajectory.log_positions, trajectory.log_positions, trajectory.log_positions)
        _, value = recomputed(network, distribution, trajectory, chunk, value=True)
        assert value is not None
        earned = reward.steps
        if earned is None:
            ends = torch.zeros_like(samples.steps).scatter_reduce(0, trajectory.row, trajectory.step, "amax")
            last = trajectory.step == ends[trajectory.row]
            earned = torch.where(last, reward.total[trajectory.row], 0.0)
        advantage, target = gae(earned, value, trajectory.row, trajectory.step, 1.0, self.algorithm.gae_decay)
        count, mean, deviation = self.processes.moments(advantage)
        advantage = over_deviation(advantage - mean, deviation, mean.abs())
        return Steps(trajectory, advantage, torch.full_like(advantage, 1 / count), target)

    def loss(self, network: PolicyNetwork, distribution, steps: Steps) -> torch.Tensor:
        """Return the loss of one chunk of steps. Chunks add up to the loss of the batch."""
        log_prob, value = policy_log_probs(network, distribution, steps.trajectory, value=True)
        assert value is not None and steps.target is not None
        policy = clipped_policy_loss(
            log_prob, steps.trajectory.log_positions, steps.advantage, steps.weight, self.algorithm.clip
        )
        return policy + self.algorithm.value_weight * value_loss(value, steps.target, steps.weight)
