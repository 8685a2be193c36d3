"""Settings of an evaluation on questions: the flags of `evaluate` with their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.names import ALIASES


@dataclass
class EvaluationRequest:
    """Settings of `evaluate`. Exactly one of run, policy_path and strategy names what is evaluated. Lists are texts such as
    "0.5,0.9".

    `python -m unmask evaluate --help` describes each field.
    """

    save_path: str
    run: str | None = None
    checkpoints: str | None = None
    policy_path: str | None = None
    other_model: bool = False
    strategy: str | None = None
    settings: str = ""
    sampler: Sequence[str] = ()
    windows: str = ""
    config: str | None = None
    model_path: str | None = None
    datasets: str = "chain"
    data_dir: str | None = None
    math_by: str = "verify"
    unsandboxed: bool = False
    few_shot: int = 0
    temperatures: str | None = None
    betas: str | None = None
    token_temperature: float | int = 0.0
    confidence: str = "model"
    seeds: str = "42"
    sampling_mode: str | None = None
    gen_length: int | None = None
    block_length: int | None = None
    steps: str = ""
    budgets: str = ""
    alphas: str = ""
    cache: str | None = None
    refresh: int | None = None
    drift: bool = False
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False
    guidance: float | int = 0.0
    n_test: int | None = None
    batch_size: int = 32
    device: str = "auto"
    dtype: str | None = None
    leaderboard: str | None = None
    method: str | None = None

    @property
    def rule(self) -> str | None:
        """Return Unmask's name of the unmasking rule, which may have been given by a published name; None for a policy."""
        return None if self.strategy is None else ALIASES.get(self.strategy, self.strategy)


@dataclass
class TextRequest(EvaluationRequest):
    """The flags of `evaluate --task text`: a prompt for every sample, and the language model that judges the texts."""

    prompt: str | None = None
    judge: str = "smollm2"
