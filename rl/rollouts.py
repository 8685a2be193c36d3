"""Rollouts of the diffusion model and their rewards: the batch of PPO and GRPO.

A reward may be a user's code and may fail on unforeseen texts. If it raises an error or returns NaN for one row, that row
is dropped from its group, counted and named in the log, and the others are used. If it fails on every row, the run stops.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from data.tasks import Prompts
from dlm.draws import Draws
from dlm.ends import with_end
from dlm.likelihood import Estimator, Views
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from policy.settings import ModelRolloutSettings
from rewards.rules import Reward
from samplers.loop import Strategy
from samplers.samples import Samples
from training.processes import Processes


@dataclass
class Batch:
    """Finished rows to learn from, B of them in this process.

    free: generated positions; unmasked_at: the step of each commit, -1 for the prompt; start: column where each row begins
    behind its padding; valid: rows with a reward; old, reference: estimates under the weights that drew the rows and under
    the reference (None: no KL), on the canvases of `views`; seed: of the masks; first_row: number of the first row in the
    whole batch; ends: tokens that end an answer (dlm/ends.py).
    """

    tokens: Int[Tensor, "row position"]
    free: Bool[Tensor, "row position"]
    unmasked_at: Int[Tensor, "row position"]
    start: Int[Tensor, "row"] | None
    advantage: Float[Tensor, "row"]
    valid: Bool[Tensor, "row"]
    seed: int
    first_row: int
    old: Float[Tensor, "row position"] | None = None
    reference: Float[Tensor, "row position"] | None = None
    ends: tuple[int, ...] = ()

    def decided(self, estimator: Estimator) -> Bool[Tensor, "row position"]:
        """Mark the positions that the likelihood covers: the response and its end token, as in d1 (2504.12216).

        The fill behind them was not drawn from the model. A replayed trajectory covers every token that was drawn.
        """
        return self.unmasked_at >= 0 if estimator.replays else with_end(self.tokens, self.free, self.ends)

    def views(self, estimator: Estimator) -> Views:
        """Return the masked copies of the valid rows, the same at every call. Positions that were not decided stay masked
        on all of them.
        """
        decided = self.decided(estimator)
        views = estimator.views(decided, Draws(self.seed, first=self.first_row), self.unmasked_at)
        views = replace(views, masked=views.masked | (self.free & ~decided)[views.row])
        return views.take(self.valid[views.row].nonzero().squeeze(1))

    @property
    def push_down(self) -> Bool[Tensor, "row"]:
        return self.advantage < 0

    def whole(self, processes: Processes) -> dict[str, Tensor | int | None]:
        """Return the rows of all processes, to be saved."""
        state: dict[str, Tensor | int | None] = {"seed": self.seed}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and value.dtype == torch.bool:
                value = processes.everywhere(value.long()).bool()
            elif isinstance(value, Tensor):
                value = processes.everywhere(value)
            if field.name not in ("seed", "first_row"):
                state[field.name] = value
        return state

    @classmethod
    def share(cls, state: dict, processes: Processes) -> Batch:
        """Return this process's part of a saved batch."""
        part = processes.part(len(state["tokens"]))
        values: dict[str, Any] = {name: value[part].to(processes.device) if isinstance(value, Tensor) else value
                  for name, value in state.items()}  # fmt: skip
        return cls(**values, first_row=part.start)


def decode(
    model: MaskedLM,
    strategy: Strategy,
    prompts: Prompts,
    sampler: ModelRolloutSettings,
    ends: tuple[int, ...],
    seed: int,
) -> Samples:
    """Decode the prompts with the settings `sampler`. A row ends at the task's end tokens."""
    options = DecodeOptions(
        sampler.steps, sampler.block_length, ends=ends, cache=sampler.cache, refresh=sampler.refresh, alpha=sampler.alpha,
    )  # fmt: skip
    return strategy.decode(model, prompts, options, seed)


@dataclass
class Scored:
    """Rewards of rows: total, its terms, which rows have a reward, and the errors of the others."""

    total: Float[Tensor, "row"]
    terms: dict[str, Float[Tensor, "row"]]
    valid: Bool[Tensor, "row"]
    failures: list[str]


def score(reward: Reward, samples: Samples, rows: dict[str, Tensor], first_row: int = 0) -> Scored:
    """Score all rows together; if that fails, each row separately, so that one bad row affects no other."""
    count, device = len(samples.tokens), samples.tokens.device
    try:
        output = reward(samples, rows)
        total = output.total.to(device)
        failures = [f"row {first_row + row}: {reason}" for row, reason in output.failed.items()]
        return Scored(total.nan_to_num(0.0), output.terms, ~total.isnan(), failures)
    except Exception:  # a reward may raise anything
        pass
    total = torch.zeros(count, device=device)
    valid = torch.zeros(count, dtype=torch.bool, device=device)
    terms: dict[str, Tensor] = {}
    failures = []
    for number in range(count):
        index = torch.tensor([number], device=device)
        one = {name: value[number : number + 1] for name, value in rows.items()}
        try:
            output = reward(samples.take(index), one)
        except Exception as error:
            failures.append(f"row {first_row + number}: {type(error).__name__}: {error}")
            continue
        total[number], valid[number] = float(output.total), True
        for name, term in output.terms.items():
            terms.setdefault(name, torch.zeros(count, device=device))[number] = float(term)
    return Scored(total, terms, valid, failures)


def reward_metrics(scored: Scored, samples: Samples, processes: Processes) -> tuple[dict[str, float], list[str]]:
    """Return means over the rows of all processes that have a reward, and the errors of the others.

    Raises:
        FloatingPointError: no row has a reward.
    """
    every = processes.gather((sorted(scored.terms), scored.failures))
    names = sorted({name for own, _ in every for name in own})
    failures = [failure for _, own in every for failure in own]
    valid = scored.valid.float()
    missing = torch.zeros_like(valid)
    values = {name: scored.terms.get(name, missing).to(valid.device).float() for name in names}
    values |= {"reward": scored.total, "nfe": samples.evaluations.float()}
    sums = {name: float((value * valid).sum()) for name, value in values.items()}
    means = processes.mean({"count": float(valid.sum()), **sums})
    count = means.pop("count")
    if count == 0:
        raise FloatingPointError(
            f"the reward failed on all {len(failures)} rows ({failures[0]}); there is nothing to learn from: mend the reward"
        )
    return {name: value / count for name, value in means.items()} | {"reward_failed": float(len(failures))}, failures
