"""Rewards by rule: solved or not, and how fast.

The speed factor and both ways to combine it follow Jazbec et al., "Learning Unmasking Policies for Diffusion Language
Models" (arXiv 2512.09106). What differs: length and evaluations are counted per row, over the positions to generate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from data.sudoku import Box, is_solved


@runtime_checkable
class Finished(Protocol):
    """What a reward reads of finished samples."""

    tokens: Int[Tensor, "row position"]
    prompt: Bool[Tensor, "row position"]  # positions that were given
    evaluations: Int[Tensor, " row"]  # network evaluations (NFE)


@dataclass
class RewardOutput:
    """Reward of each row and the terms it is made of, and, where it is earned step by step, that of each recorded step.
    Raises FloatingPointError if a reward is NaN or infinite."""

    total: Float[Tensor, " row"]
    terms: dict[str, Float[Tensor, " row"]] = field(default_factory=dict)
    steps: Float[Tensor, " N"] | None = None

    def __post_init__(self):
        wrong = (~torch.isfinite(self.total)).nonzero().flatten().tolist()
        if wrong:
            terms = {name: term[wrong[0]].item() for name, term in self.terms.items()}
            raise FloatingPointError(
                f"the reward of row {wrong[0]} is {self.total[wrong[0]].item()} (terms {terms}), expected a finite "
                f"number; check that row."
            )


def sudoku_solved(tokens: Int[Tensor, "row cell"], box: Box) -> Float[Tensor, " row"]:
    """1 where the grid obeys every rule and has no mask left, else 0."""
    return is_solved(tokens, box).float()


def speed_factor(
    evaluations: Int[Tensor, " row"], length: Int[Tensor, " row"] | int, alpha: float | int | Float[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """((L - min(NFE, L) + 1) / L) ** alpha: 1 for one evaluation, L ** -alpha for one (or more) per position. alpha: one number,
    or one a row."""
    length = torch.as_tensor(length, device=evaluations.device)
    return ((length - torch.minimum(evaluations, length) + 1) / length) ** alpha


def alpha_of(rows: Mapping[str, Tensor] | None, default: float, device: torch.device) -> float | Float[Tensor, " row"]:
    """`rows["alpha"]`, the weight of speed that was drawn for each row, where there is one."""
    return default if rows is None or "alpha" not in rows else rows["alpha"].to(device)


@dataclass
class PuzzleReward:
    """Reward of a Sudoku: solved * speed factor, or, additive, solved - alpha * NFE / L.

    L is the number of cells to generate. A row with a mask left counts as unsolved (term `still_masked`); in the
    additive form it still pays for its evaluations, since a plain 0 would beat every wrong grid and so reward leaving
    masks. The additive form prefers wrong and fast to wrong and slow; the paper shows it collapse to one step.
    """

    box: Box
    alpha: float
    additive: bool = False

    def __call__(self, samples: Finished, rows: Mapping[str, Tensor] | None = None) -> RewardOutput:
        """`rows["solutions"]` Int[row, cell], if given, tells the clues: a grid with another clue is unsolved."""
        length = (~samples.prompt).sum(1)
        solved = sudoku_solved(samples.tokens, self.box)
        if rows is not None:
            solved = solved * ((samples.tokens == rows["solutions"]) | ~samples.prompt).all(1)
        alpha = alpha_of(rows, self.alpha, samples.evaluations.device)
        speed = speed_factor(samples.evaluations, length, alpha)
        cost = alpha * samples.evaluations / length
        terms = {
            "solved": solved,
            "evaluations": samples.evaluations.float(),
            "still_masked": (samples.tokens == self.box[0] * self.box[1]).any(1).float(),
        } | ({"cost": cost} if self.additive else {"speed": speed})
        return RewardOutput(solved - cost if self.additive else solved * speed, terms)


@dataclass
class VerifiedReward:
    """Reward of an answer that a checker calls right: right * speed factor, or, additive, right - alpha * NFE / L.

    check: tokens and `rows` -> 1 or 0 a row. L is the number of positions to generate.
    """

    check: Callable[[Int[Tensor, "row position"], Mapping[str, Tensor]], Float[Tensor, " row"]]
    alpha: float
    additive: bool = False

    def __call__(self, samples: Finished, rows: Mapping[str, Tensor]) -> RewardOutput:
        length = (~samples.prompt).sum(1)
        right = self.check(samples.tokens, rows).to(samples.evaluations.device)
        alpha = alpha_of(rows, self.alpha, samples.evaluations.device)
        speed = speed_factor(samples.evaluations, length, alpha)
        cost = alpha * samples.evaluations / length
        terms = {"right": right} | ({"cost": cost} if self.additive else {"speed": speed})
        return RewardOutput(right - cost if self.additive else right * speed, terms)
