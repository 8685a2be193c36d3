"""SEDD's own samplers: Euler and analytic (Tweedie) steps on a noise schedule, and a denoising step at the end.

Source: Lou et al. (2310.16834), section 4. At each of `steps` equally spaced times every open position keeps its token or
changes; a last step, at the time LAST, removes the remaining noise. A row costs steps + 1 evaluations, fewer if its last
mask is committed earlier. Scores are not normalized: the probability of a change depends on their sum over the vocabulary.
For models whose sums no loss has trained, the sum of exact scores is used (`SeddLM.log_scores`).

What differs from the published code: no tensor of size [row, position, vocabulary] exists. The sum is computed for a chunk
of positions at a time, and a token is drawn only where the position changes, exactly and in float64. Rows without masks are
not evaluated. The distribution is the same. On the absorbing graph only masked positions change; on the uniform graph all
open positions may.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.masked_lm import MaskedLM, SeddLM
from dlm.noise import Noise
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.names import PREDICTORS
from samplers.samples import Samples, Stopwatch

LAST = 1e-5  # time of the last step


@dataclass(frozen=True)
class NoiseStep:
    """One step of the schedule.

    sigma: total noise of the canvas; drop: noise that this step removes; slope: sigma' times the step in time, for an Euler
    step (None: analytic); last: the denoising step.
    """

    sigma: float
    drop: float
    slope: float | None
    last: bool


@dataclass(frozen=True)
class Seen:
    """State after a step, for viewers (samplers/live.py), of the rows that were active."""

    tokens: Int[Tensor, "row position"]
    masked: Bool[Tensor, "row position"]
    evaluations: Int[Tensor, "row"]
    row_step: Int[Tensor, "row"]


def noise_steps(noise: Noise, predictor: str, steps: int) -> Iterator[NoiseStep]:
    """Yield equal time steps from 1 to LAST, and the denoising step."""
    times = torch.linspace(1, LAST, steps + 1, dtype=torch.float64)
    sigma, rate = noise(times)
    sizes = (rate[:-1] * (times[:-1] - times[1:])).tolist()
    sigmas = sigma.tolist()
    for now, following, size in zip(sigmas[:-1], sigmas[1:], sizes, strict=True):
        yield NoiseStep(now, now - following, size if predictor == "euler" else None, False)
    yield NoiseStep(sigmas[-1], sigmas[-1], None, True)


def absorbing_change(
    log_scores: Float[Tensor, "read columns"], step: NoiseStep
) -> tuple[Float[Tensor, "read columns"], Float64[Tensor, "read"]]:
    """Return, for masked positions, the log-weights of the new tokens and the probability of a change.

    The published formula can give "stays masked" a negative weight; the probability of a change is then one.
    """
    if step.last:
        return log_scores, torch.ones(len(log_scores), dtype=torch.float64, device=log_scores.device)
    factor = math.log(step.slope) if step.slope is not None else math.log(math.expm1(step.drop))
    return log_scores, (log_scores.logsumexp(1).double() + factor).exp().clamp(max=1)


def uniform_change(
    log_scores: Float[Tensor, "read columns"], current: Int[Tensor, "read"], step: NoiseStep
) -> tuple[Float[Tensor, "read columns"], Float64[Tensor, "read"]]:
    """Return what `absorbing_change` returns, but on the uniform graph, where a position holds the token `current`. Negative
    weights are never drawn."""
    own, columns = current.unsqueeze(1), log_scores.shape[1]
    scores = log_scores.scatter(1, own, 0.0).exp()  # of a canvas to itself the ratio is one
    if step.slope is not None:
        weights = (scores * (step.slope / columns)).scatter_(1, own, 0.0)
        stays = 1 - weights.sum(1)
    else:
        kept, move = math.exp(-step.drop), -math.expm1(-step.drop) / columns
        weights = ((scores - move * scores.sum(1, keepdim=True)) / kept).clamp_(min=0)
        stays = weights.gather(1, own).squeeze(1) * (1 - (columns - 1) * move)
        weights = (weights * move).scatter_(1, own, 0.0)
    leaves = weights.sum(1).double()
    return weights.log(), leaves / (leaves + stays.double().clamp(min=0))


@dataclass(frozen=True)
class ScoreDecoder:
    """SEDD's own sampler; the module describes it.

    Args:
        predictor: euler or analytic.
    """

    predictor: str

    def __post_init__(self):
        if self.predictor not in PREDICTORS:
            raise ValueError(f"predictor={self.predictor!r} is unknown; use one of {', '.join(PREDICTORS)}")

    @torch.no_grad()
    def decode(
        self,
        model: MaskedLM,
        prompts: Prompts,
        options: DecodeOptions,
        seed: int = 0,
        row_id: Int[Tensor, "row"] | None = None,
        record: Callable[[Any], dict[str, Tensor]] | None = None,
        on_step: Callable[[Any, Int[Tensor, "active"]], None] | None = None,
    ) -> Samples:
        """Decode every prompt (`samplers.loop.Decoder.decode`). Of the options only `steps` is used; `on_step` gets a
        `Seen`.
        """
        assert isinstance(model, SeddLM)
        canvas = prompts.canvas
        rows, length = canvas.shape
        if length > model.max_length:
            raise ValueError(f"the canvas has {length} positions, more than the model's {model.max_length}; shorten it")
        stopwatch, draws, absorbing = Stopwatch(), Draws(seed), model.graph == "absorb"
        row_id = torch.arange(rows, device=canvas.device) if row_id is None else row_id
        to_write, tokens = prompts.open_positions(model.mask_id), canvas.clone()
        evaluations = torch.zeros(rows, dtype=torch.long, device=canvas.device)
        unmasked_at = torch.full_like(canvas, -1)
        if not absorbing:  # all noise: any token
            uniforms = draws.uniform("noise", row_id, evaluations, length)
            tokens = torch.where(to_write, (uniforms * model.vocab_size).long(), tokens)
            unmasked_at = unmasked_at.masked_fill(to_write, 0)
        forwards = rows_evaluated = 0
        for step in noise_steps(model.noise, self.predictor, options.steps):
            changeable = to_write & (tokens == model.mask_id) if absorbing else to_write
            active = changeable.any(1).nonzero().squeeze(1)
            if len(active) == 0:
                break
            changed = changes(
                model, step, tokens[active], changeable[active], row_id[active], evaluations[active], draws
            )
            unmasked_at[active] = torch.where(
                changed != tokens[active], evaluations[active].unsqueeze(1), unmasked_at[active]
            )
            tokens[active] = changed
            evaluations[active] += 1
            forwards, rows_evaluated = forwards + 1, rows_evaluated + len(active)
            if on_step is not None:
                masked = changed == model.mask_id
                on_step(Seen(changed, masked, evaluations[active], evaluations[active]), active)
        return Samples(
            tokens, ~to_write, unmasked_at, evaluations, evaluations.clone(), forwards, rows_evaluated,
            *stopwatch.seconds(),
        )  # fmt: skip


def changes(
    model: SeddLM,
    step: NoiseStep,
    tokens: Int[Tensor, "row position"],
    changeable: Bool[Tensor, "row position"],
    row_id: Int[Tensor, "row"],
    row_step: Int[Tensor, "row"],
    draws: Draws,
) -> Int[Tensor, "row position"]:
    """Return the canvases after one step."""
    sigma = torch.full((len(tokens),), step.sigma, device=tokens.device)
    uniforms = draws.uniform("where", row_id, row_step, tokens.shape[1])
    hidden, chunk = model.hidden(tokens, changeable, sigma), model.chunk(tokens.device)
    after = tokens.clone()
    for place, states in zip(changeable.nonzero().split(chunk), hidden.split(chunk), strict=True):
        row, position = place.unbind(1)
        log_scores = model.log_scores(states, step.sigma)
        if model.graph == "absorb":
            log_weights, chance = absorbing_change(log_scores, step)
        else:
            log_weights, chance = uniform_change(log_scores, tokens[row, position], step)
        changes = (uniforms[row, position] < chance).nonzero().squeeze(1)
        row, position = row[changes], position[changes]
        after[row, position] = draws.categorical(log_weights[changes], row_id[row], row_step[row], position)
    return after
