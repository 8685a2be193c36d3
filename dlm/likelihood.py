"""Log-likelihood of finished rows under a masked model, estimated: one interface, six estimators.

A masked model has no cheap likelihood of a text, so reinforcement learning and preference learning need an estimate whose
gradient they can follow. Every estimator masks finished rows in some ways (`Views`), scores tokens on these canvases (`term`),
and adds what was scored up to one number for each position (`combine`), whose sum over a row is the estimate:

    elbo           E over masks of the any-order bound, the ELBO (2410.17891, 2502.09992), times or counts spread evenly
    mean_field     everything masked at once, one evaluation (d1, 2504.12216)
    coupled        everything masked, and two masks that complete each other (DiffuCoder, 2506.20639)
    score_entropy  the bound of score models by their own loss, at several noise levels (SEDD, 2310.16834)
    sandwich       the ELBO for rows to make likelier, an upper estimate for rows to make less likely (SPG, 2510.09541)
    trajectory     the tokens of each step as they were sampled, given the canvas of that step (TraceRL, 2509.06949)
    published      what SEDD-LaTeX-RLHF computes: the score entropy of a finished row, of which nothing is masked: 0, no gradient

The masks are drawn once (`views`) and passed on, so that new, old and reference model are compared on the same canvases. What
differs from the papers: masks have exactly k tokens by default (the same mean, less variance), and antithetic pairs are
complements. Which quantity each one estimates: docs/likelihood.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.masked_lm import MaskedLM, mass_and_logit
from dlm.noise import LogLinearNoise, Noise


@dataclass
class Views:
    """N canvases made of finished rows. row: of which; masked: what is masked; read: where tokens are scored; weight: of what is
    scored there; sigma: the noise level of what may be masked (None: that of the share which is), free: how many positions that
    is. The model is told the level at which as much of the whole canvas is masked, as in training."""

    row: Int[Tensor, "view"]
    masked: Bool[Tensor, "view position"]
    read: Bool[Tensor, "view position"]
    weight: Float[Tensor, "view"]
    sigma: Float[Tensor, "view"] | None = None
    free: Int[Tensor, "view"] | None = None

    def __len__(self) -> int:
        return len(self.row)

    def take(self, index: Int[Tensor, "kept"]) -> Views:
        """Those views."""
        sigma, free = (None if x is None else x[index] for x in (self.sigma, self.free))
        return Views(self.row[index], self.masked[index], self.read[index], self.weight[index], sigma, free)

    def with_something_to_read(self) -> Views:
        """Views that score no token cost no evaluation."""
        return self.take(self.read.any(1).nonzero().squeeze(1))


class Estimator:
    """The contract. A subclass gives `views` and, where it is more than a weighted sum of log-probabilities, the other two."""

    scores = False  # whether it reads unnormalised scores, which score models have
    replays = False  # whether it reads every token at the step at which it was drawn
    temperature: float | int = 1.0  # of the tokens

    def views(
        self, free: Bool[Tensor, "row position"], draws: Draws, written_at: Int[Tensor, "row position"] | None = None
    ) -> Views:
        """free: positions behind the prompt, which may be masked; draws: of the masks, a row's a function of its number;
        written_at: the step at which each position was sampled (-1: it was not)."""
        raise NotImplementedError

    def term(
        self, mass: Float[Tensor, "read"], logit: Float[Tensor, "read"], sigma: Float[Tensor, "read"] | None
    ) -> Float[Tensor, "read"]:
        """What each token read adds before it is weighted: log p(token | canvas). mass: logsumexp of the logits there."""
        return logit - mass

    def combine(
        self,
        terms: Float[Tensor, "view position"],
        views: Views,
        rows: int,
        push_down: Bool[Tensor, "row"] | None = None,
    ) -> Float[Tensor, "row position"]:
        """The estimate, position by position. push_down: rows that are to become less likely; only `sandwich` asks."""
        weighted = (terms * views.weight.unsqueeze(1)).masked_fill(~views.read, 0.0)
        return terms.new_zeros(rows, terms.shape[1]).index_add(0, views.row, weighted)


def uniforms(free: Bool[Tensor, "row position"], samples: int, draws: Draws) -> Float[Tensor, "row sample column"]:
    """Numbers in (0, 1): the first column for a time, the others for positions."""
    rows, length = free.shape
    row = torch.arange(rows, device=free.device).repeat_interleave(samples)
    sample = torch.arange(samples, device=free.device).repeat(rows)
    return draws.uniform("mask", row, sample, length + 1).view(rows, samples, length + 1)


def lowest(
    keys: Float[Tensor, "view position"], among: Bool[Tensor, "view position"], count: Int[Tensor, "view"]
) -> Bool[Tensor, "view position"]:
    """The `count` positions of the lowest keys `among` them."""
    return (keys.masked_fill(~among, 2.0).argsort(1).argsort(1) < count.unsqueeze(1)) & among


@dataclass
class Elbo(Estimator):
    """Unbiased for the any-order bound: the mean over orders of log p(row written one by one in that order).

    samples: masks of a row. counts: k of the F free positions are masked, k uniform, weight F / k; else each with probability
    t, weight 1 / t: the same mean, more variance. Times are stratified; antithetic: the last strata mirror the first, with
    the complement of their masks.
    """

    samples: int = 4
    counts: bool = True
    antithetic: bool = True

    def times(
        self, free: Bool[Tensor, "row position"], draws: Draws
    ) -> tuple[Float[Tensor, "view"], Float[Tensor, "view position"]]:
        """One time a view, spread evenly over a row's, and one key a position: those below the time are masked."""
        drawn = uniforms(free, self.samples, draws)
        number = torch.arange(self.samples, device=free.device)
        if self.antithetic:
            mirrored = number >= (self.samples + 1) // 2
            drawn = torch.where(mirrored[:, None], 1 - drawn.flip(1), drawn)
        return ((number + drawn[..., 0]) / self.samples).flatten(), drawn[..., 1:].flatten(0, 1)

    def views(self, free, draws, written_at=None):
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
    """All free positions masked at once: log p as if they did not depend on each other. prompt_mask: share of the prompt that is
    masked too, drawn anew for each of the samples (d1 regularises by it); 0 leaves one view."""

    samples: int = 1
    prompt_mask: float = 0.0

    def views(self, free, draws, written_at=None):
        samples = self.samples if self.prompt_mask else 1
        row = torch.arange(len(free), device=free.device).repeat_interleave(samples)
        hidden = uniforms(free, samples, draws)[..., 1:].flatten(0, 1) < self.prompt_mask
        weight = torch.full((len(row),), 1 / samples, device=free.device)
        return Views(row, free[row] | hidden, free[row], weight)


@dataclass
class Coupled(Estimator):
    """A third each of: all masked (mean field), a mask of share t, and its complement; so every token is read twice, once with
    others beside it. Weights 1, 1 / t, 1 / (1 - t), t uniform in [low, high]: on average a third of the mean field and two
    thirds of the any-order bound with its times cut to that range. samples: pairs."""

    samples: int = 1
    low: float = 0.2
    high: float = 0.8

    def views(self, free, draws, written_at=None):
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
    """The bound of a score model by its own loss: -integral of sigma'(t) times the denoising score entropy, at `samples` noise
    levels. The scores of a position need not add up to what the noise level says, and the difference is charged. noise: the
    schedule that the model was trained with."""

    noise: Noise = field(default_factory=LogLinearNoise)
    scores = True

    def views(self, free, draws, written_at=None):
        time, keys = self.times(free, draws)
        sigma, rate = self.noise(time)
        row = torch.arange(len(free), device=free.device).repeat_interleave(self.samples)
        masked = (keys < -torch.expm1(-sigma).unsqueeze(1)) & free[row]
        weight = rate.float() / self.samples
        return Views(row, masked, masked, weight, sigma.float(), free[row].sum(1)).with_something_to_read()

    def term(self, mass, logit, sigma):
        """-(sum of scores - r log score(token) + r (log r - 1)), r = 1 / (e^sigma - 1) the true score of the token. mass and
        logit are of log-scores."""
        assert sigma is not None
        log_ratio = -torch.expm1(sigma).log()
        ratio = log_ratio.exp()
        return ratio * logit - mass.exp() - ratio * (log_ratio - 1)


@dataclass
class Sandwich(Elbo):
    """The ELBO, or, for rows to push down, mix * upper + (1 - mix) * ELBO with upper the sum over positions of
    log(mean over views of weight * p(token)^beta) / beta, which is above the ELBO on average over many views (Jensen; on log p it
    is a bound up to a constant). Pushing an ELBO down may only make the bound worse; pushing `upper` down makes the row less
    likely. The mean stands inside a logarithm: biased low with few samples. A position that no view masks adds nothing."""

    beta: float = 1.0
    mix: float = 0.5

    def combine(self, terms, views, rows, push_down=None):
        lower = super().combine(terms, views, rows)
        if push_down is None or not bool(push_down.any()):
            return lower
        masses = (self.beta * terms + views.weight.log().unsqueeze(1)).exp().masked_fill(~views.read, 0.0)
        total = torch.zeros_like(lower).index_add(0, views.row, masses)
        seen = total > 0
        upper = torch.where(seen, total.masked_fill(~seen, 1.0).log() / self.beta, 0.0)
        return torch.where(push_down.unsqueeze(1), self.mix * upper + (1 - self.mix) * lower, lower)


@dataclass
class ReplayedTrajectory(Estimator):
    """log-probability of the tokens of every step given the canvas that they were drawn on, one view for each step of a row, at
    the temperature of the sampler. Exact for rules that choose positions without drawing from the model: a blind rule's
    choice does not depend on the weights and cancels, a greedy one's does not change by a small step. steps: of a row's n
    steps, that many are read, spread evenly from a random start, and weigh n / steps: the same mean; None reads all."""

    temperature: float | int = 1.0
    steps: int | None = None
    replays = True

    def views(self, free, draws, written_at=None):
        assert written_at is not None, "a trajectory is of rows that were sampled"
        steps = int(written_at.max()) + 1
        wrote = torch.zeros(len(free), steps + 1, dtype=torch.bool, device=free.device)
        wrote.scatter_(1, torch.where(written_at < 0, steps, written_at), True)
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
        when = written_at[row]
        masked = free[row] & ((when >= step.unsqueeze(1)) | (when < 0))
        return Views(row, masked, when == step.unsqueeze(1), weight[row])


@dataclass
class Published(Estimator):
    """Nothing of a finished row is masked, so nothing is read: 0, with no gradient. To be compared with."""

    def views(self, free, draws, written_at=None):
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
    """Refuse, before any work, a model that the estimator cannot read. Raises ValueError."""
    if model.causal:
        raise ValueError("a causal model has its likelihood in one evaluation, and no masks to estimate it by; train it "
                         "with another library, or give a masked model")  # fmt: skip
    if estimator.scores and not hasattr(model, "log_scale"):
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
    """`term` of each token read, 0 elsewhere. Logits exist for a chunk of positions at a time, with a gradient too: they are
    made again for it. start: where each row begins behind its padding."""
    out = torch.zeros(views.masked.shape, device=tokens.device)
    if len(views) == 0:
        return out
    whole = tokens[views.row]
    canvas = whole.masked_fill(views.masked, model.mask_id)
    begins = None if start is None else start[views.row]
    told = sigma = None
    if views.sigma is not None:
        assert views.free is not None
        length = whole.shape[1] - (0 if begins is None else begins)
        always = (views.masked & ~views.read).sum(1)  # what is masked at every level
        share = (-torch.expm1(-views.sigma.double()) * views.free + always) / length
        told = model.sigma_of(share)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        sigma = views.sigma[views.read.nonzero()[:, 0]]
    hidden = model.hidden(canvas, views.read, told, begins)
    mass, logit = mass_and_logit(model, hidden, whole[views.read], estimator.temperature)
    if sigma is not None:
        scale = model.log_scale(sigma)  # pyright: ignore[reportCallIssue]
        mass, logit = mass + scale, logit + scale
    return out.masked_scatter(views.read, estimator.term(mass, logit, sigma))


@torch.no_grad()
def known_terms(
    model: MaskedLM,
    estimator: Estimator,
    tokens: Int[Tensor, "row position"],
    views: Views,
    chunk: int,
    start: Int[Tensor, "row"] | None = None,
) -> Float[Tensor, "view position"]:
    """`terms` without a gradient, `chunk` views at a time."""
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
    """The estimate for each row, position by position, without a gradient: nats. Its sum over a row is that of log p(row)."""
    return estimator.combine(known_terms(model, estimator, tokens, views, chunk, start), views, len(tokens), push_down)
