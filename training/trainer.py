"""The training loop. An `Algorithm` defines one iteration and one evaluation; the `Trainer` does the rest.

The trainer resumes a run, checks losses and weights, logs, evaluates with the moving average of the weights, writes snapshots and
resume checkpoints, draws the curves, and ends a run that received a signal. A run that is killed at any moment and resumed gives
the same weights and the same records as an uninterrupted run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from training.curves import CurveFile
from training.learner import Learner
from training.progress import progress
from training.run import Run, Schedule


class Algorithm(ABC):
    """The part of a training run that differs between algorithms.

    weights: the key of the weights in a checkpoint. recorded_every: iterations between two records in metrics.jsonl. say: writes
    a line to the log of the run.
    """

    weights: ClassVar[str]
    learner: Learner
    recorded_every: int = 1
    say: Callable[[str], None] = staticmethod(print)

    @abstractmethod
    def iteration(self, step: int) -> dict[str, float]:
        """Make the updates of iteration `step`, counted from 0, and return the metrics of this process."""

    @abstractmethod
    def evaluate(self, run: Run, done: int) -> dict[str, float]:
        """Return the metrics on held-out data after `done` iterations. Called in the first process."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the weights, under the key `weights`, and everything else that an exact resume needs besides the learner."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. `state` is the whole checkpoint."""

    def warm_start(self) -> None:
        """Make the updates that come before the first iteration of a new run."""
        return

    def evaluates_first(self, first: int, schedule: Schedule) -> bool:
        """Return True if an evaluation is due before iteration `first`, from which the run starts or goes on."""
        return False

    def evaluates(self, done: int, schedule: Schedule) -> bool:
        """Return True if an evaluation is due after `done` iterations."""
        return schedule.is_due(done, schedule.eval_freq)

    def snapshot(self, run: Run, done: int) -> dict[str, float]:
        """Write the files that other commands load, and samples. Return metrics of these samples.

        Called in the first process, behind the evaluation if both are due."""
        return {}

    def before_stop(self, run: Run, done: int) -> None:
        """Write files, besides the checkpoint, before a signal ends the run early. Called in the first process."""
        return


class Trainer:
    """Run an algorithm in a run directory, from its start or from its checkpoint, to the end."""

    def __init__(self, algorithm: Algorithm, run: Run):
        self.algorithm, self.run, self.schedule = algorithm, run, Schedule.of(run.config.training)
        self.learner, self.processes = algorithm.learner, algorithm.learner.processes
        self.curves = CurveFile(run.directory)
        algorithm.say = run.say

    def train(self) -> None:
        """Train to the end of the schedule. After a signal the current iteration is completed and the run ends by SystemExit.

        Raises:
            FloatingPointError: a loss, a gradient norm or a weight is not finite.
        """
        algorithm, schedule = self.algorithm, self.schedule
        first = self._resume()
        if first == 0:
            algorithm.warm_start()
        self._measure(first, algorithm.evaluates_first(first, schedule), snapshot=schedule.n_iters == 0)
        with progress("training", schedule.n_iters - first, quiet=not self.processes.first) as advance:
            for step in range(first, schedule.n_iters):
                self._iterate(step)
                advance()
                self._after(step + 1)

    def _after(self, done: int) -> None:
        """Do what is due after `done` iterations: evaluation, snapshot, checkpoint, or the end after a signal."""
        algorithm, schedule = self.algorithm, self.schedule
        evaluation, snapshot = algorithm.evaluates(done, schedule), schedule.is_due(done, schedule.snapshot_freq)
        if evaluation or snapshot:
            self.run.check_weights(self.learner.network.named_parameters(), done)
            with self.learner.averaged():
                self._measure(done, evaluation, snapshot)
        stop = self.processes.stop_requested()
        if snapshot or stop or schedule.is_due(done, schedule.save_freq):
            self._save(done, snapshot)
        if stop:
            if self.processes.first:
                algorithm.before_stop(self.run, done)
            self.run.stop(done)

    def _resume(self) -> int:
        """Restore the checkpoint of a resumed run; return the number of its iterations, 0 for a new run."""
        state = self.run.restore(self.algorithm.weights)
        if state is None:
            return 0
        self.algorithm.load_state_dict(state)
        self.learner.load_state_dict(state)
        self.run.say(f"resumed after iteration {state['step']} of {self.schedule.n_iters}")
        return state["step"]

    def _iterate(self, step: int) -> None:
        """Run, check and log one iteration. An iteration without an update has no loss."""
        metrics, done = self.processes.mean(self.algorithm.iteration(step)), step + 1
        self.run.check(metrics.get("loss", 0.0), step)
        self.run.check(metrics.get("grad_norm", 0.0), step, "gradient norm")
        show = self.schedule.is_due(done, self.schedule.log_freq)
        if show or done % self.algorithm.recorded_every == 0:
            self.run.log(done, metrics, show)

    def _measure(self, done: int, evaluation: bool, snapshot: bool) -> None:
        """Evaluate and write a snapshot, if due, with the current weights."""
        if not self.processes.first:
            return
        if evaluation:
            self.run.log(done, self.algorithm.evaluate(self.run, done))
        if snapshot and (measures := self.algorithm.snapshot(self.run, done)):
            self.run.log(done, measures)
        if evaluation:
            self.curves.draw(last=done == self.schedule.n_iters)

    def _save(self, done: int, snapshot: bool) -> None:
        state = {**self.algorithm.state_dict(), **self.learner.state_dict(), "step": done}
        self.run.save(state, snapshot)
