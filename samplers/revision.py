"""Decoders that revise: they open committed positions again, or replace their tokens.

Sources: ReMDM 2503.00307.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from dlm.draws import Draws
from dlm.observation import Decision, Observation
from dlm.options import DecodeOptions
from samplers.heuristics import nothing
from samplers.loop import Reviser


def remask_limit(clean: Float[Tensor, "*row"], clean_next: Float[Tensor, "*row"]) -> Float[Tensor, "*row"]:
    """Return the largest probability of remasking with which ReMDM's transition is a distribution.

    sigma_max = min(1, (1 - alpha_s) / alpha_t), with alpha_t = clean and alpha_s = clean_next; 1 where nothing is clean.
    """
    return ((1 - clean_next) / clean.clamp(min=1e-12)).clamp(max=1.0)


@dataclass
class ReMDM(Reviser):
    """Ancestral sampling with remasking (ReMDM): the expected share of committed positions follows the schedule.

    With alpha_t and alpha_s the shares of committed positions before and after the step, and sigma the probability that a
    committed position is masked again: a masked position is committed with probability
    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). The shares grow by 1 / steps. Schedules of sigma: cap, min(eta, sigma_max);
    rescale, eta sigma_max. sigma = 0 is ancestral sampling.
    """

    schedule: str = "cap"
    eta: float | int = 0.008

    def most_steps(self, options: DecodeOptions, opened: int) -> int | None:
        return options.steps  # of all blocks together, and a block that is full before its time is left

    def revise(self, observation: Observation, draws: Draws) -> Decision:
        assert observation.revisable is not None
        clean = observation.block_step.double() / observation.steps
        clean_next = (clean + 1 / observation.steps).clamp(max=1.0)
        limit = remask_limit(clean, clean_next)
        sigma = self.eta * limit if self.schedule == "rescale" else limit.clamp(max=self.eta)
        commit = (clean_next - (1 - sigma) * clean) / (1 - clean).clamp(min=1e-12)
        rows, steps, length = observation.row_id, observation.row_step, observation.tokens.shape[1]
        selected = (draws.uniform("where", rows, steps, length) < commit.unsqueeze(1)) & observation.writable
        revisable = observation.revisable & observation.in_block
        reopened = (draws.uniform("revise", rows, steps, length) < sigma.unsqueeze(1)) & revisable
        tokens, log_tokens = observation.draw(selected, self.token_sampler, draws)
        unfinished = observation.block_step + 1 < observation.steps
        return Decision(selected.long(), tokens, nothing(observation), log_tokens, reopened, unfinished)
