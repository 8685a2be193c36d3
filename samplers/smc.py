"""Sequential Monte Carlo around the decoding loop: many particles per sample, weighted at each step by a potential, and
resampled.

A `Proposal` chooses positions and tokens and returns log p - log q of its choice, where p is the reference. Every
StepDecoder is its own reference (`Plain`); twisted proposals are in `samplers/twisted.py`. With phi the potential of
finished rows, the target is sigma(path) = p(path) phi / Z. psi, the potential of unfinished states, guides particles and
does not change the target. After each step

    log w += log p(step) - log q(step) + log psi(new state) - log psi(old state),      psi = phi where a row is finished,

and exp(log_z) is an unbiased estimate of Z (Del Moral 2004). Without resampling this is importance sampling, and best of N
if the particle with the highest potential is kept. With a path that is drawn from sigma in the first slot (conditional SMC,
Andrieu et al. 2010), exp(-log_z) is an unbiased estimate of 1 / Z. Particles that coincide share evaluations, as all rows
do.

What differs from twisted SMC as published (2404.17546): any order of positions, any resampling scheme, many samples at
once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.environment import UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from dlm.observation import Decision, Observation
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.loop import OnStep, Record, StepDecoder
from samplers.particles import SCHEMES, Weights, check_scheme, due
from samplers.samples import ParticleFigures, Samples, Stopwatch


@dataclass
class Given:
    """The next tokens of rows that follow a given path. rows: numbers of these rows."""

    rows: Bool[Tensor, "row"]
    order: Int[Tensor, "row position"]
    tokens: Int[Tensor, "row position"]


@dataclass
class Trajectories:
    """One finished path per sample: its tokens, and the step at which each was committed (-1: prompt)."""

    tokens: Int[Tensor, "filter position"]
    unmasked_at: Int[Tensor, "filter position"]

    def at(self, step: int, particles: int) -> Given:
        """Return the commits of one step, for the first particle of each sample."""
        slot = torch.arange(len(self.tokens) * particles, device=self.tokens.device)
        each = slot // particles
        return Given(slot % particles == 0, (self.unmasked_at[each] == step).long(), self.tokens[each])


@dataclass
class Proposed:
    """A decision, its log p - log q, and log psi of the resulting state if the proposal knows it."""

    decision: Decision
    log_ratio: Float64[Tensor, "row"]
    log_psi: Float64[Tensor, "row"] | None = None


@runtime_checkable
class Proposal(Protocol):
    """Proposes the next step of every particle."""

    def propose(self, observation: Observation, draws: Draws, given: Given | None) -> Proposed: ...


@dataclass
class Plain:
    """Any step decoder as its own reference: p = q."""

    decoder: StepDecoder

    def propose(self, observation: Observation, draws: Draws, given: Given | None) -> Proposed:
        decision = self.decoder.decide(observation, draws)
        if given is not None:
            rows = given.rows.unsqueeze(1)
            order = torch.where(rows, given.order, decision.order)
            decision = replace(decision, order=order, tokens=torch.where(rows, given.tokens, decision.tokens))
        return Proposed(decision, torch.zeros(len(decision.order), dtype=torch.float64, device=decision.order.device))


@runtime_checkable
class Potential(Protocol):
    """Log psi of states and log phi of finished rows.

    `rows` are indices among all particles, sample by sample. A potential that has a condition per sample, or a memory per
    particle, uses them (and `select`).
    """

    def log_psi(self, observation: Observation) -> Float[Tensor, "row"]: ...

    def final(
        self, tokens: Int[Tensor, "finished position"], rows: Int[Tensor, "finished"]
    ) -> Float[Tensor, "finished"]: ...

    def select(self, index: Int[Tensor, "row"]) -> None:
        """Reorder the memory of the potential after a resampling."""
        ...


@dataclass
class Finish:
    """A potential of finished rows only: psi = 1 before (importance sampling, best of N)."""

    log_phi: Callable[[Int[Tensor, "finished position"], Int[Tensor, "finished"]], Float[Tensor, "finished"]]

    def log_psi(self, observation: Observation) -> Float[Tensor, "row"]:
        return torch.zeros(len(observation.tokens), device=observation.tokens.device)

    def final(self, tokens, rows):
        return self.log_phi(tokens, rows)

    def select(self, index):
        pass


@runtime_checkable
class Move(Protocol):
    """Moves particles by a kernel that leaves the target of their states invariant; returns states and log potentials."""

    def __call__(
        self, environment: UnmaskingEnvironment, observation: Observation, potential: Potential,
        log_psi: Float64[Tensor, "row"], draws: Draws, number: int,
    ) -> tuple[Observation, Float64[Tensor, "row"]]: ...  # fmt: skip


def stay(environment, observation, potential, log_psi, draws, number):
    """Move no particle."""
    return observation, log_psi


@dataclass
class FilterStep:
    """State for a collector after each step: weights before resampling, which filters resampled, and the ancestor of each
    particle.
    """

    number: int
    weights: Weights
    resampled: Bool[Tensor, "filter"]
    ancestors: Int[Tensor, "filter particle"]


@dataclass
class Diagnostics:
    """A collector of the effective sample size and of the number of particles that have children, per step."""

    effective: list[Float64[Tensor, "filter"]] = field(default_factory=list)
    log_normalizer: list[Float64[Tensor, "filter"]] = field(default_factory=list)
    resampled: list[Bool[Tensor, "filter"]] = field(default_factory=list)
    parents: list[Int[Tensor, "filter"]] = field(default_factory=list)

    def __call__(self, step: FilterStep) -> None:
        self.effective.append(step.weights.effective)
        self.log_normalizer.append(step.weights.log_normalizer)
        self.resampled.append(step.resampled)
        ordered = step.ancestors.sort(1).values
        self.parents.append(1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1))


@dataclass
class Particles:
    """All particles of all samples, sample by sample.

    log_phi: log potential of each particle; weights: at the end, not resampled. Without resampling weights.log is log
    p(path) phi / q(path). A sample whose particles all have weight 0 is dead: its log Z is -inf.
    """

    samples: Samples
    weights: Weights
    log_phi: Float64[Tensor, "row"]

    @property
    def log_z(self) -> Float64[Tensor, "filter"]:
        return self.weights.log_normalizer

    @property
    def dead(self) -> Bool[Tensor, "filter"]:
        """Mark samples whose particles all have weight 0."""
        return self.weights.dead

    def best(self) -> Int[Tensor, "filter"]:
        """Return the row of highest potential of each sample (best of N); the first row of a dead sample."""
        filters, particles = self.weights.log.shape
        alive = self.log_phi.view(filters, particles).masked_fill(self.weights.log == -torch.inf, -torch.inf)
        return alive.argmax(1) + torch.arange(filters, device=alive.device) * particles

    def drawn(self, draws: Draws, sample_id: Int[Tensor, "filter"] | None = None) -> Int[Tensor, "filter"]:
        """Draw one row of each sample by weight. Its distribution converges to sigma as the number of particles grows.

        A dead sample returns any of its rows.
        """
        filters, particles = self.weights.log.shape
        number = torch.arange(filters, device=self.weights.log.device)
        zero = torch.zeros_like(number)
        own = number if sample_id is None else sample_id
        log_weights = self.weights.log.masked_fill(self.dead.unsqueeze(1), 0.0)
        return draws.categorical(log_weights, own, zero, zero, stream="pick") + number * particles


def draw_ancestors(
    weights: Weights, scheme: str, draws: Draws, sample_id: Int[Tensor, "filter"], step: int, keeps_first: bool = False
) -> Int[Tensor, "filter particle"]:
    """Draw the ancestor of each particle by weight. keeps_first: the first particle, which follows a path, is its own."""
    uniforms = draws.uniform("resample", sample_id, torch.full_like(sample_id, step), weights.log.shape[1])
    ancestors = SCHEMES[scheme](weights.probability, uniforms)
    if keeps_first:
        ancestors[:, 0] = 0
    return ancestors


def _check_filter(
    environment: UnmaskingEnvironment, particles: int, resample: str, scheme: str, given: Trajectories | None,
    move: Move,
) -> None:  # fmt: skip
    """Refuse settings of a filter that do not fit: ValueError."""
    check_scheme(resample, scheme, given is not None)
    if particles < 1:
        raise ValueError(f"particles={particles} must be at least 1")
    if environment.options.ends:
        raise ValueError("particles are compared at one length; leave sampler.stop out")
    if move is not stay and given is not None:
        raise ValueError("a filter with a given path keeps its tokens, and moves change them; leave one of them out")


def _log_psi(
    potential: Potential, observation: Observation, before: Float64[Tensor, "row"], known: Float64[Tensor, "row"] | None,
    finished: Bool[Tensor, "row"], ended: bool,
) -> Float64[Tensor, "row"]:  # fmt: skip
    """Return log psi of the state of each particle: phi where a row finished since it was weighed last.

    Args:
        before: log psi at the last weighting, which stays that of rows that were finished then.
        known: log psi as the proposal computed it. None: the potential computes it.
        finished: rows that were finished at the last weighting.
        ended: all rows are finished now.
    """
    new = before
    if not ended:
        new = potential.log_psi(observation).double() if known is None else known
        new = torch.where(finished, before, new)
    just = observation.done & ~finished
    if bool(just.any()):
        rows = just.nonzero().flatten()
        new = new.masked_scatter(just, potential.final(observation.tokens[just], rows).double())
    return new


@torch.no_grad()
def particle_filter(
    environment: UnmaskingEnvironment,
    proposal: Proposal,
    potential: Potential,
    prompts: Prompts,
    particles: int,
    resample: str = "ess",
    scheme: str = "systematic",
    seed: int = 0,
    sample_id: Int[Tensor, "filter"] | None = None,
    given: Trajectories | None = None,
    interval: int = 1,
    collect: Callable[[FilterStep], None] | None = None,
    on_step: Callable[[Observation, Int[Tensor, "row"]], None] | None = None,
    draws: Draws | None = None,
    move: Move = stay,
) -> Particles:
    """Decode every prompt with many particles.

    Args:
        environment: model and options of the decoding.
        proposal: proposes the next step of every particle.
        potential: psi and phi.
        prompts: one per sample.
        particles: particles per sample.
        resample: `ess` (below half of the particles), `every` step, or `never`.
        scheme: one of SCHEMES; a given path needs multinomial.
        sample_id: ids of the samples for the random draws.
        given: a path that the first particle of each sample follows.
        interval: number of steps between two weightings and resamplings.
        draws: random draws in place of those of `seed`.
        move: moves the particles after each resampling or weighting, and leaves the target invariant (`samplers/moves.py`).

    A sample whose particles all have weight 0 (`Particles.dead`) is decoded to its end without resampling, and the others
    go on.

    Raises:
        FloatingPointError: a weight is NaN; the message names the step.
    """
    _check_filter(environment, particles, resample, scheme, given, move)
    stopwatch = Stopwatch()
    draws = draws or Draws(seed)
    filters, device = len(prompts.canvas), prompts.canvas.device
    sample_id = torch.arange(filters, device=device) if sample_id is None else sample_id
    slots = (sample_id.unsqueeze(1) * particles + torch.arange(particles, device=device)).flatten()
    every = torch.arange(len(slots), device=device)
    observation = environment.reset(prompts.repeat(particles), slots)
    prompt = ~observation.masked
    unmasked_at = torch.full_like(observation.tokens, -1)
    weights = Weights.even(filters, particles, device)
    log_psi = torch.zeros(len(slots), dtype=torch.float64, device=device)
    known = log_psi  # log psi of the state, if the proposal knows it
    finished = torch.zeros_like(observation.done)
    steps, number = torch.zeros_like(slots), 0
    while not bool(observation.done.all()):
        steps = torch.where(observation.done, steps, number + 1)
        proposed = proposal.propose(observation, draws, None if given is None else given.at(number, particles))
        selected = proposed.decision.order > 0
        unmasked_at = torch.where(selected, number, unmasked_at)
        observation = environment.step(proposed.decision)
        ended, factor = bool(observation.done.all()), proposed.log_ratio
        number += 1
        if proposed.log_psi is not None:
            known = torch.where(selected.any(1), proposed.log_psi, known)
        if ended or number % interval == 0:
            state_log_psi = None if proposed.log_psi is None else known
            new = _log_psi(potential, observation, log_psi, state_log_psi, finished, ended)
            factor, log_psi, finished = factor + new - log_psi, new, observation.done
        weights = weights.times(factor.view(filters, particles))
        weights.check(number)
        weighed = not ended and number % interval == 0
        chosen = due(weights, resample) & weighed
        ancestors = every.view(filters, particles) % particles
        if bool(chosen.any()):
            drawn = draw_ancestors(weights, scheme, draws, sample_id, number, given is not None)
            ancestors = torch.where(chosen.unsqueeze(1), drawn, ancestors)
        if collect is not None:
            collect(FilterStep(number, weights, chosen, ancestors))
        if bool(chosen.any()):
            weights = weights.resampled(chosen)
            index = (ancestors + torch.arange(filters, device=device).unsqueeze(1) * particles).flatten()
            observation = environment.select(index, slots)
            potential.select(index)
            log_psi, known, finished = log_psi[index], known[index], finished[index]
            unmasked_at, steps = unmasked_at[index], steps[index]
        if weighed:
            observation, log_psi = move(environment, observation, potential, log_psi, draws, number)
            known = log_psi
        if on_step is not None:
            on_step(observation, every)
    samples = Samples(
        observation.tokens, prompt, unmasked_at, observation.evaluations, steps,
        environment.forwards, environment.rows_evaluated, *stopwatch.seconds(environment.measuring),
        exact=environment.exact, drift=environment.drift,
    )  # fmt: skip
    return Particles(samples, weights, log_psi)


@dataclass
class ParticleDecoder:
    """Decode each row by a particle filter and keep one particle.

    Args:
        parts: returns the proposal and the potential for a number of rows.
        pick: draw (a particle by weight) or best (the particle of highest potential).
        move: of the particles after each weighting.
        model: the model that proposal and potential use, in place of the model of `decode`. None: that one.
    """

    parts: Callable[[int], tuple[Proposal, Potential]]
    particles: int = 8
    resample: str = "ess"
    scheme: str = "systematic"
    interval: int = 1
    pick: str = "draw"
    model: MaskedLM | None = None
    move: Move = stay

    def decode(
        self,
        model: MaskedLM,
        prompts: Prompts,
        options: DecodeOptions,
        seed: int = 0,
        row_id: Int[Tensor, "row"] | None = None,
        record: Record | None = None,
        on_step: OnStep | None = None,
    ) -> Samples:
        """Decode every prompt (`samplers.loop.Decoder.decode`). The NFE of a row is the sum over its particles; no
        trajectory is recorded.
        """
        rows, seen = len(prompts.canvas), Diagnostics()
        row_id = torch.arange(rows, device=prompts.canvas.device) if row_id is None else row_id
        proposal, potential = self.parts(rows)
        found = particle_filter(
            UnmaskingEnvironment(self.model or model, options), proposal, potential, prompts, self.particles, self.resample,
            self.scheme, seed, row_id, interval=self.interval, collect=seen, on_step=on_step,
            move=self.move,
        )  # fmt: skip
        kept = found.best() if self.pick == "best" else found.drawn(Draws(seed), row_id)
        figures = ParticleFigures(
            self.particles, found.log_z, found.log_phi[kept], found.weights.effective, torch.stack(seen.resampled).sum(0),
            found.dead,
        )  # fmt: skip
        evaluations = found.samples.evaluations.view(rows, -1).sum(1)
        return replace(found.samples.take(kept), evaluations=evaluations, particles=figures)
