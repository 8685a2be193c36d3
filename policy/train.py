"""Training a policy on a frozen model: rollouts and clipped updates (GRPO, PPO), the variational bound, or a teacher.

One iteration: draw prompts, decode them with the policy, score, update the policy alone on what it read. Batches are global
over processes, whose number changes nothing; gradients are averaged; a process with nothing to learn from still joins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from omegaconf import DictConfig
from torch import Tensor, nn

from data.tasks import Task
from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from policy.actions import ACTIONS, FOR_SAMPLING
from policy.grpo import GRPO
from policy.imitation import check_teacher, teacher_loss
from policy.ppo import PPO
from policy.rollout import Decoding, Reward, rollout, summary, teacher_forced
from policy.unmasker import PolicyUnmasker
from policy.variational import bound_loss, masking_path
from samplers.loop import Strategy, sample
from samplers.samples import Samples
from training.optim import MovingAverage, Optimiser
from training.processes import Processes
from training.run import Run, step_seed

CLIPPED = {"grpo": GRPO, "ppo": PPO}
ALGORITHMS = (*CLIPPED, "variational", "imitation")


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


def budgets(config: DictConfig, rows: int, device: torch.device, seed: int | None = None) -> Int[Tensor, "row"] | None:
    """Evaluations allowed to each prompt: one of sampling.budgets, drawn by `seed`, or (None) one after the other."""
    if config.sampling.budgets is None:
        return None
    generator = torch.Generator().manual_seed(seed or 0)
    number = (
        torch.arange(rows)
        if seed is None
        else torch.randint(len(config.sampling.budgets), (rows,), generator=generator)
    )
    allowed = torch.tensor(list(config.sampling.budgets))
    return allowed[number % len(allowed)].to(device)


def decoding(config: DictConfig, task: Task) -> Decoding:
    """Blocks and caches as sampling.* says; a row ends where the task's texts do."""
    sampling = config.sampling
    return Decoding(sampling.block_length, getattr(task, "stop_id", None), sampling.cache, sampling.refresh)


def clipped_iteration(
    model: MaskedLM, learner: Learner, task: Task, reward: Reward, algorithm: GRPO | PPO,
    config: DictConfig, rows: int, step: int,
) -> dict[str, float]:  # fmt: skip
    """One batch of rollouts, `rows` of them here, and its inner updates. Inner updates take the whole batch, in chunks of
    training.chunk active steps that bound memory."""
    seed, processes = step_seed(config.seed, step), learner.processes
    group = config.algorithm.group_size
    draw = task.texts if teacher_forced(reward) else task.prompts
    everybody = processes.world * rows // group
    mine = processes.part(everybody)
    prompts = draw(everybody, seed).share(mine).repeat(group).to(processes.device)
    unmasker = PolicyUnmasker(learner.network, config.algorithm.action)  # pyright: ignore[reportArgumentType]
    rule = TokenRule(config.sampling.temperature)
    budget = budgets(config, everybody, processes.device, seed)
    samples, scored = rollout(
        model, unmasker, rule, prompts, config.sampling.discrete_steps, reward, seed, True, decoding(config, task),
        budget=None if budget is None else budget[mine].repeat_interleave(group),
    )  # fmt: skip
    steps = algorithm.prepare(samples, scored, learner.network, unmasker.law)
    metrics = summary(samples, scored, model.mask_id)
    anybody = processes.mean({"steps": float(len(steps))})["steps"] > 0
    for _ in range(config.algorithm.inner_updates if anybody else 0):
        total = 0.0
        for index in torch.arange(len(steps), device=processes.device).split(config.training.chunk):
            loss = algorithm.loss(learner.network, unmasker.law, steps.take(index))
            loss.backward()
            total += float(loss.detach())
        metrics.update({"loss": total, **learner.update()})
    return metrics


def imitation_iteration(
    model: MaskedLM, learner: Learner, task: Task, teaching: DictConfig, config: DictConfig, rows: int, step: int
) -> dict[str, float]:  # fmt: skip
    """One update from a teacher's rollouts (policy/imitation.py)."""
    seed, processes = step_seed(config.seed, step), learner.processes
    everybody = processes.world * rows
    prompts = task.prompts(everybody, seed).share(processes.part(everybody)).to(processes.device)
    stop_id = getattr(task, "stop_id", None)
    loss = teacher_loss(model, learner.network, prompts, teaching, config, seed, stop_id, processes)
    return {"loss": loss, **learner.update()}


def warm_start(model: MaskedLM, learner: Learner, task: Task, config: DictConfig, rows: int) -> list[float]:
    """Learn from a teacher before the first reward; returns the losses. Its steps are numbered below 0."""
    warm, share = config.algorithm.warm_start, rows // config.algorithm.group_size
    steps = range(-warm.updates, 0)
    return [imitation_iteration(model, learner, task, warm, config, share, step)["loss"] for step in steps]


def variational_iteration(
    model: MaskedLM, learner: Learner, task: Task, config: DictConfig, rows: int, step: int
) -> dict[str, float]:
    """One update on `rows` clean rows here, in training.accum parts."""
    seed, processes = step_seed(config.seed, step), learner.processes
    tokens, given = task.clean(processes.world * rows, seed)
    parts = list(zip(tokens.chunk(config.training.accum), given.chunk(config.training.accum), strict=True))
    bound = 0.0
    for number, both in enumerate(parts):
        mine = processes.part(len(both[0]))
        part, fixed = (x[mine].to(processes.device) for x in both)
        draws = Draws(seed * 1009 + number, first=mine.start)
        path = masking_path(model, learner.network, part, fixed, config.sampling.discrete_steps, draws)
        loss, negative_bound = bound_loss(
            learner.network, path, fixed, config.algorithm.reinforce, processes.everywhere
        )
        (loss / len(parts)).backward()
        bound += float(negative_bound) / len(parts)
    return {"loss": bound, **learner.update()}


@torch.no_grad()
def evaluate(
    model: MaskedLM,
    network: nn.Module,
    task: Task,
    reward: Reward,
    config: DictConfig,
    device: torch.device,
) -> tuple[dict[str, float], Samples]:
    """Held-out prompts decoded by the policy as it would be used (nothing is left masked), and how they score."""
    prompts = (task.held_out if teacher_forced(reward) else task.valid).first(config.eval.batch_size).to(device)
    unmasker = PolicyUnmasker(network, config.eval.action)  # pyright: ignore[reportArgumentType]
    rule = TokenRule(config.sampling.temperature)
    samples, scored = rollout(
        model, unmasker, rule, prompts, config.sampling.discrete_steps, reward, 0, teacher_forced(reward), decoding(config, task),
        budget=budgets(config, len(prompts.canvas), device),
    )  # fmt: skip
    measures = {f"eval_{name}": value for name, value in summary(samples, scored, model.mask_id).items()}
    if teacher_forced(reward):  # those rows hold the data's text: what is shown is written by the model
        environment = UnmaskingEnvironment(model, config.sampling.discrete_steps)
        samples = sample(environment, Strategy(unmasker, rule), task.valid.first(4).to(device).canvas)
    return measures, samples


def train(
    model: MaskedLM,
    network: nn.Module,
    task: Task,
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
    if config.sampling.budgets is not None and teacher_forced(reward):
        raise ValueError(
            "sampling.budgets and reward=bound do not go together: that reward does not see the last evaluation"
        )
    if config.eval.action not in FOR_SAMPLING:
        raise ValueError(f"eval.action={config.eval.action!r} is unknown; use one of {', '.join(FOR_SAMPLING)}")
    if name != "variational" and config.algorithm.action not in ACTIONS:
        raise ValueError(
            f"algorithm.action={config.algorithm.action!r} cannot be learnt with; use one of {', '.join(ACTIONS)}"
        )
    PolicyUnmasker(network, config.eval.action)  # refuses, now, an action that does not fit the network  # pyright: ignore
    if teacher_forced(reward) and name in CLIPPED and config.algorithm.action == "bernoulli":
        raise ValueError(
            "reward=bound charges for what is revealed and algorithm.action=bernoulli may reveal nothing; use fixed or "
            "plackett_luce"
        )
    algorithm = CLIPPED[name](config.algorithm, network, processes) if name in CLIPPED else None
    warm_updates = config.algorithm.warm_start.updates if algorithm else 0
    if name == "imitation" or warm_updates:
        check_teacher(config.algorithm if name == "imitation" else config.algorithm.warm_start, task.valid)
    parameters = list(network.parameters())
    if training.chunk < 1:
        raise ValueError(f"training.chunk={training.chunk} must be at least 1 decoding step")
    total = warm_updates + training.n_iters * (config.algorithm.inner_updates if algorithm else 1)
    learner = Learner(
        network, Optimiser(parameters, config.optim, total), MovingAverage(parameters, training.ema), processes
    )
    first = 0
    if (state := run.restore("policy_model")) is not None:
        network.load_state_dict(state["policy_model"])
        learner.optimiser.adamw.load_state_dict(state["optimizer"])
        learner.average.load_state_dict(state["ema"])
        task.load_state_dict(state["task"])
        first, learner.updates = state["step"], state["updates"]
        if isinstance(algorithm, GRPO) and algorithm.reference is not None:
            algorithm.reference.load_state_dict(state["reference"])
    if first == 0 and warm_updates:
        losses = warm_start(model, learner, task, config, rows)
        warm = config.algorithm.warm_start
        run.say(f"learnt from {warm.expert} {warm.setting}: loss {losses[0]:.3f} to {losses[-1]:.3f}")
        algorithm = CLIPPED[name](config.algorithm, network, processes)  # a KL is to where the policy starts from
    for step in range(first, training.n_iters):
        if algorithm:
            metrics = clipped_iteration(model, learner, task, reward, algorithm, config, rows, step)
        elif name == "imitation":
            metrics = imitation_iteration(model, learner, task, config.algorithm, config, rows, step)
        else:
            metrics = variational_iteration(model, learner, task, config, rows, step)
        metrics = processes.mean(metrics)
        run.check(metrics.get("loss", 0.0), step)
        run.check(metrics.get("grad_norm", 0.0), step, "gradient norm")
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
        stop = processes.stop_asked()
        if snapshot or stop or done % training.snapshot_freq_for_preemption == 0:
            reference = algorithm.reference if isinstance(algorithm, GRPO) else None
            run.save(checkpoint(network, reference, learner, task, done), snapshot)
        if stop:
            run.stop(done)


def checkpoint(
    network: nn.Module, reference: nn.Module | None, learner: Learner, task: Task, step: int
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
