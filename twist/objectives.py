"""Objectives of twists: CTL, RL (soft Q), SIXO, FUDGE, DPG and PPO as pure functions of tensors.

Notation of Zhao et al. (2404.17546). p: the frozen model; phi: the potential of a whole sequence s_1:T; sigma: p phi / Z,
the target; psi_t(s_1:t): the twists; q_t(v | s_<t) = p(v | s_<t) psi_t(s_<t, v) / N_t(s_<t): the proposal, where N_t, the
sum over v, is its normalizer. Everything is in logs. For each position only log p, log psi (of the token there) and log N
are needed. One teacher-forced pass over finished sequences gives them, whatever distribution drew the sequences.

Losses are means over positions, as in the published code. What differs: DPG's expectation under q over the vocabulary is
the gradient of log N, so DPG is the likelihood of weighted sequences under q; probabilities never leave log space;
labels of FUDGE on target samples (`prefix_labels`) include the scored token, where the published ones stop before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

IDENTIFIED = {  # what the twists of a method are where the loss is least
    "ctl": "psi* up to a constant a position",
    "rl": "psi*",
    "sixo": "psi* / Z",
    "fudge": "psi*",
    "dpg": "psi* up to a factor a prefix",
    "ppo": "psi* up to a factor a prefix",
}
LEVELLED = ("rl", "fudge")  # their losses determine the level of psi, the others only its differences
PROPOSAL_ONLY = ("dpg", "ppo")  # a factor a prefix cancels in q, and not in the weights of particles


def check_resampling(method: str, twist: str) -> None:
    """Refuse to weight and resample particles by a twist that does not determine prefixes: ValueError."""
    if method in PROPOSAL_ONLY:
        raise ValueError(
            f"the twist {twist} was learnt by {method}, which identifies the proposal only ({IDENTIFIED[method]}), so particles "
            "cannot be resampled by it; do not resample (--resample never, smc={'resample': 'never'}), or take a twist of ctl, "
            "rl, sixo or fudge"
        )


@dataclass(frozen=True)
class Densities:
    """Results of a teacher-forced pass: log p(s_t | s_<t), log psi_t(s_1:t), log N_t(s_<t) (the log-normalizer)."""

    log_p: Float[Tensor, "row position"]
    log_psi: Float[Tensor, "row position"]
    log_normalizer: Float[Tensor, "row position"]

    @property
    def log_q(self) -> Float[Tensor, "row position"]:
        return self.log_p + self.log_psi - self.log_normalizer

    def take(self, rows: slice) -> Densities:
        return Densities(self.log_p[rows], self.log_psi[rows], self.log_normalizer[rows])


# ------------------------------------------------------------------------------------------------------------------ weights


def final_log_weight(
    log_p: Float[Tensor, "row position"], log_q: Float[Tensor, "row position"], log_phi: Float[Tensor, "row"]
) -> Float[Tensor, "row"]:
    """Return log p(s) phi(s) / q(s) of sequences drawn from q: their weight in the target."""
    return (log_p - log_q).sum(1) + log_phi


def prefix_log_weights(
    log_p: Float[Tensor, "row position"], log_q: Float[Tensor, "row position"], log_psi: Float[Tensor, "row position"]
) -> Float[Tensor, "row position"]:
    """Return log p(s_1:t) psi_t(s_1:t) / q(s_1:t) for each t: the weight of a prefix in the twisted target pi_t."""
    return (log_p - log_q).cumsum(1) + log_psi


def normalised(log_weight: Float[Tensor, "row *position"], groups: int = 1) -> Float[Tensor, "row *position"]:
    """Return self-normalized weights, without a gradient.

    They sum to one over the rows. Each of `groups` equal runs of rows, which belong to different conditions, has the same
    share. A group whose rows all have weight 0 has no share.
    """
    grouped = log_weight.detach().unflatten(0, (groups, -1))
    dead = (grouped == -torch.inf).all(1, keepdim=True)
    return (grouped.masked_fill(dead, 0.0).softmax(1).masked_fill(dead, 0.0) / groups).flatten(0, 1)


# ------------------------------------------------------------------------------------------------------------------- losses


def contrastive_loss(
    positive: Float[Tensor, "positive position"],
    positive_weight: Float[Tensor, "positive"],
    negative: Float[Tensor, "negative position"],
    negative_weight: Float[Tensor, "negative position"],
) -> Float[Tensor, ""]:
    """CTL: E_pi_t[log psi_t] - E_sigma[log psi_t], with the gradient of the mean over t of KL(sigma(s_1:t) || pi_t).

    Args:
        positive: log psi of the target's samples.
        negative: log psi of samples that `prefix_log_weights` turn into samples of pi_t.
    """
    pushed_down = (negative_weight * negative).sum(0)
    pulled_up = (positive_weight.unsqueeze(1) * positive).sum(0)
    return (pushed_down - pulled_up).mean()


def soft_q_loss(
    log_psi: Float[Tensor, "row position"],
    log_normalizer: Float[Tensor, "row position"],
    log_phi: Float[Tensor, "row"],
    weight: Float[Tensor, "row"],
) -> Float[Tensor, ""]:
    """RL: squared distance of log psi_t(s_1:t) to log N_{t+1}(s_1:t), without a gradient through the latter; at the end
    to log phi.

    Sequences may come from any distribution.
    """
    target = torch.cat((log_normalizer[:, 1:], log_phi.unsqueeze(1)), 1).detach()
    return (weight.unsqueeze(1) * (log_psi - target).square()).sum(0).mean()


def sixo_loss(
    positive: Float[Tensor, "positive position"],
    positive_weight: Float[Tensor, "positive"],
    negative: Float[Tensor, "negative position"],
    negative_weight: Float[Tensor, "negative"],
) -> Float[Tensor, ""]:
    """SIXO: classify sequences of the target against sequences of the model, with log psi_t as the logit. negative: of
    samples of p.
    """
    recognised = (positive_weight.unsqueeze(1) * F.logsigmoid(positive)).sum(0)
    rejected = (negative_weight.unsqueeze(1) * F.logsigmoid(-negative)).sum(0)
    return -(recognised + rejected).mean()


def fudge_loss(
    log_psi: Float[Tensor, "row position"], log_label: Float[Tensor, "row position"], weight: Float[Tensor, "row"]
) -> Float[Tensor, ""]:
    """FUDGE: cross-entropy of the probability psi_t(s_1:t) with the label phi of a completion of s_1:t by p."""
    label = log_label.exp()
    no = torch.log(-torch.expm1(log_psi.clamp(max=-torch.finfo(log_psi.dtype).tiny)))
    return -(weight.unsqueeze(1) * (label * log_psi + (1 - label) * no)).sum(0).mean()


def dpg_loss(
    log_psi: Float[Tensor, "row position"], log_normalizer: Float[Tensor, "row position"], weight: Float[Tensor, "row"]
) -> Float[Tensor, ""]:
    """DPG: -E_sigma[log q], without its constant part. weight: of the sequences in the target."""
    return -(weight.unsqueeze(1) * (log_psi - log_normalizer)).sum(0).mean()


def ppo_rewards(
    log_p: Float[Tensor, "row position"], log_q: Float[Tensor, "row position"], log_phi: Float[Tensor, "row"]
) -> Float[Tensor, "row position"]:
    """Return the reward of each token: log p - log q, plus log phi at the end.

    Their sum is the log-weight, whose mean under q is log Z - KL(q || sigma). (In units of 1 / beta: the reward r, with a
    KL penalty of weight 1 / beta towards p.)
    """
    earned = (log_p - log_q).detach()
    return torch.cat((earned[:, :-1], earned[:, -1:] + log_phi.unsqueeze(1)), 1)


# ------------------------------------------------------------------------------------------------------- labels of prefixes


def prefix_labels(
    log_phi_completed: Float[Tensor, "prefix"], log_phi: Float[Tensor, "row"]
) -> Float[Tensor, "row position"]:
    """Return labels of `fudge_loss` on sequences that are not from p.

    Args:
        log_phi_completed: log phi of completions by p of each row's prefixes s_1:1, ..., s_1:T-1, row by row.
        log_phi: log phi of the rows. The label of psi_t belongs to the completion of s_1:t, which includes the scored
            token.
    """
    return torch.cat((log_phi_completed.view(len(log_phi), -1), log_phi.unsqueeze(1)), 1)
