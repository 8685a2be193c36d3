"""Settings of backbones: their shape, their noise, pre-training, LoRA, and the adaptation of a causal model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from training.fields import Kinds, Settings, section, setting
from training.ranges import (
    ABOVE_0,
    COUNT,
    COUNT_OR_NONE,
    DTYPE,
    FLAG,
    LENGTH,
    NAME,
    PART,
    ROWS,
    SHARE,
    SIZE,
    Either,
    ListOf,
    Maybe,
    Number,
    OneOf,
)
from training.settings import (
    BatchSettings,
    EvalSettings,
    EvaluatedSettings,
    OptimSettings,
    PreemptionSettings,
    RunSettings,
)

KIND = OneOf(("radd", "sedd", "llada", "causal"))
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class SourceSettings(Settings):
    """Settings of the place from which a model is loaded."""

    place: ClassVar[str] = "dlm."
    path: str = setting("example/stories", NAME, "a shipped model, a directory, a run, or an id of the hub")
    model_type: str | None = setting(
        None, Maybe(NAME), "family of the checkpoint (llada, Dream, sedd, ...); null: as its config.json says"
    )


@dataclass
class ShapeSettings(Settings):
    """Settings of the shape of a new network; a head is hidden_size / n_heads wide."""

    place: ClassVar[str] = "model."
    kind: str = setting("radd", KIND, "the network: radd, sedd, llada or causal")
    hidden_size: int = setting(768, SIZE, "width of the hidden states")
    n_blocks: int = setting(12, SIZE, "transformer blocks")
    n_heads: int = setting(12, SIZE, "attention heads; they divide hidden_size")
    length: int = setting(1024, LENGTH, "positions of the canvas")
    dtype: str = setting("float32", DTYPE, "of the computation; bfloat16 and float16 run under autocast")


@dataclass
class RaddShape(ShapeSettings):
    """Shape of a RADD; the defaults are the published small model."""

    dropout: float | int = setting(0.02, PART, "probability of dropout")
    learned_positions: bool = setting(False, FLAG, "add learned position embeddings to the rotary ones, as boards need")


@dataclass
class SeddShape(ShapeSettings):
    """Shape of a SEDD with absorbing noise; the defaults are the published small model (medium: hidden_size=1024 n_blocks=24
    n_heads=16)."""

    kind: str = setting("sedd", KIND, "sedd")
    cond_dim: int = setting(128, SIZE, "width of the embedding of the noise level")
    dropout: float | int = setting(0.1, PART, "probability of dropout")
    scale_by_sigma: bool = setting(True, FLAG, "scale the scores by the noise level")


@dataclass
class LladaShape(ShapeSettings):
    """Shape of a model in the layout of LLaDA: a bidirectional Llama, whose mask is a token of the vocabulary."""

    kind: str = setting("llada", KIND, "llada")
    rope_theta: float | int = setting(500000.0, Number(1, 1e12), "base of the rotary embeddings")


@dataclass
class CausalShape(ShapeSettings):
    """Shape of a small Llama of transformers, which decodes from the left."""

    kind: str = setting("causal", KIND, "causal")
    dropout: float | int = setting(0.0, PART, "probability of dropout in attention")


SHAPES = Kinds("kind", {"radd": RaddShape, "sedd": SeddShape, "llada": LladaShape, "causal": CausalShape}, RaddShape)


@dataclass
class NoiseSettings(Settings):
    """Settings of the noise schedule of a new backbone."""

    place: ClassVar[str] = "noise."
    type: str = setting("loglinear", OneOf(("loglinear", "geometric")), "loglinear or geometric")
    sigma_min: float | int = setting(1e-4, Number(0, 1000, open_low=True), "smallest noise level of type geometric")
    sigma_max: float | int = setting(20, Number(0, 1000, open_low=True), "largest noise level of type geometric")


@dataclass
class AdaptSettings(Settings):
    """Settings of the adaptation of a causal model to a masked-diffusion model."""

    place: ClassVar[str] = "adapt."
    length: int | None = setting(256, Maybe(LENGTH), "positions of the canvas; null: the context of the model")
    anneal: int = setting(1000, COUNT_OR_NONE, "updates in which attention opens from causal to full; 0: full at once")


@dataclass
class LoraSettings(Settings):
    """Settings of low-rank updates, which are trained in place of all weights."""

    place: ClassVar[str] = "lora."
    rank: int | None = setting(None, Maybe(SIZE), "rank of the updates; null: train all weights")
    alpha: float | int = setting(32, ABOVE_0, "the updates are scaled by alpha / rank")
    dropout: float | int = setting(0.0, PART, "probability of dropout in front of the updates")
    target_modules: list[str] | str = setting(
        PROJECTIONS,
        Either(NAME, ListOf(NAME, "[q_proj,v_proj]")),
        "linear layers that get an update, by name; train-preference also takes all-linear",
    )

    @property
    def modules(self) -> list[str]:
        """Return the names of the layers that get an update."""
        return [self.target_modules] if isinstance(self.target_modules, str) else self.target_modules


@dataclass
class PretrainingSchedule(BatchSettings, EvaluatedSettings, PreemptionSettings):
    """Batches and schedule of pre-training."""

    n_iters: int = setting(2000, COUNT, "updates of the run")
    ema: float | int | None = setting(
        None,
        Maybe(SHARE),
        "decay of the moving average of the weights; null: 1 - 2 / n_iters, at most the published 0.9999",
    )


@dataclass
class PretrainingEval(EvalSettings):
    """Evaluations of pre-training."""

    samples: int = setting(4, ROWS, "samples that are drawn at each snapshot")
    steps: int = setting(16, ROWS, "decoding steps of these samples")


@dataclass
class DLMOptimSettings(OptimSettings):
    """Settings of AdamW in pre-training."""

    warmup: int | None = setting(
        None,
        Maybe(COUNT_OR_NONE),
        "updates of the linear warm-up; null: a twentieth of n_iters, at most the published 2500",
    )


@dataclass
class PretrainingSettings(RunSettings):
    """Settings of the algorithm of pre-training (dlm/pretrain.py)."""

    loss: str = setting("lambda_DCE", NAME, "DSE (SEDD), t_DCE, lambda_DCE, k_DCE, masked_CE, or ar (causal models)")
    training: PretrainingSchedule = section(
        PretrainingSchedule, log_freq=20, eval_freq=200, snapshot_freq=1000, snapshot_freq_for_preemption=200
    )
    eval: PretrainingEval = section(PretrainingEval)
    optim: DLMOptimSettings = section(DLMOptimSettings, lr=3e-4)
