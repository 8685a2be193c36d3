"""The log-likelihood of given text: exact for a causal model, a Monte Carlo lower bound with its error for a masked one.

The bound of a diffusion model (k-DCE of RADD 2406.03736; LLaDA 2502.09992), with n tokens to score behind a context:

    log p(x | context) >= E_k E_{S, |S| = k} (n / k) sum_{i in S} log p(x_i | context, x outside S),   k uniform in 1..n,

which is the mean over all orders of generating one token at a time. What differs: k is stratified, with two draws per
stratum, so that the standard error is unbiased (LLaDA's draws are stratified too, without a standard error). If all 2^n - 1
sets S are at most as many as the draws, they are summed, which is exact (a single token, as in most multiple choice, costs
one evaluation).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.masked_lm import MaskedLM
from losses import mask_exactly


@dataclass(frozen=True)
class Likelihood:
    """log_prob: in nats; standard_error: of the Monte Carlo estimate, 0 if it is exact; greedy: a causal model's most
    probable tokens are exactly the text (None for a masked model, where it depends on the decoder).
    """

    log_prob: float
    standard_error: float
    greedy: bool | None


@dataclass
class ScoredText:
    """The computation for one text: canvases, requested positions, and the weight of each canvas's log-probability."""

    tokens: Int[Tensor, "position"]
    read: Bool[Tensor, "draw position"]
    weight: Float[Tensor, "draw"]
    summed: bool  # all of them, rather than draws
    context: int  # how many tokens are given


def sets_of_masks(
    count: int, draws: int, generator: torch.Generator
) -> tuple[Bool[Tensor, "draw token"], Tensor, bool]:
    """Return sets S among `count` tokens, their weights, and whether they are all sets.

    Draws have weight n / k, and their mean is the bound. All sets have weight (n / k) / (n C(n, k)), and their sum is the
    bound.
    """
    if 2**count - 1 <= draws:
        numbers = torch.arange(1, 2**count)
        sets = (numbers.unsqueeze(1) >> torch.arange(count) & 1).bool()
        weight = [1 / (k * math.comb(count, k)) for k in sets.sum(1).tolist()]
        return sets, torch.tensor(weight, dtype=torch.float64), True
    stratum = torch.arange(draws) // 2
    uniform = torch.rand(draws, dtype=torch.float64, generator=generator)
    size = ((stratum + uniform) / (draws // 2) * count).ceil().long().clamp(1, count)
    sets = mask_exactly(torch.rand(draws, count, generator=generator), size)
    return sets, (count / size).double(), False


@torch.no_grad()
def log_likelihoods(
    model: MaskedLM, texts: Sequence[tuple[list[int], list[int]]], draws: int = 128, seed: int = 0, batch: int = 32,
    guidance: float = 0.0,
) -> list[Likelihood]:  # fmt: skip
    """Return log p(continuation | context) of each (context, continuation), given as token ids. The context may be empty.

    Args:
        draws: Monte Carlo samples per text, an even number. The draws of a text depend only on the seed and its own tokens.
        batch: canvases at a time.
        guidance: classifier-free guidance of a masked model: logits (1 + w) * with the context - w * with it masked, as
            LLaDA scores multiple choice (`cfg`). The result is then a score and not a bound.

    Raises:
        ValueError: `draws` is odd, or a text is longer than the model.
    """
    if draws < 2 or draws % 2:
        raise ValueError(f"{draws} Monte Carlo samples: expected an even number of at least 2, as they come in pairs")
    scored = [_scored(model, context, continuation, draws, seed) for context, continuation in texts]
    values = [torch.zeros(len(one.weight), dtype=torch.float64) for one in scored]
    greedy = [torch.ones(len(one.weight), dtype=torch.bool) for one in scored]
    for part in _batches(scored, batch):
        tokens = torch.stack([scored[text].tokens for text, _ in part])
        read = torch.stack([scored[text].read[draw] for text, draw in part])
        context = torch.tensor([scored[text].context for text, _ in part])
        sums, best = _read(model, tokens, read, context, guidance)
        for place, (text, draw) in enumerate(part):
            values[text][draw], greedy[text][draw] = sums[place], best[place]
    return [_estimate(one, value, bool(hit.all()) if model.causal else None)
            for one, value, hit in zip(scored, values, greedy, strict=True)]  # fmt: skip


def _batches(scored: Sequence[ScoredText], batch: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the draws of all texts as (text, draw), in batches of equal length."""
    by_length: dict[int, list[tuple[int, int]]] = {}
    for text, one in enumerate(scored):
        by_length.setdefault(len(one.tokens), []).extend((text, draw) for draw in range(len(one.weight)))
    for rows in by_length.values():
        yield from (rows[first : first + batch] for first in range(0, len(rows), batch))


def _scored(model: MaskedLM, context: list[int], continuation: list[int], draws: int, seed: int) -> ScoredText:
    length, count = len(context) + len(continuation), len(continuation)
    if length > model.max_length:
        raise ValueError(f"a text has {length} tokens, more than the model's {model.max_length}; shorten it")
    tokens = torch.tensor([*context, *continuation], dtype=torch.long)
    if model.causal or not count:
        read = torch.zeros(1, length, dtype=torch.bool)
        read[:, len(context) :] = True
        return ScoredText(tokens, read, torch.ones(1, dtype=torch.float64), True, len(context))
    own = hash((seed, *context, -1, *continuation)) % 2**63  # of integers: the same in every process
    sets, weight, summed = sets_of_masks(count, draws, torch.Generator().manual_seed(own))
    context_read = torch.zeros(len(sets), len(context), dtype=torch.bool)
    return ScoredText(tokens, torch.cat((context_read, sets), 1), weight, summed, len(context))


def _read(
    model: MaskedLM, tokens: Int[Tensor, "row position"], read: Bool[Tensor, "row position"], context: Int[Tensor, "row"],
    guidance: float,
) -> tuple[Float[Tensor, "row"], Bool[Tensor, "row"]]:  # fmt: skip
    """Return the summed log-probability of each row's tokens at `read`, and whether all of them are the most probable
    ones.

    Args:
        context: number of given tokens of each row, which guidance masks.
    """
    device = model.device
    tokens, read = tokens.to(device), read.to(device)
    canvas = tokens if model.causal else tokens.masked_fill(read, model.mask_id)
    total, missed = torch.zeros(2, len(tokens), dtype=torch.float64, device=device)
    if bool(read.any()):
        row, chunk = read.nonzero()[:, 0], model.chunk(device)
        hidden = model.hidden(canvas, read)
        if guidance:
            given = torch.arange(canvas.shape[1], device=device) < context.to(device)[:, None]
            hidden = torch.cat((hidden, model.hidden(canvas.masked_fill(given, model.mask_id), read)), 1)
        pieces = (part.split(chunk) for part in (hidden, tokens[read], row))
        for states, target, own in zip(*pieces, strict=True):
            logits = model.head(states[:, : model.hidden_size])
            if guidance:
                without = model.head(states[:, model.hidden_size :])
                logits = (1 + guidance) * logits - guidance * without.masked_fill(without == -torch.inf, 0.0)
            log_prob = logits.log_softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
            total.index_add_(0, own, log_prob.double())
            missed.index_add_(0, own, (logits.argmax(1) != target).double())
    return total.cpu(), (missed == 0).cpu()


def _estimate(scored: ScoredText, value: Float[Tensor, "draw"], greedy: bool | None) -> Likelihood:
    """Return the sum over all sets; otherwise the mean, and its error from the differences within the pairs of a stratum."""
    terms = scored.weight * value
    if scored.summed:
        return Likelihood(float(terms.sum()), 0.0, greedy)
    pairs = terms.view(-1, 2)
    error = (pairs[:, 0] - pairs[:, 1]).square().sum().sqrt() / (2 * len(pairs))
    return Likelihood(float(terms.mean()), float(error), greedy)


def windows(count: int, longest: int) -> list[tuple[int, int, int]]:
    """Split a text of `count` tokens into windows of at most `longest`: (first, first scored, end).

    Every token is scored once. Windows except the first have one token of context, the last one as much as there is room
    for.
    """
    found, scored = [], 0
    while scored < count:
        first = max(0, scored - (longest > 1))
        end = min(first + longest, count)
        if end == count:
            first = max(0, count - longest)
        found.append((first, scored, end))
        scored = end
    return found
