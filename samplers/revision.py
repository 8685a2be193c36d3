"""Decoders that revise by a schedule: the expected number of committed positions of each step is planned.

Source: ReMDM 2503.00307 (kuleshov-group/remdm, `diffusion.py`). Decoders with exact counts are in samplers/planning.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.observation import Decision, Observation, Readable
from dlm.options import DecodeOptions
from dlm.token_rule import TokenRule
from samplers.heuristics import nothing
from samplers.loop import Reviser
from samplers.names import REMASK_SCHEDULES

PUBLISHED_ETA = {"cap": 0.008, "rescale": 0.015, "loop": 0.02, "conf": 1.0}  # of ReMDM; conf has none
ROUNDING = 1e-9  # of shares and counts that are whole numbers or ends of a phase, in float64


def planned_steps(options: DecodeOptions, opened: int) -> int:
    """Return the most steps of a decoder that fills each block by its schedule. opened: open positions at the start."""
    # With blocks, each has at least one step, and there are at most as many blocks to fill as open positions.
    return options.steps if options.block_length is None else max(options.steps, opened)


def token_log_probs(
    observation: Observation,
    positions: Bool[Tensor, "row position"],
    tokens: Int[Tensor, "row position"],
    token_sampler: TokenRule | None = None,
) -> Float[Tensor, "row position"]:
    """Return the log-probability of tokens, at `positions` and 0 elsewhere.

    Args:
        token_sampler: of whose distribution. None: that of the model.
    """
    hidden = observation.environment.hidden(positions)[positions]
    found = torch.zeros(tokens.shape, device=tokens.device)
    found[positions] = log_probs_at(observation.environment, hidden, tokens[positions], token_sampler)
    return found


def log_probs_at(
    environment: Readable,
    hidden: Float[Tensor, "read width"],
    tokens: Int[Tensor, "read"],
    token_sampler: TokenRule | None = None,
) -> Float[Tensor, "read"]:
    """Return the log-probability of one token for each hidden state. token_sampler: as of `token_log_probs`."""
    found = [hidden.new_zeros(0)]
    for states, chosen in zip(hidden.split(environment.chunk), tokens.split(environment.chunk), strict=True):
        logits = environment.logits(states)
        logits = logits if token_sampler is None else token_sampler(logits)
        found.append(logits.gather(1, chosen.unsqueeze(1)).squeeze(1) - logits.logsumexp(1))
    return torch.cat(found).clamp(max=0.0)


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse an unknown name: ValueError."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(known)}")


# ---------------------------------------------------------------------------------------------------------------- ReMDM


def remask_limit(clean: Float[Tensor, "*row"], clean_next: Float[Tensor, "*row"]) -> Float[Tensor, "*row"]:
    """Return the largest probability of remasking with which ReMDM's transition is a distribution.

    sigma_max = min(1, (1 - alpha_s) / alpha_t), with alpha_t = clean and alpha_s = clean_next; 1 where nothing is clean.
    """
    return ((1 - clean_next) / clean.clamp(min=1e-12)).clamp(max=1.0)


def commit_probability(
    clean: Float[Tensor, "*row"], clean_next: Float[Tensor, "*row"], sigma: Float[Tensor, "*row"]
) -> Float[Tensor, "*row"]:
    """Return the probability that ReMDM commits a masked position: (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)."""
    return (clean_next - (1 - sigma) * clean) / (1 - clean).clamp(min=1e-12)


def by_confidence(
    committed_at: Float[Tensor, "row position"],
    revisable: Bool[Tensor, "row position"],
    writable: Bool[Tensor, "row position"],
    clean: Float64[Tensor, "row"],
    clean_next: Float64[Tensor, "row"],
) -> tuple[Float64[Tensor, "row position"], Float64[Tensor, "row"]]:
    """Return ReMDM-conf's probabilities: of remasking each committed position, and of committing a masked one.

    sigma_l = sigma_max softmax(-p)_l over the committed positions, p the probabilities with which their tokens were
    committed. The published code commits masked positions as MDLM does, so that fewer positions are clean than planned. Here a
    row commits, in expectation, what it opens on top of that: (alpha_s - alpha_t) / (1 - alpha_t) + sum sigma / masked. Both
    stay probabilities, because sum sigma is at most masked (1 - alpha_s) / (1 - alpha_t).

    Args:
        committed_at: probability of each token when it was committed.
    """
    scores = (-committed_at.double()).masked_fill(~revisable, -torch.inf)
    weight = scores.softmax(1).masked_fill(~revisable, 0.0)  # rows without a committed position: NaN, and 0
    masked = writable.sum(1).double()
    rest = (1 - clean).clamp(min=1e-12)
    opened = torch.minimum(weight.sum(1) * remask_limit(clean, clean_next), masked * (1 - clean_next) / rest)
    return weight * opened.unsqueeze(1), (clean_next - clean) / rest + opened / masked.clamp(min=1)


@dataclass
class ReMDM(Reviser):
    """Ancestral sampling with remasking (ReMDM): the expected share of committed positions follows the schedule.

    With alpha_t and alpha_s the shares of committed positions before and after the step, and sigma the probability that a
    committed position is masked again: a masked position is committed with probability
    (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). sigma = 0 is ancestral sampling. Time t falls from 1 to 0; alpha = 1 - t.

    Args:
        schedule: of sigma. cap: min(eta, sigma_max); rescale: eta sigma_max; conf: `by_confidence`; loop: alpha grows to
            `level` until t = `begin`, stays there with sigma = eta until t = `end`, and grows to 1.
        eta: None: as published.
        switch: of cap, rescale and conf: sigma = 0 until t falls below it. None: from the start.

    Raises:
        ValueError: eta makes probabilities of the loop negative: it is above (1 - level) / level.
    """

    schedule: str = "cap"
    eta: float | int | None = None
    switch: float | int | None = None
    begin: float | int = 0.55
    end: float | int = 0.05
    level: float | int = 0.9

    def __post_init__(self):
        check_choice("schedule", self.schedule, REMASK_SCHEDULES)
        most = (1 - self.level) / self.level if self.schedule == "loop" else 1.0
        if not 0 <= self.strength <= most + ROUNDING:
            raise ValueError(
                f"sampler.remdm.eta={self.strength:g} must be from 0 to {most:.4g} with schedule={self.schedule}, else "
                "probabilities are negative; lower it"
            )
        if not 0 <= self.end <= self.begin < 1:
            raise ValueError(
                f"sampler.remdm.end={self.end:g} must be at most begin={self.begin:g}, and that below 1; change them"
            )

    @property
    def strength(self) -> float | int:
        """eta, by default as published."""
        return PUBLISHED_ETA[self.schedule] if self.eta is None else self.eta

    def most_steps(self, options: DecodeOptions, opened: int) -> int | None:
        return planned_steps(options, opened)

    def share(self, progress: Float64[Tensor, "row"]) -> Float64[Tensor, "row"]:
        """Return alpha, the planned share of committed positions. progress: 1 - t."""
        if self.schedule != "loop":
            return progress
        time = 1 - progress
        rising = progress * self.level / (1 - self.begin)
        closing = 1 - time * (1 - self.level) / max(self.end, ROUNDING)
        return torch.where(time > self.begin, rising, torch.where(time < self.end, closing, self.level)).clamp(0.0, 1.0)

    def probabilities(
        self, observation: Observation, committed_at: Float[Tensor, "row position"]
    ) -> tuple[Float64[Tensor, "row position"], Float64[Tensor, "row"]]:
        """Return the probabilities of remasking each committed position of the block, and of committing a masked one.

        Args:
            committed_at: probability of each token when it was committed.
        """
        assert observation.revisable is not None
        revisable = observation.revisable & observation.in_block
        before = (observation.block_step.double() / observation.steps).clamp(max=1.0)
        after = ((observation.block_step + 1).double() / observation.steps).clamp(max=1.0)
        clean, clean_next = self.share(before), self.share(after)
        if self.schedule == "conf":
            sigma, commit = by_confidence(committed_at, revisable, observation.writable, clean, clean_next)
            early = self._early(before)
            ancestral = commit_probability(clean, clean_next, torch.zeros_like(clean))
            return sigma.masked_fill(early.unsqueeze(1), 0.0), torch.where(early, ancestral, commit)
        limit = remask_limit(clean, clean_next)
        if self.schedule == "loop":
            looping = (1 - before <= self.begin + ROUNDING) & (1 - after >= self.end - ROUNDING)
            sigma = torch.where(looping, limit.clamp(max=self.strength), 0.0)
        else:
            sigma = self.strength * limit if self.schedule == "rescale" else limit.clamp(max=self.strength)
            sigma = sigma.masked_fill(self._early(before), 0.0)
        return sigma.unsqueeze(1) * revisable, commit_probability(clean, clean_next, sigma)

    def _early(self, progress: Float64[Tensor, "row"]) -> Bool[Tensor, "row"]:
        """Mark rows whose time is not below `switch`."""
        return torch.zeros_like(progress, dtype=torch.bool) if self.switch is None else 1 - progress >= self.switch

    def revise(self, observation: Observation, draws: Draws) -> Decision:
        committed_at = observation.memory.get("committed_at", torch.zeros_like(observation.tokens, dtype=torch.float32))
        sigma, commit = self.probabilities(observation, committed_at)
        rows, steps, length = observation.row_id, observation.row_step, observation.tokens.shape[1]
        selected = (draws.uniform("where", rows, steps, length) < commit.unsqueeze(1)) & observation.writable
        reopened = draws.uniform("revise", rows, steps, length) < sigma
        tokens, log_tokens = observation.draw(selected, self.token_sampler, draws)
        if self.schedule == "conf":
            new = token_log_probs(observation, selected, tokens, self.token_sampler).exp()
            observation.memory["committed_at"] = torch.where(selected, new, committed_at)
        unfinished = observation.block_step + 1 < observation.steps
        return Decision(selected.long(), tokens, nothing(observation), log_tokens, reopened, unfinished)
