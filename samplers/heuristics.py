"""Unmasking rules without learned parameters. `UNMASKING_RULES` maps the names of the command line to them.

Rules that ignore the model (direct, first_hitting, random, dilated, leftmost) request no outputs; the loop then evaluates
the model at the selected positions only. Confidences are those of the model at temperature 1, whatever the token sampler;
`AsSampled` computes them from the distribution that tokens are drawn from.

Sources: RADD 2406.03736 (direct), Zheng et al. 2409.02908 (first-hitting), Kim et al. 2502.06768 (margin), genpolicy
(confidence_noisy), LLaDA 2502.09992 (top_prob), Dream (entropy), Fast-dLLM 2505.22618 (threshold, factor), EB-Sampler
2505.24857 (entropy_bound), "Plan for Speed" 2506.19037 (dilated; what differs: the offset is drawn).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.environment import LEAST
from dlm.observation import Observation, Readout, Response
from dlm.token_rule import TokenRule
from samplers.loop import Unmasker
from samplers.names import CONFIDENCES

TIE = 1e-5  # scores closer than this to the last one taken are equal: the tie stream orders them, not rounding


def best(
    scores: Float[Tensor, "row position"],
    writable: Bool[Tensor, "row position"],
    count: Int[Tensor, "row"],
    ties: Float[Tensor, "row position"],
) -> Int[Tensor, "row position"]:
    """Return ranks 1..count of the `count` highest scores among `writable`. Scores within TIE of the last one are ordered
    by `ties`.
    """
    scores = scores.double().masked_fill(~writable, -torch.inf)
    last = scores.sort(1, descending=True).values.gather(1, (count - 1).clamp(min=0).unsqueeze(1))
    sure = scores > last + TIE
    tied = (scores >= last - TIE) & ~sure & writable
    key = sure.double() * 2 + tied.double() + ties  # ties are in (0, 1): the classes do not mix
    rank = key.argsort(1, descending=True).argsort(1)
    return torch.where((rank < count.unsqueeze(1)) & writable, rank + 1, 0)


def by_ties(observation: Observation, draws: Draws) -> Float[Tensor, "row position"]:
    """Draw uniform numbers that order positions of equal score."""
    return draws.uniform("tie", observation.row_id, observation.row_step, observation.tokens.shape[1])


def nothing(observation: Observation) -> Float[Tensor, "row"]:
    """Zeros: a placeholder for heuristics whose choice is never scored."""
    return torch.zeros(len(observation.tokens), device=observation.tokens.device)


@dataclass
class Direct:
    """Select each masked position with probability 1 / (steps left): RADD's Tweedie sampler on the log-linear schedule."""

    def choose(self, observation, draws):
        left = (observation.steps - observation.block_step).clamp(min=1)
        uniforms = draws.uniform("where", observation.row_id, observation.row_step, observation.tokens.shape[1])
        selected = (uniforms < 1 / left.double().unsqueeze(1)) & observation.writable
        return selected.long(), nothing(observation)


@dataclass
class FirstHitting:
    """Select one masked position per evaluation, uniformly: ancestral sampling in continuous time without its idle steps.

    The hitting times are not drawn, because the model has no time input.
    """

    def choose(self, observation, draws):
        uniforms = draws.uniform("where", observation.row_id, observation.row_step, observation.tokens.shape[1])
        one = torch.ones_like(observation.row_step)
        return best(uniforms, observation.writable, one, uniforms), nothing(observation)


@dataclass
class Random:
    """Select an equal part per step, uniformly."""

    def choose(self, observation, draws):
        uniforms = draws.uniform("where", observation.row_id, observation.row_step, observation.tokens.shape[1])
        scores = torch.zeros_like(uniforms)  # all tied: the uniforms order them
        return best(scores, observation.writable, observation.count(), uniforms), nothing(observation)


@dataclass
class Dilated:
    """Select an equal part per step, at positions far from each other.

    With P the planned steps rounded up to a power of two, positions with one remainder modulo P come first, then those of
    the remainder half-way between, and so on (bit-reversed order), from an offset that is drawn once per row. Positions
    that are committed together do not see each other's tokens, and neighbours depend on each other most.
    """

    def choose(self, observation, draws):
        bits = (observation.steps - 1).bit_length()
        offset = draws.uniform("where", observation.row_id, torch.zeros_like(observation.row_step), 1)
        place = torch.arange(observation.tokens.shape[1], device=offset.device) + (offset * 2**bits).long()
        turn = sum(((place >> bit & 1) << (bits - 1 - bit) for bit in range(bits)), torch.zeros_like(place))
        return best(-turn.double(), observation.writable, observation.count(), by_ties(observation, draws)), nothing(
            observation
        )


@dataclass
class Leftmost:
    """Select an equal part per step, from the left. With one position per step this is the autoregressive order."""

    def choose(self, observation, draws):
        if observation.environment.model.causal:  # nothing else is writable
            return observation.writable.long(), nothing(observation)
        length = observation.tokens.shape[1]
        scores = -torch.arange(length, device=observation.tokens.device).double().expand(observation.tokens.shape)
        count = torch.minimum(observation.count().clamp(min=1), observation.writable.sum(1))
        return best(scores, observation.writable, count, by_ties(observation, draws)), nothing(observation)


def margin(observation: Observation) -> Float[Tensor, "row position"]:
    """Return p(best) - p(second) of each position."""
    top = observation.read(observation.writable, 2).top_log_probs.exp()
    return top[..., 0] - top[..., 1]


def top_probability(observation: Observation) -> Float[Tensor, "row position"]:
    """Return the probability of the best token of each selectable position."""
    return observation.read(observation.writable, 1).top_log_probs[..., 0].exp()


def negative_entropy(observation: Observation) -> Float[Tensor, "row position"]:
    """Return minus the entropy (nats) of each selectable position."""
    entropy = observation.read(observation.writable, 1, entropy=True).entropy
    assert entropy is not None
    return -entropy


SCORES = {"margin": margin, "top_prob": top_probability, "entropy": negative_entropy}


@dataclass
class Confident:
    """Select an equal part per step, most confident first. score: margin, top_prob, or entropy (lowest first)."""

    score: str = "margin"

    def choose(self, observation, draws):
        scores = SCORES[self.score](observation)
        return best(scores, observation.writable, observation.count(), by_ties(observation, draws)), nothing(
            observation
        )


@dataclass
class ConfidentNoisy:
    """Select an equal part per step by log p(best) - log p(second) + noise * N(0, 1), genpolicy's confidence."""

    noise: float | int = 1.0

    def choose(self, observation, draws):
        top = observation.read(observation.writable, 2).top_log_probs.double()
        length = observation.tokens.shape[1]
        scores = (
            top[..., 0]
            - top[..., 1]
            + self.noise * draws.normal("noise", observation.row_id, observation.row_step, length)
        )
        return best(scores, observation.writable, observation.count(), by_ties(observation, draws)), nothing(
            observation
        )


def at_least_one(
    selected: Bool[Tensor, "row position"],
    scores: Float[Tensor, "row position"],
    observation: Observation,
    draws: Draws,
) -> Int[Tensor, "row position"]:
    """Return the ranks of the selected positions, with the best position added to rows that selected none.

    Ranks of one step are random, not left to right: imitation learning scores them as a sequence without replacement.
    """
    one, ties = torch.ones_like(observation.row_step), by_ties(observation, draws)
    first = best(scores, observation.writable, one, ties) > 0
    selected = (selected & observation.writable) | first
    return best(torch.zeros_like(ties), selected, selected.sum(1), ties)


@dataclass
class Threshold:
    """Select every position whose best token has at least this probability, and always the position with the most probable
    best token.
    """

    threshold: float | int = 0.9

    def choose(self, observation, draws):
        probability = top_probability(observation)
        return at_least_one(probability >= self.threshold, probability, observation, draws), nothing(observation)


@dataclass
class Window:
    """Apply `Threshold` to the leftmost `window` masked positions of each row.

    The window moves on with every commit; a semi-autoregressive block must be full before the next one begins. window: at
    least 1.
    """

    threshold: float | int = 0.9
    window: int = 4

    def choose(self, observation, draws):
        leftmost = observation.writable & (observation.writable.cumsum(1) <= self.window)
        if observation.environment.options.budget is not None:
            # The last evaluation that a budget allows writes every mask, so that all of them are read from it.
            leftmost |= observation.writable & observation.last[:, None]
        return Threshold(self.threshold).choose(replace(observation, writable=leftmost), draws)


@dataclass
class Factor:
    """Select the n most confident positions, with the largest n for which (n + 1)(1 - p_n) < factor, at least one."""

    factor: float | int = 1.0

    def choose(self, observation, draws):
        probability = top_probability(observation)
        ordered = probability.masked_fill(~observation.writable, -torch.inf).sort(1, descending=True).values
        number = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
        passes = (number + 1) * (1 - ordered) < self.factor
        count = torch.where(passes, number, 1).amax(1)
        count = torch.minimum(count, observation.writable.sum(1))
        return best(probability, observation.writable, count, by_ties(observation, draws)), nothing(observation)


@dataclass
class EntropyBound:
    """Select the lowest entropies whose sum without the largest stays within the bound (nats), at least one position."""

    bound: float | int = 0.5

    def choose(self, observation, draws):
        entropy = -negative_entropy(observation)
        ordered = entropy.masked_fill(~observation.writable, torch.inf).sort(1).values
        count = (ordered.cumsum(1) - ordered <= self.bound).sum(1)  # of the n taken the largest is the last
        count = torch.minimum(count, observation.writable.sum(1)).clamp(min=1)
        return best(-entropy, observation.writable, count, by_ties(observation, draws)), nothing(observation)


class Sampled(Response):
    """An environment whose confidences are those of the distribution that tokens are drawn from, after temperature, top-p
    and top-k.

    A rule that requests one token gets the token that will be drawn there, as in Dream's `sample_tokens` (2508.15487).
    Rules that request two tokens (margin) or the entropy get those of the distribution. Nothing is cached between steps.
    """

    def __init__(self, observation: Observation, token_sampler: TokenRule, draws: Draws):
        super().__init__(observation.environment, 0)
        self.observation, self.token_sampler, self.draws = observation, token_sampler, draws

    def read(self, positions: Bool[Tensor, "row position"], best: int, entropy: bool) -> Readout:
        seen, whole = self.observation, self.whole
        found = Readout(
            torch.zeros(*positions.shape, best, dtype=torch.long, device=positions.device),
            torch.zeros(*positions.shape, best, device=positions.device),
            torch.zeros(positions.shape, device=positions.device) if entropy else None,
        )
        hidden, place = whole.hidden(positions)[positions], positions.nonzero()
        for part, states in zip(place.split(whole.chunk), hidden.split(whole.chunk), strict=True):
            row, position = part.unbind(1)
            logits = self.token_sampler(whole.logits(states))
            drawn = None
            if best == 1 and self.token_sampler.temperature > 0:
                own = position if seen.start is None else position - seen.start[row]
                drawn = self.draws.categorical(logits, seen.row_id[row], seen.row_step[row], own).unsqueeze(1)
                log_prob = logits.gather(1, drawn) - logits.logsumexp(1, keepdim=True)
                log_prob = log_prob.masked_fill(whole.written_last(drawn[:, 0]).unsqueeze(1), LEAST)
            own_readout = whole.summarised(logits, best, entropy)
            found.top_tokens[row, position] = own_readout.top_tokens if drawn is None else drawn
            found.top_log_probs[row, position] = own_readout.top_log_probs if drawn is None else log_prob.float()
            if found.entropy is not None:
                assert own_readout.entropy is not None
                found.entropy[row, position] = own_readout.entropy
        return found


@dataclass
class AsSampled:
    """An unmasking rule with the confidences of the distribution that the token sampler draws from (`Sampled`), in place
    of the model's at temperature 1.
    """

    rule: Unmasker
    token_sampler: TokenRule

    def choose(self, observation, draws):
        seen = replace(observation, environment=Sampled(observation, self.token_sampler, draws))
        return self.rule.choose(seen, draws)


CONFIDENT = (
    "confidence",
    "confidence_noisy",
    "top_prob",
    "entropy",
    "threshold",
    "window",
    "factor",
    "entropy_bound",
)  # rules that read one


def check_confidence(confidence: object, name: str, setting: str) -> None:
    """Refuse an unknown source of confidences, and a source for a rule without confidences: ValueError. setting: its name
    in the message.
    """
    if confidence not in CONFIDENCES:
        raise ValueError(f"{setting}={confidence!r} is unknown; use one of {', '.join(CONFIDENCES)}")
    if confidence == "sampling" and name not in CONFIDENT:
        raise ValueError(
            f"{setting}=sampling is for rules that read confidences, and {name} reads none; use one of {', '.join(CONFIDENT)}"
        )


ADAPTIVE = ("threshold", "window", "factor", "entropy_bound", "first_hitting")  # they take as many steps as they need
UNMASKING_RULES: dict[str, Callable[..., Any]] = {
    "direct": Direct,
    "first_hitting": FirstHitting,
    "random": Random,
    "dilated": Dilated,
    "confidence": Confident,
    "confidence_noisy": ConfidentNoisy,
    "top_prob": lambda: Confident("top_prob"),
    "entropy": lambda: Confident("entropy"),
    "threshold": Threshold,
    "window": Window,
    "factor": Factor,
    "entropy_bound": EntropyBound,
    "leftmost": Leftmost,
}
