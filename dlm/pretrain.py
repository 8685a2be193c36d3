"""Pre-training and fine-tuning of a model: score entropy, t-DCE, lambda-DCE, k-DCE, masked cross-entropy, next-token loss.

Source: RADD (2406.03736), appendix. Times are low-discrepancy within each part of a batch that goes through the model at
once. Only masked positions go through the head, a chunk at a time, so no `[rows, length, vocabulary]` tensor exists for a
masked model. A model with a noise input gets the average noise of the whole canvas, also if some positions are given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.adapt import ahead_at
from dlm.causal_lm import CausalLM
from dlm.masked_lm import MaskedLM, SeddLM, log_normalizer_and_logit
from dlm.noise import Noise
from dlm.settings import PretrainingSettings
from losses import denoising_loss, low_discrepancy_times, mask_exactly, next_token_loss, score_entropy_loss
from training.learner import new_learner
from training.processes import Processes
from training.run import Run, step_seed
from training.trainer import Algorithm

LOSSES = ("t_DCE", "lambda_DCE", "k_DCE", "masked_CE", "DSE", "ar")


@runtime_checkable
class RowStream(Protocol):
    """An endless source of training rows whose position can be saved."""

    @property
    def prompt(self) -> int | Int[Tensor, "row"]:
        """Number of given positions at the start of the held-out rows: one number for all, or one per row."""
        ...

    @property
    def left_out(self) -> int:
        """Number of rows of the data that were too long for the canvas."""
        ...

    def next(self, batch: int) -> Int[Tensor, "row position"]: ...
    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> None: ...


@runtime_checkable
class Puzzles(RowStream, Protocol):
    """Rows of which some positions are given and never masked."""

    def next_puzzles(self, batch: int) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]: ...


def corrupt(
    loss: str,
    rows: int,
    length: int,
    noise: Noise | None,
    generator: torch.Generator,
    given: Bool[Tensor, "row position"] | None = None,
) -> tuple[Bool[Tensor, "row position"], Float[Tensor, "row"], Float[Tensor, "row"]]:
    """Draw masks for a loss.

    t_DCE, DSE: t ~ U, masked with probability 1 - exp(-sigma(t)), weight sigma'(t) / (exp(sigma(t)) - 1). lambda_DCE:
    lambda ~ U(0, 1), masked with probability lambda, weight 1 / lambda. k_DCE: k ~ U{1..n}, n the positions that are not
    given, exactly k of them masked, weight n / k. masked_CE: as lambda_DCE with weights that make it a mean over the masked
    positions: less noise, no bound.

    Args:
        given: positions that are never masked (the clues of puzzles); bounds are then conditional on them.

    Returns:
        Masked positions; the weight of each masked position's cross-entropy, per row; and the probability with which a
            position that is not given was masked.
    """
    uniforms = torch.rand(rows, length, generator=generator)
    if given is not None:
        uniforms = uniforms.masked_fill(given, 2.0)
    if loss == "k_DCE":
        free = torch.full((rows,), length) if given is None else length - given.sum(1)
        count = (torch.rand(rows, generator=generator, dtype=torch.float64) * free).ceil().long()
        return mask_exactly(uniforms, count), free / count.clamp(min=1), count / torch.as_tensor(free).clamp(min=1)
    times = low_discrepancy_times(rows, torch.rand((), generator=generator, dtype=torch.float64))
    if loss in ("t_DCE", "DSE"):
        assert noise is not None
        sigma, rate = noise(times)
        share = -torch.expm1(-sigma)
        return uniforms < share.unsqueeze(1), (rate / torch.expm1(sigma)).float(), share
    masked = uniforms < times.unsqueeze(1)
    if loss == "lambda_DCE":
        return masked, (1 / times).float(), times
    return masked, torch.full((rows,), rows * length / max(1, int(masked.sum()))), times


def loss_of(
    model: MaskedLM,
    tokens: Int[Tensor, "row position"],
    loss: str,
    noise: Noise | None,
    generator: torch.Generator,
    given: Bool[Tensor, "row position"] | None = None,
    part: slice = slice(None),
) -> Float[Tensor, ""]:
    """Return one Monte Carlo value of the objective on a batch, with its gradient, in nats per token.

    Args:
        part: rows of `tokens` to run. The noise is drawn for all rows, so the result does not depend on the division among
            processes.
    """
    if loss == "ar":
        tokens = tokens[part]
        assert isinstance(model, CausalLM)
        return next_token_loss(model.next_token_logits(tokens), tokens, None if given is None else given[part])
    length = tokens.shape[1]
    noisy = corrupt(loss, len(tokens), length, noise, generator, given)
    masked, weight, share = (x[part].to(tokens.device) for x in noisy)
    tokens, row = tokens[part], masked.nonzero()[:, 0]
    sigma = None
    if isinstance(model, SeddLM):
        free = 1.0 if given is None else 1 - given[part].double().mean(1).to(tokens.device)
        sigma = model.sigma_of(share * free)
    hidden = model.hidden(tokens.masked_fill(masked, model.mask_id), masked, sigma)
    log_normalizer, logit = log_normalizer_and_logit(model, hidden, tokens[masked])
    if loss != "DSE":
        return denoising_loss(logit - log_normalizer, row, weight, length)
    assert isinstance(model, SeddLM)
    own = -torch.log1p(-share)
    return score_entropy_loss(
        logit - log_normalizer, log_normalizer + model.log_scale(own)[row].float(), row, weight, own, length
    )


@torch.no_grad()
def row_bounds(
    model: MaskedLM, tokens: Int[Tensor, "row position"], noises: int, generator: torch.Generator
) -> Float[Tensor, "row"]:
    """Return an unbiased estimate, for each row, of the bound on -log p(row) / length: lambda-DCE at `noises` spread mask
    rates.
    """
    rows, length = tokens.shape
    total = torch.zeros(rows, device=tokens.device)
    offset = torch.rand(rows, generator=generator, dtype=torch.float64)
    for number in range(noises):
        rate = ((offset + number) / noises).clamp(min=1e-6)
        masked = (torch.rand(rows, length, generator=generator, dtype=torch.float64) < rate.unsqueeze(1)).to(
            tokens.device
        )
        if not masked.any():
            continue
        hidden = model.hidden(tokens.masked_fill(masked, model.mask_id), masked)
        targets, chunk = tokens[masked], model.chunk(tokens.device)
        pieces = zip(hidden.split(chunk), targets.split(chunk), strict=True)
        log_prob = torch.cat([model.head(h).log_softmax(1).gather(1, t.unsqueeze(1)).squeeze(1) for h, t in pieces])
        weight = (1 / rate).float().to(tokens.device)
        total -= torch.zeros_like(total).index_add_(0, masked.nonzero()[:, 0], log_prob) * weight / length
    return total / noises


@torch.no_grad()
def evaluate(
    model: MaskedLM, valid: Int[Tensor, "row position"], loss: str, noise: Noise | None, batch: int, seed: int = 0,
    prompt: int | Int[Tensor, "row"] = 0,
) -> float:  # fmt: skip
    """Return the mean loss over held-out rows with fixed noise: comparable between steps and runs.

    Args:
        prompt: number of given positions at the start of each row (one number, or one per row).
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    prompts = torch.arange(valid.shape[1]) < torch.as_tensor(prompt).expand(len(valid)).unsqueeze(1)
    total = 0.0
    for part, given in zip(valid.split(batch), prompts.split(batch), strict=True):
        total += float(loss_of(model, part.to(device), loss, noise, generator, given)) * len(part)
    return total / len(valid)


def check_training(model: MaskedLM, config: PretrainingSettings, processes: Processes) -> None:
    """Refuse an unknown loss, a loss that does not fit the model, and a batch that does not divide: ValueError, before a
    run directory is created.
    """
    if config.loss not in LOSSES:
        raise ValueError(f"loss={config.loss!r} is unknown; use one of {', '.join(LOSSES)}")
    if (config.loss == "ar") != model.causal:
        kind = "causal" if model.causal else "masked"
        raise ValueError(
            f"loss={config.loss} does not fit a {kind} model; loss=ar is for causal ones and for them only"
        )
    if config.loss == "DSE" and not isinstance(model, SeddLM):
        raise ValueError(
            "loss=DSE is for SEDD, whose scores need not sum to what they should; on any other model it is t_DCE: use that"
        )
    training = config.training
    share = processes.share(training.batch_size, "training.batch_size")
    if share % training.accum:
        raise ValueError(f"a process's batch of {share} is not divisible by training.accum={training.accum}")


class Pretraining(Algorithm):
    """Updates on rows of text, in training.accum parts. All parameters that require a gradient are trained.

    anneal: iterations in which attention opens from causal to full (dlm/adapt.py); it is full in evaluations. save: writes
    the model and samples of it into the run directory, and returns metrics of the samples. Settings have passed
    `check_training`.
    """

    weights = "model"

    def __init__(
        self, model: MaskedLM, noise: Noise | None, rows: RowStream, valid: Int[Tensor, "row position"],
        config: PretrainingSettings, processes: Processes, save: Callable[[Path, int], dict[str, float]], anneal: int = 0,
    ):  # fmt: skip
        self.model, self.noise, self.rows, self.valid, self.config = model.train(), noise, rows, valid, config
        self.save, self.anneal, self.recorded_every = save, anneal, config.training.log_freq
        ema = config.training.ema
        assert ema is not None, "the length of the run decides it"
        self.learner = new_learner(model, config.optim, config.training.n_iters, ema, processes)

    def iteration(self, step: int) -> dict[str, float]:
        training, rows, processes = self.config.training, self.rows, self.learner.processes
        torch.manual_seed(step_seed(self.config.seed, step, processes.rank))  # dropout
        generator = torch.Generator().manual_seed(step_seed(self.config.seed, step))
        opened = {"ahead": ahead_at(step, self.anneal)} if self.anneal else {}
        if self.anneal:
            self.model.backbone.ahead = opened["ahead"]
        total, size = 0.0, training.batch_size // training.accum  # rows of all processes in a part
        for _ in range(training.accum):
            batch, given = rows.next_puzzles(size) if isinstance(rows, Puzzles) else (rows.next(size), None)
            batch, part = batch.to(processes.device), processes.part(size)
            loss = loss_of(self.model, batch, self.config.loss, self.noise, generator, given, part) / training.accum
            loss.backward()
            total += float(loss.detach())
        return {"loss": total, **self.learner.update(), **opened}

    def evaluate(self, run: Run, done: int) -> dict[str, float]:
        prompt, batch = self.rows.prompt, self.config.eval.batch_size
        self.model.eval()
        loss = evaluate(self.model, self.valid, self.config.loss, self.noise, batch, prompt=prompt)
        self.model.train()
        return {"valid_loss": loss}

    def snapshot(self, run: Run, done: int) -> dict[str, float]:
        self.model.eval()
        metrics = self.save(run.directory, done)
        self.model.train()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.backbone_state(), "rows": self.rows.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_backbone(state["model"])
        self.rows.load_state_dict(state["rows"])
