"""Reference implementation of SEDD's published samplers (2310.16834), for tests and speed.

Every step evaluates every row, applies the head at every position, and computes the probabilities of all tokens at all positions
from the graph's dense rates or transitions. All tokens race in float32. The passes over the vocabulary are those of the published
code, in its order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

LAST = 1e-5


def transposed_rate(tokens: Int[Tensor, "row position"], columns: int, graph: str) -> Tensor:
    """Return the rates into the current token of every position."""
    if graph == "uniform":
        rate = torch.full((*tokens.shape, columns), 1 / columns)
        return rate.scatter_(-1, tokens.unsqueeze(-1), -(columns - 1) / columns)
    rate = -F.one_hot(tokens, columns).float()
    rate[tokens == columns - 1] += 1
    return rate


def transposed_transition(tokens: Int[Tensor, "row position"], columns: int, sigma: Tensor, graph: str) -> Tensor:
    """Return the probabilities of a transition to the current token of every position after noise sigma."""
    if graph == "uniform":
        moved = (-torch.expm1(-sigma) / columns).expand(*tokens.shape, columns).clone()
        moved = moved.scatter_(-1, tokens.unsqueeze(-1), 0.0)
        return moved.scatter_(-1, tokens.unsqueeze(-1), 1 - moved.sum(-1, keepdim=True))
    stays = (-sigma).exp() * F.one_hot(tokens, columns).float()
    return stays + torch.where(tokens == columns - 1, -torch.expm1(-sigma), torch.zeros_like(sigma)).unsqueeze(-1)


def staggered(score: Tensor, drop: Tensor, graph: str) -> Tensor:
    """Compute the scores at less noise from those at more noise."""
    if graph == "uniform":
        kept = (-drop).exp()
        return (kept - 1) / (score.shape[-1] * kept) * score.sum(-1, keepdim=True) + score / kept
    extra = (1 - drop.exp()) * score.sum(-1)
    score = score * drop.exp()
    score[..., -1] += extra
    return score


def step_weights(
    score: Float[Tensor, "row position columns"],
    tokens: Int[Tensor, "row position"],
    graph: str,
    drop: Tensor,
    slope: float | None,
    last: bool = False,
) -> Float[Tensor, "row position tokens"]:
    """Return the unnormalized weights of all tokens in the race of each position; negative weights never win. slope: of an
    Euler step. last: no masks."""
    columns, own = score.shape[-1], tokens.unsqueeze(-1)
    if slope is None:
        weights = staggered(score, drop, graph) * transposed_transition(tokens, columns, drop, graph)
        return weights[..., :-1] if last and graph == "absorb" else weights
    rate = (transposed_rate(tokens, columns, graph) * score).scatter_(-1, own, 0.0)
    rate = rate.scatter_(-1, own, -rate.sum(-1, keepdim=True))
    return F.one_hot(tokens, columns).to(rate) + slope * rate


def race(weights: Float[Tensor, "row position columns"]) -> Int[Tensor, "row position"]:
    return (weights / (1e-10 - (torch.rand_like(weights) + 1e-10).log())).argmax(-1)


def score_entropy(
    log_score: Float[Tensor, "row position columns"],
    clean: Int[Tensor, "row position"],
    noisy: Int[Tensor, "row position"],
    sigma: Float[Tensor, "row"],
) -> Float[Tensor, "row position"]:
    """Return the score entropy of the absorbing graph at every position, to be multiplied with sigma'; zero at positions
    without a mask."""
    masked, ratio = noisy == log_score.shape[-1] - 1, 1 / torch.expm1(sigma)[:, None]
    own = log_score.gather(-1, clean.unsqueeze(-1)).squeeze(-1)
    value = log_score[..., :-1].exp().sum(-1) - ratio * own + ratio * (ratio.log() - 1)
    return torch.where(masked, value, 0.0)


@torch.no_grad()
def sample(
    score_of: Callable[[Int[Tensor, "row position"], Float[Tensor, "row"]], Float[Tensor, "row position columns"]],
    noise: Callable,
    graph: str,
    predictor: str,
    canvas: Int[Tensor, "row position"],
    steps: int,
) -> Int[Tensor, "row position"]:
    """Decode the masked positions of a canvas of the absorbing graph, or all positions of one of the uniform graph, which
    starts as noise."""
    times = torch.linspace(1, LAST, steps + 1)
    tokens = canvas
    for number in range(steps + 1):
        sigma, rate = noise(times[number])
        last = number == steps
        drop = sigma if last else sigma - noise(times[number + 1])[0]
        slope = float(rate * (times[number] - times[number + 1])) if predictor == "euler" and not last else None
        score = score_of(tokens, sigma.expand(len(tokens)))
        tokens = race(step_weights(score, tokens, graph, drop, slope, last))
    return tokens
