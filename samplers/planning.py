"""Decoders that revise by exact counts: the schedule says how many positions are committed after each step, and scores which.

Sources: P2 2502.03540 (zhangshuibai/Path-Planning, `src/path_planning/p2.py`); PRISM 2510.01384 (SeunggeunKimkr/PRISM,
`prob_path.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.observation import Decision, Observation
from dlm.options import DecodeOptions
from samplers.heuristics import best, by_ties, nothing, top_probability
from samplers.loop import Reviser
from samplers.names import COMMIT_ORDERS, P2_READS, P2_SCHEDULES, P2_SCORES, PRISM_FORMS
from samplers.quality import Quality, SeenProbability
from samplers.revision import ROUNDING, check_choice, planned_steps, remask_limit, token_log_probs

# ------------------------------------------------------------------------------------------------------------------- P2

KAPPA: dict[str, Callable[[Float64[Tensor, "row"]], Float64[Tensor, "row"]]] = {
    "linear": lambda t: t,
    "sine": lambda t: (t * torch.pi / 2).sin(),
    "geometric": lambda t: 1 - (1 - t) ** 2,
    "log": lambda t: t.log1p() / math.log(2),
    "square": lambda t: t**2,
    "root": lambda t: t**0.5,
}


@dataclass
class P2(Reviser):
    """Path planning (P2): in each step the positions of lowest score are masked, and the schedule says how many.

    Step i of N: a token is drawn at every position that is not given. The floor(free (1 - kappa(i / N))) positions of lowest
    score become or stay masked; open positions among the others are committed with the token drawn; committed ones keep theirs.
    The score of an open position is the log-probability of the token drawn there.

    Args:
        schedule: kappa, which grows from 0 to 1 (`KAPPA`).
        eta: multiplies the scores of committed positions, which are at most 0. 0: a committed position is never masked again.
        reads: score of a committed position: shown (log-probability of its token, as in the paper), drawn (of the token drawn
            there in this step, as in the published code) or quality (log-quality of its token).
        score: probability, or random (log of a uniform number, at committed positions too).
        quality: the source of reads=quality.
    """

    schedule: str = "linear"
    eta: float | int = 1.0
    reads: str = "shown"
    score: str = "probability"
    quality: Quality | None = None

    def __post_init__(self):
        check_choice("schedule", self.schedule, P2_SCHEDULES)
        check_choice("reads", self.reads, P2_READS)
        check_choice("score", self.score, P2_SCORES)
        if self.reads == "quality" and self.quality is None:
            raise ValueError("sampler.p2.reads=quality needs a source of quality; give sampler.quality.source")

    def most_steps(self, options: DecodeOptions, opened: int) -> int | None:
        return planned_steps(options, opened)

    def scores(
        self, observation: Observation, drawn: Int[Tensor, "row position"], draws: Draws
    ) -> Float64[Tensor, "row position"]:
        """Return the score of each position of the block that is not given."""
        assert observation.revisable is not None
        committed = observation.revisable & observation.in_block
        if self.score == "random":
            length = observation.tokens.shape[1]
            scores = draws.uniform("noise", observation.row_id, observation.row_step, length).log()
        else:
            shown = committed & (self.reads == "shown")
            tokens, places = torch.where(shown, observation.tokens, drawn), observation.writable | committed
            scores = token_log_probs(observation, places, tokens).double()
        if self.quality is not None and self.reads == "quality" and self.score != "random":
            judged = self.quality.log_quality(observation, committed, draws)
            scores = torch.where(committed, judged.double(), scores)
        return torch.where(committed, scores * self.eta if self.eta > 0 else 1.0, scores)

    def revise(self, observation: Observation, draws: Draws) -> Decision:
        assert observation.revisable is not None
        places = observation.writable | (observation.revisable & observation.in_block)
        step = (observation.block_step + 1).double() / observation.steps
        masked = (places.sum(1) * (1 - KAPPA[self.schedule](step.clamp(max=1.0))) + ROUNDING).long()
        observation.hidden(places)  # one evaluation for open and committed positions
        drawn, _ = observation.draw(places, self.token_sampler, draws)
        scores = self.scores(observation, drawn, draws)
        lowest = best(-scores, places, masked, by_ties(observation, draws)) > 0
        selected = observation.writable & ~lowest
        tokens, log_tokens = observation.draw(selected, self.token_sampler, draws)  # those drawn above
        return Decision(selected.long(), tokens, nothing(observation), log_tokens, observation.revisable & lowest)


# ---------------------------------------------------------------------------------------------------------------- PRISM


@dataclass
class PRISM(Reviser):
    """Mask the generated tokens of lowest quality again (PRISM); the schedule says how many positions are committed.

    After step i of N, ceil(free i / N) positions are committed. Of g generated tokens, r of lowest quality are masked again if
    r < g < free - r; other positions are committed in their place.

    Args:
        form: of r. count: `count`, as on Sudoku; binomial: Binomial(g, min(eta, sigma_max)), as on OpenWebText.
        begin, end: share of the steps at which remasking begins and ends.
        order: of the positions that are committed: random, as published, or confidence (most probable best token first).
        quality: how likely each generated token is right.
    """

    form: str = "count"
    count: int = 4
    eta: float | int = 0.01
    begin: float | int = 0.0
    end: float | int = 1.0
    order: str = "random"
    quality: Quality = field(default_factory=SeenProbability)

    def __post_init__(self):
        check_choice("form", self.form, PRISM_FORMS)
        check_choice("order", self.order, COMMIT_ORDERS)

    def most_steps(self, options: DecodeOptions, opened: int) -> int | None:
        return planned_steps(options, opened)

    def remasked(self, observation: Observation, draws: Draws) -> Int[Tensor, "row"]:
        """Return r, the number of tokens to mask again, before the schedule limits it."""
        assert observation.revisable is not None
        committed = observation.revisable & observation.in_block
        generated, progress = committed.sum(1), observation.block_step.double() / observation.steps
        free = generated + observation.writable.sum(1)
        number = torch.full_like(generated, self.count)
        if self.form == "binomial":
            clean = generated.double() / free.clamp(min=1)
            sigma = remask_limit(clean, (clean + 1 / observation.steps).clamp(max=1.0)).clamp(max=self.eta)
            rows, step, length = observation.row_id, observation.row_step, observation.tokens.shape[1]
            number = ((draws.uniform("revise", rows, step, length) < sigma.unsqueeze(1)) & committed).sum(1)
        active = (progress >= self.begin) & (progress < self.end)
        return torch.where(active & (generated > number) & (generated < free - number), number, 0)

    def revise(self, observation: Observation, draws: Draws) -> Decision:
        assert observation.revisable is not None
        writable, committed = observation.writable, observation.revisable & observation.in_block
        free = writable.sum(1) + committed.sum(1)
        share = (observation.block_step + 1).double() / observation.steps
        goal = (free * share - ROUNDING).ceil().long().clamp(min=0)
        goal = torch.minimum(goal, free)
        number = torch.minimum(self.remasked(observation, draws), free - goal)
        judged, ties = committed & (number > 0).unsqueeze(1), by_ties(observation, draws)
        doubt = -self.quality.log_quality(observation, judged, draws)
        reopened = best(doubt, judged, number, ties) > 0
        count = (goal - committed.sum(1) + number).clamp(min=0)
        order = best(commit_scores(self.order, observation), writable, count, ties)
        tokens, log_tokens = observation.draw(order > 0, self.token_sampler, draws)
        return Decision(order, tokens, nothing(observation), log_tokens, reopened)


def commit_scores(order: str, observation: Observation) -> Float[Tensor, "row position"]:
    """Return the scores by which open positions are committed: zeros (ties are random), or the best token's probability."""
    if order == "random":
        return torch.zeros(observation.tokens.shape, device=observation.tokens.device)
    return top_probability(observation)
