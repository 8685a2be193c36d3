"""Pairwise accuracy of a reward model: of whole answers, by length of prefix, and by masked share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rewards.models import RewardModel, padded

if TYPE_CHECKING:
    import datasets

LENGTHS = (1.0, 3.0, 5.0, 9.0, 17.0, 33.0, 65.0, 129.0, 257.0)  # bins begin there
SHARES = tuple(tenth / 10 for tenth in range(10))


def row_margins(reward: RewardModel, rows: datasets.Dataset, batch: int = 256) -> list[float]:
    """Return the score of each chosen row less that of the rejected row."""
    found: list[float] = []
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        chosen, rejected = (reward.score(*padded(part[f"{side}_ids"])) for side in ("chosen", "rejected"))
        found += (chosen - rejected).tolist()
    return found


def accuracy(margins: Sequence[float]) -> float:
    """Return the share of positive margins; a tie counts half."""
    margin = torch.tensor(margins)
    return float((margin > 0).float().mean() + 0.5 * (margin == 0).float().mean())


def by_bin(at: Sequence[float], margins: Sequence[float], starts: Sequence[float]) -> list[dict[str, float]]:
    """Return accuracy and number of comparisons in each nonempty bin. at: value by which each comparison is put into a bin;
    starts: first values of the bins, in order."""
    place = (
        torch.bucketize(torch.tensor(at, dtype=torch.float64), torch.tensor(starts, dtype=torch.float64), right=True)
        - 1
    )
    table = []
    for number, start in enumerate(starts):
        own = [margin for bin_, margin in zip(place.tolist(), margins, strict=True) if bin_ == number]
        if own:
            table.append({"from": float(start), "pairs": len(own), "accuracy": accuracy(own)})
    return table


def accuracy_line(table: Sequence[dict[str, float]]) -> str:
    """Return a table of accuracies as one line of text."""
    return "  ".join(f"{row['from']:g}+: {row['accuracy']:.3f} ({row['pairs']})" for row in table)
