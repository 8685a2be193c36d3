"""Settings of the training of models by reward or preference, and of reward models from preference pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from data.settings import SECTION as DATA
from data.settings import ChainSettings, DataSettings, PreferenceDataSettings, PuzzleSettings, RewardDataSettings
from dlm.settings import LoraSettings, SourceSettings
from policy.settings import ModelRolloutSettings, RolloutSettings
from rewards.settings import SECTION as REWARDS
from rewards.settings import RewardSettings, RewardTrainingSettings, RightSettings
from training.fields import REQUIRED, Kinds, Settings, section, setting
from training.ranges import (
    ABOVE_0,
    COUNT,
    FLAG,
    LENGTH,
    NAME,
    PART,
    ROWS,
    SHARE,
    SIZE,
    WEIGHT,
    ListOf,
    Maybe,
    Whole,
)
from training.settings import (
    AverageSettings,
    ComputeSettings,
    EvalSettings,
    EvaluatedSettings,
    OptimSettings,
    PreemptionSettings,
    RunSettings,
    TunedOptimSettings,
    TunedRunSettings,
    WandbSettings,
)


@dataclass
class SandwichSettings(Settings):
    """Settings of the estimator `sandwich` for rows whose likelihood is to be decreased."""

    place: ClassVar[str] = "rl.sandwich."
    beta: float | int = setting(1.0, WEIGHT, "exponent of the upper estimate; above 0")
    mix: float | int = setting(0.5, SHARE, "share of the upper estimate")


@dataclass
class RLSettings(Settings):
    """Settings of reinforcement learning of the model itself."""

    place: ClassVar[str] = "rl."
    algorithm: str = setting("grpo", NAME, "grpo, ppo or vrpo (preference pairs)")
    batch_size: int = setting(16, ROWS, "rollouts of an iteration, over all processes; vrpo: pairs")
    group_size: int = setting(4, ROWS, "rollouts of a prompt")
    advantage_std: bool = setting(True, FLAG, "grpo: divide by the standard deviation of the group")
    baseline_decay: float | int = setting(0.99, SHARE, "ppo: decay of the running mean of the rewards")
    ppo_epochs: int = setting(1, Whole(1, 10_000), "updates for each batch of rollouts")
    ppo_clip: float | int = setting(0.2, WEIGHT, "clipping of the ratio")
    kl_beta: float | int = setting(
        0.1, WEIGHT, "weight of the KL to the model that training starts from, 0: none; vrpo: multiplies the margin"
    )
    reward_freq: int = setting(1, COUNT, "iterations that use the same rollouts")
    ratio: str = setting("sequence", NAME, "what is clipped: the ratio of a sequence or of each token")
    estimator: str = setting(
        "elbo", NAME, "elbo, mean_field, coupled, score_entropy (SEDD), sandwich, trajectory or published"
    )
    num_sigma_samples: int = setting(4, ROWS, "masks of a row (noise levels; coupled: pairs)")
    replayed_steps: int | None = setting(
        None, Maybe(LENGTH), "trajectory: steps of a row that are evaluated, spread evenly; null: all"
    )
    masks: str = setting(
        "counts", NAME, "elbo, sandwich: counts (exactly k masked) or times (each with probability t; more variance)"
    )
    antithetic: bool = setting(True, FLAG, "half of the masks are complements of the others")
    prompt_mask: float | int = setting(0.15, PART, "mean_field: share of the prompt that is masked too")
    coupled: list[float | int] = setting(
        [0.2, 0.8], ListOf(SHARE, "[0.2,0.8]", (2, 2)), "coupled: range of the masked share"
    )
    sandwich: SandwichSettings = section(SandwichSettings)


@dataclass
class RLSchedule(EvaluatedSettings, PreemptionSettings, AverageSettings):
    """Schedule of train-rl."""

    chunk: int = setting(64, ROWS, "canvases that go through the model together in an update, for memory")


@dataclass
class RLEvalSettings(EvalSettings):
    """Evaluations of train-rl."""

    batch_size: int = setting(64, ROWS, "held-out prompts; vrpo: pairs")
    samples: int = setting(8, ROWS, "samples of these that are written at each snapshot")


@dataclass
class RLTrainingSettings(RunSettings):
    """Settings of train-rl."""

    init: str | None = setting(
        None,
        Maybe(NAME),
        "the model to start from and to stay near: a run, one .pth of it, a directory, a hub id; null: dlm",
    )
    dlm: SourceSettings = section(SourceSettings, path="example/chain")
    model: ComputeSettings = section(ComputeSettings)
    reward: RewardSettings = section(Kinds("name", REWARDS.of, RightSettings))
    data: DataSettings = section(Kinds("kind", DATA.of, ChainSettings, DATA.choose))
    rl: RLSettings = section(RLSettings)
    lora: LoraSettings = section(LoraSettings)
    sampler: ModelRolloutSettings = section(ModelRolloutSettings)
    training: RLSchedule = section(RLSchedule, log_freq=5, eval_freq=50)
    eval: RLEvalSettings = section(RLEvalSettings)
    optim: OptimSettings = section(OptimSettings, lr=3e-5, warmup=5)
    wandb: WandbSettings = section(WandbSettings)


@dataclass
class QualityHeadSettings(Settings):
    """Settings of a quality head (model/quality.py) and of its labels (rl/quality.py)."""

    place: ClassVar[str] = "quality."
    width: int = setting(64, SIZE, "inner width of the head; with blocks a multiple of 2 * quality.heads")
    blocks: int = setting(1, Whole(0, 64), "transformer blocks of the head; 0: it reads each position alone")
    heads: int = setting(4, Whole(1, 1024), "attention heads of a block")
    embed: bool = setting(True, FLAG, "the head has embeddings of the token shown and of the prompt")
    seen: bool = setting(
        True, FLAG, "the head reads the model's log-probabilities of the token shown and of the best token"
    )
    positions: bool = setting(
        False,
        FLAG,
        "the head has an embedding of each position, for boards; canvases are then as long as the model's longest",
    )
    share: float | int = setting(
        0.5, SHARE, "share of the rows that are masked texts of the data (1: as PRISM); the others are own decodings"
    )
    filled: int = setting(4, LENGTH, "masked texts: positions that the model fills, which are labelled")
    thresholds: list[float | int] = setting(
        [0.3, 0.5, 0.7, 0.9],
        ListOf(SHARE, "[0.3,0.5,0.7,0.9]"),
        "own decodings: thresholds of strategy threshold, one for each iteration in turn",
    )
    canvases: int = setting(4, ROWS, "own decodings: canvases of each decoding, drawn over its steps")
    left_out: int = setting(
        16, Whole(0, 1_000_000), "held-out rows on which exact leave-one-out is compared at the end; 0: none"
    )


@dataclass
class QualitySchedule(EvaluatedSettings, PreemptionSettings, AverageSettings):
    """Batches and schedule of train-quality."""

    batch_size: int = setting(64, ROWS, "rows of an update, over all processes")


@dataclass
class QualityEvalSettings(EvalSettings):
    """Evaluations of train-quality."""

    part: int = setting(64, ROWS, "held-out rows that go through the model together, for memory")


@dataclass
class QualityRolloutSettings(RolloutSettings):
    """Settings of the decoding of own canvases, and of the tokens that fill masked texts."""

    steps: int = setting(16, LENGTH, "steps of a decoding in blocks; it must be a multiple of their number")


@dataclass
class QualityTrainingSettings(RunSettings):
    """Settings of train-quality."""

    dlm: SourceSettings = section(SourceSettings, path="example/sudoku6")
    model: ComputeSettings = section(ComputeSettings)
    data: DataSettings = section(Kinds("kind", DATA.of, PuzzleSettings, DATA.choose))
    quality: QualityHeadSettings = section(QualityHeadSettings)
    sampler: QualityRolloutSettings = section(QualityRolloutSettings)
    training: QualitySchedule = section(QualitySchedule, n_iters=400, eval_freq=100, snapshot_freq=200)
    eval: QualityEvalSettings = section(QualityEvalSettings, batch_size=256)
    optim: OptimSettings = section(OptimSettings, lr=2e-3, warmup=20, weight_decay=0.01, schedule="cosine")
    wandb: WandbSettings = section(WandbSettings)


@dataclass
class RewardRunSettings(RewardTrainingSettings):
    """Settings of train-reward."""

    stage: str = setting("reward", NAME, "tells experiments that several commands share which one runs")
    data: RewardDataSettings = section(RewardDataSettings)
    wandb: WandbSettings = section(WandbSettings)


@dataclass
class PreferenceSettings(Settings):
    """Settings of preference learning of a causal model, by TRL."""

    place: ClassVar[str] = "preference."
    algorithm: str = setting(
        "dpo", NAME, "dpo, kto (pairs) or rloo (draws answers and scores them by preference.reward)"
    )
    beta: float | int = setting(
        0.1, WEIGHT, "dpo, kto: of the implied reward; rloo: weight of the KL to the initial model"
    )
    reward: str | None = setting(None, Maybe(NAME), "rloo: a run of train-reward, vader, ... (rewards/models.py)")
    group_size: int = setting(4, ROWS, "rloo: answers to a prompt")
    answer_length: int = setting(64, LENGTH, "rloo: tokens of an answer")
    temperature: float | int = setting(1.0, ABOVE_0, "rloo: of the answers")


@dataclass
class PreferenceRunSettings(TunedRunSettings):
    """Settings of train-preference."""

    stage: str = setting("preference", NAME, "tells experiments that several commands share which one runs")
    init: str = setting(
        REQUIRED, NAME, "a causal model of transformers: a hub id, a directory, smollm2, example/stories_causal"
    )
    preference: PreferenceSettings = section(PreferenceSettings)
    lora: LoraSettings = section(LoraSettings, rank=16, alpha=16, target_modules="all-linear")
    data: PreferenceDataSettings = section(PreferenceDataSettings)
    eval: EvalSettings = section(EvalSettings, batch_size=8)
    optim: TunedOptimSettings = section(TunedOptimSettings, lr=5e-5, schedule="linear")
    wandb: WandbSettings = section(WandbSettings)
