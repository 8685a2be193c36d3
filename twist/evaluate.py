"""An evaluation of a twist: F, G, the KL both ways, bounds on log Z from both sides, scores. One dictionary, as JSON takes it.

The protocol of Zhao et al. (2404.17546): F over samples of q, G over exact samples of the target, bounds by importance sampling
and by particle filters (multinomial where one particle is exact) at several numbers of particles, with the twisted proposal and
with the model's own; log Z is the midpoint of the closest pair at the largest number. Targets with a condition: each sample has
one of its own, everything is a mean over them, and log Z, which differs by nats from one to the next, is bounded for every exact
sample at PARTICLES_A_PAIR.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float64
from omegaconf import DictConfig
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
from twist.source import PROPOSALS, Source

ROWS = 500  # that are swept or read at a time, at least: more where a sweep has more particles
PARTICLES_A_PAIR = 32  # at most, for log Z over all exact pairs: the mean is over thousands of them


@dataclass(frozen=True)
class Weighed:
    """Rows of a sweep, as `Swept` has them; log_q_over_p: of rows that were not resampled."""

    path: Trajectories
    log_weight: Float64[Tensor, "row"]
    log_phi: Float64[Tensor, "row"]
    log_q_over_p: Float64[Tensor, "row"]
    log_z: Float64[Tensor, "filter"]


def potentials(source: Source, path: Trajectories, given: Tensor | None) -> Float64[Tensor, "row"]:
    """log phi of each row, -inf where phi is 0. FloatingPointError where it is no number."""
    log_phi = source.target.log_phi(path.tokens, given).double()
    if not bool((log_phi < torch.inf).all()):  # +inf or NaN
        source.log_phi(path.tokens, given)  # says which, and stops
    return log_phi


def weighed(
    source: Source, samples: int, particles: int, seed: int, given: Tensor | None = None, first_sample: int = 0,
    proposal: str = "twist", resample: str = "never", exact: Trajectories | None = None,
) -> Weighed:  # fmt: skip
    """A sweep, of which a sample whose every particle ends with potential 0 has log Z = -inf: that is what it says of Z, and a
    mean over samples has to hold it."""
    swept = source.sweep(samples, particles, seed, given, first_sample, proposal, resample, exact, scored=False)
    log_phi = potentials(source, swept.path, None if given is None else given.repeat_interleave(particles, 0))
    log_weight = swept.log_weight + log_phi
    unscored, scored = (log_mean_weight(log.view(samples, particles)) for log in (swept.log_weight, log_weight))
    return Weighed(swept.path, log_weight, log_phi, -swept.log_weight, swept.log_z - unscored + scored)


@torch.no_grad()
def exact_log_weights(source: Source, posterior: Posterior) -> Float64[Tensor, "sample"]:
    """log p phi / q of exact samples."""
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
    """(log p phi / q, log phi, log q / p) of samples of q, each with a condition of its own where there are conditions.

    FloatingPointError where all have potential 0."""
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
        source.log_phi(parts[-1].path.tokens, given)  # says so, and stops
    return weights, log_phi, log_q_over_p


def sandwich(
    source: Source, posterior: Posterior | None, particles: int, sweeps: int, proposal: str, resampling: bool, seed: int
) -> dict[str, Bounds]:
    """Bounds by importance sampling (`iwae`) and, where the twist says something of prefixes, by particle filters (`smc`).

    Each sweep has an exact sample of its own where there are any, and what that one is conditioned on."""
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
    """By importance sampling, on log Z of what each exact sample is conditioned on, by a few particles."""
    few = min(particles, PARTICLES_A_PAIR)
    return sandwich(source, posterior, few, len(posterior), "twist", False, seed)["iwae"]


def pairs_of(found: dict[str, Bounds], source: Source, posterior: Posterior, config: DictConfig, seed: int) -> Bounds:
    """On log Z of what each exact sample is conditioned on. found: bounds of `eval.sweeps` sweeps at the most particles, which
    serve where every exact sample has one."""
    if config.sweeps < len(posterior):
        return bounds_of_pairs(source, posterior, max(config.particles), seed)
    return found[closest(found) or "iwae"].of_each(len(posterior))


def evaluate(source: Source, posterior: Posterior | None, config: DictConfig, method: str, seed: int) -> dict:
    """One record. config: of the evaluation (`eval`); method: of the twist, which says whether particles may be resampled;
    posterior: exact samples, None where there are none (beta is not 1)."""
    resampling = method not in PROPOSAL_ONLY
    weights, log_phi, log_q_over_p = proposal_samples(source, config.samples, seed)
    f, beta = Estimate.of(weights), source.target.beta or 1.0
    record: dict = {
        "f": asdict(f), "log_phi": asdict(Estimate.of(log_phi)), "score": asdict(Estimate.of(log_phi / beta)),
        "kl_q_p": asdict(Estimate.of(log_q_over_p)), "bounds": [],
    }  # fmt: skip
    midpoints: dict[str, Bounds] = {}
    for proposal in PROPOSALS:
        for particles in config.particles:
            found = sandwich(source, posterior, particles, config.sweeps, proposal, resampling, seed)
            for kind, bounds in found.items():
                sides = {"lower": bounds.lower, "upper": bounds.upper}
                measured = {side: None if x is None else asdict(Estimate.of(x)) for side, x in sides.items()}
                record["bounds"].append({"proposal": proposal, "kind": kind, "particles": particles, **measured})
            if proposal == "twist" and particles == max(config.particles):
                midpoints = found
    if posterior is not None and source.conditional:
        pairs = pairs_of(midpoints, source, posterior, config, seed)
        midpoints = {"pairs": pairs}
        parts = {"lower": pairs.lower, "upper": pairs.upper, "midpoint": pairs.midpoints}
        record["log_z_pairs"] = {name: asdict(Estimate.of(values)) for name, values in parts.items()}
    by = closest(midpoints) if config.log_z is None else "given"
    if by is None:
        record |= {"log_z": None, "log_z_by": None, "log_z_error": None}
    elif by == "given":
        record |= {"log_z": config.log_z, "log_z_by": by, "log_z_error": 0.0}
    else:
        record |= {"log_z": midpoints[by].midpoint, "log_z_by": by, "log_z_error": midpoints[by].error}
    if posterior is None:
        return record
    of_exact = exact_log_weights(source, posterior)
    g = Estimate.of(of_exact)
    record["g"] = asdict(g)
    if by is None:
        return record
    forward, backward = kl_both_ways(f, g, record["log_z"])
    if by == "pairs":  # F is over other conditions than log Z, G over the same
        pairs = midpoints[by]
        unknown = abs(pairs.gap) / 2  # log Z is anywhere between the bounds, which may cross
        forward = difference(Estimate.of(pairs.midpoints), f).wider(unknown)
        backward = Estimate.of(of_exact - pairs.midpoints).wider(unknown)
    return record | {"kl_q_sigma": asdict(forward), "kl_sigma_q": asdict(backward)}


def figures(record: dict) -> dict[str, float]:
    """Of a record, what metrics.jsonl and the terminal are told: what is finite of it."""
    told = {
        name: record[name]["value"]
        for name in ("kl_q_sigma", "kl_sigma_q", "f", "g", "log_phi", "score", "kl_q_p")
        if name in record and math.isfinite(record[name]["value"])
    }
    return {f"eval_{name}": value for name, value in told.items()} | (
        {} if record["log_z"] is None else {"eval_log_z": record["log_z"]}
    )
