"""Proposals with a twist: tokens from q(v) = p(v) psi(state with v)^b, normalized; b = 1, or another exponent for the
proposal.

Weights use p / q and psi itself, so they are exact for every b. `TwistedTokens`: positions by an unmasking rule, each token
from its own twisted distribution (for a causal model the twist-induced proposal of 2404.17546). `TwistedJoint`: for masked
models with one position per step, position and token together, normalized over both. Logits exist for a chunk of positions
at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.observation import Decision, Observation
from dlm.token_rule import TokenRule
from samplers.loop import Unmasker, all_at_last
from samplers.smc import Given, Proposed

# log psi of the state with each token written, from the hidden states read and the rows that they are of
LogitBias = Callable[[Float[Tensor, "read width"], Int[Tensor, "read"]], Float[Tensor, "read vocabulary"]]


def refuse_greedy(rule: TokenRule) -> None:
    """Refuse a greedy token sampler, which has no distribution to twist: ValueError."""
    if rule.temperature == 0:
        raise ValueError(
            "a twist changes the distribution of tokens, and temperature 0 has none; use a temperature above 0"
        )


@dataclass
class Bent:
    """Results at the requested positions: the token, log psi with it, and log of the sum over tokens of p psi^exponent.

    If that sum is 0, the token is drawn from p, its log psi is 0, and the particle is dead through its log-normalizer.
    """

    token: Int[Tensor, "read"]
    log_psi: Float64[Tensor, "read"]
    log_normalizer: Float64[Tensor, "read"]


def bend(
    observation: Observation, place: Int[Tensor, "read two"], rule: TokenRule, logit_bias: LogitBias, draws: Draws | None,
    given: Given | None = None, exponent: float = 1.0,
) -> Bent:  # fmt: skip
    """Draw a token at each place from p psi^exponent.

    Args:
        draws: random numbers. None: draw no token, compute the normalizer only.
        given: rows whose tokens are given.
    """
    environment, found = observation.environment, []
    positions = torch.zeros_like(observation.masked)
    positions[place[:, 0], place[:, 1]] = True
    hidden = environment.hidden(positions)[positions]  # of a pair of networks both halves
    for part, states in zip(place.split(environment.chunk), hidden.split(environment.chunk), strict=True):
        row, position = part.unbind(1)
        logits = rule(environment.logits(states))
        log_psi = logit_bias(states, row)
        log_total = logits.logsumexp(1)
        # Without the condition, exponent 0 times a log psi of -inf would be NaN.
        biased_logits = logits.add_(log_psi, alpha=exponent) if exponent else logits
        log_normalizer = (biased_logits.logsumexp(1) - log_total).double()
        dead = log_normalizer == -torch.inf
        if draws is None:
            token, chosen = torch.zeros_like(row), torch.zeros_like(log_normalizer)
        else:
            if bool(dead.any()):
                biased_logits[dead] = rule(environment.logits(states[dead]))
            token = draws.categorical(biased_logits, observation.row_id[row], observation.row_step[row], position)
            if given is not None:
                token = torch.where(given.rows[row], given.tokens[row, position], token)
            chosen = log_psi.gather(1, token.unsqueeze(1)).squeeze(1).double().masked_fill(dead, 0.0)
        found.append((token, chosen, log_normalizer))
    columns = [torch.cat(column) for column in zip(*found, strict=True)]
    return Bent(*columns)


def _of_rows(values: Float64[Tensor, "read"], row: Int[Tensor, "read"], rows: int) -> Float64[Tensor, "row"]:
    return torch.zeros(rows, dtype=torch.float64, device=values.device).index_add_(0, row, values)


@dataclass
class TwistedTokens:
    """Positions by an unmasking rule, tokens from their twisted distributions.

    Args:
        reads_state: the potential gives psi of the new state. Otherwise it is the twist of the committed token, which
            requires at most one commit per row and step.
        exponent: of psi in the distribution of tokens. 0: tokens are those of the token sampler, and psi only enters the
            weights.
    """

    rule: Unmasker
    token_sampler: TokenRule
    logit_bias: LogitBias
    reads_state: bool = False
    exponent: float = 1.0

    def __post_init__(self):
        refuse_greedy(self.token_sampler)

    def propose(self, observation: Observation, draws: Draws, given: Given | None = None) -> Proposed:
        order, log_positions = all_at_last(observation, *self.rule.choose(observation, draws))
        if given is not None:
            order = torch.where(given.rows.unsqueeze(1), given.order, order)
        selected = order > 0
        if not self.reads_state and bool((selected.sum(1) > 1).any()):
            raise ValueError(
                f"this twist values one more token, and a step commits {int(selected.sum(1).max())} at once; use as many steps "
                "as there are masks, or a twist with a state head"
            )
        place, rows = selected.nonzero(), len(order)
        if len(place) == 0:
            zeros = torch.zeros(rows, dtype=torch.float64, device=order.device)
            decision = Decision(order, observation.tokens, log_positions, zeros.float())
            return Proposed(decision, zeros, None if self.reads_state else zeros)
        bent = bend(observation, place, self.token_sampler, self.logit_bias, draws, given, self.exponent)
        tokens = observation.tokens.clone()
        tokens[place[:, 0], place[:, 1]] = bent.token
        log_psi = _of_rows(bent.log_psi, place[:, 0], rows)
        log_ratio = torch.zeros_like(log_psi)
        if self.exponent:
            log_ratio = _of_rows(bent.log_normalizer - self.exponent * bent.log_psi, place[:, 0], rows)
        decision = Decision(order, tokens, log_positions, torch.zeros_like(log_positions))
        return Proposed(decision, log_ratio, None if self.reads_state else log_psi)


@dataclass
class TwistedJoint:
    """Draw one position per step together with its token, from p(token at i) psi(state with it)^exponent over all
    selectable positions.
    """

    token_sampler: TokenRule
    logit_bias: LogitBias
    exponent: float = 1.0

    def __post_init__(self):
        refuse_greedy(self.token_sampler)

    def propose(self, observation: Observation, draws: Draws, given: Given | None = None) -> Proposed:
        writable = observation.writable
        log_normalizers = torch.full(writable.shape, -torch.inf, dtype=torch.float64, device=writable.device)
        every = writable.nonzero()
        bent = bend(observation, every, self.token_sampler, self.logit_bias, None, exponent=self.exponent)
        log_normalizers[writable] = bent.log_normalizer
        active = writable.any(1).nonzero().squeeze(1)
        log_weights = log_normalizers[active]
        dead = (log_weights == -torch.inf).all(1, keepdim=True)
        log_weights = torch.where(dead & writable[active], 0.0, log_weights)  # dead: any position
        position = draws.categorical(
            log_weights,
            observation.row_id[active],
            observation.row_step[active],
            torch.zeros_like(active),
            stream="where",
        )
        order = torch.zeros_like(observation.tokens)
        order[active, position] = 1
        if given is not None:
            order = torch.where(given.rows.unsqueeze(1), given.order, order)
        place = (order > 0).nonzero()
        bent = bend(observation, place, self.token_sampler, self.logit_bias, draws, given, self.exponent)
        tokens = observation.tokens.clone()
        tokens[place[:, 0], place[:, 1]] = bent.token
        log_psi = _of_rows(bent.log_psi, place[:, 0], len(order))
        log_normalizer = log_normalizers[active].logsumexp(1) - writable[active].sum(1).double().log()
        log_ratio = _of_rows(log_normalizer, active, len(order))
        if self.exponent:
            log_ratio = log_ratio - self.exponent * log_psi
        zeros = torch.zeros(len(order), device=order.device)
        return Proposed(Decision(order, tokens, zeros, zeros), log_ratio, log_psi)
