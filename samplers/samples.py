"""What sampling gives back: tokens, when each was written, what it cost, and the trajectory where it was recorded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dlm.ends import before_end, has_end, texts_of


@dataclass
class Stopwatch:
    """Measures the time since it was made."""

    started: float = field(default_factory=time.perf_counter)
    cpu_started: float = field(default_factory=time.process_time)

    def seconds(self, without: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
        """Wall-clock seconds, and CPU seconds of this process over all its threads; without as many of either."""
        return time.perf_counter() - self.started - without[0], time.process_time() - self.cpu_started - without[1]


@dataclass
class Trajectory:
    """Every step of every row that was active, one after the other (N of them): the row and its step, what could be written, what
    was picked, the log-probabilities of the picks and of the tokens written, and what `record` returned (policy inputs)."""

    row: Int[Tensor, "N"]
    step: Int[Tensor, "N"]
    writable: Bool[Tensor, "N position"]
    order: Int[Tensor, "N position"]
    log_where: Float[Tensor, "N"]
    log_what: Float[Tensor, "N"]
    inputs: dict[str, Tensor]

    def take(self, index: Int[Tensor, "kept"]) -> Trajectory:
        """Some of the steps."""
        inputs = {name: value[index] for name, value in self.inputs.items()}
        return Trajectory(
            self.row[index], self.step[index], self.writable[index], self.order[index],
            self.log_where[index], self.log_what[index], inputs,
        )  # fmt: skip


@dataclass
class ParticleFigures:
    """Figures of a particle filter, one a sample.

    log_z: estimate of log Z, -inf of a dead sample; log_potential: log phi of the particle that was kept; ess: effective sample
    size at the end; resamplings: how often the sample was resampled; dead: samples that lost all their particles.
    """

    particles: int
    log_z: Float64[Tensor, "row"]
    log_potential: Float64[Tensor, "row"]
    ess: Float64[Tensor, "row"]
    resamplings: Int[Tensor, "row"]
    dead: Bool[Tensor, "row"]

    def take(self, index: Int[Tensor, "kept"]) -> ParticleFigures:
        """The figures of those samples."""
        named = ("log_z", "log_potential", "ess", "resamplings", "dead")
        return replace(self, **{name: getattr(self, name)[index] for name in named})


@dataclass
class Samples:
    """prompt: positions that were given; written_at: step of the row at which each position was written, -1 where it never was;
    evaluations: network evaluations of each row (NFE); steps: steps of each row; generated: tokens written, prompt not counted;
    forwards: model calls; rows_evaluated: rows through the model in all of them; seconds: of decoding, on the wall
    clock; cpu_seconds: of this process while decoding (model, policy and rewards together). Neither counts measuring drift.
    ends: tokens that end an answer (dlm/ends.py), none where rows go on behind them, as packed texts do. reward_rows: rows that a
    reward has read while decoding. particles: figures of particle filters. exact: no approximate cache was used; drift: the error
    of the cache, where it was measured (`UnmaskingEnvironment.drift`)."""

    tokens: Int[Tensor, "row position"]
    prompt: Bool[Tensor, "row position"]
    written_at: Int[Tensor, "row position"]
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

    def take(self, index: Int[Tensor, "kept"]) -> Samples:
        """Those rows, without the trajectory; what was counted for all of them together stays as it is."""
        kept = ("tokens", "prompt", "written_at", "evaluations", "steps")
        particles = None if self.particles is None else self.particles.take(index)
        rows = {name: getattr(self, name)[index] for name in kept}
        return replace(self, trajectory=None, particles=particles, **rows)

    @property
    def answer(self) -> Bool[Tensor, "row position"]:
        """The positions of the answer: what was not given, up to the first end token."""
        return before_end(self.tokens, ~self.prompt, self.ends)

    @property
    def ended(self) -> Bool[Tensor, "row"]:
        """Whether the answer came to its end."""
        return has_end(self.tokens, ~self.prompt, self.ends)

    @property
    def counted(self) -> Bool[Tensor, "row position"]:
        """What figures of a row are of: what was given and the answer, without what stands behind its end."""
        return self.prompt | self.answer

    def answers(self, tokenizer: Any) -> list[str]:
        """The answers as text."""
        return texts_of(self.tokens, self.answer, tokenizer)

    @property
    def generated(self) -> Int[Tensor, "row"]:
        return (self.written_at >= 0).sum(1)

    @property
    def tokens_per_second(self) -> float:
        return int(self.generated.sum()) / self.seconds


def joined(batches: Sequence[Samples]) -> Samples:
    """All samples of batches on canvases of one length; what was counted for whole batches is added up, and there is no
    trajectory. drift: a mean over the batches where it was measured."""
    first, rows = batches[0], ("tokens", "prompt", "written_at", "evaluations", "steps")
    totals = ("forwards", "rows_evaluated", "seconds", "cpu_seconds", "reward_rows")
    measured = [batch.drift for batch in batches if batch.drift is not None]
    figures = [batch.particles for batch in batches if batch.particles is not None]
    particles = None
    if figures:
        named = ("log_z", "log_potential", "ess", "resamplings", "dead")
        particles = ParticleFigures(
            figures[0].particles, *(torch.cat([getattr(one, name) for one in figures]) for name in named)
        )
    whole: dict[str, Any] = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in rows}
    whole |= {name: sum(getattr(batch, name) for batch in batches) for name in totals}
    drift = sum(measured) / len(measured) if measured else None
    return Samples(**whole, ends=first.ends, particles=particles, exact=first.exact, drift=drift)
