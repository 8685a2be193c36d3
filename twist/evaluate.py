"""An evaluation of a twist: F, G, the KL divergence both ways, bounds on log Z from both sides, scores. The result is a
JSON dictionary.

The protocol of Zhao et al. (2404.17546): F over samples of q, G over exact samples of the target, bounds by importance
sampling and by particle filters (multinomial with an exact particle) at several numbers of particles, with the twisted
proposal and with the model's own. log Z is the midpoint of the closest pair of bounds at the largest number. For targets
with a condition each sample has its own condition and everything is a mean over them. log Z differs by nats between
conditions, so it is bounded for every exact sample, with PARTICLES_A_PAIR particles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from samplers.smc import Trajectories
from twist.bounds import (
    Bounds,
    Estimate,
    Posterior,
    closest,
    difference,
    importance_bounds,
    kl_both_ways,
    log_mean_weight,
)
from twist.objectives import PROPOSAL_ONLY, final_log_weight
from twist.paths import path_densities, rows_of
from twist.settings import TwistEvalSettings
from twist.source import PROPOSALS, Source

ROWS = 500  # that are swept or read at a time, at least: more where a sweep has more particles
PARTICLES_A_PAIR = 32  # at most, for log Z over all exact pairs: the mean is over thousands of them


@dataclass(frozen=True)
class Weighed:
    """Rows of a particle filter, as in `Swept`; log_q_over_p: of rows that were not resampled."""

    path: Trajectories
    log_weight: Float64[Tensor, "row"]
    log_phi: Float64[Tensor, "row"]
    log_q_over_p: Float64[Tensor, "row"]
    log_z: Float64[Tensor, "filter"]


def potentials(source: Source, path: Trajectories, given: Tensor | None) -> Float64[Tensor, "row"]:
    """Return log phi of each row, -inf where phi is 0. FloatingPointError if it is NaN."""
    log_phi = source.target.log_phi(path.tokens, given).double()
    if not bool((log_phi < torch.inf).all()):  # +inf or NaN
        source.log_phi(path.tokens, given)  # raises, and names the rows
    return log_phi


def weighed(
    source: Source, samples: int, particles: int, seed: int, given: Tensor | None = None, first_sample: int = 0,
    proposal: str = "twist", resample: str = "never", exact: Trajectories | None = None,
) -> Weighed:  # fmt: skip
    """Run a particle filter. A sample whose particles all end with potential 0 has log Z = -inf, and means over samples
    include it.
    """
    swept = source.sweep(samples, particles, seed, given, first_sample, proposal, resample, exact, scored=False)
    log_phi = potentials(source, swept.path, None if given is None else given.repeat_interleave(particles, 0))
    log_weight = swept.log_weight + log_phi
    unscored, scored = (log_mean_weight(log.view(samples, particles)) for log in (swept.log_weight, log_weight))
    return Weighed(swept.path, log_weight, log_phi, -swept.log_weight, swept.log_z - unscored + scored)


@torch.no_grad()
def exact_log_weights(source: Source, posterior: Posterior) -> Float64[Tensor, "sample"]:
    """Return log p phi / q of exact samples."""
    found = []
    for start in range(0, len(posterior), ROWS):
        path, given = source.exact(posterior.rows(slice(start, start + ROWS)))
        condition = None if given is None else source.twist.encode(given)
        seen = path_densities(source.twist, path, source.length, condition)
        log_phi = potentials(source, path, given)
        found.append(final_log_weight(seen.log_p.double(), seen.log_q.double(), log_phi))
    return torch.cat(found)


def proposal_samples(
    source: Source, count: int, seed: int
) -> tuple[Float64[Tensor, "sample"], Float64[Tensor, "sample"], Float64[Tensor, "sample"]]:
    """Return (log p phi / q, log phi, log q / p) of samples of q, each with its own condition if there are conditions.

    Raises:
        FloatingPointError: all samples have potential 0.
    """
    parts: list[Weighed] = []
    rows = min(ROWS, count)  # of every part, so that particles of one are not those of another; the last one is cut
    given = None
    for start in range(0, count, rows):
        if source.conditional:
            _, given = source.pairs(rows, seed + 1, start)
            parts.append(weighed(source, rows, 1, seed, given, start))
        else:
            parts.append(weighed(source, 1, rows, seed, None, start // rows))
    weights, log_phi, log_q_over_p = (
        torch.cat([getattr(part, name) for part in parts])[:count] for name in ("log_weight", "log_phi", "log_q_over_p")
    )
    if bool((log_phi == -torch.inf).all()):
        source.log_phi(parts[-1].path.tokens, given)  # raises
    return weights, log_phi, log_q_over_p


def sandwich(
    source: Source, posterior: Posterior | None, particles: int, sweeps: int, proposal: str, resampling: bool, seed: int
) -> dict[str, Bounds]:
    """Return bounds by importance sampling (`iwae`) and, if the twist may be used for resampling, by particle filters
    (`smc`).

    Each repetition has its own exact sample and condition, if there are any.
    """
    exact = given = None
    if posterior is not None:
        exact, given = source.exact(posterior.rows(torch.arange(sweeps) % len(posterior)))
    elif source.conditional:
        _, given = source.pairs(sweeps, seed + 2)
    at_once, lower, upper, smc_lower, smc_upper = max(1, ROWS // particles), [], [], [], []
    for start in range(0, sweeps, at_once):
        rows = min(at_once, sweeps - start)
        part = slice(start, start + rows)
        own, pinned = None if given is None else given[part], None if exact is None else rows_of(exact, part)
        free = weighed(source, rows, particles, seed + 3, own, start, proposal)
        lower.append(free.log_weight.view(rows, particles))
        if pinned is not None:
            follows = weighed(source, rows, 1, seed + 4, own, start, proposal, exact=pinned)
            upper.append(follows.log_weight)
        if resampling:
            smc_lower.append(weighed(source, rows, particles, seed + 5, own, start, proposal, "every").log_z)
            if pinned is not None:
                smc_upper.append(
                    weighed(source, rows, particles, seed + 6, own, start, proposal, "every", pinned).log_z
                )
    found = {"iwae": importance_bounds(torch.cat(lower), torch.cat(upper) if upper else None)}
    if resampling:
        found["smc"] = Bounds(torch.cat(smc_lower), torch.cat(smc_upper) if smc_upper else None)
    return found


def bounds_of_pairs(source: Source, posterior: Posterior, particles: int, seed: int) -> Bounds:
    """Bound log Z of the condition of each exact sample by importance sampling with few particles."""
    few = min(particles, PARTICLES_A_PAIR)
    return sandwich(source, posterior, few, len(posterior), "twist", False, seed)["iwae"]


def pairs_of(
    found: dict[str, Bounds], source: Source, posterior: Posterior, config: TwistEvalSettings, seed: int
) -> Bounds:
    """Return bounds on log Z of the condition of each exact sample.

    Args:
        found: bounds of `eval.sweeps` repetitions at the largest number of particles, which are used if every exact sample
            has one.
    """
    if config.sweeps < len(posterior):
        return bounds_of_pairs(source, posterior, max(config.particles), seed)
    return found[closest(found) or "iwae"].of_each(len(posterior))


def measured_bounds(
    source: Source, posterior: Posterior | None, numbers: Sequence[int], sweeps: int, resampling: bool, seed: int
) -> tuple[list[dict], dict[str, Bounds]]:
    """Bound log Z for each proposal and each number of particles. Return the bounds as a record lists them, and those of the
    twisted proposal at the largest number.
    """
    record: list[dict] = []
    best: dict[str, Bounds] = {}
    for proposal in PROPOSALS:
        for particles in numbers:
            found = sandwich(source, posterior, particles, sweeps, proposal, resampling, seed)
            for kind, bounds in found.items():
                sides = {"lower": bounds.lower, "upper": bounds.upper}
                measured = {side: None if x is None else asdict(Estimate.of(x)) for side, x in sides.items()}
                record.append({"proposal": proposal, "kind": kind, "particles": particles, **measured})
            if proposal == "twist" and particles == max(numbers):
                best = found
    return record, best


def log_z_record(midpoints: dict[str, Bounds], by: str | None, given: float | None) -> dict:
    """Return log Z, its source and its error. by: a key of `midpoints`, `given`, or None if log Z is unknown."""
    if by is None:
        return {"log_z": None, "log_z_by": None, "log_z_error": None}
    if by == "given":
        return {"log_z": given, "log_z_by": by, "log_z_error": 0.0}
    return {"log_z": midpoints[by].midpoint, "log_z_by": by, "log_z_error": midpoints[by].error}


def kl_record(f: Estimate, of_exact: Tensor, log_z: float, pairs: Bounds | None) -> dict:
    """Return the KL divergences in both directions. pairs: bounds on log Z of the condition of each exact sample; None
    without conditions.
    """
    forward, backward = kl_both_ways(f, Estimate.of(of_exact), log_z)
    if pairs is not None:  # F is over other conditions than log Z, G over the same
        unknown = abs(pairs.gap) / 2  # log Z is anywhere between the bounds, which may cross
        forward = difference(Estimate.of(pairs.midpoints), f).wider(unknown)
        backward = Estimate.of(of_exact - pairs.midpoints).wider(unknown)
    return {"kl_q_sigma": asdict(forward), "kl_sigma_q": asdict(backward)}


def evaluate(source: Source, posterior: Posterior | None, config: TwistEvalSettings, method: str, seed: int) -> dict:
    """Evaluate a twist and return one record.

    Args:
        config: of the evaluation (`eval`).
        method: of the twist; it decides whether particles may be resampled.
        posterior: exact samples; None if there are none (beta is not 1).
    """
    weights, log_phi, log_q_over_p = proposal_samples(source, config.samples, seed)
    f, beta = Estimate.of(weights), source.target.beta or 1.0
    resampling = method not in PROPOSAL_ONLY
    bounds, midpoints = measured_bounds(source, posterior, config.particles, config.sweeps, resampling, seed)
    record: dict = {
        "f": asdict(f), "log_phi": asdict(Estimate.of(log_phi)), "score": asdict(Estimate.of(log_phi / beta)),
        "kl_q_p": asdict(Estimate.of(log_q_over_p)), "bounds": bounds,
    }  # fmt: skip
    if posterior is not None and source.conditional:
        pairs = pairs_of(midpoints, source, posterior, config, seed)
        midpoints = {"pairs": pairs}
        parts = {"lower": pairs.lower, "upper": pairs.upper, "midpoint": pairs.midpoints}
        record["log_z_pairs"] = {name: asdict(Estimate.of(values)) for name, values in parts.items()}
    by = closest(midpoints) if config.log_z is None else "given"
    record |= log_z_record(midpoints, by, config.log_z)
    if posterior is None:
        return record
    of_exact = exact_log_weights(source, posterior)
    record["g"] = asdict(Estimate.of(of_exact))
    if by is None:
        return record
    return record | kl_record(f, of_exact, record["log_z"], midpoints["pairs"] if by == "pairs" else None)


def figures(record: dict) -> dict[str, float]:
    """Return the finite figures of a record, for metrics.jsonl and the terminal."""
    report = {
        name: record[name]["value"]
        for name in ("kl_q_sigma", "kl_sigma_q", "f", "g", "log_phi", "score", "kl_q_p")
        if name in record and math.isfinite(record[name]["value"])
    }
    return {f"eval_{name}": value for name, value in report.items()} | (
        {} if record["log_z"] is None else {"eval_log_z": record["log_z"]}
    )
