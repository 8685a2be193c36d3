"""Every training objective as a pure function of tensors: denoising cross-entropies, GRPO, PPO, the variational objective.

Denoising: t-DCE, lambda-DCE and k-DCE of RADD (2406.03736), plain masked cross-entropy, SEDD's score entropy (2310.16834), and
next-token loss. The published
t-DCE subtracts a term that does not depend on the network and only adds variance; it is left out here. Losses are per token
(nats), where the published code sums over a row: AdamW does not notice.
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
    """One time a row, spread evenly over [low, high): the offset is random, the gaps are not, so that the mean over a
    batch hardly varies. `uniform`: a single number in [0, 1) shared by the rows, or one per row to jitter inside its cell."""
    even = (torch.arange(rows, dtype=uniform.dtype, device=uniform.device) / rows + uniform) % 1
    return low + (high - low) * even


def mask_exactly(uniforms: Float[Tensor, "row position"], count: Int[Tensor, "row"]) -> Bool[Tensor, "row position"]:
    """Exactly count[row] positions, uniformly: those of the lowest uniforms."""
    rank = uniforms.argsort(1).argsort(1)
    return rank < count.unsqueeze(1)


def denoising_loss(
    log_prob: Float[Tensor, "masked"],
    row: Int[Tensor, "masked"],
    weight: Float[Tensor, "row"],
    length: int,
) -> Float[Tensor, ""]:
    """-sum over masked positions of weight[row] * log p(token), averaged over rows * length: nats per token.

    With the weights of `dlm.pretrain.corrupt` this is the t-DCE, lambda-DCE or k-DCE bound on -log p(x) / length.
    """
    return -(weight[row] * log_prob).sum() / (len(weight) * length)


def score_entropy_loss(
    log_prob: Float[Tensor, "masked"],
    log_mass: Float[Tensor, "masked"],
    row: Int[Tensor, "masked"],
    weight: Float[Tensor, "row"],
    sigma: Float[Tensor, "row"],
    length: int,
) -> Float[Tensor, ""]:
    """Denoising score entropy of the absorbing graph: sigma' times, over masked positions, sum_v s_v - r log s_token +
    r (log r - 1), with r = 1 / (e^sigma - 1) and weight = sigma' r; averaged over rows * length: nats per token.

    log_prob: of the token under the normalised scores; log_mass: log sum_v s_v. With excess = log_mass - log r the value is
    weight * (e^excess - 1 - excess - log_prob): the t-DCE loss, and a penalty that is zero, with its gradient, where the scores
    sum to what they should. So no number is large, which in the published order of terms they are at small sigma.
    """
    excess = log_mass + torch.expm1(sigma).log()[row].float()
    return denoising_loss(log_prob - (torch.expm1(excess) - excess), row, weight, length)


def next_token_loss(
    logits: Float[Tensor, "row position vocabulary"],
    tokens: Int[Tensor, "row position"],
    given: Bool[Tensor, "row position"] | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of tokens[1:], those that are `given` left out, given what precedes, in nats."""
    targets = tokens if given is None else tokens.masked_fill(given.to(tokens.device), -100)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets[:, 1:].flatten())


# ------------------------------------------------------------------------------------------------------------------ policies


def group_advantages(
    reward: Float[Tensor, "group member"], divide_by_std: bool, valid: Bool[Tensor, "group member"] | None = None
) -> Float[Tensor, "group member"]:
    """Reward minus the mean of its group; divided by the group's standard deviation in GRPO (2402.03300), not in Dr. GRPO
    (2503.20783), which is what Apple's policies are trained with. Exactly 0 where all rewards of a group are equal (the mean
    in float32 need not be one of them). A member whose reward is NaN has none: its advantage is 0, and the others are compared
    without it; so are those that are not `valid`."""
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
    """centred / deviation; exactly 0 where the deviation is no more than the rounding of float32 numbers of that size, which
    would be blown up to units."""
    return (centred / (deviation + 1e-8)).masked_fill(deviation <= ROUNDING * size, 0.0)


def step_advantages(
    reward: Float[Tensor, "step"],
    row: Int[Tensor, "step"],
    step: Int[Tensor, "step"],
    rows: int,
    group: int,
    divide_by_std: bool,
) -> Float[Tensor, "step"]:
    """Where every step earns a reward: the return from a step on, minus the mean return of the group's other rollouts and its own
    from the same step on; optionally divided by the standard deviation of all of them. A rollout that has ended earns 0.
    `row`, `step`: which rollout, and the place in it; rollouts of a group follow each other."""
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
    """-sum of weight * min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A), the ratio that of a whole decoding step."""
    ratio = torch.exp(log_prob - old_log_prob)
    return -(weight * torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)).sum()


def with_expert(log_prob: Float[Tensor, "step"], group: int, experts: int) -> Float[Tensor, "step"]:
    """log(G / (G + E) * p + 1 / (G + E)): the likelihood of an expert's picks in a group of G rollouts of the policy, which makes
    them with probability p, and E experts, of whom this one makes them for sure."""
    members = group + experts
    return torch.logaddexp(log_prob + math.log(group / members), torch.full_like(log_prob, -math.log(members)))


def per_row_weights(row: Int[Tensor, "step"], rows: int) -> Float[Tensor, "step"]:
    """1 / (rows * steps of the row): each rollout counts the same, however many steps it took."""
    steps = torch.bincount(row, minlength=rows)
    return 1.0 / (rows * steps[row])


def kl_to_reference(log_prob: Float[Tensor, "step"], reference: Float[Tensor, "step"]) -> Float[Tensor, "step"]:
    """The positive, unbiased one-sample estimate of KL(policy || reference): r - 1 - log r with r = p_ref / p."""
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
    """Generalised advantage estimates (1506.02438) and value targets of ragged episodes given as flat steps.

    A_t = sum_k (discount * decay)^k delta_{t+k}, delta_t = reward_t + discount * value_{t+1} - value_t, value 0 past the end.
    `row`, `step`: which episode, and the place in it, 0, 1, 2, ... without gaps.
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
    """Weighted half squared error."""
    return 0.5 * (weight * (value - target) ** 2).sum()


def variational_loss(
    log_token: Float[Tensor, "row step"],
    log_unmask: Float[Tensor, "row step"],
    log_mask: Float[Tensor, "row step"],
    length: Int[Tensor, "row"],
    reinforce: float,
    everywhere: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(loss to differentiate, negative bound) of the two-channel policy, both in nats per token.

    The bound on log p(x): E_q sum over steps of [log p(tokens | canvas) + log unmask(picks | canvas) - log mask(picks | cleaner
    canvas)], q the masking channel, canvases along q. Its gradient in the unmasking channel is direct; in the masking channel it
    is a score function: the return from a step on, minus the batch mean as baseline (which holds the row itself: the term shrinks
    by 1 - 1 / rows, without bias otherwise), times the gradient of log_mask.
    `reinforce` scales that term (genpolicy's RADD version has none, which leaves its masking channel untrained).
    Steps run in masking order, from the clean text to the blank canvas. everywhere: from this process's rows to those of all
    processes that share the batch.
    """
    terms = (log_token + log_unmask - log_mask) / length.unsqueeze(1)
    bound = terms.sum(1).mean()
    returns = terms.detach().flip(1).cumsum(1).flip(1)
    batch = returns if everywhere is None else everywhere(returns)
    baseline = batch.mean(0, keepdim=True) if len(batch) > 1 else torch.zeros_like(returns)
    score = ((returns - baseline) * log_mask).sum(1).mean()
    direct = (log_unmask / length.unsqueeze(1)).sum(1).mean()
    return -(direct + reinforce * score), -bound.detach()
