"""Training objectives as pure functions of tensors: denoising cross-entropies, GRPO, PPO, the variational objective.

Denoising: t-DCE, lambda-DCE and k-DCE of RADD (2406.03736), plain masked cross-entropy, SEDD's score entropy (2310.16834),
and next-token loss. The published t-DCE subtracts a term that does not depend on the network and only adds variance; it is
left out. Losses are per token (nats), while the published code sums over a row: AdamW is invariant to this scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROUNDING = 1e-6  # of float32, relative to a number's size

# ---------------------------------------------------------------------------------------------------------------- denoising


def low_discrepancy_times(
    rows: int, uniform: Float[Tensor, "..."], low: float = 1e-3, high: float = 1.0
) -> Float[Tensor, "row"]:
    """Return one time per row, spread evenly over [low, high).

    The offset is random and the gaps are fixed, so the mean over a batch has a low variance.

    Args:
        uniform: a single number in [0, 1) shared by the rows, or one per row to jitter inside its cell.
    """
    even = (torch.arange(rows, dtype=uniform.dtype, device=uniform.device) / rows + uniform) % 1
    return low + (high - low) * even


def mask_exactly(uniforms: Float[Tensor, "row position"], count: Int[Tensor, "row"]) -> Bool[Tensor, "row position"]:
    """Mask exactly count[row] positions, uniformly: those with the lowest uniform numbers."""
    rank = uniforms.argsort(1).argsort(1)
    return rank < count.unsqueeze(1)


def denoising_loss(
    log_prob: Float[Tensor, "masked"],
    row: Int[Tensor, "masked"],
    weight: Float[Tensor, "row"],
    length: int,
) -> Float[Tensor, ""]:
    """Return -sum over masked positions of weight[row] * log p(token), averaged over rows * length: nats per token.

    With the weights of `dlm.pretrain.corrupt` this is the t-DCE, lambda-DCE or k-DCE bound on -log p(x) / length.
    """
    return -(weight[row] * log_prob).sum() / (len(weight) * length)


def score_entropy_loss(
    log_prob: Float[Tensor, "masked"],
    log_normalizer: Float[Tensor, "masked"],
    row: Int[Tensor, "masked"],
    weight: Float[Tensor, "row"],
    sigma: Float[Tensor, "row"],
    length: int,
) -> Float[Tensor, ""]:
    """Return the denoising score entropy of the absorbing graph, averaged over rows * length: nats per token.

    At each masked position it is sigma' times (sum_v s_v - r log s_token + r (log r - 1)), with r = 1 / (e^sigma - 1) and
    weight = sigma' r. It is computed as weight * (e^excess - 1 - excess - log_prob) with excess = log_normalizer - log r: the
    t-DCE loss, and a penalty that is zero, with zero gradient, where the scores have the right sum. All terms are of
    moderate size, unlike the published terms at small sigma.

    Args:
        log_prob: log-probability of the token under the normalized scores.
        log_normalizer: log sum_v s_v, the log-normalizer.
    """
    excess = log_normalizer + torch.expm1(sigma).log()[row].float()
    return denoising_loss(log_prob - (torch.expm1(excess) - excess), row, weight, length)


def next_token_loss(
    logits: Float[Tensor, "row position vocabulary"],
    tokens: Int[Tensor, "row position"],
    given: Bool[Tensor, "row position"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of tokens[1:] given the previous tokens, without `given` ones, in nats."""
    targets = tokens if given is None else tokens.masked_fill(given.to(tokens.device), -100)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten())


# ------------------------------------------------------------------------------------------------------------------ policies


def group_advantages(
    reward: Float[Tensor, "group member"], divide_by_std: bool, valid: Bool[Tensor, "group member"] | None = None
) -> Float[Tensor, "group member"]:
    """Return each reward less the mean of its group, optionally divided by the group's standard deviation.

    GRPO (2402.03300) divides; Dr. GRPO (2503.20783) and Apple's unmasking policies do not. The advantage is exactly 0 if
    all rewards of a group are equal (the mean in float32 may differ from them). A member with reward NaN, or that is not
    `valid`, has advantage 0, and the others are compared without it.
    """
    reward = reward if valid is None else reward.masked_fill(~valid, math.nan)
    scored = ~reward.isnan()
    low = reward.masked_fill(~scored, math.inf).amin(1, keepdim=True)
    high = reward.masked_fill(~scored, -math.inf).amax(1, keepdim=True)
    centred = (reward - reward.nanmean(1, keepdim=True)).masked_fill(~scored | (low >= high), 0.0)
    if not divide_by_std:
        return centred
    deviation = ((centred**2).sum(1, keepdim=True) / scored.sum(1, keepdim=True).clamp(min=1)).sqrt()
    return centred / (deviation + 1e-4)


def over_deviation(
    centred: Float[Tensor, "*n"], deviation: Float[Tensor, ""], size: Float[Tensor, ""]
) -> Float[Tensor, "*n"]:
    """Return centred / deviation; exactly 0 if the deviation is at most the rounding error of float32 numbers of that
    size.
    """
    return (centred / (deviation + 1e-8)).masked_fill(deviation <= ROUNDING * size, 0.0)


def step_advantages(
    reward: Float[Tensor, "step"],
    row: Int[Tensor, "step"],
    step: Int[Tensor, "step"],
    rows: int,
    group: int,
    divide_by_std: bool,
) -> Float[Tensor, "step"]:
    """Return the advantages of steps that each earn a reward.

    This is the return from a step on, less the mean return of the group's rollouts from the same step on; optionally
    divided by their standard deviation. A rollout that has ended earns 0.

    Args:
        row, step: rollout of each step, and its place in it; rollouts of a group are consecutive.
    """
    if len(reward) == 0:
        return reward
    dense = reward.new_zeros(rows, int(step.max()) + 1)
    dense[row, step] = reward
    returns = dense.flip(1).cumsum(1).flip(1).view(rows // group, group, -1)
    equal = (returns == returns[:, :1]).all(1, keepdim=True)  # as in group_advantages: exactly 0 there
    centred = (returns - returns.mean(1, keepdim=True)).masked_fill(equal, 0.0).flatten(0, 1)[row, step]
    return over_deviation(centred, centred.std(correction=0), returns.abs().max()) if divide_by_std else centred


def clipped_policy_loss(
    log_prob: Float[Tensor, "step"],
    old_log_prob: Float[Tensor, "step"],
    advantage: Float[Tensor, "step"],
    weight: Float[Tensor, "step"],
    clip: float,
) -> Float[Tensor, ""]:
    """Return -sum of weight * min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A), with the ratio of a whole decoding
    step.
    """
    ratio = torch.exp(log_prob - old_log_prob)
    return -(weight * torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)).sum()


def with_expert(log_prob: Float[Tensor, "step"], group: int, experts: int) -> Float[Tensor, "step"]:
    """Return log(G / (G + E) * p + 1 / (G + E)): the likelihood of an expert's actions in a mixed group.

    The group has G rollouts of the policy, which takes the actions with probability p, and E experts, of which this one
    takes them with certainty.
    """
    members = group + experts
    return torch.logaddexp(log_prob + math.log(group / members), torch.full_like(log_prob, -math.log(members)))


def per_row_weights(row: Int[Tensor, "step"], rows: int) -> Float[Tensor, "step"]:
    """Return 1 / (rows * steps of the row): each rollout has the same weight, whatever its number of steps."""
    steps = torch.bincount(row, minlength=rows)
    return 1.0 / (rows * steps[row])


def kl_to_reference(log_prob: Float[Tensor, "step"], reference: Float[Tensor, "step"]) -> Float[Tensor, "step"]:
    """Return the positive, unbiased one-sample estimate of KL(policy || reference): r - 1 - log r with r = p_ref / p."""
    log_ratio = reference - log_prob
    return torch.exp(log_ratio) - 1 - log_ratio


def gae(
    reward: Float[Tensor, "step"],
    value: Float[Tensor, "step"],
    row: Int[Tensor, "step"],
    step: Int[Tensor, "step"],
    discount: float,
    decay: float,
) -> tuple[Float[Tensor, "step"], Float[Tensor, "step"]]:
    """Return generalized advantage estimates (1506.02438) and value targets of ragged episodes, given as flat steps.

    A_t = sum_k (discount * decay)^k delta_{t+k}, delta_t = reward_t + discount * value_{t+1} - value_t, value 0 past the
    end.

    Args:
        row, step: episode of each step, and its place in it, 0, 1, 2, ... without gaps.
    """
    rows, length = int(row.max()) + 1, int(step.max()) + 1
    rewards, values = reward.new_zeros(rows, length), value.new_zeros(rows, length + 1)
    rewards[row, step], values[:, :-1][row, step] = reward, value
    advantages, running = torch.zeros_like(rewards), reward.new_zeros(rows)
    for t in range(length - 1, -1, -1):  # decoding steps: at most some hundreds, each over all rows at once
        running = rewards[:, t] + discount * values[:, t + 1] - values[:, t] + discount * decay * running
        advantages[:, t] = running
    advantage = advantages[row, step]
    return advantage, advantage + value


def value_loss(
    value: Float[Tensor, "step"], target: Float[Tensor, "step"], weight: Float[Tensor, "step"]
) -> Float[Tensor, ""]:
    """Return the weighted half squared error."""
    return 0.5 * (weight * (value - target) ** 2).sum()


def variational_loss(
    log_token: Float[Tensor, "row step"],
    log_unmask: Float[Tensor, "row step"],
    log_mask: Float[Tensor, "row step"],
    length: Int[Tensor, "row"],
    reinforce: float,
    everywhere: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return (loss to differentiate, negative bound) of the two-channel policy, both in nats per token.

    The bound on log p(x) is E_q sum over steps of [log p(tokens | canvas) + log unmask(action | canvas) - log mask(action |
    cleaner canvas)], with q the masking channel and canvases along q. Its gradient in the unmasking channel is direct. In
    the masking channel it is a score function: the return from a step on, less the batch mean as baseline, times the
    gradient of log_mask. (The baseline contains the row itself, which scales the term by 1 - 1 / rows without further
    bias.) Steps are in masking order, from the clean text to the empty canvas.

    Args:
        reinforce: weight of the score-function term (genpolicy's RADD version has none, which leaves its masking channel
            untrained).
        everywhere: from this process's rows to those of all processes that share the batch.
    """
    terms = (log_token + log_unmask - log_mask) / length.unsqueeze(1)
    bound = terms.sum(1).mean()
    returns = terms.detach().flip(1).cumsum(1).flip(1)
    batch = returns if everywhere is None else everywhere(returns)
    baseline = batch.mean(0, keepdim=True) if len(batch) > 1 else torch.zeros_like(returns)
    score = ((returns - baseline) * log_mask).sum(1).mean()
    direct = (log_unmask / length.unsqueeze(1)).sum(1).mean()
    return -(direct + reinforce * score), -bound.detach()
