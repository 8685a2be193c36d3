"""Decoding of answers behind a prompt, with any rule: shared by unmask evaluate and unmask/lm_eval.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from dlm.ends import before_end, end_tokens, texts_of
from dlm.environment import UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.settings import SamplerSettings


@dataclass(frozen=True)
class AnswerSettings:
    """Settings of answers.

    length: positions to generate; steps: of rules that commit equal parts (None: one position per step); block_length: None
    is one block; drift: measure the error of the cache; the others as in dlm.environment. A row ends at its end of sequence
    or of turn.
    """

    length: int
    steps: int | None = None
    block_length: int | None = None
    cache: str | None = None
    refresh: int | None = None
    budget: int | None = None
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False
    guidance: float | int = 0.0
    alpha: float | int | None = None
    drift: bool = False

    @classmethod
    def of(cls, settings: SamplerSettings, length: int) -> AnswerSettings:
        """Return the settings of answers of this length. Steps, budget and alpha are those of a candidate."""
        return cls(
            length, None, settings.block_length, settings.cache, settings.refresh, None, settings.logits_eos_inf,
            settings.confidence_eos_eot_inf, settings.guidance,
        )  # fmt: skip

    def options(self, model: MaskedLM) -> DecodeOptions:
        """Return the options for this model. ValueError for options that it does not support."""
        ends = end_tokens(model.tokenizer)
        if (self.logits_eos_inf or self.confidence_eos_eot_inf) and not ends:
            raise ValueError(f"{model.model_id} has no end of sequence; leave the eos settings out")
        return DecodeOptions(
            self.steps or self.length, self.block_length, budget=self.budget, ends=ends,
            never_tokens=ends[:1] if self.logits_eos_inf else (), last_tokens=ends if self.confidence_eos_eot_inf else (),
            guidance=self.guidance, cache=self.cache, refresh=self.refresh, alpha=self.alpha, measure_drift=self.drift,
        )  # fmt: skip

    def check(self, model: MaskedLM) -> None:
        """Refuse, before any work, options that this model does not support, and blocks or steps that do not divide the
        length: ValueError.
        """
        canvas = torch.full((1, self.length), model.mask_id, device=model.device)
        UnmaskingEnvironment(model, self.options(model)).reset(Prompts(canvas))


def generations(model: MaskedLM, tokens: Int[Tensor, "row position"]) -> list[str]:
    """Return the answers up to their end. Special tokens stay in the text, so that a verifier sees where another turn
    begins.
    """
    free = torch.ones_like(tokens, dtype=torch.bool)
    return texts_of(tokens, before_end(tokens, free, end_tokens(model.tokenizer)), model.tokenizer, special=True)


def answer_lengths(model: MaskedLM, tokens: Int[Tensor, "row position"]) -> Int[Tensor, "row"]:
    """Return the number of tokens before each row's first end token; padding behind it is not counted."""
    return before_end(tokens, torch.ones_like(tokens, dtype=torch.bool), end_tokens(model.tokenizer)).sum(1)
