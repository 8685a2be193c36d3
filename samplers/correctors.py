"""Informed correctors: committed tokens are drawn again from their exact conditionals, between the steps that commit.

Source: 2407.21243. What differs: the conditionals come from a masked model with the position masked again, one evaluation for
each, where the paper trains a network that never sees the position (hollow transformer).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.observation import Decision, Observation
from dlm.options import DecodeOptions
from dlm.token_rule import TokenRule
from samplers.heuristics import Confident, Random, best, nothing
from samplers.loop import Reviser
from samplers.names import COMMIT_ORDERS, CORRECTED
from samplers.quality import left_out
from samplers.revision import check_choice, planned_steps


@dataclass
class Informed(Reviser):
    """Commit equal parts, and after each part correct committed tokens by Gibbs steps from exact conditionals.

    A step that commits is followed by `rounds` corrector steps. Each draws `count` committed tokens of the block again, all at
    once ("Hogwild"), from p(v | the canvas without that token). With count=1 and select=uniform it is a Gibbs step, which leaves
    the distribution of a model with one joint unchanged.

    Args:
        select: uniform; or margin: lowest log p(token) - log p(best other token), with Gumbel noise of scale `noise`.
        order: of the positions that are committed: random, or confidence (largest margin first).
        parts: evaluations of a corrector step with select=margin. None: one for each committed position, which is exact.
    """

    count: int = 1
    rounds: int = 1
    select: str = "margin"
    noise: float | int = 1.0
    order: str = "random"
    parts: int | None = None

    def __post_init__(self):
        check_choice("select", self.select, CORRECTED)
        check_choice("order", self.order, COMMIT_ORDERS)

    def most_steps(self, options: DecodeOptions, opened: int) -> int | None:
        return planned_steps(options, opened) * (1 + self.rounds) + 1  # the last step that is allowed corrects nothing

    def revise(self, observation: Observation, draws: Draws) -> Decision:
        number, turn = observation.block_step // (1 + self.rounds), observation.block_step % (1 + self.rounds)
        commits = (turn == 0).unsqueeze(1)
        planned = replace(observation, block_step=number, writable=observation.writable & commits)
        rule = Random() if self.order == "random" else Confident()
        order, _ = rule.choose(planned, draws)
        tokens, log_tokens = observation.draw(order > 0, self.token_sampler, draws)
        chosen, corrected, log_corrected = self.correct(observation, ~commits, draws)
        unfinished = observation.block_step + 1 < observation.steps * (1 + self.rounds)
        tokens = torch.where(chosen, corrected, tokens)
        return Decision(
            order + chosen.long(), tokens, nothing(observation), log_tokens + log_corrected, None, unfinished
        )

    def correct(
        self, observation: Observation, correcting: Bool[Tensor, "row 1"], draws: Draws
    ) -> tuple[Bool[Tensor, "row position"], Int[Tensor, "row position"], Float[Tensor, "row"]]:
        """Return the positions of a corrector step, their new tokens, and the log-probability of each row's tokens.

        Args:
            correcting: rows of which tokens are drawn again.
        """
        assert observation.revisable is not None
        places = observation.revisable & observation.in_block & correcting
        count = places.sum(1).clamp(max=self.count)
        uniforms = draws.uniform("revise", observation.row_id, observation.row_step, places.shape[1])
        if self.select == "uniform":
            chosen = best(torch.zeros_like(uniforms), places, count, uniforms) > 0
            states = left_out(observation, chosen, None, draws)
        else:
            states = left_out(observation, places, self.parts, draws)
            gumbel = -(-uniforms.log()).log()
            chosen = best(self.noise * gumbel - margins(observation, states, places), places, count, uniforms) > 0
        tokens, log_tokens = draw_from(observation, states, chosen, self.token_sampler, draws)
        return chosen, tokens, log_tokens


def margins(
    observation: Observation, states: Float[Tensor, "row position width"], places: Bool[Tensor, "row position"]
) -> Float[Tensor, "row position"]:
    """Return log p(token shown) - log p(best other token) at `places`, by these hidden states; zeros elsewhere."""
    environment, found = observation.environment, []
    for part, shown in zip(
        states[places].split(environment.chunk), observation.tokens[places].split(environment.chunk), strict=True
    ):
        logits = environment.logits(part)
        own = logits.gather(1, shown.unsqueeze(1))
        found.append((own - logits.scatter(1, shown.unsqueeze(1), -torch.inf).amax(1, keepdim=True)).squeeze(1))
    dense = torch.zeros(places.shape, dtype=torch.float64, device=places.device)
    if found:
        dense[places] = torch.cat(found).double()
    return dense


def draw_from(
    observation: Observation,
    states: Float[Tensor, "row position width"],
    chosen: Bool[Tensor, "row position"],
    token_sampler: TokenRule,
    draws: Draws,
) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row"]]:
    """Draw tokens at `chosen` from these hidden states. Returns them and the log-probability of each row's draws (0: greedy)."""
    environment, tokens = observation.environment, observation.tokens.clone()
    log_tokens = torch.zeros(len(tokens), device=tokens.device)
    index = chosen.nonzero()
    for place, part in zip(index.split(environment.chunk), states[chosen].split(environment.chunk), strict=True):
        row, position = place.unbind(1)
        logits = token_sampler(environment.logits(part))
        if token_sampler.temperature == 0:
            tokens[row, position] = logits.argmax(1)
            continue
        own = position if observation.start is None else position - observation.start[row]
        drawn = draws.categorical(logits, observation.row_id[row], observation.row_step[row], own)
        tokens[row, position] = drawn
        log_drawn = logits.gather(1, drawn.unsqueeze(1)).squeeze(1) - logits.logsumexp(1)
        log_tokens.index_add_(0, row, log_drawn.float())
    return tokens, log_tokens
