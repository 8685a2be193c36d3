"""Common part of the algorithms that train the diffusion model: reference model, checkpoints, RUN/model and samples."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlm.adapt import AdapterLM
from dlm.likelihood import Estimator
from dlm.masked_lm import MaskedLM
from training.learner import Learner
from training.run import Run, Schedule
from training.trainer import Algorithm


class Reference:
    """The model before the first update: a frozen copy, or, for a model with an adapter, the model without it."""

    def __init__(self, model: MaskedLM):
        self.model = model
        self.copy = None if isinstance(model, AdapterLM) else copy.deepcopy(model).requires_grad_(False)

    @contextmanager
    def __call__(self):
        if self.copy is not None:
            yield self.copy
            return
        assert isinstance(self.model, AdapterLM)
        with self.model.without_adapter():
            yield self.model


class ModelLearning(Algorithm):
    """An algorithm that trains the weights of the model that require a gradient. save: writes the model into a directory."""

    weights = "model"

    def __init__(
        self, model: MaskedLM, learner: Learner, estimator: Estimator,
        save: Callable[[Path], None],
    ):  # fmt: skip
        self.model, self.learner, self.estimator = model, learner, estimator
        self.save, self.processes = save, learner.processes
        self.records: list[dict[str, Any]] = []  # samples of the last evaluation

    @abstractmethod
    def measured(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Return the metrics of an evaluation, and a record of each sample that a snapshot writes."""

    @abstractmethod
    def progress(self) -> dict[str, Any]:
        """Return the state that an exact resume needs besides the weights and the learner."""

    @abstractmethod
    def restore_progress(self, state: dict[str, Any]) -> None:
        """Restore what `progress` returned."""

    def evaluates(self, done: int, schedule: Schedule) -> bool:
        """Return whether to evaluate now. A snapshot contains the samples of an evaluation, so it needs one."""
        return super().evaluates(done, schedule) or schedule.is_due(done, schedule.snapshot_freq)

    def evaluate(self, run: Run, done: int) -> dict[str, float]:
        metrics, self.records = self.measured()
        return metrics

    def snapshot(self, run: Run, done: int) -> dict[str, float]:
        """Write RUN/model and the samples of the evaluation."""
        run.samples(done, self.records)
        self.save(run.directory / "model")
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.backbone_state(), "algorithm": self.progress(), "updates": self.learner.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_backbone(state["model"])
        self.restore_progress(state["algorithm"])
