"""Estimators of the log-likelihood of finished rows under a masked model: one interface, seven estimators.

A masked model has no cheap likelihood of a text. Reinforcement learning and preference learning need an estimate with a
gradient. Every estimator masks finished rows in several ways (`Views`), scores tokens on these canvases (`term`), and adds
the scores to one number for each position (`combine`). The sum over a row is the estimate:

    elbo           E over masks of the any-order bound, the ELBO (2410.17891, 2502.09992), times or counts spread evenly
    mean_field     everything masked at once, one evaluation (d1, 2504.12216)
    coupled        everything masked, and two masks that complete each other (DiffuCoder, 2506.20639)
    score_entropy  the bound of score models by their own loss, at several noise levels (SEDD, 2310.16834)
    sandwich       the ELBO for rows to make likelier, an upper estimate for rows to make less likely (SPG, 2510.09541)
    trajectory     the tokens of each step as they were sampled, given the canvas of that step (TraceRL, 2509.06949)
    published      the estimator of SEDD-LaTeX-RLHF: the score entropy of a row without masks, always 0, no gradient

The masks are drawn once (`views`) and passed on, so that new, old and reference model are compared on the same canvases.
What differs from the papers: masks have exactly k tokens by default (the same mean, less variance), and antithetic pairs
are complements. docs/likelihood.md explains the estimated quantities.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.masked_lm import MaskedLM, SeddLM, log_normalizer_and_logit
from dlm.noise import LogLinearNoise, Noise


@dataclass
class Views:
    """N masked copies of finished rows.

    row: the row of each copy; masked: masked positions; read: positions where tokens are scored; weight: of these scores; sigma:
    noise level of the free positions (None: the model computes it from the canvas); free: number of free positions.

    In training the noise level belongs to the whole canvas, prompt included. The model therefore gets the level that belongs to
    the expected masked share of the whole canvas, not `sigma` itself.
    """

    row: Int[Tensor, "view"]
    masked: Bool[Tensor, "view position"]
    read: Bool[Tensor, "view position"]
    weight: Float[Tensor, "view"]
    sigma: Float[Tensor, "view"] | None = None
    free: Int[Tensor, "view"] | None = None

    def __len__(self) -> int:
        return len(self.row)

    def take(self, index: Int[Tensor, "kept"]) -> Views:
        """Return some of the views."""
        sigma, free = (None if x is None else x[index] for x in (self.sigma, self.free))
        return Views(self.row[index], self.masked[index], self.read[index], self.weight[index], sigma, free)

    def with_something_to_read(self) -> Views:
        """Drop views that score no token; they would cost an evaluation."""
        return self.take(self.read.any(1).nonzero().squeeze(1))


class Estimator:
    """Interface of the estimators. Subclasses implement `views`, and override the other methods if the estimate is more
    than a weighted sum of log-probabilities.
    """

    scores = False  # whether it reads unnormalised scores, which score models have
    replays = False  # whether it reads every token at the step at which it was drawn
    temperature: float | int = 1.0  # of the tokens

    def views(
        self, free: Bool[Tensor, "row position"], draws: Draws, unmasked_at: Int[Tensor, "row position"] | None = None
    ) -> Views:
        """Draw the masks.

        Args:
            free: positions behind the prompt, which may be masked.
            draws: of the masks; those of a row are a function of its number.
            unmasked_at: the step at which each position was sampled (-1: the prompt).
        """
        raise NotImplementedError

    def term(
        self, log_normalizer: Float[Tensor, "read"], logit: Float[Tensor, "read"], sigma: Float[Tensor, "read"] | None
    ) -> Float[Tensor, "read"]:
        """Return the unweighted contribution of each scored token: log p(token | canvas). log_normalizer: of the
        logits.
        """
        return logit - log_normalizer

    def combine(
        self,
        terms: Float[Tensor, "view position"],
        views: Views,
        rows: int,
        push_down: Bool[Tensor, "row"] | None = None,
    ) -> Float[Tensor, "row position"]:
        """Add up the contributions. Returns the estimate for each position.

        Args:
            push_down: rows whose likelihood is to be decreased; only `sandwich` uses it.
        """
        weighted = (terms * views.weight.unsqueeze(1)).masked_fill(~views.read, 0.0)
        return terms.new_zeros(rows, terms.shape[1]).index_add(0, views.row, weighted)


def uniforms(free: Bool[Tensor, "row position"], samples: int, draws: Draws) -> Float[Tensor, "row sample column"]:
    """Draw numbers in (0, 1): the first column for a time, the others for positions."""
    rows, length = free.shape
    row = torch.arange(rows, device=free.device).repeat_interleave(samples)
    sample = torch.arange(samples, device=free.device).repeat(rows)
    return draws.uniform("mask", row, sample, length + 1).view(rows, samples, length + 1)


def lowest(
    keys: Float[Tensor, "view position"], among: Bool[Tensor, "view position"], count: Int[Tensor, "view"]
) -> Bool[Tensor, "view position"]:
    """Mark the `count` positions with the lowest keys among `among`."""
    return (keys.masked_fill(~among, 2.0).argsort(1).argsort(1) < count.unsqueeze(1)) & among


@dataclass
class Elbo(Estimator):
    """Unbiased estimate of the any-order bound: the mean over orders of log p(row generated token by token in that order).

    samples: masks per row; counts: mask k of the F free positions, with k uniform and weight F / k. Otherwise each position
    is masked with probability t and weight 1 / t: the same mean, more variance. Times are stratified; antithetic: the last
    strata mirror the first, with complementary masks.
    """

    samples: int = 4
    counts: bool = True
    antithetic: bool = True

    def times(
        self, free: Bool[Tensor, "row position"], draws: Draws
    ) -> tuple[Float[Tensor, "view"], Float[Tensor, "view position"]]:
        """Draw one time per view, spread evenly over those of a row, and one key per position: keys below the time are
        masked.
        """
        drawn = uniforms(free, self.samples, draws)
        number = torch.arange(self.samples, device=free.device)
        if self.antithetic:
            mirrored = number >= (self.samples + 1) // 2
            drawn = torch.where(mirrored[:, None], 1 - drawn.flip(1), drawn)
        return ((number + drawn[..., 0]) / self.samples).flatten(), drawn[..., 1:].flatten(0, 1)

    def views(self, free, draws, unmasked_at=None):
        time, keys = self.times(free, draws)
        row = torch.arange(len(free), device=free.device).repeat_interleave(self.samples)
        among = free[row]
        if self.counts:
            total = among.sum(1)
            count = torch.minimum((time * total).ceil().long().clamp(min=1), total)
            masked, weight = lowest(keys, among, count), total / count.clamp(min=1)
        else:
            masked, weight = (keys < time.unsqueeze(1)) & among, 1 / time
        return Views(row, masked, masked, weight.float() / self.samples).with_something_to_read()


@dataclass
class MeanField(Estimator):
    """Mask all free positions at once: log p as if tokens were independent.

    prompt_mask: share of the prompt that is masked too, drawn anew for each of the samples (d1 regularises by it); 0 leaves
    one view.
    """

    samples: int = 1
    prompt_mask: float = 0.0

    def views(self, free, draws, unmasked_at=None):
        samples = self.samples if self.prompt_mask else 1
        row = torch.arange(len(free), device=free.device).repeat_interleave(samples)
        hidden = uniforms(free, samples, draws)[..., 1:].flatten(0, 1) < self.prompt_mask
        weight = torch.full((len(row),), 1 / samples, device=free.device)
        return Views(row, free[row] | hidden, free[row], weight)


@dataclass
class Coupled(Estimator):
    """Three masks with weight 1/3: all positions, a share t, and its complement. Every token is scored twice, once with
    other tokens visible.

    Weights are 1, 1 / t and 1 / (1 - t), with t uniform in [low, high]. The mean is a third of the mean field plus two
    thirds of the any-order bound with times restricted to that range. samples: number of pairs.
    """

    samples: int = 1
    low: float = 0.2
    high: float = 0.8

    def views(self, free, draws, unmasked_at=None):
        drawn = uniforms(free, self.samples, draws).flatten(0, 1)
        everything = torch.arange(len(free), device=free.device)
        row = everything.repeat_interleave(self.samples)
        time = self.low + (self.high - self.low) * drawn[:, 0]
        first = (drawn[:, 1:] < time.unsqueeze(1)) & free[row]
        second = free[row] & ~first
        masked = torch.cat((free, first, second))
        share = torch.cat((torch.ones(len(free), device=free.device), 1 / time / self.samples,
                           1 / (1 - time) / self.samples))  # fmt: skip
        return Views(torch.cat((everything, row, row)), masked, masked, share.float() / 3).with_something_to_read()


@dataclass
class ScoreEntropy(Elbo):
    """The bound of a score model by its own loss: -integral of sigma'(t) times the denoising score entropy, at `samples`
    noise levels.

    If the scores of a position do not add up to the value that the noise level requires, the difference is part of the
    estimate. noise: the schedule of the model's training.
    """

    noise: Noise = field(default_factory=LogLinearNoise)
    scores = True

    def views(self, free, draws, unmasked_at=None):
        time, keys = self.times(free, draws)
        sigma, rate = self.noise(time)
        row = torch.arange(len(free), device=free.device).repeat_interleave(self.samples)
        masked = (keys < -torch.expm1(-sigma).unsqueeze(1)) & free[row]
        weight = rate.float() / self.samples
        return Views(row, masked, masked, weight, sigma.float(), free[row].sum(1)).with_something_to_read()

    def term(self, log_normalizer, logit, sigma):
        """Return -(sum of scores - r log score(token) + r (log r - 1)), where r = 1 / (e^sigma - 1) is the exact score of
        the token.

        log_normalizer and logit are those of log-scores.
        """
        assert sigma is not None
        log_ratio = -torch.expm1(sigma).log()
        ratio = log_ratio.exp()
        return ratio * logit - log_normalizer.exp() - ratio * (log_ratio - 1)


@dataclass
class Sandwich(Elbo):
    """The ELBO; for rows to push down, mix * upper + (1 - mix) * ELBO.

    `upper` is the sum over positions of log(mean over views of weight * p(token)^beta) / beta. By Jensen it is above the
    ELBO on average over many views; on log p it is a bound up to a constant. Pushing the ELBO down may only make the bound
    worse, while pushing `upper` down makes the row less likely. The mean is inside a logarithm: biased low with few
    samples. Positions that no view masks add nothing.
    """

    beta: float = 1.0
    mix: float = 0.5

    def combine(self, terms, views, rows, push_down=None):
        lower = super().combine(terms, views, rows)
        if push_down is None or not bool(push_down.any()):
            return lower
        weighted = (self.beta * terms + views.weight.log().unsqueeze(1)).exp().masked_fill(~views.read, 0.0)
        total = torch.zeros_like(lower).index_add(0, views.row, weighted)
        seen = total > 0
        upper = torch.where(seen, total.masked_fill(~seen, 1.0).log() / self.beta, 0.0)
        return torch.where(push_down.unsqueeze(1), self.mix * upper + (1 - self.mix) * lower, lower)


@dataclass
class ReplayedTrajectory(Estimator):
    """Log-probability of the tokens of every step given the canvas of that step, at the sampler's temperature: one view
    per step.

    Exact for rules that choose positions without random draws from the model. The choice of a rule that ignores the model
    does not depend on the weights and cancels; that of a greedy rule does not change by a small step. steps: number of a
    row's n steps that are used, spread evenly from a random start, with weight n / steps (the same mean). None: all.
    """

    temperature: float | int = 1.0
    steps: int | None = None
    replays = True

    def views(self, free, draws, unmasked_at=None):
        assert unmasked_at is not None, "a trajectory is of rows that were sampled"
        steps = int(unmasked_at.max()) + 1
        wrote = torch.zeros(len(free), steps + 1, dtype=torch.bool, device=free.device)
        wrote.scatter_(1, torch.where(unmasked_at < 0, steps, unmasked_at), True)
        wrote = wrote[:, :steps]
        weight = torch.ones(len(free), device=free.device)
        if self.steps is not None:
            count, rows = wrote.sum(1), torch.arange(len(free), device=free.device)
            rate = (self.steps / count.clamp(min=1).double()).clamp(max=1.0)
            start = draws.uniform("mask", rows, torch.zeros_like(rows), 1)
            number = wrote.cumsum(1)  # of a step, among those of its row, from 1 on
            before, after = (((number - back) * rate.unsqueeze(1) - start).ceil() for back in (1, 0))
            wrote = wrote & ((after > before) | (rate == 1).unsqueeze(1))
            weight = (1 / rate).float()
        row, step = wrote.nonzero().unbind(1)
        when = unmasked_at[row]
        masked = free[row] & ((when >= step.unsqueeze(1)) | (when < 0))
        return Views(row, masked, when == step.unsqueeze(1), weight[row])


@dataclass
class Published(Estimator):
    """Degenerate estimator of SEDD-LaTeX-RLHF: always 0, with zero gradient. Kept as a baseline."""

    def views(self, free, draws, unmasked_at=None):
        nothing = torch.zeros_like(free[:0])
        return Views(torch.arange(0, device=free.device), nothing, nothing, torch.zeros(0, device=free.device))


ESTIMATORS = {
    "elbo": Elbo,
    "mean_field": MeanField,
    "coupled": Coupled,
    "score_entropy": ScoreEntropy,
    "sandwich": Sandwich,
    "trajectory": ReplayedTrajectory,
    "published": Published,
}


def check_estimator(estimator: Estimator, model: MaskedLM) -> None:
    """Refuse, before any work, a model that the estimator does not support: ValueError."""
    if model.causal:
        raise ValueError("a causal model has its likelihood in one evaluation, and no masks to estimate it by; train it "
                         "with another library, or give a masked model")  # fmt: skip
    if estimator.scores and not isinstance(model, SeddLM):
        raise ValueError(
            "score_entropy reads unnormalised scores, which SEDD has and this model has not (its probabilities are "
            "normalised); use elbo, of which it is then a special case"
        )


def terms(
    model: MaskedLM,
    estimator: Estimator,
    tokens: Int[Tensor, "row position"],
    views: Views,
    start: Int[Tensor, "row"] | None = None,
) -> Float[Tensor, "view position"]:
    """Return `term` at each scored token and 0 elsewhere, with a gradient.

    Logits exist for a chunk of positions at a time and are recomputed in the backward pass. start: column where each row
    begins behind its padding.
    """
    out = torch.zeros(views.masked.shape, device=tokens.device)
    if len(views) == 0:
        return out
    whole = tokens[views.row]
    canvas = whole.masked_fill(views.masked, model.mask_id)
    begins = None if start is None else start[views.row]
    input_sigma = sigma = None
    if views.sigma is not None:
        assert views.free is not None
        length = whole.shape[1] - (0 if begins is None else begins)
        always = (views.masked & ~views.read).sum(1)  # what is masked at every level
        share = (-torch.expm1(-views.sigma.double()) * views.free + always) / length
        input_sigma = model.sigma_of(share)
        sigma = views.sigma[views.read.nonzero()[:, 0]]
    hidden = model.hidden(canvas, views.read, input_sigma, begins)
    log_normalizer, logit = log_normalizer_and_logit(model, hidden, whole[views.read], estimator.temperature)
    if sigma is not None:
        scale = model.log_scale(sigma)
        log_normalizer, logit = log_normalizer + scale, logit + scale
    return out.masked_scatter(views.read, estimator.term(log_normalizer, logit, sigma))


@torch.no_grad()
def known_terms(
    model: MaskedLM,
    estimator: Estimator,
    tokens: Int[Tensor, "row position"],
    views: Views,
    chunk: int,
    start: Int[Tensor, "row"] | None = None,
) -> Float[Tensor, "view position"]:
    """Return `terms` without a gradient, `chunk` views at a time."""
    parts = torch.arange(len(views), device=tokens.device).split(chunk)
    found = [terms(model, estimator, tokens, views.take(part), start) for part in parts]
    return torch.cat(found) if found else terms(model, estimator, tokens, views, start)


def log_likelihood(
    model: MaskedLM,
    estimator: Estimator,
    tokens: Int[Tensor, "row position"],
    views: Views,
    chunk: int = 64,
    push_down: Bool[Tensor, "row"] | None = None,
    start: Int[Tensor, "row"] | None = None,
) -> Float[Tensor, "row position"]:
    """Return the estimate for each row, position by position, in nats, without a gradient. Its sum over a row estimates
    log p(row).
    """
    return estimator.combine(known_terms(model, estimator, tokens, views, chunk, start), views, len(tokens), push_down)
