"""Algorithms that train a policy on a frozen model: GRPO, PPO, the variational bound, imitation of a teacher.

One iteration: draw prompts, decode them with the policy, score the texts, and update the policy on the recorded inputs. The
frozen model runs during the rollouts only. Batches are defined over all processes, whose number changes no result. Gradients are
averaged. A process without advantages takes part in every update.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from data.tasks import QuestionTask, Task
from dlm.draws import Draws
from dlm.environment import TokenRule
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from policy.base import PolicyNetwork
from policy.batches import PromptBatch, budgets, with_alpha
from policy.checkpoints import check_same_model, save_policy
from policy.experts import Rollouts, expert_metrics, expert_rollouts
from policy.grpo import GRPO
from policy.imitation import teacher_loss
from policy.ppo import PPO
from policy.rollout import Steps, rollout, summary
from policy.settings import (
    ClippedSettings,
    GRPOSettings,
    ImitationSettings,
    PolicyTrainingSettings,
    PPOSettings,
    TeachingSettings,
    VariationalSettings,
)
from policy.unmasker import PolicyUnmasker
from policy.variational import bound_loss, masking_path
from rewards.rules import Reward, RewardOutput
from samplers.loop import Strategy
from samplers.samples import Samples
from training.learner import Learner
from training.processes import Processes
from training.run import Run, Schedule, step_seed, write_samples
from training.trainer import Algorithm

SHOWN = 4  # samples that a snapshot writes


class PolicyLearning(Algorithm):
    """Common part of the algorithms: batches, evaluations, samples, files of the policy, checkpoints with the keys of
    genpolicy.
    """

    weights = "policy_model"

    def __init__(
        self,
        model: MaskedLM,
        learner: Learner[PolicyNetwork],
        task: Task,
        reward: Reward,
        config: PolicyTrainingSettings,
    ):
        self.model, self.learner, self.task, self.reward, self.config = model, learner, task, reward, config
        self.network, self.processes = learner.network, learner.processes
        self.rows = self.processes.share(config.training.batch_size, "training.batch_size")
        if self.rows % config.training.accum:
            raise ValueError(
                f"a process's batch of {self.rows} is not divisible by training.accum={config.training.accum}"
            )
        self.evaluated: Samples | None = None  # the samples of the last evaluation

        self.alphas = config.reward.weights_of_speed
        self.rule = TokenRule(config.sampler.temperature)

    def options(self, budget: Int[Tensor, "row"] | None) -> DecodeOptions:
        """Return how prompts are decoded. A row ends at the task's end tokens.

        Args:
            budget: maximal network evaluations of each row; None: no limit.
        """
        sampler = self.config.sampler
        return DecodeOptions(
            sampler.steps, sampler.block_length, budget=budget, ends=self.task.ends, cache=sampler.cache,
            refresh=sampler.refresh,
        )  # fmt: skip

    def batch(self, step: int, rows: int, texts: bool = False) -> PromptBatch:
        """Return the prompts of this process, `rows` of them, at iteration `step`. texts: prompts with a text of the data."""
        config, seed, device = self.config, step_seed(self.config.seed, step), self.processes.device
        global_rows = self.processes.world * rows
        part = self.processes.part(global_rows)
        drawn = (self.task.texts if texts else self.task.prompts)(global_rows, seed)
        prompts = with_alpha(drawn, self.alphas, seed).share(part).to(device)
        budget = budgets(config.sampler.budgets, global_rows, device, seed)
        return PromptBatch(prompts, None if budget is None else budget[part], seed)

    def imitate(self, teaching: TeachingSettings, rows: int, step: int) -> dict[str, float]:
        """Make one update from a teacher's rollouts (policy/imitation.py). No update if no process has a rollout to learn
        from.
        """
        batch = self.batch(step, rows)
        rewarded = self.reward if teaching.only_correct else None
        loss = teacher_loss(
            self.model, self.network, batch.prompts, teaching, self.config, batch.seed, self.task.ends, self.processes, rewarded,
            batch.budget,
        )  # fmt: skip
        taught = any(parameter.grad is not None for parameter in self.network.parameters())
        learns = self.processes.mean({"taught": float(taught)})["taught"] > 0
        return {"loss": loss, **(self.learner.update() if learns else {})}

    def evaluates_first(self, first: int, schedule: Schedule) -> bool:
        return first == 0 and self.config.eval.first

    def evaluates(self, done: int, schedule: Schedule) -> bool:
        """Return whether to evaluate now. A snapshot contains the samples of an evaluation, so it needs one."""
        return super().evaluates(done, schedule) or schedule.is_due(done, schedule.snapshot_freq)

    @torch.no_grad()
    def evaluate(self, run: Run, done: int) -> dict[str, float]:
        """Decode held-out prompts with the policy as in sampling (no position stays masked), and score the texts."""
        config, device = self.config, self.processes.device
        forced = self.reward.teacher_forced
        held_out = (self.task.held_out if forced else self.task.valid).first(config.eval.batch_size)
        prompts = with_alpha(held_out, self.alphas).to(device)
        unmasker = PolicyUnmasker(self.network, config.eval.action, config.eval.temperature)
        options = self.options(budgets(config.sampler.budgets, len(prompts.canvas), device))
        samples, scored = rollout(self.model, unmasker, self.rule, prompts, options, self.reward, 0, forced)
        measures = {f"eval_{name}": value for name, value in summary(samples, scored, self.model.mask_id).items()}
        for alpha in self.alphas:
            own = (prompts.rows["alpha"] == alpha).to(device)
            if own.any():  # there may be fewer held-out prompts than alphas
                measures[f"eval_nfe_alpha_{alpha:g}"] = float(samples.evaluations[own].float().mean())
                measures[f"eval_reward_alpha_{alpha:g}"] = float(scored.total[own].nanmean())
        if forced:  # these rows hold the text of the data; the samples that are written are the model's
            displayed = Prompts(self.task.valid.first(SHOWN).to(device).canvas)
            samples = Strategy(unmasker, self.rule).decode(self.model, displayed, DecodeOptions(config.sampler.steps))
        self.evaluated = samples
        return measures

    def snapshot(self, run: Run, done: int) -> dict[str, float]:
        """Write RUN/policy and the first samples of the evaluation."""
        assert self.evaluated is not None
        save_policy(self.network, run.directory / "policy")
        first = zip(self.evaluated.tokens[:SHOWN], self.evaluated.counted[:SHOWN], strict=True)
        write_samples(
            run.directory / "samples" / f"iter_{done}",
            [self.text(number, tokens, counted) for number, (tokens, counted) in enumerate(first)],
        )
        return {}

    def text(self, number: int, tokens: torch.Tensor, counted: torch.Tensor) -> str:
        """Return sample `number` of the evaluation as text, with its question if the task has questions."""
        if isinstance(self.task, QuestionTask):
            return self.task.displayed(number, tokens)
        ids = tokens[counted].tolist()
        return " ".join(map(str, ids)) if self.task.tokenizer is None else str(self.task.tokenizer.decode(ids))

    def state_dict(self) -> dict[str, Any]:
        return {
            "policy_model": self.network.state_dict(),
            "config": self.network.config,
            "task": self.task.state_dict(),
            "reference": None,
            "updates": self.learner.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_same_model(self.network, state["config"], Path(str(self.config.resume)))
        self.network.load_state_dict(state["policy_model"])
        self.task.load_state_dict(state["task"])


class ClippedLearning(PolicyLearning):
    """Rollouts of the policy, rewards, and clipped inner updates on the whole batch, in chunks of training.chunk decoding
    steps.
    """

    objective: GRPO | PPO

    def __init__(
        self,
        model: MaskedLM,
        learner: Learner[PolicyNetwork],
        task: Task,
        reward: Reward,
        config: PolicyTrainingSettings,
    ):
        super().__init__(model, learner, task, reward, config)
        assert isinstance(config.algorithm, ClippedSettings)
        self.algorithm = config.algorithm
        self.group = self.algorithm.group_size
        if self.rows % self.group:
            raise ValueError(
                f"a process's batch of {self.rows} rollouts is not divisible by algorithm.group_size={self.group}"
            )
        self.objective = self.new_objective()

    @abstractmethod
    def new_objective(self) -> GRPO | PPO:
        """Return the objective for the current policy."""

    def experts(self, batch: PromptBatch) -> Sequence[Rollouts]:
        """Return rollouts of rules that join those of the policy: one of each rule for each prompt."""
        return []

    def prepare(self, samples: Samples, scored: RewardOutput, distribution, experts: Sequence[Rollouts]) -> Steps:
        """Return the decoding steps to learn from, with their advantages."""
        return self.objective.prepare(samples, scored, self.network, distribution, self.config.training.chunk)

    def warm_start(self) -> None:
        """Learn from a teacher before the first reward. Its updates have numbers below 0."""
        warm, losses = self.algorithm.warm_start, []
        for step in range(-warm.updates, 0):
            loss = self.imitate(warm, self.rows // self.group, step)["loss"]
            losses.append(self.processes.mean({"loss": loss})["loss"])
        if losses:
            self.say(f"learnt from {warm.expert} {warm.setting}: loss {losses[0]:.3f} to {losses[-1]:.3f}")
            self.objective = self.new_objective()  # a KL is to the policy that the warm start leaves

    def iteration(self, step: int) -> dict[str, float]:
        config = self.config
        batch = self.batch(step, self.rows // self.group, texts=self.reward.teacher_forced)
        unmasker = PolicyUnmasker(self.network, self.algorithm.action)
        options = self.options(None if batch.budget is None else batch.budget.repeat_interleave(self.group))
        prompts = batch.prompts.repeat(self.group)
        samples, scored = rollout(self.model, unmasker, self.rule, prompts, options, self.reward, batch.seed, True)
        if scored.failed:
            print(f"iteration {step}: {scored.failure_message()}", file=sys.stderr, flush=True)
        check_selects(samples, self.processes, step)
        metrics = summary(samples, scored, self.model.mask_id)
        experts = self.experts(batch)
        if experts:
            metrics |= expert_metrics(experts, scored)
        steps = self.prepare(samples, scored, unmasker.distribution, experts)
        learns = self.processes.mean({"steps": float(len(steps))})["steps"] > 0
        for _ in range(self.algorithm.inner_updates if learns else 0):
            total = 0.0
            for index in torch.arange(len(steps), device=self.processes.device).split(config.training.chunk):
                loss = self.objective.loss(self.network, unmasker.distribution, steps.take(index))
                loss.backward()
                total += float(loss.detach())
            metrics.update({"loss": total, **self.learner.update()})
        return metrics


def check_selects(samples: Samples, processes: Processes, step: int) -> None:
    """Refuse rollouts that select nothing: rewards are then equal, and nothing is learned. Rows with a budget of one have
    no choice.

    Raises:
        FloatingPointError: rollouts had a choice and none of any process selected a position.
    """
    assert samples.trajectory is not None
    order = samples.trajectory.order
    found = processes.mean({"choices": float(len(order)), "selected": float((order > 0).sum())})
    if found["choices"] > 0 and found["selected"] == 0:
        raise FloatingPointError(
            f"the policy selected no position in any rollout of iteration {step}, so there is nothing to learn from; raise "
            "policy.smart_init, lower optim.lr, or learn by algorithm.action=fixed"
        )


class GRPOLearning(ClippedLearning):
    """Groups of rollouts of one prompt (policy/grpo.py), which rollouts of experts may join."""

    objective: GRPO

    @property
    def settings(self) -> GRPOSettings:
        """Settings of the algorithm."""
        assert isinstance(self.algorithm, GRPOSettings)
        return self.algorithm

    def new_objective(self) -> GRPO:
        return GRPO(self.settings, self.network, self.processes)

    def experts(self, batch: PromptBatch) -> Sequence[Rollouts]:
        if not self.settings.experts.thresholds:
            return []
        return expert_rollouts(
            self.model, self.network, self.settings.experts, self.rule, batch.prompts, self.reward, batch.seed,
            self.options(batch.budget),
        )  # fmt: skip

    def prepare(self, samples: Samples, scored: RewardOutput, distribution, experts: Sequence[Rollouts]) -> Steps:
        return self.objective.prepare(samples, scored, self.network, distribution, self.config.training.chunk, experts)

    def state_dict(self) -> dict[str, Any]:
        reference = self.objective.reference
        return {**super().state_dict(), "reference": None if reference is None else reference.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.objective.reference is not None:
            self.objective.reference.load_state_dict(state["reference"])


class PPOLearning(ClippedLearning):
    """Single rollouts, compared by a value head (policy/ppo.py)."""

    def new_objective(self) -> PPO:
        assert isinstance(self.algorithm, PPOSettings)
        return PPO(self.algorithm, self.network, self.processes)


class Imitation(PolicyLearning):
    """Maximum likelihood of the decisions of a teacher (policy/imitation.py)."""

    def iteration(self, step: int) -> dict[str, float]:
        assert isinstance(self.config.algorithm, ImitationSettings)
        return self.imitate(self.config.algorithm, self.rows, step)


class Variational(PolicyLearning):
    """The variational bound on clean texts (policy/variational.py), in training.accum parts that bound memory."""

    def iteration(self, step: int) -> dict[str, float]:
        config, processes, seed = self.config, self.processes, step_seed(self.config.seed, step)
        assert isinstance(config.algorithm, VariationalSettings)
        clean = self.task.clean(processes.world * self.rows, seed)
        parts = list(zip(*(whole.chunk(config.training.accum) for whole in clean), strict=True))
        bound = 0.0
        for number, both in enumerate(parts):
            local = processes.part(len(both[0]))
            tokens, given = (whole[local].to(processes.device) for whole in both)
            draws = Draws(seed * 1009 + number, first=local.start)
            path = masking_path(self.model, self.network, tokens, given, config.sampler.steps, draws)
            loss, negative_bound = bound_loss(
                self.network, path, given, config.algorithm.reinforce, processes.everywhere
            )
            (loss / len(parts)).backward()
            bound += float(negative_bound) / len(parts)
        return {"loss": bound, **self.learner.update()}


LEARNING: dict[str, type[PolicyLearning]] = {
    "grpo": GRPOLearning,
    "ppo": PPOLearning,
    "variational": Variational,
    "imitation": Imitation,
}
