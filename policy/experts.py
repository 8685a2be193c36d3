"""Expert steering: a few rollouts of a threshold rule, decoded in blocks, join each group of the policy's own rollouts.

Source: "Learning Unmasking Policies for Diffusion Language Models" (2512.09106). Without blocks the policy's own rollouts rarely
have the order that blocks enforce; the rollouts of the rule do. The group's mean is over G + E rollouts of G samples and E
experts. Actions of an expert may be almost impossible under the policy. Their likelihood is therefore that of the mixture from
which the group is drawn, with G parts policy and one part this expert (`losses.with_expert`), so that the ratio stays below G +
1. Every masked position of an expert's step is part of its likelihood, so the policy also learns which positions not to commit
yet. What differs: any number of experts and of groups per process, and blocks of any length (published: 32, one group).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data.tasks import Prompts
from dlm.environment import TokenRule
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from policy.base import PolicyNetwork
from policy.imitation import Expert, InBlocks
from policy.rollout import rollout
from policy.settings import ExpertsSettings
from rewards.rules import Reward, RewardOutput
from samplers.heuristics import Threshold
from samplers.samples import Samples, Trajectory

Rollouts = tuple[Samples, RewardOutput]


def expert_rollouts(
    model: MaskedLM, network: PolicyNetwork, experts: ExpertsSettings, rule: TokenRule, prompts: Prompts, reward: Reward,
    seed: int, options: DecodeOptions,
) -> list[Rollouts]:  # fmt: skip
    """Return one rollout of every prompt for each of `experts.thresholds`, recorded with the policy's inputs."""
    options = replace(options, steps=1)  # thresholds take as many steps as they need
    made = []
    for number, threshold in enumerate(experts.thresholds, start=1):
        steered = Threshold(float(threshold))
        expert = Expert(network, InBlocks(steered, experts.block_length) if experts.block_length else steered)
        made.append(rollout(model, expert, rule, prompts, options, reward, seed + number, True))
    return made


def joined(
    own: Rollouts, experts: Sequence[Rollouts], group: int
) -> tuple[Trajectory, Float[Tensor, "row"], Bool[Tensor, "N"]]:
    """Join groups of `group` own rollouts with one of each expert.

    Returns:
        All steps, with rows numbered group by group; the rewards in that order; and which steps are an expert's.
    """
    members = group + len(experts)
    rows = torch.arange(len(own[1].total), device=own[1].total.device)
    places = [rows // group * members + rows % group]
    places += [torch.arange(len(rows) // group, device=rows.device) * members + group + e for e in range(len(experts))]
    total = own[1].total.new_zeros(len(rows) // group * members)
    steps, expert = [], []
    for place, (samples, reward) in zip(places, (own, *experts), strict=True):
        assert samples.trajectory is not None
        total[place] = reward.total
        steps.append((samples.trajectory, place[samples.trajectory.row]))
        expert.append(torch.full_like(samples.trajectory.row, len(expert) > 0, dtype=torch.bool))
    tensors = {
        field.name: torch.cat([getattr(trajectory, field.name) for trajectory, _ in steps])
        for field in fields(Trajectory) if field.name not in ("row", "inputs", "opened")  # experts do not revise
    }  # fmt: skip
    inputs = {name: torch.cat([trajectory.inputs[name] for trajectory, _ in steps]) for name in steps[0][0].inputs}
    return Trajectory(row=torch.cat([row for _, row in steps]), inputs=inputs, **tensors), total, torch.cat(expert)


def expert_metrics(experts: Sequence[Rollouts], own: RewardOutput) -> dict[str, float]:
    """Return means for the log: reward and NFE of the experts, and their reward less the policy's."""
    if not experts:
        return {}
    reward = float(torch.stack([reward.total.nanmean() for _, reward in experts]).mean())
    evaluations = float(torch.stack([samples.evaluations.float().mean() for samples, _ in experts]).mean())
    return {
        "expert_reward": reward,
        "expert_nfe": evaluations,
        "expert_lead": reward - float(own.total.nanmean()),
    }


def check_experts(experts: ExpertsSettings, prompts: Prompts, reward: Reward, block_length: int | None) -> None:
    """Refuse blocks that do not fit, and settings that exclude experts: ValueError."""
    length = prompts.canvas.shape[1] - prompts.prompt_length
    block = experts.block_length
    if block is not None and length % block:
        raise ValueError(
            f"algorithm.experts.block_length={block} does not divide the {length} positions to write; choose a divisor, or null"
        )
    if block_length not in (None, length):
        raise ValueError(
            f"experts show a policy that sees every mask what blocks are good for: not with sampler.block_length={block_length}"
        )
    if reward.teacher_forced:
        raise ValueError("experts need a reward for a whole text, which reward=bound is not; use another reward")
