"""A policy network with an action distribution, as an unmasking rule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from dlm.draws import Draws
from dlm.observation import Decision, Observation
from dlm.token_rule import TokenRule
from policy.actions import FOR_SAMPLING, FixedCount
from policy.base import PolicyNetwork
from samplers.loop import Reviser, StepDecoder, Strategy

REPULSION_UNIT = 20.0  # nats: these few parameters have as far to go as the logits, which many weights move together


def check_alpha(network: PolicyNetwork | None, alpha: object) -> None:
    """Refuse a weight of speed that the policy does not read, and a policy that needs one and gets none: ValueError.

    network: None for an unmasking rule.
    """
    if network is None or network.alpha_embedding is None:
        if alpha is not None:
            raise ValueError(
                f"alpha={alpha} is read by policies that were trained with reward.alphas only; leave it out"
            )
    elif isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha >= 0:
        raise ValueError(
            f"the weight of speed is an input of this policy and alpha is {alpha}; give a number of at least 0: sampler.alpha=1, "
            "or --alpha 1"
        )


def distribution_settings(network: PolicyNetwork) -> dict[str, Tensor]:
    """Return the learned parameters of the action distribution: the repulsion between selections of a step, if it has one."""
    return {} if network.repulsion is None else {"repulsion": REPULSION_UNIT * network.repulsion}


@dataclass
class PolicyUnmasker:
    """An unmasking rule that selects positions by a policy's scores.

    action: bernoulli (training; may select nothing), bernoulli_argmax, plackett_luce, threshold (all positions that the
    policy trusts; not for training), or fixed (`steps` equal steps); temperature: divides the scores; beta: multiplies the
    probabilities of the Bernoulli actions; threshold: parameter of the action of this name.
    """

    network: PolicyNetwork
    action: str = "bernoulli_argmax"
    temperature: float = 1.0
    beta: float = 1.0
    threshold: float = 0.5

    def __post_init__(self):
        if self.action not in FOR_SAMPLING:
            raise ValueError(f"policy.action={self.action!r} is unknown; use one of {', '.join(FOR_SAMPLING)}")
        if self.beta != 1.0 and not self.action.startswith("bernoulli"):
            raise ValueError(f"policy.beta={self.beta} scales Bernoulli probabilities; action {self.action!r} has none")
        if self.action != "fixed" and distribution_settings(self.network):
            raise ValueError(
                f"the positions that this policy selects repel each other, and action {self.action!r} has no repulsion; use fixed"
            )
        settings = {"beta": self.beta} if self.action.startswith("bernoulli") else {}
        if self.action == "threshold":
            settings = {"threshold": self.threshold}
        self.distribution = FOR_SAMPLING[self.action](temperature=self.temperature, **settings)

    def choose(self, observation, draws):
        seen = observation.response()
        scores = self.network.scores(**self.network.inputs(seen))
        uniforms = draws.uniform("where", observation.row_id, observation.row_step, observation.tokens.shape[1])
        prompt = observation.tokens.shape[1] - scores.shape[1]
        count = {"count": observation.count()} if isinstance(self.distribution, FixedCount) else {}
        learned = distribution_settings(self.network)
        order = self.distribution.sample(scores, seen.writable, uniforms[:, prompt:], **count, **learned)
        return F.pad(order, (prompt, 0)), self.distribution.log_prob(scores, seen.writable, order, **learned)


@dataclass
class PolicyReviser(Reviser):
    """A decoder whose policy chooses among three actions at every position: leave it, commit it, or open it again.

    The score of an open position is the logit of committing it, that of a committed one the logit of opening it again. A row
    ends where no position is open and the policy selects none. It needs a budget of evaluations.

    Args:
        unmasker: the policy and its action distribution, which covers open and committed positions at once.
        reopen_threshold: of action threshold: open committed positions again at this probability. None: its threshold.
    """

    unmasker: PolicyUnmasker
    reopen_threshold: float | None = None

    def __post_init__(self):
        if not self.unmasker.network.revises:
            raise ValueError(
                "this policy was trained without revision; use it as an unmasking rule, or train with policy.revises"
            )
        if self.unmasker.action == "fixed":
            raise ValueError("action 'fixed' commits equal parts and opens no position again; use bernoulli_argmax, "
                             "plackett_luce or threshold")  # fmt: skip

    def revise(self, observation: Observation, draws: Draws) -> Decision:
        seen, unmasker = observation.response(), self.unmasker
        assert seen.revisable is not None
        scores = unmasker.network.scores(**unmasker.network.inputs(seen))
        if self.reopen_threshold is not None:
            levels = torch.tensor([unmasker.threshold, self.reopen_threshold]).logit(1e-6)
            scores = scores + seen.revisable * (levels[0] - levels[1]).to(scores.device)
        uniforms = draws.uniform("where", observation.row_id, observation.row_step, observation.tokens.shape[1])
        prompt, selectable = observation.tokens.shape[1] - scores.shape[1], seen.writable | seen.revisable
        forced = must_change(selectable, seen.writable)
        order = unmasker.distribution.sample(scores, selectable, uniforms[:, prompt:], forced=forced)
        log_positions = unmasker.distribution.log_prob(scores, selectable, order, forced=forced)
        order = F.pad(order, (prompt, 0))
        reopened = (order > 0) & ~observation.masked
        tokens, log_tokens = observation.draw((order > 0) & observation.masked, self.token_sampler, draws)
        return Decision(order, tokens, log_positions, log_tokens, reopened, (order > 0).any(1))


def must_change(
    selectable: Bool[Tensor, "row position"], opened: Bool[Tensor, "row position"]
) -> Bool[Tensor, "row position"]:
    """Mark the positions of which a step must select one: all selectable ones, in rows with an open position."""
    return selectable & opened.any(1, keepdim=True)


def policy_decoder(unmasker: PolicyUnmasker, token_sampler: TokenRule) -> StepDecoder:
    """Return the decoder of a policy: with revision for a network that was trained for it."""
    if unmasker.network.revises:
        return PolicyReviser(token_sampler, unmasker)
    return Strategy(unmasker, token_sampler)
