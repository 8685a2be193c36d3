"""Selecting decoders that evaluate candidate canvases before they commit: PUNT and LoPA. Committed tokens stay.

Every candidate canvas is one network evaluation of its row. Candidate canvases of one call go through the network together, so
that they are one forward pass.

Sources: PUNT 2510.21961; LoPA 2512.16229 (zhijie-group/LoPA).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.observation import Decision, Observation, Outputs
from dlm.token_rule import TokenRule
from samplers.heuristics import TIE, at_least_one, best, by_ties, nothing, top_probability
from samplers.history import divergences
from samplers.loop import StepDecoder, all_at_last

MOST_LEVELS = 40  # of PUNT's halving: more than positions have


def confidence_ranks(
    scores: Float[Tensor, "row position"], positions: Bool[Tensor, "row position"], ties: Float[Tensor, "row position"]
) -> Int[Tensor, "row position"]:
    """Return ranks 1, 2, ... of the positions by falling score, 0 elsewhere. Scores that round to one multiple of TIE are
    ordered by `ties`.
    """
    key = (scores.double() / TIE).round() + ties
    rank = key.masked_fill(~positions, -torch.inf).argsort(1, descending=True).argsort(1)
    return torch.where(positions, rank + 1, 0)


@dataclass
class Punt(StepDecoder):
    """Commit candidates that do not depend on more confident ones, by tests on halves (PUNT).

    Tokens are drawn at the candidates, which are numbered by falling confidence, 0 first. For each binary digit of these numbers,
    the highest first, one canvas with the candidates whose digit is 0 is evaluated. A candidate whose digit is 1 is dropped if
    KL(p with these tokens || p without) > epsilon at its position. Any two candidates that are left differ in one digit, so the
    less confident one has been tested against a set with the other one. Candidate 0 always stays.

    A step with n candidates costs its own evaluation and at most ceil(log2 n) more. With a budget, a row that has `left`
    evaluations has at most 2^(left - 2) candidates.

    Args:
        candidates: the most confident positions that are tested; 0: all of the block.
    """

    token_sampler: TokenRule
    epsilon: float | int = 0.01
    candidates: int = 0

    def decide(self, observation: Observation, draws: Draws) -> Decision:
        environment, writable = observation.environment, observation.writable
        ranks = confidence_ranks(top_probability(observation), writable, by_ties(observation, draws))
        count = torch.minimum(writable.sum(1), 2 ** (observation.left - 2).clamp(0, MOST_LEVELS))
        count = count.clamp(max=self.candidates) if self.candidates else count
        alive, number = (ranks > 0) & (ranks <= count.unsqueeze(1)), ranks - 1
        tokens, _ = observation.draw(alive, self.token_sampler, draws)
        before = environment.hidden(writable)
        levels = (int(count.amax()) - 1).bit_length() if len(count) else 0
        for digit in reversed(range(levels)):
            tested = alive & (number >> digit & 1 == 1)
            rows = tested.any(1).nonzero().squeeze(1)
            filled = alive & ~tested
            canvases, read = torch.where(filled, tokens, observation.tokens)[rows], tested[rows]
            after = environment.hidden_of(canvases, rows, read)
            moved = torch.zeros_like(read)
            moved[read] = divergences(environment, after[read], before[rows][read]) > self.epsilon
            alive[rows] &= ~moved
        ties = by_ties(observation, draws)
        selected = best(torch.zeros_like(ties), alive, alive.sum(1), ties)
        order, log_positions = all_at_last(observation, selected, nothing(observation))
        tokens, log_tokens = observation.draw(order > 0, self.token_sampler, draws)
        return Decision(order, tokens, log_positions, log_tokens)


@dataclass
class Lopa(StepDecoder):
    """Compare ways to go on by the confidence that they leave (LoPA, lookahead parallel decoding).

    The anchor commits what the threshold rule commits. Branch j commits, on top of that, the j-th most confident of the other
    positions of the block. Anchor and branches are evaluated in one forward pass. The canvas with the highest mean probability
    of the best token, over the positions of the block that are still masked (1 if none is), is the decision; of equal ones the
    first. Its hidden states serve the next step, which needs no evaluation of its own.

    A step costs branches + 1 evaluations of the row; a row's first step, and a step after one without a comparison, one more.
    Nothing is compared where the anchor fills the block. With a budget, a row that has `left` evaluations has at most left - 2
    branches.
    """

    token_sampler: TokenRule
    threshold: float | int = 0.9
    branches: int = 7

    def decide(self, observation: Observation, draws: Draws) -> Decision:
        probability = top_probability(observation)
        chosen = at_least_one(probability >= self.threshold, probability, observation, draws)
        order, log_positions = all_at_last(observation, chosen, nothing(observation))
        others = observation.writable & (order == 0)
        ranks = confidence_ranks(probability, others, by_ties(observation, draws))
        count = torch.minimum(others.sum(1), (observation.left - 2).clamp(0, self.branches))
        ranks = ranks.masked_fill(ranks > count.unsqueeze(1), 0)
        tokens, _ = observation.draw((order > 0) | (ranks > 0), self.token_sampler, draws)
        winner, outputs = self._compare(observation, order > 0, ranks, tokens)
        added = (ranks == winner.unsqueeze(1)) & (ranks > 0)
        order = torch.where(added, order.amax(1, keepdim=True) + 1, order)
        tokens, log_tokens = observation.draw(order > 0, self.token_sampler, draws)
        return Decision(order, tokens, log_positions, log_tokens, outputs=outputs)

    @staticmethod
    @torch.no_grad()
    def _compare(
        observation: Observation,
        anchor: Bool[Tensor, "row position"],
        ranks: Int[Tensor, "row position"],
        tokens: Int[Tensor, "row position"],
    ) -> tuple[Int[Tensor, "row"], Outputs | None]:
        """Return the best branch of each row, 0 for its anchor, and the outputs of the canvases that it leads to."""
        environment, most = observation.environment, int(ranks.amax()) if len(ranks) else 0
        winner = torch.zeros(len(ranks), dtype=torch.long, device=ranks.device)
        if most == 0:
            return winner, None
        branch = torch.arange(most + 1, device=ranks.device)
        count = ranks.amax(1, keepdim=True)
        rows, numbers = ((branch <= count) & (count > 0)).nonzero().unbind(1)
        filled = anchor[rows] | ((ranks[rows] == numbers.unsqueeze(1)) & (numbers > 0).unsqueeze(1))
        opened = observation.masked[rows] & ~filled
        hidden = environment.hidden_of(torch.where(filled, tokens[rows], observation.tokens[rows]), rows, opened)
        left = observation.writable[rows] & ~filled
        found = [
            environment.summarised(environment.logits(part), 1, False) for part in hidden[left].split(environment.chunk)
        ]
        best_ones = torch.cat([part.top_log_probs[:, 0].exp().double() for part in found])
        total = torch.zeros(len(rows), dtype=torch.float64, device=ranks.device)
        total = total.index_add(0, left.nonzero()[:, 0], best_ones)
        masked = left.sum(1)
        scores = torch.full((len(ranks), most + 1), -torch.inf, dtype=torch.float64, device=ranks.device)
        scores[rows, numbers] = torch.where(masked > 0, total / masked.clamp(min=1), 1.0)
        winner = (scores >= scores.amax(1, keepdim=True) - TIE).long().argmax(1)  # rows that are not compared: 0
        kept = numbers == winner[rows]
        states = torch.zeros(*ranks.shape, hidden.shape[2], device=ranks.device)
        valid = torch.zeros_like(anchor)
        states[rows[kept]], valid[rows[kept]] = hidden[kept], opened[kept]
        return winner, Outputs(states, valid)
