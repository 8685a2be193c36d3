"""Learning rules for twists: CTL, RL (soft Q), SIXO, FUDGE, DPG and PPO as pure functions of tensors.

Zhao et al. (2404.17546). p: the frozen model; phi: the potential of a whole sequence s_1:T; sigma: p phi / Z, the target;
psi_t(s_1:t): the twists; q_t(v | s_<t) = p(v | s_<t) psi_t(s_<t, v) / mass_t(s_<t): the proposal that they make of p, its mass
being the sum over v. All of it in logs, and of a position only log p, log psi (of the token there) and log mass are needed:
one teacher-forced pass over finished sequences gives them, whoever drew these and however.

Losses are means over positions, as in the published code. What differs from it: DPG's expectation under q over the vocabulary
is the gradient of log mass, so that DPG is the likelihood of weighted sequences under q; probabilities never leave log space;
the labels of FUDGE on target samples (`prefix_labels`) see the token that is scored, where the published ones stop before it.
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
LEVELLED = ("rl", "fudge")  # whose losses ask what psi is; those of the others, how it differs
PROPOSAL_ONLY = ("dpg", "ppo")  # a factor a prefix cancels in q, and not in the weights of particles


def check_resampling(method: str, twist: str) -> None:
    """Refuse to weigh and resample particles by a twist that says nothing of the prefix. Raises ValueError."""
    if method in PROPOSAL_ONLY:
        raise ValueError(
            f"the twist {twist} was learnt by {method}, which identifies the proposal only ({IDENTIFIED[method]}), so particles "
            "cannot be resampled by it; add --resample never, or take a twist of ctl, rl, sixo or fudge"
        )


@dataclass(frozen=True)
class Densities:
    """What a teacher-forced pass says of sequences: log p(s_t | s_<t), log psi_t(s_1:t), log mass_t(s_<t)."""

    log_p: Float[Tensor, "row position"]
    log_psi: Float[Tensor, "row position"]
    log_mass: Float[Tensor, "row position"]

    @property
    def log_q(self) -> Float[Tensor, "row position"]:
        return self.log_p + self.log_psi - self.log_mass

    def take(self, rows: slice) -> Densities:
        return Densities(self.log_p[rows], self.log_psi[rows], self.log_mass[rows])


# ------------------------------------------------------------------------------------------------------------------ weights


def final_log_weight(
    log_p: Float[Tensor, "row position"], log_q: Float[Tensor, "row position"], log_phi: Float[Tensor, "row"]
) -> Float[Tensor, "row"]:
    """log p(s) phi(s) / q(s) of sequences drawn from q: their weight in the target."""
    return (log_p - log_q).sum(1) + log_phi


def prefix_log_weights(
    log_p: Float[Tensor, "row position"], log_q: Float[Tensor, "row position"], log_psi: Float[Tensor, "row position"]
) -> Float[Tensor, "row position"]:
    """log p(s_1:t) psi_t(s_1:t) / q(s_1:t), for each t: the weight of a prefix in the twisted target pi_t."""
    return (log_p - log_q).cumsum(1) + log_psi


def normalised(log_weight: Float[Tensor, "row *position"], groups: int = 1) -> Float[Tensor, "row *position"]:
    """Self-normalised weights, without a gradient. They sum to one over the rows; each of `groups` equal runs of rows, which
    belong to conditions of their own, has the same share. A group whose rows all have weight 0 has no share: it teaches
    nothing."""
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
    """CTL: E_pi_t[log psi_t] - E_sigma[log psi_t], whose gradient is that of the mean over t of KL(sigma(s_1:t) || pi_t).
    positive, negative: log psi of the target's samples, and of those that `prefix_log_weights` turn into pi_t's."""
    pushed_down = (negative_weight * negative).sum(0)
    pulled_up = (positive_weight.unsqueeze(1) * positive).sum(0)
    return (pushed_down - pulled_up).mean()


def soft_q_loss(
    log_psi: Float[Tensor, "row position"],
    log_mass: Float[Tensor, "row position"],
    log_phi: Float[Tensor, "row"],
    weight: Float[Tensor, "row"],
) -> Float[Tensor, ""]:
    """RL: squared distance of log psi_t(s_1:t) to log mass_{t+1}(s_1:t), which stands still, and at the end to log phi.
    The sequences may come from anywhere."""
    target = torch.cat((log_mass[:, 1:], log_phi.unsqueeze(1)), 1).detach()
    return (weight.unsqueeze(1) * (log_psi - target).square()).sum(0).mean()


def sixo_loss(
    positive: Float[Tensor, "positive position"],
    positive_weight: Float[Tensor, "positive"],
    negative: Float[Tensor, "negative position"],
    negative_weight: Float[Tensor, "negative"],
) -> Float[Tensor, ""]:
    """SIXO: which sequences are the target's and which the model's, by log psi_t as a logit. negative: of samples of p."""
    recognised = (positive_weight.unsqueeze(1) * F.logsigmoid(positive)).sum(0)
    rejected = (negative_weight.unsqueeze(1) * F.logsigmoid(-negative)).sum(0)
    return -(recognised + rejected).mean()


def fudge_loss(
    log_psi: Float[Tensor, "row position"], log_label: Float[Tensor, "row position"], weight: Float[Tensor, "row"]
) -> Float[Tensor, ""]:
    """FUDGE: cross-entropy of psi_t(s_1:t), a probability, with the label phi of a completion of s_1:t by p, one too."""
    label = log_label.exp()
    no = torch.log(-torch.expm1(log_psi.clamp(max=-torch.finfo(log_psi.dtype).tiny)))
    return -(weight.unsqueeze(1) * (label * log_psi + (1 - label) * no)).sum(0).mean()


def dpg_loss(
    log_psi: Float[Tensor, "row position"], log_mass: Float[Tensor, "row position"], weight: Float[Tensor, "row"]
) -> Float[Tensor, ""]:
    """DPG: -E_sigma[log q] without the part that does not learn; weight: of the sequences in the target."""
    return -(weight.unsqueeze(1) * (log_psi - log_mass)).sum(0).mean()


def ppo_rewards(
    log_p: Float[Tensor, "row position"], log_q: Float[Tensor, "row position"], log_phi: Float[Tensor, "row"]
) -> Float[Tensor, "row position"]:
    """What each token earns: log p - log q of it, and log phi at the end. Their sum is the log-weight, whose mean under q is
    log Z - KL(q || sigma). (In units of 1 / beta: the reward r, held near p by a KL of weight 1 / beta.)"""
    earned = (log_p - log_q).detach()
    return torch.cat((earned[:, :-1], earned[:, -1:] + log_phi.unsqueeze(1)), 1)


# ------------------------------------------------------------------------------------------------------- labels of prefixes


def prefix_labels(
    log_phi_completed: Float[Tensor, "prefix"], log_phi: Float[Tensor, "row"]
) -> Float[Tensor, "row position"]:
    """Labels of `fudge_loss` on sequences from elsewhere than p: log phi of completions by p of each row's prefixes s_1:1, ...,
    s_1:T-1, row by row, and of the rows. That of psi_t is of what follows s_1:t, the token that is scored included."""
    return torch.cat((log_phi_completed.view(len(log_phi), -1), log_phi.unsqueeze(1)), 1)
