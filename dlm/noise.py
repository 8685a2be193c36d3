"""Noise schedules of absorbing diffusion: the share of masked tokens at time t in [0, 1].

A token is masked at time t with probability 1 - exp(-sigma(t)), where sigma(t) is the total noise. Log-linear and geometric
schedules, as in SEDD (2310.16834) and RADD (2406.03736).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LogLinearNoise:
    """1 - exp(-sigma(t)) = (1 - eps) t: the masked share grows linearly."""

    eps: float = 1e-3

    def __call__(self, t: Float[Tensor, "*batch"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Return (sigma, d sigma / d t), both in nats."""
        return -torch.log1p(-(1 - self.eps) * t), (1 - self.eps) / (1 - (1 - self.eps) * t)


@dataclass(frozen=True)
class GeometricNoise:
    """sigma(t) = sigma_min^(1-t) sigma_max^t."""

    sigma_min: float | int = 1e-4
    sigma_max: float | int = 20

    def __call__(self, t: Float[Tensor, "*batch"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Return (sigma, d sigma / d t), both in nats."""
        sigma = self.sigma_min ** (1 - t) * self.sigma_max**t
        return sigma, sigma * math.log(self.sigma_max / self.sigma_min)


Noise = LogLinearNoise | GeometricNoise


def build_noise(config: dict) -> Noise:
    """Build the schedule of the published `noise` section: `type` loglinear or geometric, with `sigma_min` and `sigma_max`
    for the latter.
    """
    if config["type"] == "loglinear":
        return LogLinearNoise()
    if config["type"] == "geometric":
        low, high = config["sigma_min"], config["sigma_max"]
        if not 0 < low < high < math.inf:
            raise ValueError(
                f"noise.sigma_min={low} and noise.sigma_max={high} are no range; set 0 < sigma_min < sigma_max"
            )
        return GeometricNoise(low, high)
    raise ValueError(f"noise.type={config['type']!r} is unknown; use 'loglinear' or 'geometric'")


def reveal_rate(noise: Noise, t: float, s: float) -> float:
    """Return the probability that a token masked at time t is revealed by time s < t (the Tweedie rate).

    (e^-sigma(s) - e^-sigma(t)) / (1 - e^-sigma(t)); (t - s) / t on the log-linear schedule, where Euler's rate is the same.
    """
    if s <= 0:
        return 1.0
    sigma_s, sigma_t = noise(torch.tensor([s, t], dtype=torch.float64))[0]
    return float((torch.exp(-sigma_s) - torch.exp(-sigma_t)) / -torch.expm1(-sigma_t))
