"""Weighted particles: log weights as immutable values, and four resampling schemes.

Every scheme maps uniform numbers to ancestors, so that tests can enumerate its distribution. A particle of probability W
has K W children on average. Douc & Cappe (cs/0507025) compare the schemes. Everything is in log space and float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

Scheme = Callable[
    [Float64[Tensor, "filter particle"], Float64[Tensor, "filter particle"]], Int[Tensor, "filter particle"]
]
BELOW_ONE = 1 - 2.0**-53
RESAMPLE = ("ess", "every", "never")


@dataclass(frozen=True)
class Weights:
    """Log weights of the particles of many filters.

    log: of each particle since its filter last resampled; log_z: log of the product of the mean weights until then.
    """

    log: Float64[Tensor, "filter particle"]
    log_z: Float64[Tensor, "filter"]

    @classmethod
    def even(cls, filters: int, particles: int, device: torch.device) -> Weights:
        zeros = torch.zeros(filters, particles, dtype=torch.float64, device=device)
        return cls(zeros, zeros[:, 0].clone())

    def times(self, log_factor: Float64[Tensor, "filter particle"]) -> Weights:
        """Multiply the weights. A dead particle (log weight -inf) stays dead for every factor."""
        dead = self.log == -torch.inf
        return Weights((self.log + log_factor).masked_fill(dead, -torch.inf), self.log_z)

    @property
    def dead(self) -> Bool[Tensor, "filter"]:
        """Mark filters whose particles all have weight 0: their log Z is -inf."""
        return (self.log == -torch.inf).all(1)

    @property
    def probability(self) -> Float64[Tensor, "filter particle"]:
        """Return normalized weights; equal ones for a dead filter."""
        return self.log.masked_fill(self.dead.unsqueeze(1), 0.0).softmax(1)

    @property
    def effective(self) -> Float64[Tensor, "filter"]:
        """Return the effective sample size, 1 / sum W^2: from 1 to the number of particles; 0 for a dead filter."""
        return self.probability.square().sum(1).reciprocal().masked_fill(self.dead, 0.0)

    @property
    def log_normalizer(self) -> Float64[Tensor, "filter"]:
        """Return the estimate of log Z. Its exponential is unbiased."""
        return self.log_z + self.log.logsumexp(1) - math.log(self.log.shape[1])

    def resampled(self, chosen: Bool[Tensor, "filter"]) -> Weights:
        """Reset the weights of the chosen filters to equal ones, and move their mean into `log_z`."""
        return Weights(
            self.log.masked_fill(chosen.unsqueeze(1), 0.0), torch.where(chosen, self.log_normalizer, self.log_z)
        )

    def check(self, step: int) -> None:
        """Refuse weights that are NaN or +inf.

        Raises:
            FloatingPointError: names the step and the samples.
        """
        wrong = self.log.isnan() | (self.log == torch.inf)
        if bool(wrong.any()):
            samples = ", ".join(map(str, wrong.any(1).nonzero().squeeze(1).tolist()[:5]))
            raise FloatingPointError(
                f"step {step}: the log potential of {int(wrong.sum())} of {self.log.numel()} particles is NaN or +inf (sample "
                f"{samples}); check the twist or the reward on such text, take more particles, or temper the potential (a "
                "smaller beta)"
            )


def _pick(
    probability: Float64[Tensor, "filter particle"], uniforms: Float64[Tensor, "filter slot"]
) -> Int[Tensor, "filter slot"]:
    """Apply the inverse distribution function. Particles of probability 0 are never returned."""
    cumulative = probability.cumsum(1)
    cumulative = cumulative / cumulative[:, -1:]  # exactly 1 from the last particle that is alive on
    return torch.searchsorted(cumulative, uniforms.clamp(max=BELOW_ONE).contiguous(), right=True)


def _slots(probability: Float64[Tensor, "filter particle"]) -> Float64[Tensor, "particle"]:
    return torch.arange(probability.shape[1], dtype=torch.float64, device=probability.device)


def multinomial(probability, uniforms):
    """Draw every slot independently. Conditional filters need this scheme."""
    return _pick(probability, uniforms)


def stratified(probability, uniforms):
    """Draw one uniform number within each of K equal parts of [0, 1]."""
    return _pick(probability, (_slots(probability) + uniforms) / probability.shape[1])


def systematic(probability, uniforms):
    """Use one uniform number, the first of each filter, in all K parts."""
    return _pick(probability, (_slots(probability) + uniforms[:, :1]) / probability.shape[1])


def residual(probability, uniforms):
    """Give each particle floor(K W) children, and draw the remaining slots independently from the remaining weights."""
    expected = probability * probability.shape[1]
    certain = expected.floor().cumsum(1)
    slots = _slots(probability).expand_as(probability).contiguous()
    left = expected - expected.floor()
    left = torch.where(left.sum(1, keepdim=True) > 0, left, 1.0)  # no remaining weight: no slot uses it
    return torch.where(slots < certain[:, -1:], torch.searchsorted(certain, slots, right=True), _pick(left, uniforms))


SCHEMES: dict[str, Scheme] = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
}


def due(weights: Weights, resample: str) -> Bool[Tensor, "filter"]:
    """Mark filters that resample now: all, none, or those whose effective sample size is below half of their particles.
    Dead filters never resample.
    """
    if resample == "ess":
        return (weights.effective < weights.log.shape[1] / 2) & ~weights.dead
    return torch.full_like(weights.log_z, resample == "every", dtype=torch.bool) & ~weights.dead


def check_scheme(resample: str, scheme: str, conditional: bool) -> None:
    """Refuse unknown names, and a given path with a scheme whose draws are not independent: ValueError."""
    if resample not in RESAMPLE:
        raise ValueError(f"resample={resample!r} is unknown; use one of {', '.join(RESAMPLE)}")
    if scheme not in SCHEMES:
        raise ValueError(f"scheme={scheme!r} is unknown; use one of {', '.join(SCHEMES)}")
    if conditional and scheme != "multinomial":
        raise ValueError(
            f"a filter with a given path must draw every other ancestor independently, and {scheme} does not; use multinomial"
        )
