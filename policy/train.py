"""Training a policy on a frozen model: rollouts and clipped updates (GRPO, PPO), or the variational bound.

One iteration: draw prompts, decode them with the policy, score, update the policy alone on what it read. Batches are global
over processes; gradients are averaged; a process with nothing to learn from still joins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from data.tasks import PuzzleTask, TextTask
from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from policy.actions import ACTIONS
from policy.grpo import GRPO
from policy.ppo import PPO
from policy.rollout import Reward, Steps, policy_log_probs, rollout, summary
from policy.unmasker import PolicyUnmasker
from policy.variational import bound_loss, masking_path
from samplers.loop import Strategy, sample
from samplers.samples import Samples
from samplers.where import WHERE
from training.optim import MovingAverage, Optimiser
from training.processes import Processes
from training.run import Run, step_seed

CLIPPED = {"grpo": GRPO, "ppo": PPO}
ALGORITHMS = (*CLIPPED, "variational")
EXPERTS = ("threshold", "factor", "entropy_bound", "confidence_noisy")  # rules with one setting, which can be imitated


@dataclass
class Learner:
    """The network, its optimiser and its moving average; one `update` averages gradients over processes and steps."""

    network: nn.Module
    optimiser: Optimiser
    average: MovingAverage
    processes: Processes
    updates: int = 0

    def update(self) -> dict[str, float]:
        self.processes.average_(Optimiser.gradients(self.optimiser.parameters))
        metrics = self.optimiser.step(self.updates)
        self.average.update(self.network.parameters())
        self.updates += 1
        return metrics


def clipped_iteration(
    model: MaskedLM, learner: Learner, task: PuzzleTask | TextTask, reward: Reward, algorithm: GRPO | PPO,
    config: DictConfig, rows: int, step: int,
) -> dict[str, float]:  # fmt: skip
    """One batch of rollouts and its inner updates. Inner updates take the whole batch, in chunks of
    training.chunk active steps that bound memory."""
    seed = step_seed(config.seed, step, learner.processes.rank)
    group = config.algorithm.group_size
    prompts = task.prompts(rows // group, seed).repeat(group)
    prompts.canvas = prompts.canvas.to(learner.processes.device)
    unmasker = PolicyUnmasker(learner.network, config.algorithm.action)  # pyright: ignore[reportArgumentType]
    rule = TokenRule(config.sampling.temperature)
    samples, scored = rollout(model, unmasker, rule, prompts, config.sampling.discrete_steps, reward, seed, record=True)
    steps = algorithm.prepare(samples, scored, learner.network, unmasker.law)
    metrics = summary(samples, scored, model.mask_id)
    anybody = learner.processes.mean({"steps": float(len(steps))})["steps"] > 0
    for _ in range(config.algorithm.inner_updates if anybody else 0):
        total = 0.0
        for index in torch.arange(len(steps), device=learner.processes.device).split(config.training.chunk):
            loss = algorithm.loss(learner.network, unmasker.law, steps.take(index))
            loss.backward()
            total += float(loss.detach())
        metrics.update({"loss": total, **learner.update()})
    return metrics


def imitate(
    model: MaskedLM, learner: Learner, task: PuzzleTask | TextTask, config: DictConfig, rows: int
) -> list[float]:
    """Before the first iteration: learn the picks of a rule (threshold, say) from its own rollouts, by their log-likelihood under
    the action law. A policy that starts from nothing solves nothing, and a reward that is always 0 teaches nothing."""
    warm = config.algorithm.warm_start
    if warm.expert not in EXPERTS:
        raise ValueError(f"algorithm.warm_start.expert={warm.expert!r} is unknown; use one of {', '.join(EXPERTS)}")
    losses = []
    for number in range(warm.updates):
        seed = step_seed(config.seed, -1 - number, learner.processes.rank)
        prompts = task.prompts(rows // config.algorithm.group_size, seed)
        prompts.canvas = prompts.canvas.to(learner.processes.device)
        expert = Strategy(WHERE[warm.expert](warm.setting), TokenRule(config.sampling.temperature))
        environment = UnmaskingEnvironment(model, config.sampling.discrete_steps)
        inputs = learner.network.inputs  # pyright: ignore
        trajectory = sample(environment, expert, prompts.canvas, seed, record=inputs).trajectory  # pyright: ignore
        assert trajectory is not None
        law = PolicyUnmasker(learner.network, config.algorithm.action).law  # pyright: ignore[reportArgumentType]
        losses.append(0.0)
        for index in torch.arange(len(trajectory.row), device=learner.processes.device).split(config.training.chunk):
            part = Steps(trajectory, trajectory.log_where, trajectory.log_where).take(index).trajectory
            loss = -policy_log_probs(learner.network, law, part)[0].sum() / len(trajectory.row)
            loss.backward()
            losses[-1] += float(loss.detach())
        learner.update()
    return losses


def variational_iteration(
    model: MaskedLM, learner: Learner, task: PuzzleTask | TextTask, config: DictConfig, rows: int, step: int
) -> dict[str, float]:
    """One update on `rows` clean rows, in training.accum parts."""
    seed = step_seed(config.seed, step, learner.processes.rank)
    tokens, given = (x.to(learner.processes.device) for x in task.clean(rows, seed))
    parts = list(zip(tokens.chunk(config.training.accum), given.chunk(config.training.accum), strict=True))
    bound = 0.0
    for number, (part, fixed) in enumerate(parts):
        draws = Draws(seed * 1009 + number)
        path = masking_path(model, learner.network, part, fixed, config.sampling.discrete_steps, draws)
        loss, negative_bound = bound_loss(learner.network, path, fixed, config.algorithm.reinforce)
        (loss / len(parts)).backward()
        bound += float(negative_bound) / len(parts)
    return {"loss": bound, **learner.update()}


@torch.no_grad()
def evaluate(
    model: MaskedLM,
    network: nn.Module,
    task: PuzzleTask | TextTask,
    reward: Reward,
    config: DictConfig,
    device: torch.device,
) -> tuple[dict[str, float], Samples]:
    """Held-out prompts decoded by the policy as it would be used (nothing is left masked), and how they score."""
    count = min(config.eval.batch_size, len(task.valid.canvas))
    prompts = task.valid.first(count)
    prompts.canvas = prompts.canvas.to(device)
    unmasker = PolicyUnmasker(network, config.eval.action)  # pyright: ignore[reportArgumentType]
    rule = TokenRule(config.sampling.temperature)
    samples, scored = rollout(model, unmasker, rule, prompts, config.sampling.discrete_steps, reward, 0, record=False)
    return {f"eval_{name}": value for name, value in summary(samples, scored, model.mask_id).items()}, samples


def train(
    model: MaskedLM,
    network: nn.Module,
    task: PuzzleTask | TextTask,
    reward: Reward,
    config: DictConfig,
    run: Run,
    processes: Processes,
    on_snapshot: Callable[[int, nn.Module, Samples], None],
) -> None:
    """The loop. Raises ValueError for an unknown algorithm or a batch that does not divide, FloatingPointError for a loss that
    is not finite."""
    name, training = config.algorithm.name, config.training
    rows = processes.share(training.batch_size, "training.batch_size")
    if name in CLIPPED and rows % config.algorithm.group_size:
        raise ValueError(
            f"a process's batch of {rows} rollouts is not divisible by algorithm.group_size={config.algorithm.group_size}"
        )
    if rows % training.accum:
        raise ValueError(f"a process's batch of {rows} is not divisible by training.accum={training.accum}")
    if config.eval.action not in ACTIONS:
        raise ValueError(f"eval.action={config.eval.action!r} is unknown; use one of {', '.join(ACTIONS)}")
    algorithm = CLIPPED[name](config.algorithm, network) if name in CLIPPED else None
    parameters = list(network.parameters())
    total = training.n_iters * (config.algorithm.inner_updates if algorithm else 1)
    learner = Learner(
        network, Optimiser(parameters, config.optim, total), MovingAverage(parameters, training.ema), processes
    )
    first = 0
    if (state := run.restore()) is not None:
        network.load_state_dict(state["policy_model"])
        learner.optimiser.adamw.load_state_dict(state["optimizer"])
        learner.average.load_state_dict(state["ema"])
        task.load_state_dict(state["task"])
        first, learner.updates = state["step"], state["updates"]
        if isinstance(algorithm, GRPO) and algorithm.reference is not None:
            algorithm.reference.load_state_dict(state["reference"])
    if algorithm and first == 0 and config.algorithm.warm_start.updates:
        losses = imitate(model, learner, task, config, rows)
        warm = config.algorithm.warm_start
        run.say(f"imitated {warm.expert} {warm.setting}: loss {losses[0]:.3f} to {losses[-1]:.3f}")
        algorithm = CLIPPED[name](config.algorithm, network)  # a KL is to where the policy starts from
    for step in range(first, training.n_iters):
        if algorithm:
            metrics = clipped_iteration(model, learner, task, reward, algorithm, config, rows, step)
        else:
            metrics = variational_iteration(model, learner, task, config, rows, step)
        metrics = processes.mean(metrics)
        run.check(metrics.get("loss", 0.0), step)
        done = step + 1
        last = done == training.n_iters
        run.log(done, metrics, show=done % training.log_freq == 0 or last)
        snapshot = done % training.snapshot_freq == 0 or last
        if snapshot or done % training.eval_freq == 0:
            kept = [p.detach().clone() for p in parameters]
            learner.average.copy_to(parameters)
            if processes.first:
                measures, samples = evaluate(model, network, task, reward, config, processes.device)
                run.log(done, measures)
                if snapshot:
                    on_snapshot(done, network, samples)
            with torch.no_grad():
                for parameter, value in zip(parameters, kept, strict=True):
                    parameter.copy_(value)
        if snapshot or done % training.snapshot_freq_for_preemption == 0:
            reference = algorithm.reference if isinstance(algorithm, GRPO) else None
            run.save(checkpoint(network, reference, learner, task, done), snapshot)


def checkpoint(
    network: nn.Module, reference: nn.Module | None, learner: Learner, task: PuzzleTask | TextTask, step: int
) -> dict[str, object]:
    """genpolicy's keys, and what an exact resume needs besides (`reference`: what a KL is to)."""
    state: dict[str, Tensor] = network.state_dict()
    return {
        "policy_model": state,
        "config": network._hub_mixin_config,
        "optimizer": learner.optimiser.adamw.state_dict(),
        "ema": learner.average.state_dict(),
        "task": task.state_dict(),
        "reference": None if reference is None else reference.state_dict(),
        "updates": learner.updates,
        "step": step,
    }
