"""A policy that compares the model's predictions at different positions: `Agreement`.

A masked model predicts every position separately, so its best tokens may contradict each other: two cells of one row of a Sudoku
with the same digit, for example. Neither the confidence nor the hidden state of a position contains much information about this;
the predictions at other positions do. These predictions are computed anyway, so the policy adds almost no cost.
"""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from policy.base import PolicyNetwork
from policy.conditions import AlphaEmbedding, alpha_input, mean_over, revision_inputs, zero_

SURE = 1e-4  # probabilities are kept so far from 0 and 1 where a logarithm is taken
OWN = 3  # features of a position that need no other one, beside the probabilities of its candidates
REOPEN_BIAS = -4.0  # of the logit of opening a committed position again, before training


class Agreement(PolicyNetwork):
    """For each of the best tokens t of position i: the probability of t at every other position j, weighted by learned
    relations.

    Let a_ij be the probability of t at j (1 or 0 where j is committed). Relation h has weights w_h[i, j], learned for each
    pair of positions. It gives position i three sums over j: of a_ij and of log(1 - a_ij) over the masked positions, and of
    a_ij over the committed ones. An MLP reads these sums for the `candidates` best tokens of i, and the position's own
    probabilities. Its output is added to log(p / (1 - p)) of the best token, so that an untrained policy is the threshold
    rule. Its time input is 1 / (evaluations left) within a budget and 0 without one.

    Args:
        length: number of positions of the input (canvas behind the prompt); each pair has its own weights.
        relations: number of learned relations.
        candidates: number of best tokens per position that are compared with the other positions.
        width: width of the MLP.
        top_k: number of best tokens per position that are inputs.
        smart_init: initial bias of the output; None: 0.
        value_head: add a scalar value (for PPO), returned by `forward_with_value`.
        alpha_conditioned: the weight of speed is an input too (set by training with reward.alphas).
        revises: also score committed positions: whether to open them again. The score comes from relations and an MLP of its
            own, over the same features. It needs no evaluation, not even on a full canvas, because the model's predictions are
            read at open positions only. It starts with a probability of about 2 % (`REOPEN_BIAS`).
    """

    policy_type = "agreement"

    def __init__(
        self,
        length: int,
        relations: int = 8,
        candidates: int = 3,
        width: int = 64,
        top_k: int = 6,
        smart_init: float | int | None = None,
        value_head: bool = False,
        alpha_conditioned: bool = False,
        revises: bool = False,
    ):
        super().__init__()
        if not 1 <= candidates <= top_k:
            raise ValueError(
                f"policy.candidates={candidates} must be from 1 to policy.top_k={top_k}; change one of them"
            )
        self.length, self.top_k, self.candidates = length, top_k, candidates
        self.relations = nn.Parameter(0.02 * torch.randn(3, length, length, relations))
        self.features = nn.Linear(OWN + candidates * (1 + 3 * relations), width)
        first, last = nn.Linear(1, width), nn.Linear(width, width)
        self.time_mlp = nn.Sequential(first, nn.SiLU(), last)
        self.hidden = nn.Linear(width, width)
        self.confidence_scale = nn.Parameter(torch.ones(()))
        self.output_proj = nn.Linear(width, 1)
        self.value_proj = nn.Linear(width, 1) if value_head else None
        self.alpha_embedding = AlphaEmbedding(width) if alpha_conditioned else None
        self.reopen_proj = nn.Linear(width, 1) if revises else None
        self.reopened_weight = nn.Parameter(torch.zeros(width)) if revises else None
        self.reviser = Agreement(length, relations, candidates, width, top_k) if revises else None
        if self.reviser is not None:
            self.reviser.reopened_weight = nn.Parameter(torch.zeros(width))
            del self.reviser.output_proj, self.reviser.confidence_scale
        for layer in (last, self.output_proj):
            zero_(layer)
        if self.reopen_proj is not None:
            zero_(self.reopen_proj)
            nn.init.constant_(self.reopen_proj.bias, REOPEN_BIAS)
        if smart_init is not None:
            nn.init.constant_(self.output_proj.bias, smart_init)

    @torch.no_grad()
    def inputs(self, observation, everywhere: bool = False) -> dict[str, Tensor]:
        """Return the inputs of `forward` for an observation, as keyword arguments; safe to store and replay.

        everywhere: for networks with a masking channel; this one has none, so it changes nothing.

        Raises ValueError for a canvas of another length.
        """
        masked = observation.masked
        if masked.shape[1] != self.length:
            raise ValueError(
                f"this policy was trained on {self.length} positions and the canvas has {masked.shape[1]} to decode; "
                f"use length={self.length}, or another policy"
            )
        readout = observation.read(positions=masked, best=self.top_k)
        # At a committed position all probability is on its token.
        committed = F.one_hot(torch.zeros_like(observation.tokens), self.top_k).float()
        probabilities = torch.where(masked[..., None], readout.top_log_probs.float().exp(), committed)
        tokens = torch.where(masked[..., None], readout.top_tokens, observation.tokens[..., None])
        # Without a budget there is no hurry: the limit of 1 / (evaluations left).
        time = (
            observation.time
            if observation.environment.options.budget is not None
            else torch.zeros_like(observation.time)
        )
        inputs = {"masked": masked, "top_tokens": tokens, "probabilities": probabilities, "time": time}
        return inputs | alpha_input(self, observation) | revision_inputs(self, observation)

    def agreement(
        self, top_tokens: Int[Tensor, "row position best"], probabilities: Float[Tensor, "row position best"]
    ) -> Float[Tensor, "row candidate position other"]:
        """Return the probability of each position's candidates at every other position, 0 outside the top k there."""
        candidates = top_tokens[..., : self.candidates].mT[..., None]
        return reduce(
            torch.add,
            (
                probabilities[:, None, None, :, k] * (top_tokens[:, None, None, :, k] == candidates)
                for k in range(top_tokens.shape[-1])
            ),
        )

    def trunk(
        self,
        masked: Bool[Tensor, "row position"],
        top_tokens: Int[Tensor, "row position best"],
        probabilities: Float[Tensor, "row position best"],
        time: Float[Tensor, "row"],
        alpha: Float[Tensor, "row"] | None = None,
        reopened: Int[Tensor, "row position"] | None = None,
    ) -> Float[Tensor, "row position width"]:
        agreement, others = self.agreement(top_tokens, probabilities), masked[:, None, None, :]
        seen = torch.stack(
            (
                agreement * others,
                torch.log1p(-agreement.clamp(max=1 - SURE)) * others / 3,  # of the size of the others
                agreement * ~others,
            )
        )
        related = torch.einsum("krcij,kijh->rickh", seen, self.relations).flatten(2)
        entropy = -(probabilities * probabilities.clamp_min(1e-9).log()).sum(-1)
        share = masked.float().mean(1, keepdim=True).expand_as(entropy)
        own = torch.stack((self.log_odds(probabilities) / 5, entropy, share), -1)
        hurry = time.float()[:, None]
        of_row = hurry * self.time_mlp(hurry)  # 0 at time 0: what is learnt without a budget holds within one too
        if self.alpha_embedding is not None:
            assert alpha is not None
            of_row = of_row + self.alpha_embedding(alpha)
        x = self.features(torch.cat([own, probabilities[..., : self.candidates], related], -1)) + of_row[:, None]
        if self.reopened_weight is not None and reopened is not None:
            x = x + reopened.float().log1p()[..., None] * self.reopened_weight
        return F.gelu(self.hidden(F.gelu(x, approximate="tanh")), approximate="tanh")

    @staticmethod
    def log_odds(probabilities: Float[Tensor, "row position best"]) -> Float[Tensor, "row position"]:
        """Return log(p / (1 - p)) of the best token."""
        return probabilities[..., 0].logit(1e-5)

    def forward(
        self,
        masked: Bool[Tensor, "row position"],
        top_tokens: Int[Tensor, "row position best"],
        probabilities: Float[Tensor, "row position best"],
        time: Float[Tensor, "row"],
        alpha: Float[Tensor, "row"] | None = None,
        revisable: Bool[Tensor, "row position"] | None = None,
        reopened: Int[Tensor, "row position"] | None = None,
    ) -> Float[Tensor, "row position"]:
        """Return the unmasking logit of every position; at `revisable` ones, the logit of opening it again.

        `probabilities` are those of `top_tokens`, best first.
        """
        x = self.trunk(masked, top_tokens, probabilities, time, alpha, reopened)
        logits = self._logits(x, probabilities)
        if self.reviser is None or revisable is None:
            return logits
        return torch.where(revisable, self._reopening(masked, top_tokens, probabilities, time, reopened), logits)

    def _reopening(
        self, masked: Bool[Tensor, "row position"], top_tokens: Int[Tensor, "row position best"],
        probabilities: Float[Tensor, "row position best"], time: Float[Tensor, "row"],
        reopened: Int[Tensor, "row position"] | None,
    ) -> Float[Tensor, "row position"]:  # fmt: skip
        """Return the logits of opening committed positions again."""
        assert self.reviser is not None and self.reopen_proj is not None
        x = self.reviser.trunk(masked, top_tokens, probabilities, time, reopened=reopened)
        return self.reopen_proj(x).squeeze(-1)

    def _logits(
        self, x: Float[Tensor, "row position width"], probabilities: Float[Tensor, "row position best"]
    ) -> Float[Tensor, "row position"]:
        return self.output_proj(x).squeeze(-1) + self.confidence_scale * self.log_odds(probabilities)

    def forward_with_value(
        self,
        masked: Bool[Tensor, "row position"],
        top_tokens: Int[Tensor, "row position best"],
        probabilities: Float[Tensor, "row position best"],
        time: Float[Tensor, "row"],
        alpha: Float[Tensor, "row"] | None = None,
        revisable: Bool[Tensor, "row position"] | None = None,
        reopened: Int[Tensor, "row position"] | None = None,
    ) -> tuple[Float[Tensor, "row position"], Float[Tensor, "row"]]:
        """Return logits, and the value of the state: a linear function of the trunk's mean over the masked positions."""
        if self.value_proj is None:
            raise ValueError("value_head is False but a value was requested; build the policy with value_head=True")
        x = self.trunk(masked, top_tokens, probabilities, time, alpha, reopened)
        pooled = masked if revisable is None else masked | revisable
        logits = self._logits(x, probabilities)
        if self.reviser is not None and revisable is not None:
            logits = torch.where(revisable, self._reopening(masked, top_tokens, probabilities, time, reopened), logits)
        return logits, self.value_proj(mean_over(x, pooled)).squeeze(-1)
