"""Results of decoding: tokens, the steps at which they were committed, cost, and the recorded trajectory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dlm.ends import before_end, has_end, texts_of


@dataclass
class Stopwatch:
    """Measures the time since its creation."""

    started: float = field(default_factory=time.perf_counter)
    cpu_started: float = field(default_factory=time.process_time)

    def seconds(self, without: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
        """Return wall-clock seconds and CPU seconds of this process over all threads, minus those of `without`."""
        return time.perf_counter() - self.started - without[0], time.process_time() - self.cpu_started - without[1]


@dataclass
class Trajectory:
    """All recorded steps of all rows, one after the other (N steps).

    Each step has its row and step number, the selectable positions, the selected positions, the log-probabilities of the
    selection and of the tokens, and the values that `record` returned (inputs of the policy). In decoding with revision,
    committed positions are selectable too, and `opened` marks the open ones.
    """

    row: Int[Tensor, "N"]
    step: Int[Tensor, "N"]
    writable: Bool[Tensor, "N position"]
    order: Int[Tensor, "N position"]
    log_positions: Float[Tensor, "N"]
    log_tokens: Float[Tensor, "N"]
    inputs: dict[str, Tensor]
    opened: Bool[Tensor, "N position"] | None = None

    def take(self, index: Int[Tensor, "kept"]) -> Trajectory:
        """Return some of the steps."""
        inputs = {name: value[index] for name, value in self.inputs.items()}
        return Trajectory(
            self.row[index], self.step[index], self.writable[index], self.order[index],
            self.log_positions[index], self.log_tokens[index], inputs,
            None if self.opened is None else self.opened[index],
        )  # fmt: skip


@dataclass
class ParticleFigures:
    """Figures of a particle filter, one value per sample.

    log_z: estimate of log Z, -inf for a dead sample; log_potential: log phi of the kept particle; ess: effective sample
    size at the end; resamplings: number of resamplings; dead: samples whose particles all had weight 0.
    """

    particles: int
    log_z: Float64[Tensor, "row"]
    log_potential: Float64[Tensor, "row"]
    ess: Float64[Tensor, "row"]
    resamplings: Int[Tensor, "row"]
    dead: Bool[Tensor, "row"]

    def take(self, index: Int[Tensor, "kept"]) -> ParticleFigures:
        """Return the figures of some samples."""
        named = ("log_z", "log_potential", "ess", "resamplings", "dead")
        return replace(self, **{name: getattr(self, name)[index] for name in named})


@dataclass
class Samples:
    """Decoded rows and their cost.

    tokens: the canvases; prompt: given positions; unmasked_at: step of the row at which each position was committed, -1 for
    the prompt; evaluations: NFE of each row; steps: decoding steps of each row; generated: number of committed tokens;
    forwards: model calls; rows_evaluated: rows in all model calls together; seconds, cpu_seconds: wall-clock time of
    decoding and CPU time of this process (model, policy and rewards), without the measurement of drift; ends: tokens that
    end an answer (dlm/ends.py), empty if rows continue behind them; reward_rows: rows that a reward has scored; particles:
    figures of particle filters; exact: no approximate cache was used; drift: error of the cache, where it was measured
    (`UnmaskingEnvironment.drift`); lengths: positions of the canvas of each row, where they differ (None: all of them). Tokens
    behind the canvas are 0; history: revised tokens, one a row of (row, position, token, step at which it was committed, step
    at which it was replaced or its position opened again), in the order of steps (None: decoding without revision).
    """

    tokens: Int[Tensor, "row position"]
    prompt: Bool[Tensor, "row position"]
    unmasked_at: Int[Tensor, "row position"]
    evaluations: Int[Tensor, "row"]
    steps: Int[Tensor, "row"]
    forwards: int
    rows_evaluated: int
    seconds: float
    cpu_seconds: float
    trajectory: Trajectory | None = None
    ends: tuple[int, ...] = ()
    reward_rows: int = 0
    particles: ParticleFigures | None = None
    exact: bool = True
    drift: float | None = None
    lengths: Int[Tensor, "row"] | None = None
    history: Int[Tensor, "event 5"] | None = None

    def take(self, index: Int[Tensor, "kept"]) -> Samples:
        """Return some of the rows, without the trajectory. Counts of the whole batch stay as they are."""
        kept = ("tokens", "prompt", "unmasked_at", "evaluations", "steps")
        particles = None if self.particles is None else self.particles.take(index)
        rows = {name: getattr(self, name)[index] for name in kept}
        lengths = None if self.lengths is None else self.lengths[index]
        history = self.history
        if history is not None:
            kept_row, event = (index.unsqueeze(1) == history[:, 0]).nonzero().unbind(1)
            history = torch.cat((kept_row.unsqueeze(1), history[event, 1:]), 1)
        return replace(self, trajectory=None, particles=particles, lengths=lengths, history=history, **rows)

    @property
    def positions(self) -> Int[Tensor, "row"]:
        """Return the number of positions of each row's canvas."""
        return torch.full_like(self.evaluations, self.tokens.shape[1]) if self.lengths is None else self.lengths

    @property
    def free(self) -> Bool[Tensor, "row position"]:
        """Mark the positions of the canvas that were not given."""
        return ~self.prompt & (torch.arange(self.tokens.shape[1], device=self.tokens.device) < self.positions[:, None])

    @property
    def answer(self) -> Bool[Tensor, "row position"]:
        """Mark the positions of the response: generated tokens up to the first end token."""
        return before_end(self.tokens, self.free, self.ends)

    @property
    def ended(self) -> Bool[Tensor, "row"]:
        """Mark rows whose response contains an end token."""
        return has_end(self.tokens, self.free, self.ends)

    @property
    def counted(self) -> Bool[Tensor, "row position"]:
        """Mark the positions that measures use: prompt and response, without the positions behind the end."""
        return self.prompt | self.answer

    def answers(self, tokenizer: Any) -> list[str]:
        """Return the responses as text."""
        return texts_of(self.tokens, self.answer, tokenizer)

    @property
    def generated(self) -> Int[Tensor, "row"]:
        return (self.unmasked_at >= 0).sum(1)

    @property
    def revisions(self) -> Int[Tensor, "row"]:
        """Return how many committed tokens of each row were replaced or opened again."""
        counts = torch.zeros_like(self.evaluations)
        if self.history is None:
            return counts
        return counts.index_add_(0, self.history[:, 0], torch.ones_like(self.history[:, 0]))

    @property
    def tokens_per_second(self) -> float:
        return int(self.generated.sum()) / self.seconds


def joined(batches: Sequence[Samples]) -> Samples:
    """Concatenate samples of batches. Canvases that are shorter than the longest one are filled up (`Samples.lengths`).

    Counts of whole batches are added up; the trajectory is dropped; drift is the mean over the batches that measured it.
    """
    first, longest = batches[0], max(batch.tokens.shape[1] for batch in batches)
    totals = ("forwards", "rows_evaluated", "seconds", "cpu_seconds", "reward_rows")
    measured = [batch.drift for batch in batches if batch.drift is not None]
    whole: dict[str, Any] = {
        name: torch.cat([getattr(batch, name) for batch in batches]) for name in ("evaluations", "steps")
    }
    for name, value in (("tokens", 0), ("prompt", False), ("unmasked_at", -1)):
        canvases = [getattr(batch, name) for batch in batches]
        whole[name] = torch.cat([F.pad(each, (0, longest - each.shape[1]), value=value) for each in canvases])
    lengths = torch.cat([batch.positions for batch in batches])
    whole["lengths"] = lengths if bool((lengths < longest).any()) else None
    whole |= {name: sum(getattr(batch, name) for batch in batches) for name in totals}
    drift = sum(measured) / len(measured) if measured else None
    return Samples(**whole, ends=first.ends, particles=figures_joined(batches), exact=first.exact, drift=drift,
                   history=histories_joined(batches))  # fmt: skip


def histories_joined(batches: Sequence[Samples]) -> Int[Tensor, "event 5"] | None:
    """Concatenate the revised tokens of batches, with the numbers of their rows in the whole; None without revision."""
    if batches[0].history is None:
        return None
    parts, first = [], 0
    for batch in batches:
        assert batch.history is not None
        row, *others = batch.history.unbind(1)
        parts.append(torch.stack((row + first, *others), 1))
        first += len(batch.tokens)
    return torch.cat(parts)


def figures_joined(batches: Sequence[Samples]) -> ParticleFigures | None:
    """Concatenate the figures of particle filters; None without filters."""
    figures = [batch.particles for batch in batches if batch.particles is not None]
    if not figures:
        return None
    named = ("log_z", "log_potential", "ess", "resamplings", "dead")
    return ParticleFigures(
        figures[0].particles, *(torch.cat([getattr(one, name) for one in figures]) for name in named)
    )
