"""Calibration of predicted probabilities: AUROC, expected calibration error, Brier score, and the reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from training.curves import COLOURS, save_figure

BINS = 10  # of equal width, in the calibration error and in the diagram
UNINFORMED = 0.5  # the AUROC of scores that say nothing


def auroc(score: Float[Tensor, "position"], right: Bool[Tensor, "position"]) -> float:
    """Return the area under the ROC curve: the probability that a right position has a higher score than a wrong one.

    Equal scores count one half (the rank statistic of Mann and Whitney). It is 0.5 if all positions are right, or all are wrong.
    """
    _, place, count = torch.unique(score, return_inverse=True, return_counts=True)
    rank = (count.cumsum(0) - (count - 1) / 2).double()[place]
    positives = int(right.sum())
    pairs = positives * (len(right) - positives)
    return float((rank[right].sum() - positives * (positives + 1) / 2) / pairs) if pairs else UNINFORMED


@dataclass(frozen=True)
class Bin:
    """Positions whose predicted probability is in [low, low + 1 / BINS): their number, mean prediction and right share."""

    low: float
    count: int
    predicted: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """How well predicted probabilities fit what is right.

    auroc: area under the ROC curve; ece: expected calibration error, the mean over positions of |mean prediction - right share|
    of their bin; brier: mean squared error; log_loss: mean cross-entropy, nats; right: share of right positions; count: number of
    positions; bins: those with positions.
    """

    auroc: float
    ece: float
    brier: float
    log_loss: float
    right: float
    count: int
    bins: tuple[Bin, ...]

    @property
    def figures(self) -> dict[str, float]:
        """Return the figures without the bins."""
        return {name: getattr(self, name) for name in ("auroc", "ece", "brier", "log_loss", "right")}

    def as_dict(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)


def calibration(log_probability: Float[Tensor, "position"], right: Bool[Tensor, "position"]) -> Calibration:
    """Return the calibration of predictions. ValueError without positions.

    Args:
        log_probability: log of the predicted probability that a position is right, at most 0.
        right: whether it is right.
    """
    if len(right) == 0:
        raise ValueError("there is no position to compare predictions at; evaluate more rows")
    log_probability = log_probability.double()
    probability, truth = log_probability.exp(), right.double()
    log_wrong = torch.log1p(-probability.clamp(max=1 - 1e-12))
    number = (probability * BINS).long().clamp(max=BINS - 1)
    bins = []
    for place in range(BINS):
        own = number == place
        if bool(own.any()):
            bins.append(Bin(place / BINS, int(own.sum()), float(probability[own].mean()), float(truth[own].mean())))
    ece = sum(one.count * abs(one.predicted - one.right) for one in bins) / len(right)
    log_loss = -torch.where(right, log_probability.clamp(min=-100.0), log_wrong).mean()
    return Calibration(
        auroc(log_probability, right), ece, float((probability - truth).square().mean()), float(log_loss),
        float(truth.mean()), len(right), tuple(bins),
    )  # fmt: skip


def draw_reliability(found: Mapping[str, Calibration], file: Path) -> None:
    """Write the reliability diagram: the right share of each bin over its mean prediction, one line for each name.

    The area of a dot grows with the share of positions in its bin.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.9, linestyle="--")
    for number, (name, one) in enumerate(found.items()):
        colour = COLOURS[number % len(COLOURS)]
        predicted, right = ([getattr(each, field) for each in one.bins] for field in ("predicted", "right"))
        label = f"{name}: AUROC {one.auroc:.3f}, ECE {one.ece:.3f}"
        axes.plot(predicted, right, color=colour, linewidth=1.2, label=label)
        axes.scatter(predicted, right, [8 + 120 * each.count / one.count for each in one.bins], color=colour)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability", ylabel="share of right tokens")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.legend(fontsize=8, loc="upper left")
    save_figure(figure, file)
