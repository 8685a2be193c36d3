"""The loop of training twists: updates (twist/methods.py), evaluations before epochs, checkpoints. Published twists
(2404.17546) are not averaged, and neither are these."""

from __future__ import annotations

from collections.abc import Callable

import torch
from omegaconf import DictConfig
from torch import nn

from training.learner import Learner
from training.optim import MovingAverage, Optimiser
from training.processes import Processes
from training.run import Run
from twist.methods import TwistLearning
from twist.model import TwistModel


def new_value_head(twist: TwistModel, config: DictConfig) -> nn.Linear | None:
    """PPO's: zero at first, so that advantages begin as returns."""
    if config.method != "ppo":
        return None
    value = nn.Linear(twist.model.hidden_size + twist.given, 1)
    nn.init.zeros_(value.weight)
    nn.init.zeros_(value.bias)
    return value.to(next(twist.parameters()).device)


def new_learner(twist: TwistModel, value: nn.Linear | None, config: DictConfig, processes: Processes) -> Learner:
    network = nn.ModuleList([twist] if value is None else [twist, value])
    parameters = [p for p in network.parameters() if p.requires_grad]
    each = config.ppo.epochs if config.method == "ppo" else 1
    optimiser = Optimiser(parameters, config.optim, each * config.training.n_iters)
    return Learner(network, optimiser, MovingAverage(parameters, 0.0), processes)  # published twists are not averaged


def epochs(config: DictConfig) -> list[int]:
    """Updates done before each epoch, and at the end. schedule: constant, or exp2 (2, 2, 4, 8, ...: 2^epochs in all)."""
    training = config.training
    each = [training.updates_per_epoch] * training.epochs
    if training.schedule == "exp2":
        each = [2 ** max(epoch, 1) for epoch in range(training.epochs)]
    return [sum(each[:epoch]) for epoch in range(training.epochs + 1)]


def train(
    learning: TwistLearning,
    config: DictConfig,
    run: Run,
    evaluate: Callable[[int, int], dict[str, float]],
    on_snapshot: Callable[[int], None],
) -> None:
    """The loop. evaluate(updates, epoch): by the first process, before every `eval.every`-th epoch and at the end.

    Raises FloatingPointError for a loss that is not finite."""
    training, learner = config.training, learning.learner
    processes, parameters, starts = learner.processes, learner.optimiser.parameters, epochs(config)
    first, evaluated = 0, -1
    if (state := run.restore("twist")) is not None:
        with torch.no_grad():
            for parameter, saved in zip(parameters, state["twist"], strict=True):
                parameter.copy_(saved)
        learner.optimiser.adamw.load_state_dict(state["optimizer"])
        learner.average.load_state_dict(state["ema"])
        first, learner.updates, evaluated = state["step"], state["updates"], state["evaluated"]

    def evaluation(done: int) -> None:
        nonlocal evaluated
        epoch = starts.index(done)
        due = config.eval.every is not None and epoch % config.eval.every == 0
        if epoch > evaluated and (due or done == training.n_iters):
            if processes.first:
                run.log(done, evaluate(done, epoch))
            evaluated = epoch

    for step in range(first, training.n_iters):
        if step in starts:
            evaluation(step)
        metrics = processes.mean(learning.iteration(step))
        run.check(metrics["loss"], step)
        run.check(metrics["grad_norm"], step, "gradient norm")
        done = step + 1
        last = done == training.n_iters
        run.log(done, metrics, show=done % training.log_freq == 0 or last)
        snapshot, stop = done % training.snapshot_freq == 0 or last, processes.stop_asked()
        if last or snapshot or stop:
            run.check_weights(learner.network.named_parameters(), done)
        if last:
            evaluation(done)
        if snapshot or stop or done % training.snapshot_freq_for_preemption == 0:
            if processes.first and (snapshot or stop):
                on_snapshot(done)
            run.save(
                {
                    "twist": [parameter.detach() for parameter in parameters],
                    "optimizer": learner.optimiser.adamw.state_dict(),
                    "ema": learner.average.state_dict(),
                    "updates": learner.updates,
                    "evaluated": evaluated,
                    "step": done,
                },
                snapshot,
            )
        if stop:
            run.stop(done)
    if training.n_iters == 0:
        evaluation(0)
        if processes.first:
            on_snapshot(0)
