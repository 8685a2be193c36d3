"""An evaluation of a twist: F, G, the KL both ways, bounds on log Z from both sides, scores. One dictionary, as JSON takes it.

The protocol of Zhao et al. (2404.17546): F over samples of q, G over exact samples of the target, bounds by importance sampling
and by particle filters (multinomial where one particle is exact) at several numbers of particles, with the twisted proposal and
with the model's own; log Z is the midpoint of the closest pair at the largest number. Targets with a condition: each sample has
one of its own, everything is a mean over them, and log Z, which differs by nats from one to the next, is bounded for every exact
sample at PARTICLES_A_PAIR.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from jaxtyping import Float64
from omegaconf import DictConfig
from torch import Tensor

from twist.bounds import Bounds, Estimate, Posterior, closest, difference, importance_bounds, kl_both_ways
from twist.learning import PROPOSAL_ONLY, final_log_weight
from twist.paths import path_densities, rows_of
from twist.sweeps import PROPOSALS, Source

ROWS = 500  # that are swept or read at a time, at least: more where a sweep has more particles
PARTICLES_A_PAIR = 32  # at most, for log Z over all exact pairs: the mean is over thousands of them


@torch.no_grad()
def exact_log_weights(source: Source, posterior: Posterior) -> Float64[Tensor, "sample"]:
    """log p phi / q of exact samples."""
    found = []
    for start in range(0, len(posterior), ROWS):
        path, given = source.exact(posterior.rows(slice(start, start + ROWS)))
        condition = None if given is None else source.twist.encode(given)
        seen = path_densities(source.twist, path, source.length, condition)
        log_phi = source.log_phi(path.tokens, given)
        found.append(final_log_weight(seen.log_p.double(), seen.log_q.double(), log_phi.double()))
    return torch.cat(found)


def proposal_samples(
    source: Source, count: int, seed: int
) -> tuple[Float64[Tensor, "sample"], Float64[Tensor, "sample"]]:
    """(log p phi / q, log phi) of samples of q, each with a condition of its own where there are conditions."""
    weights, potentials = [], []
    rows = min(ROWS, count)  # of every part, so that particles of one are not those of another; the last one is cut
    for start in range(0, count, rows):
        if source.conditional:
            _, given = source.pairs(rows, seed + 1, start)
            swept = source.sweep(rows, 1, seed, given, start)
        else:
            swept = source.sweep(1, rows, seed, None, start // rows)
        weights.append(swept.log_weight)
        potentials.append(swept.log_phi)
    return torch.cat(weights)[:count], torch.cat(potentials)[:count]


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
        free = source.sweep(rows, particles, seed + 3, own, start, proposal)
        lower.append(free.log_weight.view(rows, particles))
        if pinned is not None:
            follows = source.sweep(rows, 1, seed + 4, own, start, proposal, exact=pinned)
            upper.append(follows.log_weight)
        if resampling:
            smc_lower.append(source.sweep(rows, particles, seed + 5, own, start, proposal, "every").log_z)
            if pinned is not None:
                smc_upper.append(source.sweep(rows, particles, seed + 6, own, start, proposal, "every", pinned).log_z)
    found = {"iwae": importance_bounds(torch.cat(lower), torch.cat(upper) if upper else None)}
    if resampling:
        found["smc"] = Bounds(torch.cat(smc_lower), torch.cat(smc_upper) if smc_upper else None)
    return found


def bounds_of_pairs(source: Source, posterior: Posterior, particles: int, seed: int) -> Bounds:
    """By importance sampling, on log Z of what each exact sample is conditioned on, by a few particles."""
    few = min(particles, PARTICLES_A_PAIR)
    return sandwich(source, posterior, few, len(posterior), "twist", False, seed)["iwae"]


def evaluate(source: Source, posterior: Posterior | None, config: DictConfig, method: str, seed: int) -> dict:
    """One record. config: of the evaluation (`eval`); method: of the twist, which says whether particles may be resampled;
    posterior: exact samples, None where there are none (beta is not 1)."""
    resampling = method not in PROPOSAL_ONLY
    weights, potentials = proposal_samples(source, config.samples, seed)
    f = Estimate.of(weights)
    record: dict = {
        "f": asdict(f), "score": asdict(Estimate.of(potentials)), "kl_q_p": asdict(Estimate.of(potentials - weights)),
        "bounds": [],
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
    log_z, by = config.log_z, "given"
    if log_z is None:
        if posterior is not None and source.conditional and config.sweeps < len(posterior):
            midpoints = {"pairs": bounds_of_pairs(source, posterior, max(config.particles), seed)}
        by = closest(midpoints)
        log_z = None if by is None else midpoints[by].midpoint
    record |= {"log_z": log_z, "log_z_by": None if log_z is None else by}
    if posterior is None or log_z is None:
        return record
    of_exact = exact_log_weights(source, posterior)
    g = Estimate.of(of_exact)
    forward, backward = kl_both_ways(f, g, log_z)
    if by == "pairs":  # F is over other conditions than log Z, G over the same
        pairs = midpoints[by]
        unknown = pairs.gap / 2  # log Z is anywhere between the bounds
        forward = difference(Estimate.of(pairs.midpoints), f).wider(unknown)
        backward = Estimate.of(of_exact - pairs.midpoints).wider(unknown)
        record["log_z_pairs"] = {side: asdict(Estimate.of(getattr(pairs, side))) for side in ("lower", "upper")}
    return record | {"g": asdict(g), "kl_q_sigma": asdict(forward), "kl_sigma_q": asdict(backward)}


def figures(record: dict) -> dict[str, float]:
    """Of a record, what metrics.jsonl and the terminal are told."""
    told = {
        name: record[name]["value"]
        for name in ("kl_q_sigma", "kl_sigma_q", "f", "g", "score", "kl_q_p")
        if name in record
    }
    return {f"eval_{name}": value for name, value in told.items()} | (
        {} if record["log_z"] is None else {"eval_log_z": record["log_z"]}
    )
