"""Diffusion-DPO of LLaDA 1.5 (VRPO, 2505.19223): preferred answers become more likely than rejected ones, relative to the
reference model.

    loss = -log sigmoid(beta * [(B(chosen) - B_ref(chosen)) - (B(rejected) - B_ref(rejected))])

B is an estimate of the log-likelihood (rl.estimator; in the paper the ELBO with masks spread over time). Model and
reference use the same masks, which removes most of the noise of the difference. What differs: antithetic masks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from data.pairs import Pairs
from dlm.draws import Draws
from dlm.likelihood import Estimator, Views, log_likelihood
from dlm.masked_lm import MaskedLM
from rl.learning import ModelLearning
from rl.objective import backward
from rl.settings import RLTrainingSettings
from training.learner import Learner
from training.run import step_seed


def margins(new: Float[Tensor, "row position"], reference: Float[Tensor, "row position"]) -> Float[Tensor, "pair"]:
    """Return how much more likely the chosen answer has become than the rejected one, in nats. Rows: all chosen ones, then
    the rejected ones.
    """
    gain = (new - reference).sum(1)
    chosen, rejected = gain.chunk(2)
    return chosen - rejected


class Preferences(ModelLearning):
    """VRPO. Batches of pairs are defined over all processes, each of which runs its share."""

    def __init__(
        self, model: MaskedLM, learner: Learner, reference: Callable[[], AbstractContextManager[MaskedLM]],
        estimator: Estimator, pairs: Pairs, held_out: Pairs, config: RLTrainingSettings, save: Callable[[Path], None],
    ):  # fmt: skip
        super().__init__(model, learner, estimator, save)
        self.reference, self.pairs, self.held_out, self.config = reference, pairs, held_out, config
        self.processes.share(config.rl.batch_size, "rl.batch_size")

    def rows(self, pairs: Pairs, seed: int, first: int = 0) -> tuple[Tensor, Views]:
        """Return chosen rows, then rejected rows, and their masked copies. Both answers of a pair are masked at the same
        positions.

        Args:
            first: number of the first pair in the whole batch.
        """
        pairs = pairs.to(self.processes.device)
        views = self.estimator.views(pairs.free, Draws(seed, first=first))
        twice = views.take(torch.arange(len(views), device=views.row.device).repeat(2))
        both = replace(twice, row=torch.cat((views.row, views.row + len(pairs))))
        return torch.cat((pairs.chosen, pairs.rejected)), both

    def log_likelihoods(self, model: MaskedLM, tokens: Tensor, views: Views) -> Tensor:
        return log_likelihood(model, self.estimator, tokens, views, self.config.training.chunk)

    def iteration(self, step: int) -> dict[str, float]:
        """Make one update."""
        size, beta = self.config.rl.batch_size, self.config.rl.kl_beta
        part = self.processes.part(size)
        local = self.pairs.batch(size, step, self.config.seed).take(torch.arange(size)[part])
        tokens, views = self.rows(local, step_seed(self.config.seed, step), part.start)
        with self.reference() as reference:
            before = self.log_likelihoods(reference, tokens, views)
        measured: dict[str, float] = {}

        def loss_of(new):
            margin = margins(new, before)
            measured.update(self.measures(margin.detach()))
            return -F.logsigmoid(beta * margin).mean()

        loss = backward(self.model, self.estimator, tokens, views, loss_of, self.config.training.chunk)
        return {"loss": loss, **measured, **self.learner.update()}

    @staticmethod
    def measures(margin: Float[Tensor, "pair"]) -> dict[str, float]:
        """Return the margin in nats, and the share of pairs with a positive one (ties count half)."""
        right = (margin > 0).float() + 0.5 * (margin == 0).float()
        return {"margin": float(margin.mean()), "accuracy": float(right.mean())}

    @torch.no_grad()
    def measured(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Evaluate held-out pairs, always with the same masks."""
        tokens, views = self.rows(
            self.held_out.take(torch.arange(len(self.held_out))[: self.config.eval.batch_size]), 0
        )
        with self.reference() as reference:
            before = self.log_likelihoods(reference, tokens, views)
        measures = self.measures(margins(self.log_likelihoods(self.model, tokens, views), before))
        return {f"eval_{name}": value for name, value in measures.items()}, []

    def progress(self) -> dict[str, Any]:
        return {}

    def restore_progress(self, state: dict[str, Any]) -> None:
        """Do nothing: batches are functions of the step."""
