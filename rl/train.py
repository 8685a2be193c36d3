"""PPO and GRPO on rollouts of the diffusion model. Diffusion-DPO on pairs is in rl/preferences.py.

One iteration: decode prompts with the current weights, score the texts, and make `rl.ppo_epochs` updates on the clipped
ratio of estimated likelihoods (dlm/likelihood.py), with a k3 KL to the model at the start of training. GRPO (2402.03300)
compares rollouts of one prompt. A text is one action, so PPO's critic is a baseline: the running mean of the rewards.

What differs from SEDD-LaTeX-RLHF: likelihoods are estimated on masked canvases, so there is a gradient; new, old and
reference model use the same canvases; the KL is a KL; advantages are normalized; every process steps; the moving average
and gradient clipping are applied. The network stays in evaluation mode, because dropout would make the first ratio differ
from 1.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data.tasks import Task
from dlm.likelihood import (
    ESTIMATORS,
    Coupled,
    Elbo,
    Estimator,
    MeanField,
    Published,
    ReplayedTrajectory,
    Sandwich,
    ScoreEntropy,
    check_estimator,
    known_terms,
)
from dlm.masked_lm import MaskedLM
from dlm.noise import LogLinearNoise, Noise
from losses import group_advantages
from rewards.measures import distinct_n
from rewards.rules import Reward
from rl.learning import ModelLearning, Reference
from rl.objective import RATIOS, backward, policy_loss
from rl.rollouts import Batch, decode, reward_metrics, score
from rl.settings import RLTrainingSettings
from samplers.loop import Strategy
from training.learner import Learner
from training.processes import Processes
from training.run import step_seed

ALGORITHMS = ("grpo", "ppo", "vrpo")


def build_estimator(config: RLTrainingSettings, model: MaskedLM, noise: Noise | None) -> Estimator:
    """Build rl.estimator with its settings. ValueError for an unknown one, and for combinations that model or sampler do
    not allow.
    """
    rl, samples = config.rl, config.rl.num_sigma_samples
    if rl.estimator not in ESTIMATORS:
        raise ValueError(f"rl.estimator={rl.estimator!r} is unknown; use one of {', '.join(ESTIMATORS)}")
    if rl.masks not in ("counts", "times"):
        raise ValueError(f"rl.masks={rl.masks!r} is unknown; use counts or times")
    counts, antithetic = rl.masks == "counts", bool(rl.antithetic)
    low, high = rl.coupled
    if not 0 < low < high < 1:
        raise ValueError(f"rl.coupled=[{low},{high}] must be two shares in order, between 0 and 1; change it")
    kinds: dict[str, Callable[[], Estimator]] = {
        "elbo": lambda: Elbo(samples, counts, antithetic),
        "mean_field": lambda: MeanField(samples, float(rl.prompt_mask)),
        "coupled": lambda: Coupled(samples, float(low), float(high)),
        "score_entropy": lambda: ScoreEntropy(samples, False, antithetic, noise or LogLinearNoise()),
        "sandwich": lambda: Sandwich(samples, counts, antithetic, float(rl.sandwich.beta), float(rl.sandwich.mix)),
        "trajectory": lambda: ReplayedTrajectory(float(config.sampler.temperature), rl.replayed_steps),
        "published": Published,
    }
    estimator = kinds[rl.estimator]()
    check_estimator(estimator, model)
    return estimator


def check_rl(config: RLTrainingSettings) -> None:
    """Refuse, before any work, settings that cannot be trained: ValueError."""
    if config.rl.algorithm not in ALGORITHMS:
        raise ValueError(f"rl.algorithm={config.rl.algorithm!r} is unknown; use one of {', '.join(ALGORITHMS)}")
    rl = config.rl
    if rl.ratio not in RATIOS:
        raise ValueError(f"rl.ratio={rl.ratio!r} is unknown; use one of {', '.join(RATIOS)}")
    if config.rl.algorithm == "grpo" and rl.group_size < 2:
        raise ValueError(f"rl.group_size={rl.group_size} must be at least 2: advantages compare rollouts of a prompt")
    if config.rl.algorithm == "vrpo" and rl.estimator in ("trajectory", "published"):
        raise ValueError(f"rl.estimator={rl.estimator} is of texts that were sampled and pairs are not; use elbo")
    if config.rl.algorithm == "vrpo" and not rl.kl_beta > 0:
        raise ValueError(f"rl.kl_beta={rl.kl_beta} multiplies the margin of vrpo; give a number above 0, such as 0.1")
    if rl.sandwich.beta == 0:
        raise ValueError("rl.sandwich.beta=0 is an exponent that divides; give a number above 0, such as 1")
    if rl.estimator == "trajectory" and config.sampler.strategy in ("confidence_noisy", "policy"):
        raise ValueError(
            f"rl.estimator=trajectory with sampler.strategy={config.sampler.strategy}: its choice of positions is drawn from "
            "the model, and that part would be missing; use another strategy, or rl.estimator=elbo"
        )


class Rollouts(ModelLearning):
    """PPO and GRPO. Batches are defined over all processes, each of which decodes its share and has whole groups."""

    def __init__(
        self, model: MaskedLM, learner: Learner, reference: Reference | None, estimator: Estimator, task: Task, reward: Reward,
        decoder: Strategy, config: RLTrainingSettings, save: Callable[[Path], None],
    ):  # fmt: skip
        super().__init__(model, learner, estimator, save)
        self.reference, self.task, self.reward, self.config = reference, task, reward, config
        self.decoder = decoder
        self.rows = self.processes.share(config.rl.batch_size, "rl.batch_size")
        if self.rows % config.rl.group_size:
            raise ValueError(
                f"a process's batch of {self.rows} rollouts is not divisible by rl.group_size={config.rl.group_size}; change "
                "either"
            )
        self.batch: Batch | None = None
        self.baseline: float | None = None  # the running mean of the rewards, for PPO

    def draw(self, step: int) -> tuple[Batch, torch.Tensor, dict[str, float]]:
        """Draw rollouts of the current weights. Returns the batch, its `known_terms`, and metrics."""
        seed, group = step_seed(self.config.seed, step), self.config.rl.group_size
        global_prompts = self.processes.world * self.rows // group
        local = self.processes.part(global_prompts)
        prompts = self.task.prompts(global_prompts, seed).share(local).to(self.processes.device).repeat(group)
        samples = decode(self.model, self.decoder, prompts, self.config.sampler, self.task.ends, seed)
        scored = score(self.reward, samples, prompts.rows, prompts.first_row)
        metrics, failures = reward_metrics(scored, samples, self.processes)
        for failure in failures:
            self.say(f"step {step + 1}: no reward for {failure}; dropped")
        advantage = self.advantages(scored.total, scored.valid, metrics["reward"])
        batch = Batch(
            samples.tokens, ~samples.prompt, samples.unmasked_at, prompts.start, advantage, scored.valid, seed, prompts.first_row,
            ends=samples.ends,
        )  # fmt: skip
        views = batch.views(self.estimator)
        log_likelihoods = self.log_likelihoods(self.model, batch, views)
        batch.old = self.estimator.combine(log_likelihoods, views, len(batch.tokens), batch.push_down)
        if self.reference is not None:
            with self.reference() as reference:
                of_reference = self.log_likelihoods(reference, batch, views)
            batch.reference = self.estimator.combine(of_reference, views, len(batch.tokens), batch.push_down)
        return batch, log_likelihoods, metrics

    def log_likelihoods(self, model: MaskedLM, batch: Batch, views) -> torch.Tensor:
        """Return `known_terms` of the batch."""
        return known_terms(model, self.estimator, batch.tokens, views, self.config.training.chunk, batch.start)

    def advantages(self, reward: torch.Tensor, valid: torch.Tensor, mean: float) -> torch.Tensor:
        """Return the advantages.

        GRPO: relative to the group. PPO: relative to the running mean, divided by the root mean square of these differences
        in the batch of all processes. (The standard deviation of the batch is 0 if its rewards agree, however far they are
        from the running mean.)
        """
        rl = self.config.rl
        if self.config.rl.algorithm == "grpo":
            grouped = (x.view(-1, rl.group_size) for x in (reward, valid))
            rewards, known = grouped
            return group_advantages(rewards, rl.advantage_std, known).flatten()
        before = mean if self.baseline is None else self.baseline
        self.baseline = rl.baseline_decay * before + (1 - rl.baseline_decay) * mean
        difference = reward - before
        _, square, _ = self.processes.moments(difference[valid].square())
        return (difference / (square.sqrt() + 1e-4)).masked_fill(~valid, 0.0)

    def iteration(self, step: int) -> dict[str, float]:
        """Make rl.ppo_epochs updates, on new rollouts every rl.reward_freq iterations."""
        rl, metrics, log_likelihoods = self.config.rl, {}, None
        if self.batch is None or step % rl.reward_freq == 0:
            self.batch, log_likelihoods, metrics = self.draw(step)
        batch = self.batch
        assert batch.old is not None
        old, reference = batch.old, batch.reference
        count = self.processes.mean({"valid": float(batch.valid.sum())})["valid"]  # of a process, on average
        weight = batch.valid.float() / count
        views = batch.views(self.estimator)
        if self.reference is None:  # rows without an advantage have no gradient
            index = batch.advantage[views.row].nonzero().squeeze(1)
            views, log_likelihoods = views.take(index), None if log_likelihoods is None else log_likelihoods[index]
        figures: dict[str, float] = {}
        decided = batch.decided(self.estimator)

        def loss_of(new):
            loss, seen = policy_loss(
                new, old, reference, decided, batch.advantage, weight, rl.ratio, rl.ppo_clip, rl.kl_beta
            )
            figures.update(seen)
            return loss

        for epoch in range(rl.ppo_epochs):
            known = log_likelihoods if epoch == 0 else None
            loss = backward(
                self.model, self.estimator, batch.tokens, views, loss_of, self.config.training.chunk, batch.push_down,
                batch.start, known,
            )  # fmt: skip
            metrics |= {"loss": loss, **figures, **self.learner.update()}
        return metrics

    @torch.no_grad()
    def measured(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Decode and score held-out prompts. Returns means, and a record of the first rows."""
        prompts = self.task.valid.first(self.config.eval.batch_size).to(self.processes.device)
        samples = decode(self.model, self.decoder, prompts, self.config.sampler, self.task.ends, 0)
        scored = score(self.reward, samples, prompts.rows)
        alone = Processes(0, 1, self.processes.device)
        metrics, _ = reward_metrics(scored, samples, alone)
        answers = samples.tokens.masked_fill(~samples.answer, -1)[:, prompts.prompt_length :]
        metrics["distinct"] = len(torch.unique(answers, dim=0)) / len(answers)
        metrics["distinct_2"] = distinct_n(answers.cpu(), 2, answers.cpu() >= 0)
        records = []
        for number in range(min(self.config.eval.samples, len(answers))):
            ids = samples.tokens[number][samples.counted[number]].tolist()
            text = " ".join(map(str, ids)) if self.task.tokenizer is None else self.task.tokenizer.decode(ids)
            terms = {name: float(term[number]) for name, term in scored.terms.items()}
            reward = float(scored.total[number]) if bool(scored.valid[number]) else None
            records.append({"text": text, "reward": reward, **terms})
        return {f"eval_{name}": value for name, value in metrics.items()}, records

    def progress(self) -> dict[str, Any]:
        reused = self.batch is not None and self.config.rl.reward_freq > 1
        whole = self.batch.whole(self.processes) if reused and self.batch is not None else None
        return {"task": self.task.state_dict(), "baseline": self.baseline, "batch": whole}

    def restore_progress(self, state: dict[str, Any]) -> None:
        self.task.load_state_dict(state["task"])
        self.baseline = state["baseline"]
        self.batch = None if state["batch"] is None else Batch.share(state["batch"], self.processes)
