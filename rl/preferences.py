"""Diffusion-DPO as LLaDA 1.5 has it (VRPO, 2505.19223): answers that were preferred become likelier than those that were not,
counted from the model that training starts from.

    loss = -log sigmoid(beta * [(B(chosen) - B_ref(chosen)) - (B(rejected) - B_ref(rejected))])

with B an estimate of the log-likelihood (rl.estimator; the paper's is the ELBO with its masks spread over time). Model and
reference are read on the same masks, which takes most of the noise out of the difference; antithetic masks are ours.
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
from omegaconf import DictConfig
from torch import Tensor

from data.pairs import Pairs
from dlm.draws import Draws
from dlm.likelihood import Estimator, Views, log_likelihood
from dlm.masked_lm import MaskedLM
from rl.learning import ModelLearning
from rl.objective import backward
from training.learner import Learner
from training.run import step_seed


def margins(new: Float[Tensor, "row position"], reference: Float[Tensor, "row position"]) -> Float[Tensor, "pair"]:
    """How much likelier the chosen answer has become than the rejected one: nats. Chosen rows first, then the rejected ones."""
    gain = (new - reference).sum(1)
    chosen, rejected = gain.chunk(2)
    return chosen - rejected


class Preferences(ModelLearning):
    """VRPO. Batches of pairs are whole over processes, each of which runs its share."""

    def __init__(
        self, model: MaskedLM, learner: Learner, reference: Callable[[], AbstractContextManager[MaskedLM]],
        estimator: Estimator, pairs: Pairs, held_out: Pairs, config: DictConfig, save: Callable[[Path], None],
    ):  # fmt: skip
        super().__init__(model, learner, estimator, save)
        self.reference, self.pairs, self.held_out, self.config = reference, pairs, held_out, config
        self.processes.share(config.rl.batch_size, "rl.batch_size")

    def rows(self, pairs: Pairs, seed: int, first: int = 0) -> tuple[Tensor, Views]:
        """Chosen rows, then the rejected ones, and the canvases made of them. Both answers of a pair are masked at the same
        places. first: number of the first pair in the whole batch."""
        pairs = pairs.to(self.processes.device)
        views = self.estimator.views(pairs.free, Draws(seed, first=first))
        twice = views.take(torch.arange(len(views), device=views.row.device).repeat(2))
        both = replace(twice, row=torch.cat((views.row, views.row + len(pairs))))
        return torch.cat((pairs.chosen, pairs.rejected)), both

    def said(self, model: MaskedLM, tokens: Tensor, views: Views) -> Tensor:
        return log_likelihood(model, self.estimator, tokens, views, self.config.training.chunk)

    def iteration(self, step: int) -> dict[str, float]:
        """One update."""
        size, beta = self.config.rl.batch_size, self.config.rl.kl_beta
        part = self.processes.part(size)
        mine = self.pairs.batch(size, step, self.config.seed).take(torch.arange(size)[part])
        tokens, views = self.rows(mine, step_seed(self.config.seed, step), part.start)
        with self.reference() as reference:
            before = self.said(reference, tokens, views)
        shown: dict[str, float] = {}

        def loss_of(new):
            margin = margins(new, before)
            shown.update(self.measures(margin.detach()))
            return -F.logsigmoid(beta * margin).mean()

        loss = backward(self.model, self.estimator, tokens, views, loss_of, self.config.training.chunk)
        return {"loss": loss, **shown, **self.learner.update()}

    @staticmethod
    def measures(margin: Float[Tensor, "pair"]) -> dict[str, float]:
        """The margin in nats, and how many pairs have a positive one (a tie is half)."""
        right = (margin > 0).float() + 0.5 * (margin == 0).float()
        return {"margin": float(margin.mean()), "accuracy": float(right.mean())}

    @torch.no_grad()
    def measured(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Held-out pairs, always on the same masks."""
        tokens, views = self.rows(
            self.held_out.take(torch.arange(len(self.held_out))[: self.config.eval.batch_size]), 0
        )
        with self.reference() as reference:
            before = self.said(reference, tokens, views)
        measures = self.measures(margins(self.said(self.model, tokens, views), before))
        return {f"eval_{name}": value for name, value in measures.items()}, []

    def progress(self) -> dict[str, Any]:
        return {}

    def restore_progress(self, state: dict[str, Any]) -> None:
        """Nothing to restore: batches are functions of the step."""
