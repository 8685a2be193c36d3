"""The prompts of one iteration, with the budget and the weight of speed of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from data.tasks import Prompts


@dataclass
class PromptBatch:
    """Prompts of this process, with the budget of each (the largest number of network evaluations of its rollouts; None: no
    limit), and the seed of the iteration."""

    prompts: Prompts
    budget: Int[Tensor, "row"] | None
    seed: int


def one_of(values: Sequence[int | float], rows: int, seed: int | None) -> Shaped[Tensor, "row"]:
    """Return one of `values` for each row, drawn by `seed`; without a seed, the values in turn."""
    generator = torch.Generator().manual_seed(seed or 0)
    number = torch.arange(rows) if seed is None else torch.randint(len(values), (rows,), generator=generator)
    return torch.tensor(list(values))[number % len(values)]


def budgets(
    values: Sequence[int] | None, rows: int, device: torch.device, seed: int | None = None
) -> Int[Tensor, "row"] | None:
    """Return the budget of each prompt, one of `values`. None: no limit."""
    return None if values is None else one_of(values, rows, seed).to(device)


def with_alpha(prompts: Prompts, alphas: Sequence[int | float], seed: int | None = None) -> Prompts:
    """Add `rows["alpha"]` to the prompts, an input of the policy and of the reward: one of `alphas`, if there are any."""
    if not alphas:
        return prompts
    drawn = one_of(alphas, len(prompts.canvas), None if seed is None else seed + 1)  # not as the budgets are
    return replace(prompts, rows={**prompts.rows, "alpha": drawn})
