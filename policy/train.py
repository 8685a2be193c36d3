"""Training a policy on a frozen model: rollouts and clipped updates (GRPO, PPO), the variational bound, or a teacher.

One iteration: draw prompts, decode them with the policy, score, update the policy alone on what it read. Batches are global
over processes, whose number changes nothing; gradients are averaged; a process with nothing to learn from still joins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Int, Shaped
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from data.tasks import Prompts, Task
from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from policy.actions import ACTIONS, FOR_SAMPLING
from policy.checkpoints import check_same_model
from policy.experts import check_experts, expert_metrics, expert_rollouts
from policy.grpo import GRPO
from policy.imitation import check_teacher, teacher_loss
from policy.ppo import PPO
from policy.rollout import Decoding, Reward, rollout, summary, teacher_forced
from policy.unmasker import PolicyUnmasker
from policy.variational import bound_loss, masking_path
from samplers.loop import Strategy, sample
from samplers.samples import Samples
from training.learner import Learner
from training.optim import MovingAverage, Optimiser
from training.processes import Processes
from training.run import Run, step_seed

CLIPPED = {"grpo": GRPO, "ppo": PPO}
ALGORITHMS = (*CLIPPED, "variational", "imitation")


def one_of(values: list, rows: int, seed: int | None) -> Shaped[Tensor, "row"]:
    """One of `values` for each row, drawn by `seed`, or (None) one after the other."""
    generator = torch.Generator().manual_seed(seed or 0)
    number = torch.arange(rows) if seed is None else torch.randint(len(values), (rows,), generator=generator)
    return torch.tensor(values)[number % len(values)]


def budgets(config: DictConfig, rows: int, device: torch.device, seed: int | None = None) -> Int[Tensor, "row"] | None:
    """Evaluations allowed to each prompt: one of sampling.budgets."""
    if config.sampling.budgets is None:
        return None
    return one_of(list(config.sampling.budgets), rows, seed).to(device)


def alphas(config: DictConfig) -> list[float]:
    """reward.alphas: the weights of speed among which each prompt's is drawn; none for rewards that have no such key."""
    return [float(alpha) for alpha in OmegaConf.select(config, "reward.alphas") or []]


def with_alpha(prompts: Prompts, config: DictConfig, seed: int | None = None) -> Prompts:
    """`rows["alpha"]`, which the policy and the reward read."""
    if not alphas(config):
        return prompts
    drawn = one_of(alphas(config), len(prompts.canvas), None if seed is None else seed + 1)  # not as the budgets are
    return replace(prompts, rows={**prompts.rows, "alpha": drawn})


def check_alphas(config: DictConfig, network: nn.Module, reward: Reward) -> None:
    """Refuse weights of speed that are none, a policy that cannot read them, and one that must and is not given any."""
    given, reads = alphas(config), getattr(network, "alpha_embedding", None) is not None
    if any(alpha < 0 for alpha in given):
        raise ValueError(f"reward.alphas={given} must be numbers of at least 0")
    if reads and not given:
        raise ValueError("this policy is told the weight of speed; give some to draw from: reward.alphas=[0,0.3,1,3]")
    if given and (not reads or config.algorithm.name == "variational" or teacher_forced(reward)):
        raise ValueError(
            "reward.alphas goes with grpo, ppo and imitation, a policy that can read it (not hidden_mlp) and a reward with a "
            "speed factor"
        )


def decoding(config: DictConfig, task: Task) -> Decoding:
    """Blocks and caches as sampling.* says; a row ends where the task's texts do."""
    sampling = config.sampling
    return Decoding(sampling.block_length, task.ends, sampling.cache, sampling.refresh)


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
    asked = with_alpha(draw(everybody, seed), config, seed).share(mine).to(processes.device)
    unmasker = PolicyUnmasker(learner.network, config.algorithm.action)  # pyright: ignore[reportArgumentType]
    rule = TokenRule(config.sampling.temperature)
    budget = budgets(config, everybody, processes.device, seed)
    budget = None if budget is None else budget[mine]
    samples, scored = rollout(
        model, unmasker, rule, asked.repeat(group), config.sampling.discrete_steps, reward, seed, True,
        decoding(config, task), budget=None if budget is None else budget.repeat_interleave(group),
    )  # fmt: skip
    if scored.failed:
        print(f"iteration {step}: {scored.told()}", file=sys.stderr, flush=True)
    check_selects(samples, processes, step)
    metrics = summary(samples, scored, model.mask_id)
    more: dict = {"chunk": config.training.chunk}
    if isinstance(algorithm, GRPO) and config.algorithm.experts.thresholds:
        more["experts"] = expert_rollouts(
            model, unmasker.network, config.algorithm.experts, rule, asked, reward, seed, decoding(config, task), budget
        )
        metrics |= expert_metrics(more["experts"], scored)
    steps = algorithm.prepare(samples, scored, learner.network, unmasker.law, **more)
    anybody = processes.mean({"steps": float(len(steps))})["steps"] > 0
    for _ in range(config.algorithm.inner_updates if anybody else 0):
        total = 0.0
        for index in torch.arange(len(steps), device=processes.device).split(config.training.chunk):
            loss = algorithm.loss(learner.network, unmasker.law, steps.take(index))
            loss.backward()
            total += float(loss.detach())
        metrics.update({"loss": total, **learner.update()})
    return metrics


def check_selects(samples: Samples, processes: Processes, step: int) -> None:
    """Raises FloatingPointError where rollouts had a choice and none of any process selected a position: rewards are then equal,
    and nothing is learnt from there on. (A row whose budget is one evaluation has no choice.)"""
    assert samples.trajectory is not None
    order = samples.trajectory.order
    found = processes.mean({"choices": float(len(order)), "selected": float((order > 0).sum())})
    if found["choices"] > 0 and found["selected"] == 0:
        raise FloatingPointError(
            f"the policy selected no position in any rollout of iteration {step}, so there is nothing to learn from; raise "
            "policy.smart_init, lower optim.lr, or learn by algorithm.action=fixed"
        )


def imitation_iteration(
    model: MaskedLM, learner: Learner, task: Task, teaching: DictConfig, config: DictConfig, rows: int, step: int,
    reward: Reward | None = None,
) -> dict[str, float]:  # fmt: skip
    """One update from a teacher's rollouts (policy/imitation.py), or, with a reward, from those that it rewards; none where there
    are none in any process."""
    seed, processes = step_seed(config.seed, step), learner.processes
    everybody = processes.world * rows
    mine = processes.part(everybody)
    prompts = with_alpha(task.prompts(everybody, seed), config, seed).share(mine)
    budget = budgets(config, everybody, processes.device, seed)
    loss = teacher_loss(
        model, learner.network, prompts.to(processes.device), teaching, config, seed, task.ends, processes,
        reward, None if budget is None else budget[mine],
    )  # fmt: skip
    taught = any(parameter.grad is not None for parameter in learner.network.parameters())
    anybody = processes.mean({"taught": float(taught)})["taught"] > 0
    return {"loss": loss, **(learner.update() if anybody else {})}


def warm_start(
    model: MaskedLM, learner: Learner, task: Task, config: DictConfig, rows: int, reward: Reward | None = None
) -> list[float]:
    """Learn from a teacher before the first reward; returns the losses of all processes. Its steps are numbered below 0."""
    warm, share = config.algorithm.warm_start, rows // config.algorithm.group_size
    losses = []
    for step in range(-warm.updates, 0):
        metrics = imitation_iteration(model, learner, task, warm, config, share, step, reward)
        losses.append(learner.processes.mean({"loss": metrics["loss"]})["loss"])
    return losses


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
    held_out = (task.held_out if teacher_forced(reward) else task.valid).first(config.eval.batch_size)
    prompts = with_alpha(held_out, config).to(device)
    unmasker = PolicyUnmasker(network, config.eval.action, config.eval.temperature)  # pyright: ignore[reportArgumentType]
    rule = TokenRule(config.sampling.temperature)
    samples, scored = rollout(
        model, unmasker, rule, prompts, config.sampling.discrete_steps, reward, 0, teacher_forced(reward), decoding(config, task),
        budget=budgets(config, len(prompts.canvas), device),
    )  # fmt: skip
    measures = {f"eval_{name}": value for name, value in summary(samples, scored, model.mask_id).items()}
    for alpha in alphas(config):
        own = (prompts.rows["alpha"] == alpha).to(device)
        if not own.any():  # fewer held-out prompts than alphas
            continue
        measures[f"eval_nfe_alpha_{alpha:g}"] = float(samples.evaluations[own].float().mean())
        measures[f"eval_reward_alpha_{alpha:g}"] = float(scored.total[own].nanmean())
    if teacher_forced(reward):  # those rows hold the data's text: what is shown is written by the model
        environment = UnmaskingEnvironment(model, config.sampling.discrete_steps)
        samples = sample(environment, Strategy(unmasker, rule), task.valid.first(4).to(device).canvas)
    return measures, samples


def teaching_of(config: DictConfig) -> DictConfig | None:
    """The settings of what an expert teaches: the whole algorithm, its warm start, or nothing."""
    name = config.algorithm.name
    warm = name in CLIPPED and config.algorithm.warm_start.updates
    return config.algorithm if name == "imitation" else config.algorithm.warm_start if warm else None


def check_training(network: nn.Module, task: Task, reward: Reward, config: DictConfig, processes: Processes) -> None:
    """Refuse, before a run directory is made, a batch that does not divide and settings that do not go together: ValueError."""
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
    # Refuses, now, an action that does not fit the network.
    PolicyUnmasker(network, config.eval.action, config.eval.temperature)  # pyright: ignore[reportArgumentType]
    if teacher_forced(reward) and name in CLIPPED and config.algorithm.action == "bernoulli":
        raise ValueError(
            "reward=bound charges for what is revealed and algorithm.action=bernoulli may reveal nothing; use fixed or "
            "plackett_luce"
        )
    check_alphas(config, network, reward)
    if name in CLIPPED:  # both refuse what they cannot learn with
        PolicyUnmasker(network, config.algorithm.action)  # pyright: ignore[reportArgumentType]
        CLIPPED[name](config.algorithm, network, processes)
    steered = name in CLIPPED and issubclass(CLIPPED[name], GRPO)
    if not steered and OmegaConf.select(config, "algorithm.experts.thresholds"):
        raise ValueError(f"algorithm.experts steers GRPO, and algorithm={name} takes no experts; leave them out")
    if steered and config.algorithm.experts.thresholds:
        check_experts(config.algorithm.experts, task.valid, reward, config.sampling.block_length)
    if (teaching := teaching_of(config)) is not None:
        check_teacher(teaching, task.valid)
        if teaching.only_correct and teacher_forced(reward):
            raise ValueError(
                "only_correct needs a reward for a whole text, which reward=bound is not; use another reward"
            )
    if training.chunk < 1:
        raise ValueError(f"training.chunk={training.chunk} must be at least 1 decoding step")


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
    """The loop, of settings that `check_training` allows. Raises FloatingPointError for a loss that is not finite."""
    name, training = config.algorithm.name, config.training
    rows = processes.share(training.batch_size, "training.batch_size")
    algorithm = CLIPPED[name](config.algorithm, network, processes) if name in CLIPPED else None
    warm_updates = config.algorithm.warm_start.updates if algorithm else 0
    teaching = teaching_of(config)
    only_rewarded = reward if teaching is not None and teaching.only_correct else None
    parameters = list(network.parameters())
    total = warm_updates + training.n_iters * (config.algorithm.inner_updates if algorithm else 1)
    learner = Learner(
        network, Optimiser(parameters, config.optim, total), MovingAverage(parameters, training.ema), processes
    )
    first = 0
    if (state := run.restore("policy_model")) is not None:
        check_same_model(network, state["config"], run.directory)
        network.load_state_dict(state["policy_model"])
        learner.optimiser.adamw.load_state_dict(state["optimizer"])
        learner.average.load_state_dict(state["ema"])
        task.load_state_dict(state["task"])
        first, learner.updates = state["step"], state["updates"]
        if isinstance(algorithm, GRPO) and algorithm.reference is not None:
            algorithm.reference.load_state_dict(state["reference"])
    if first == 0 and warm_updates:
        losses = warm_start(model, learner, task, config, rows, only_rewarded)
        warm = config.algorithm.warm_start
        run.say(f"learnt from {warm.expert} {warm.setting}: loss {losses[0]:.3f} to {losses[-1]:.3f}")
        algorithm = CLIPPED[name](config.algorithm, network, processes)  # a KL is to where the policy starts from
    if first == 0 and config.eval.first and processes.first:
        run.log(0, evaluate(model, network, task, reward, config, processes.device)[0])
    for step in range(first, training.n_iters):
        if algorithm:
            metrics = clipped_iteration(model, learner, task, reward, algorithm, config, rows, step)
        elif name == "imitation":
            metrics = imitation_iteration(model, learner, task, config.algorithm, config, rows, step, only_rewarded)
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
            run.check_weights(network.named_parameters(), done)
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
