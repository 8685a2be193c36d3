"""Training of twists in epochs: updates, evaluations, checkpoints (Zhao et al., 2404.17546)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.learner import Learner, new_learner
from training.processes import Processes
from training.run import Run, Schedule
from training.trainer import Algorithm
from twist.algorithms import TwistLearning
from twist.network import TwistModel
from twist.settings import TwistTrainingSettings


def new_value_head(twist: TwistModel, config: TwistTrainingSettings) -> nn.Linear | None:
    """Return PPO's value head: zero at first, so that advantages begin as returns."""
    if config.method != "ppo":
        return None
    value = nn.Linear(twist.model.hidden_size + twist.given, 1)
    nn.init.zeros_(value.weight)
    nn.init.zeros_(value.bias)
    return value.to(next(twist.parameters()).device)


def new_twist_learner(
    twist: TwistModel, value: nn.Linear | None, config: TwistTrainingSettings, processes: Processes
) -> Learner:
    """Return the learner of the twist and of PPO's value head. Weights are not averaged, as in the published code."""
    network = nn.ModuleList([twist] if value is None else [twist, value])
    each = config.ppo.epochs if config.method == "ppo" else 1
    return new_learner(network, config.optim, each * epochs(config)[-1], 0.0, processes)


def epochs(config: TwistTrainingSettings) -> list[int]:
    """Return the number of updates before each epoch, and at the end. schedule: constant, or exp2 (2, 2, 4, 8, ...:
    2^epochs in total).
    """
    training = config.training
    each = [training.updates_per_epoch] * training.epochs
    if training.schedule == "exp2":
        each = [2 ** max(epoch, 1) for epoch in range(training.epochs)]
    return [sum(each[:epoch]) for epoch in range(training.epochs + 1)]


class TwistTraining(Algorithm):
    """The updates of one method (twist/algorithms.py), with an evaluation at the start of epochs and at the end.

    evaluate_epoch: evaluates the twist before an epoch and records the result in the run; save: writes the twist into a
    directory.
    """

    weights = "twist"

    def __init__(
        self, learning: TwistLearning, config: TwistTrainingSettings, evaluate_epoch: Callable[[Run, int, int], dict[str, float]],
        save: Callable[[Path], None],
    ):  # fmt: skip
        self.learning, self.learner, self.model = learning, learning.learner, learning.source.model
        self.evaluate_epoch, self.save = evaluate_epoch, save
        self.every, self.starts = config.eval.every, epochs(config)
        self.evaluated = -1  # the epoch before which the last evaluation was

    def iteration(self, step: int) -> dict[str, float]:
        return self.learning.iteration(step)

    def evaluates_first(self, first: int, schedule: Schedule) -> bool:
        return self.evaluates(first, schedule)

    def evaluates(self, done: int, schedule: Schedule) -> bool:
        if done not in self.starts:
            return False
        epoch = self.starts.index(done)
        due = self.every is not None and epoch % self.every == 0
        return epoch > self.evaluated and (due or done == schedule.n_iters)

    def evaluate(self, run: Run, done: int) -> dict[str, float]:
        self.evaluated = self.starts.index(done)
        return self.evaluate_epoch(run, done, self.evaluated)

    def snapshot(self, run: Run, done: int) -> dict[str, float]:
        """Write RUN/twist."""
        self.save(run.directory / "twist")
        return {}

    def before_stop(self, run: Run, done: int) -> None:
        self.snapshot(run, done)

    def state_dict(self) -> dict[str, Any]:
        parameters = [parameter.detach() for parameter in self.learner.optimiser.parameters]
        return {"twist": parameters, "updates": self.learner.updates, "evaluated": self.evaluated}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for parameter, saved in zip(self.learner.optimiser.parameters, state["twist"], strict=True):
            parameter.copy_(saved)
        self.evaluated = state["evaluated"]
