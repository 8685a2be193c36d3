"""What the algorithms that train the diffusion model itself share: the reference model, checkpoints, RUN/model and samples."""

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
    """The model as it was before the first update: a frozen copy, or, of a model with an adapter, the model without it."""

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
    """An algorithm on the weights of the model that require a gradient. save: writes the model into a directory."""

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
        """The metrics of an evaluation, and a record of each sample that a snapshot writes."""

    @abstractmethod
    def progress(self) -> dict[str, Any]:
        """What an exact resume needs besides the weights and the learner."""

    @abstractmethod
    def restore_progress(self, state: dict[str, Any]) -> None:
        """Restore what `progress` returned."""

    def evaluates(self, done: int, schedule: Schedule) -> bool:
        """A snapshot holds the samples of its evaluation, so it needs one."""
        return super().evaluates(done, schedule) or schedule.is_due(done, schedule.snapshot_freq)

    def evaluate(self, run: Run, done: int) -> dict[str, float]:
        metrics, self.records = self.measured()
        return metrics

    def snapshot(self, run: Run, done: int) -> dict[str, float]:
        """RUN/model, and the samples of the evaluation."""
        run.samples(done, self.records)
        self.save(run.directory / "model")
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.backbone_state(), "algorithm": self.progress(), "updates": self.learner.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_backbone(state["model"])
        self.restore_progress(state["algorithm"])
