"""Rewards by rule: solved or right, and speed.

The speed factor and both combinations follow Jazbec et al., "Learning Unmasking Policies for Diffusion Language Models"
(arXiv 2512.09106). What differs: length and evaluations are counted per row, over the positions to generate.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rewards.answers import has_format
from rewards.sudoku import Box, is_solved


@runtime_checkable
class Finished(Protocol):
    """The fields of finished samples that rewards use."""

    tokens: Int[Tensor, "row position"]
    prompt: Bool[Tensor, "row position"]  # positions that were given
    evaluations: Int[Tensor, " row"]  # network evaluations (NFE)


@dataclass
class RewardOutput:
    """Reward of each row, its terms, and, for rewards per step, that of each recorded step.

    A row whose reward is not finite has none: it is NaN, so that `losses.group_advantages` leaves it out of its group, and
    `failed` has the reason.

    Raises:
        FloatingPointError: no row has a reward, or a reward per step is missing for a row.
    """

    total: Float[Tensor, " row"]
    terms: dict[str, Float[Tensor, " row"]] = field(default_factory=dict)
    steps: Float[Tensor, " N"] | None = None
    failed: dict[int, str] = field(default_factory=dict)

    def __post_init__(self):
        wrong = (~torch.isfinite(self.total)).nonzero().flatten().tolist()
        for row in wrong:
            terms = {name: term[row].item() for name, term in self.terms.items()}
            self.failed.setdefault(row, f"is {self.total[row].item()} (terms {terms}), expected a finite number")
        if wrong:
            self.total = self.total.masked_fill(~torch.isfinite(self.total), torch.nan)
            if len(wrong) == len(self.total) or self.steps is not None:
                raise FloatingPointError(f"{self.failure_message()}; check those rows")

    def failure_message(self) -> str:
        """Return a sentence with the number of rows without a reward, and the reasons of the first three."""
        named = "; ".join(f"the reward of row {row} {reason}" for row, reason in list(self.failed.items())[:3])
        return f"{len(self.failed)} of {len(self.total)} rows have no reward: {named}"


class Reward:
    """The base class of rewards of finished samples, by which policies and models are trained.

    teacher_forced: the reward scores the order in which a text of the data is revealed, not a text that was sampled.
    """

    teacher_forced: ClassVar[bool] = False

    def __call__(self, samples: Any, rows: Mapping[str, Tensor]) -> RewardOutput:
        """Return the reward of each row.

        Args:
            samples: `samplers.samples.Samples`.
            rows: the columns of the data set for each row, such as the solution of a puzzle.
        """
        raise NotImplementedError


def each_row(score: Callable[[int], Mapping[str, float]], rows: Sequence[int], device: torch.device) -> RewardOutput:
    """Score row by row. `score` returns the terms of a row, `total` among them; a row on which it raises has no reward."""
    found: list[Mapping[str, float]] = []
    failed: dict[int, str] = {}
    for place, row in enumerate(rows):
        try:
            found.append(score(row))
        except Exception as error:  # rewards may be a user's code, and one row must not end a run
            found.append({"total": math.nan})
            failed[place] = f"raises {type(error).__name__}: {error}"
    names = max(found, key=len).keys()
    columns = [[terms.get(name, math.nan) for terms in found] for name in names]
    values = dict(zip(names, torch.tensor(columns, dtype=torch.float32, device=device), strict=True))
    return RewardOutput(values.pop("total"), values, failed=failed)


def sudoku_solved(tokens: Int[Tensor, "row cell"], box: Box) -> Float[Tensor, " row"]:
    """Return 1 if the grid obeys every rule and has no masked cell, else 0."""
    return is_solved(tokens, box).float()


def speed_factor(
    evaluations: Int[Tensor, " row"], length: Int[Tensor, " row"] | int, alpha: float | int | Float[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Return ((L - min(NFE, L) + 1) / L) ** alpha: 1 for one evaluation, L ** -alpha for one (or more) per position.

    Args:
        alpha: one number, or one per row.
    """
    length = torch.as_tensor(length, device=evaluations.device)
    return ((length - torch.minimum(evaluations, length) + 1) / length) ** alpha


def alpha_of(rows: Mapping[str, Tensor] | None, default: float, device: torch.device) -> float | Float[Tensor, " row"]:
    """Return `rows["alpha"]`, the weight of speed that was drawn for each row, or the default."""
    return default if rows is None or "alpha" not in rows else rows["alpha"].to(device)


@dataclass
class PuzzleReward(Reward):
    """Reward of a Sudoku: solved * speed factor, or, additive, solved - alpha * NFE / L.

    L is the number of cells to generate. A row with masked cells counts as unsolved (term `still_masked`). In the additive
    form it still pays for its evaluations; with a plain 0 it would beat every wrong grid, which would reward leaving cells
    masked. The additive form prefers wrong and fast to wrong and slow; the paper shows its collapse to one step.
    """

    box: Box
    alpha: float
    additive: bool = False

    def __call__(self, samples: Finished, rows: Mapping[str, Tensor] | None = None) -> RewardOutput:
        """Score finished samples. With `rows["solutions"]` Int[row, cell], a grid with another clue is unsolved."""
        length = (~samples.prompt).sum(1)
        solved = sudoku_solved(samples.tokens, self.box)
        if rows is not None:
            solutions = rows["solutions"].to(
                samples.tokens.device
            )  # rows stay on the CPU, whatever device decodes them
            solved = solved * ((samples.tokens == solutions) | ~samples.prompt).all(1)
        alpha = alpha_of(rows, self.alpha, samples.evaluations.device)
        speed = speed_factor(samples.evaluations, length, alpha)
        cost = alpha * samples.evaluations / length
        terms = {
            "solved": solved,
            "evaluations": samples.evaluations.float(),
            "still_masked": (samples.tokens == self.box[0] * self.box[1]).any(1).float(),
        } | ({"cost": cost} if self.additive else {"speed": speed})
        return RewardOutput(solved - cost if self.additive else solved * speed, terms)


FUNCTIONS = ("correct_times_speed", "correct_minus_cost", "correct", "partly_correct", "format")
# Published names. Those of one data set apply its check to every row there; here they are 0 on rows of others.
PUBLISHED = {
    "mixed_correctness_mult_reward_func": "correct_times_speed",
    "mixed_correctness_add_reward_func": "correct_minus_cost",
    "mixed_correctness_reward_func": "correct",
    "xml_mult_reward": "correct_times_speed@gsm8k",
    "xml_add_reward": "correct_minus_cost@gsm8k",
    "math_correctness_mult_reward": "correct_times_speed@math",
    "math_correctness_add_reward": "correct_minus_cost@math",
    "kodcode_correctness_mult_reward": "correct_times_speed@kodcode",
    "kodcode_correctness_add_reward": "correct_minus_cost@kodcode",
}


@runtime_checkable
class Verifiable(Protocol):
    """A task whose answers can be checked."""

    @property
    def datasets(self) -> Sequence[str]: ...

    def right(self, tokens: Int[Tensor, "row position"], rows: Mapping[str, Tensor]) -> Float[Tensor, " row"]: ...

    def written(self, tokens: Int[Tensor, "row position"]) -> list[str]: ...


@runtime_checkable
class PartlyVerifiable(Protocol):
    """A task that can compute the right share of an answer."""

    def partly_right(
        self, tokens: Int[Tensor, "row position"], rows: Mapping[str, Tensor]
    ) -> Float[Tensor, " row"]: ...


class VerifiedReward(Reward):
    """Weighted sum of functions of an answer that a verifier finds right (1) or wrong (0); each function is logged:

        correct_times_speed   right * ((L - min(NFE, L) + 1) / L) ** alpha
        correct_minus_cost    right - alpha * NFE / L
        correct               right
        partly_correct        right share of an answer's parts, for tasks that define it (chain arithmetic: its steps)
        format                1 if the text is `<reasoning>` and `<answer>` tags and nothing else, else 0

    A function NAME@DATASET is 0 on rows of other data sets. Weights have the order of the functions; a weight of 0 only
    logs. L is the number of positions to generate. Published names are accepted too.

    Raises:
        ValueError: a name is unknown, or the lists have different lengths.
    """

    def __init__(self, task: Verifiable, alpha: float | int, functions: Sequence[str], weights: Sequence[float | int]):
        names = [PUBLISHED.get(name, name) for name in functions]
        for name in names:
            function, at, dataset = name.partition("@")
            if function not in FUNCTIONS:
                known = ", ".join((*FUNCTIONS, *PUBLISHED))
                raise ValueError(f"reward.functions: {name!r} is unknown; use one of {known}")
            if at and dataset not in task.datasets:
                raise ValueError(
                    f"reward.functions: {name!r} is of a data set that is not learnt from; use one of {', '.join(task.datasets)}"
                )
            if function == "partly_correct" and not isinstance(task, PartlyVerifiable):
                raise ValueError(
                    f"reward.functions: {name!r} is for tasks whose answers have parts; chain arithmetic has"
                )
        if len(set(names)) < len(names):
            raise ValueError(f"reward.functions={names} names one twice; give each once, with its weight")
        if len(weights) != len(names):
            raise ValueError(
                f"reward.weights has {len(weights)} numbers for {len(names)} reward.functions; give one each, in their order"
            )
        if not any(weights):
            raise ValueError(f"reward.weights={list(weights)} leaves nothing to learn from; give one that is not 0")
        self.task, self.alpha, self.weights = task, alpha, dict(zip(names, weights, strict=True))

    def __call__(self, samples: Finished, rows: Mapping[str, Tensor]) -> RewardOutput:
        length = (~samples.prompt).sum(1)
        device = samples.evaluations.device
        alpha = alpha_of(rows, self.alpha, device)
        right = self.task.right(samples.tokens, rows).to(device)
        speed = speed_factor(samples.evaluations, length, alpha)
        values = {
            "correct_times_speed": right * speed,
            "correct_minus_cost": right - alpha * samples.evaluations / length,
            "correct": right,
        }
        if any(name.startswith("format") for name in self.weights):
            tags = [has_format(text) for text in self.task.written(samples.tokens)]
            values["format"] = torch.tensor(tags, device=device).float()
        if any(name.startswith("partly_correct") for name in self.weights):
            assert isinstance(self.task, PartlyVerifiable)
            values["partly_correct"] = self.task.partly_right(samples.tokens, rows).to(device)
        terms, total = {"right": right, "speed": speed}, torch.zeros_like(right)
        for name, weight in self.weights.items():
            function, at, dataset = name.partition("@")
            terms[name] = values[function]
            if at:
                own = rows["dataset"] == self.task.datasets.index(dataset)
                terms[name] = values[function] * own.to(device)
            total = total + weight * terms[name]
        return RewardOutput(total, terms)
