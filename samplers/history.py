"""Selecting decoders that remember earlier steps of a row: KLASS, SlowFast and CreditDecoding. Committed tokens stay.

Sources: KLASS 2511.05664 (shkim0116/KLASS, `src/model/llada_klass.py`); SlowFast 2506.10848 (LiangrunFlora/Slow-Fast-Sampling,
`generate_slow_fast_sampling.py`); CreditDecoding 2510.06133. What a row keeps is in `Observation.memory`, which the environment
selects with the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.observation import Decision, Observation, Readable
from dlm.token_rule import TokenRule
from samplers.heuristics import at_least_one, best, by_ties, nothing, top_probability
from samplers.loop import StepDecoder, all_at_last


@torch.no_grad()
def divergences(
    environment: Readable,
    now: Float[Tensor, "read width"],
    before: Float[Tensor, "read width"],
) -> Float[Tensor, "read"]:
    """Return KL(p_now || p_before) in nats, of distributions given by hidden states. Logits exist for a chunk at a time.

    Tokens that are impossible now add nothing.
    """
    found = [torch.zeros(0, device=now.device)]
    for new, old in zip(now.split(environment.chunk), before.split(environment.chunk), strict=True):
        log_now = environment.logits(new).log_softmax(1)
        ratio = log_now - environment.logits(old).log_softmax(1)
        found.append((log_now.exp() * ratio.masked_fill(log_now == -torch.inf, 0.0)).sum(1))
    return torch.cat(found)


@dataclass
class Klass:
    """Select positions that are confident and whose distribution has settled (KLASS).

    A position is a candidate if KL(p_now || p_previous step) < kl in each of the last `history` steps of the block, and its best
    token is more probable than `threshold`. A row without a candidate commits the next equal part of `steps`, most confident
    first. In the first `history` steps of a block no position is a candidate.

    The hidden states of the previous step are kept, and the head is applied to both steps, a chunk of positions at a time.
    """

    threshold: float | int = 0.6
    kl: float | int = 0.01
    history: int = 2

    def choose(
        self, observation: Observation, draws: Draws
    ) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row"]]:
        probability, writable = top_probability(observation), observation.writable
        settled = self.steps_settled(observation) >= self.history
        candidates = settled & (probability > self.threshold) & writable
        ties = by_ties(observation, draws)
        planned = best(probability, writable, observation.count().clamp(min=1), ties)
        ranks = best(torch.zeros_like(ties), candidates, candidates.sum(1), ties)
        return torch.where(candidates.any(1, keepdim=True), ranks, planned), nothing(observation)

    def steps_settled(self, observation: Observation) -> Int[Tensor, "row position"]:
        """Return the number of steps up to this one in which the distribution of a position changed by less than `kl`."""
        environment, memory, writable = observation.environment, observation.memory, observation.writable
        hidden = environment.hidden(writable)
        settled = torch.zeros_like(observation.tokens)
        if "klass_hidden" in memory:
            seen = memory["klass_read"] & writable  # nothing of a block that begins was read before
            stays = torch.zeros_like(writable)
            stays[seen] = divergences(environment, hidden[seen], memory["klass_hidden"][seen]) < self.kl
            settled = torch.where(stays, memory["klass_settled"] + 1, settled)
        memory |= {"klass_hidden": hidden.clone(), "klass_read": writable.clone(), "klass_settled": settled}
        return settled


@dataclass
class SlowFast:
    """Look for a span whose end is stable by slow steps, then fill it by fast steps, and so on (SlowFast sampling).

    A slow step commits the `k` most confident positions of the block, and notes the end of the span: behind the last position
    whose best token is more probable than `span_threshold`, at least behind the first open position. Once two ends in a row have
    a variance below 1, or after `slow_steps`, fast steps follow. Unstable ends are averaged. A fast step commits, among the
    positions of the span, those whose best token is at least as probable as `threshold`, and always the most probable one. A
    filled span is followed by slow steps.

    Defaults are the paper's. The published code has slow_steps=6, span_threshold=0.3 and threshold=0.9.
    """

    threshold: float | int = 0.85
    span_threshold: float | int = 0.1
    slow_steps: int = 8
    k: int = 1

    def choose(
        self, observation: Observation, draws: Draws
    ) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row"]]:
        probability, writable = top_probability(observation), observation.writable
        end, steps, previous = self._memory(observation)
        place = torch.arange(writable.shape[1], device=writable.device)
        inside = writable & (place < end.unsqueeze(1))
        fast = inside.any(1)
        steps = steps.masked_fill(~fast & (end > 0), 0)  # the span is full: a new search begins
        first = writable.long().argmax(1)
        last = torch.where(writable & (probability > self.span_threshold), place, -1).amax(1)
        found = torch.maximum(first, last) + 1
        stable = (steps > 0) & ((found - previous).abs() < 2)  # the variance of two numbers is (a - b)^2 / 4
        average = torch.where(steps > 0, (found + previous).div(2, rounding_mode="floor"), found)
        decided = torch.where(stable, found, torch.where(steps + 1 >= self.slow_steps, average, 0))
        observation.memory["slowfast"] = torch.stack(
            (torch.where(fast, end, decided), torch.where(fast, steps, steps + 1), torch.where(fast, previous, found)),
            1,
        )
        count = torch.minimum(torch.full_like(end, self.k), writable.sum(1))
        slowly = best(probability, writable, count, by_ties(observation, draws))
        span = replace(observation, writable=torch.where(fast.unsqueeze(1), inside, writable))
        quickly = at_least_one(probability >= self.threshold, probability, span, draws)
        return torch.where(fast.unsqueeze(1), quickly, slowly), nothing(observation)

    @staticmethod
    def _memory(observation: Observation) -> tuple[Int[Tensor, "row"], Int[Tensor, "row"], Int[Tensor, "row"]]:
        """Return the end of the span (0: slow steps), slow steps so far, and the end of the previous slow step."""
        empty = torch.zeros(len(observation.tokens), 3, dtype=torch.long, device=observation.tokens.device)
        kept = observation.memory.get("slowfast", empty)
        end, steps, previous = kept.masked_fill((observation.block_step == 0).unsqueeze(1), 0).unbind(1)
        return end, steps, previous


@dataclass
class Credits:
    """Credits of tokens at positions, without a [row, position, vocabulary] tensor: all others have none.

    token: -1 where an entry is free.
    """

    token: Int[Tensor, "row position entry"]
    value: Float[Tensor, "row position entry"]

    def added(
        self,
        decay: Float[Tensor, "row"],
        positions: Bool[Tensor, "row position"],
        tokens: Int[Tensor, "row position"],
        gain: Float[Tensor, "row position"],
    ) -> Credits:
        """Return credits times `decay`, plus `gain` for the token of each of the positions. Other positions have none."""
        kept = self.token.masked_fill(~positions.unsqueeze(2), -1)
        match = kept == tokens.unsqueeze(2)
        missing = positions & ~match.any(2)
        token = torch.cat((kept, torch.where(missing, tokens, -1).unsqueeze(2)), 2)
        value = self.value * decay[:, None, None] + match * gain.unsqueeze(2)
        value = torch.cat((value, torch.where(missing, gain, 0.0).unsqueeze(2)), 2)
        order = (token < 0).sort(dim=2, stable=True).indices  # free entries go to the end
        token, value = token.gather(2, order), value.gather(2, order)
        used = int((token >= 0).sum(2).amax()) if token.numel() else 0
        return Credits(token[..., :used], value[..., :used])


@dataclass
class Credit(StepDecoder):
    """Commit by a threshold on logits that reward tokens which were best in earlier steps (CreditDecoding).

    In each step the credits of an open position are multiplied by beta, and the credit of its most probable token grows by
    p^gamma, p its probability. The logits of the step are those of the model plus alpha log(1 + credit). Positions whose best
    token is then at least as probable as `threshold` are committed, and always the most probable one. Tokens are drawn from the
    changed logits. Credits are exact: tokens that were never the best of a position have none.

    Args:
        adaptive: the parameter-free form: gamma = 1, and alpha = beta = the committed share of the block. alpha, beta and gamma
            are not used.
    """

    token_sampler: TokenRule
    threshold: float | int = 0.9
    alpha: float | int = 0.7
    beta: float | int = 0.8
    gamma: float | int = 0.2
    adaptive: bool = False

    def weights(self, observation: Observation) -> tuple[Float[Tensor, "row"], Float[Tensor, "row"]]:
        """Return alpha and beta of each row."""
        if self.adaptive:
            share = 1 - observation.writable.sum(1) / observation.block_masks.clamp(min=1)
            return share, share
        ones = torch.ones(len(observation.tokens), device=observation.tokens.device)
        return self.alpha * ones, self.beta * ones

    def decide(self, observation: Observation, draws: Draws) -> Decision:
        writable = observation.writable
        alpha, beta = self.weights(observation)
        top = observation.read(writable, 1)
        gain = top.top_log_probs[..., 0].exp() ** (1 if self.adaptive else self.gamma)
        credits = self._kept(observation).added(beta, writable, top.top_tokens[..., 0], gain)
        observation.memory |= {"credit_token": credits.token, "credit_value": credits.value}
        tokens, log_tokens, probability = self._read(observation, credits, alpha, draws)
        chosen = at_least_one(probability >= self.threshold, probability, observation, draws)
        order, log_positions = all_at_last(observation, chosen, nothing(observation))
        return Decision(order, tokens, log_positions, log_tokens.masked_fill(order == 0, 0.0).sum(1))

    @staticmethod
    def _kept(observation: Observation) -> Credits:
        """Return the credits of earlier steps."""
        shape, memory, device = (*observation.tokens.shape, 0), observation.memory, observation.tokens.device
        if "credit_token" in memory:
            return Credits(memory["credit_token"], memory["credit_value"])
        return Credits(torch.zeros(shape, dtype=torch.long, device=device), torch.zeros(shape, device=device))

    @torch.no_grad()
    def _read(
        self, observation: Observation, credits: Credits, alpha: Float[Tensor, "row"], draws: Draws
    ) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row position"], Float[Tensor, "row position"]]:
        """Draw a token at every selectable position from the changed logits.

        Returns:
            The tokens, their log-probabilities (0 for greedy), and the probability of each position's best token.
        """
        environment, writable = observation.environment, observation.writable
        tokens, log_tokens = observation.tokens.clone(), torch.zeros(writable.shape, device=writable.device)
        probability = torch.zeros_like(log_tokens)
        bonus = alpha[:, None, None] * credits.value.log1p()
        hidden, place = environment.hidden(writable)[writable], writable.nonzero()
        for part, states in zip(place.split(environment.chunk), hidden.split(environment.chunk), strict=True):
            row, position = part.unbind(1)
            token = credits.token[row, position]
            reward = bonus[row, position].masked_fill(token < 0, 0.0)
            logits = environment.logits(states).scatter_add(1, token.clamp(min=0), reward)
            summary = environment.summarised(logits, 1, False)
            probability[row, position] = summary.top_log_probs[:, 0].exp()
            if self.token_sampler.temperature == 0:
                tokens[row, position] = summary.top_tokens[:, 0]
                continue
            logits = self.token_sampler(logits)
            own = position if observation.start is None else position - observation.start[row]
            drawn = draws.categorical(logits, observation.row_id[row], observation.row_step[row], own)
            log_drawn = logits.gather(1, drawn.unsqueeze(1)).squeeze(1) - logits.logsumexp(1)
            tokens[row, position], log_tokens[row, position] = drawn, log_drawn.float()
        return tokens, log_tokens, probability
