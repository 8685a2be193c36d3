"""Rollouts of a policy in the environment, and their rewards.

The frozen model runs only here. The policy's inputs at each active step are stored (finished rows need no padding), and every
update runs only the policy on these inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from data.tasks import Prompts
from dlm.environment import TokenRule
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from policy.base import PolicyNetwork
from policy.unmasker import PolicyUnmasker, distribution_settings, must_change, policy_decoder
from rewards.rules import Reward, RewardOutput
from samplers.loop import StepDecoder, Strategy, TeacherForced, Unmasker
from samplers.samples import Samples, Trajectory

PATIENCE = 4


class Where(Unmasker, Protocol):
    """Unmasking rule of a rollout: a policy, or an expert in its place. `network` determines the recorded inputs of each step."""

    network: PolicyNetwork


def rollout(
    model: MaskedLM,
    unmasker: Where,
    rule: TokenRule,
    prompts: Prompts,
    options: DecodeOptions,
    reward: Reward,
    seed: int,
    record: bool,
) -> tuple[Samples, RewardOutput]:
    """Decode the prompts with the policy and score them.

    A step that selects no position changes nothing, so it costs no evaluation (the published code pays for one). A row ends
    after PATIENCE steps for each position that was open at the start, possibly with open positions.

    Args:
        reward: a reward of the order (`teacher_forced`) has the data's text committed in place of the model's.
        options: how canvases are decoded, except `patience`, and `alpha`, which is `prompts.rows["alpha"]` if that exists.
        record: keep the trajectory, with the policy's inputs at each step.
    """
    options = replace(options, patience=PATIENCE, alpha=prompts.rows.get("alpha"))
    decoder: StepDecoder = Strategy(unmasker, rule)
    if isinstance(unmasker, PolicyUnmasker):
        decoder = policy_decoder(unmasker, rule)
    if reward.teacher_forced:
        assert prompts.text is not None
        decoder = TeacherForced(unmasker, prompts.text)
    samples = decoder.decode(model, prompts, options, seed, record=unmasker.network.inputs if record else None)
    return samples, reward(samples, prompts.rows)


@dataclass
class Steps:
    """Active steps to learn from, N of them: the trajectory plus the values that the objective needs at each (PPO: a value
    target).
    """

    trajectory: Trajectory
    advantage: Float[Tensor, "N"]
    weight: Float[Tensor, "N"]
    target: Float[Tensor, "N"] | None = None
    expert: Bool[Tensor, "N"] | None = None  # which steps are an expert's (policy/experts.py)

    def __len__(self) -> int:
        return len(self.advantage)

    def take(self, index: Int[Tensor, "kept"]) -> Steps:
        target = None if self.target is None else self.target[index]
        expert = None if self.expert is None else self.expert[index]
        return Steps(self.trajectory.take(index), self.advantage[index], self.weight[index], target, expert)


def policy_log_probs(
    network: PolicyNetwork, distribution, trajectory: Trajectory, value: bool = False
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"] | None]:
    """Return the log-probability of the recorded actions under the current network (and its values)."""
    values = None
    if value:
        scores, values = network.forward_with_value(**trajectory.inputs)
    else:
        scores = network.scores(**trajectory.inputs)
    learned = distribution_settings(network)
    if trajectory.opened is not None:
        learned = {**learned, "forced": must_change(trajectory.writable, trajectory.opened)}
    return distribution.log_prob(scores, trajectory.writable, trajectory.order, **learned), values


@torch.no_grad()
def recomputed(
    network: PolicyNetwork, distribution, trajectory: Trajectory, chunk: int, value: bool = False
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"] | None]:
    """Return `policy_log_probs` before an update, `chunk` steps at a time to save memory."""
    parts = [
        policy_log_probs(network, distribution, trajectory.take(index), value)
        for index in torch.arange(len(trajectory.row), device=trajectory.row.device).split(chunk)
    ]
    log_probs, values = zip(*parts, strict=True)
    return torch.cat(log_probs), torch.cat(values) if value else None


def summary(samples: Samples, reward: RewardOutput, mask_id: int) -> dict[str, float]:
    """Return means for the log."""
    reported = ("evaluations", "still_masked")
    still = (samples.tokens == mask_id).any(1).float().mean()
    return {
        "reward": float(reward.total.nanmean()),
        "reward_failed": float(len(reward.failed)),
        "nfe": float(samples.evaluations.float().mean()),
        "still_masked": float(still),
    } | {name: float(term.float().nanmean()) for name, term in reward.terms.items() if name not in reported}
