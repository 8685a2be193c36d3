"""Settings of one decoding that are independent of the choice of positions and tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.cache import CACHES
from dlm.masked_lm import MaskedLM


@dataclass(frozen=True, eq=False)
class DecodeOptions:
    """How canvases are decoded: steps, blocks, budgets, caches, guidance, end of sequence.

    Args:
        steps: planned decoding steps for the whole canvas (with blocks: for all of them together).
        block_length: positions of a semi-autoregressive block; it must divide the response. None: one block.
        patience: a row is finished after this many steps for each position that was open at the start, even with positions
            still open. For training rollouts, whose policy may select nothing.
        budget: network evaluations that a row may cost, one number or one for each row. The last one commits every open
            position. None: no limit.
        ends: tokens that end an answer (dlm/ends.py). A row is finished when one of them is committed with no open position
            before it; the first of them fills the positions behind it. Empty: rows are decoded in full.
        never_tokens: tokens that are never committed (LLaDA's `logits_eos_inf`).
        last_tokens: tokens whose positions count as least confident (LLaDA's `confidence_eos_eot_inf`).
        guidance: weight w of classifier-free guidance: logits are (1 + w) * with the prompt - w * without it, which costs two
            evaluations. 0: none.
        cache: `prefix` or `dual`, approximate caches of keys and values of a bidirectional model. None: exact evaluations. A
            causal model always keeps its keys and values, exactly.
        refresh: evaluations after which a cached row is recomputed in full. None: at the start of each block.
        alpha: weight of speed, one number or one for each row, for policies that are conditioned on it.
        revise: decisions may open committed positions again, or replace their tokens. Positions of the prompt stay. It needs
            a budget or `max_steps`, so that decoding ends.
        max_steps: decoding steps that a row may take, with revision: the last one commits every open position and opens none
            again. None: four for each evaluation of the budget.
        measure_drift: measure how far the confidences of a cache are from exact ones (`UnmaskingEnvironment.drift`). The
            additional forward passes count neither as evaluations nor as seconds of decoding.

    Raises:
        ValueError: for settings that contradict each other.
    """

    steps: int
    block_length: int | None = None
    patience: int | None = None
    budget: int | Int[Tensor, "row"] | None = None
    ends: tuple[int, ...] = ()
    never_tokens: tuple[int, ...] = ()
    last_tokens: tuple[int, ...] = ()
    guidance: float | int = 0.0
    cache: str | None = None
    refresh: int | None = None
    alpha: float | int | Float[Tensor, "row"] | None = None
    revise: bool = False
    max_steps: int | None = None
    measure_drift: bool = False

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        if self.budget is not None and self.block_length is not None:
            raise ValueError(BUDGET_ALONE)
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance={self.guidance} must be a finite number of at least 0")
        if self.budget is not None and int(torch.as_tensor(self.budget).min()) < self.cost:
            raise ValueError(
                f"budget={self.budget} must be at least 1 evaluation, with guidance 2: it runs the model twice"
            )
        self._check_revision()
        self._check_cache()

    def _check_revision(self) -> None:
        if self.revise and self.budget is None and self.max_steps is None:
            raise ValueError(NO_END)
        if self.max_steps is not None and (not self.revise or self.max_steps < 1):
            raise ValueError(
                f"max_steps={self.max_steps} must be at least 1, and needs revise=True; change it or leave it out"
            )
        if self.revise and self.cache is not None and self.block_length is not None:
            raise ValueError(
                f"cache={self.cache} keeps the keys of earlier blocks, which revision would make stale; leave block_length out, "
                "as prefix and dual recompute all positions of a single block, or leave the cache out"
            )

    def _check_cache(self) -> None:
        if self.cache is not None and self.cache not in CACHES:
            raise ValueError(f"cache={self.cache!r} is unknown; use one of {', '.join(CACHES)}, or leave it out")
        if self.cache is not None and self.guidance:
            raise ValueError(CACHE_ALONE)
        if self.refresh is not None and (self.cache is None or self.refresh < 1):
            raise ValueError(f"refresh={self.refresh} must be at least 1 evaluation, and needs a cache")
        if self.measure_drift and self.cache is None:
            raise ValueError(
                "drift compares the confidences of a cache with the model's own, and there is no cache; give cache=prefix or "
                "cache=dual, or leave drift out"
            )

    @property
    def cost(self) -> int:
        """Network evaluations that one canvas costs: two with guidance."""
        return 2 if self.guidance else 1

    def check_model(self, model: MaskedLM) -> None:
        """Refuse settings that a causal model does not have: ValueError."""
        if not model.causal:
            return
        if self.revise:
            raise ValueError(
                "revision changes tokens that others were predicted from, and a causal model sees nothing behind a token; use a "
                "masked model, or a strategy without revision"
            )
        if self.budget is not None:
            raise ValueError(BUDGET_ALONE)
        if self.cache is not None:
            raise ValueError(CACHE_ALONE)
        if self.guidance:
            raise ValueError("guidance masks the prompt, which a causal model cannot see past; leave it out")


STEPS_PER_EVALUATION = 4  # of a budget with revision: a step that changes nothing costs no evaluation
NO_END = (
    "revision without a budget or a schedule may never end; give a budget of evaluations (sampler.budget) or max_steps"
)
BUDGET_ALONE = "a budget ends with one evaluation that writes all that is left: not with blocks or a causal model"
CACHE_ALONE = "a cache goes with neither guidance nor a causal model, whose own is exact; leave it out"
