"""Settings that every training command has: where a run is, how long it is, the optimiser, wandb."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from training.fields import Settings, section, setting
from training.ranges import (
    COUNT,
    COUNT_OR_NONE,
    DTYPE,
    FLAG,
    NAME,
    PART,
    ROWS,
    SEED,
    SHARE,
    ListOf,
    Maybe,
    Number,
    OneOf,
    Text,
    Whole,
)  # fmt: skip


@dataclass
class RunSettings(Settings):
    """Settings at the top of every training configuration."""

    seed: int = setting(0, SEED, "of all random numbers of the run")
    device: str = setting("auto", NAME, "auto, cpu, cuda, or one of several such as cuda:1")
    run_dir: str | None = setting(
        None, Maybe(NAME), "directory of the run, or a URL (s3://bucket/prefix) to copy it to; null: output/DATE/TIME"
    )
    resume: str | None = setting(
        None,
        Maybe(NAME),
        "a run to continue, in place: a directory, a URL, or auto (the run in run_dir, if there is one)",
    )


@dataclass
class ComputeSettings(Settings):
    """Setting of the number type in which a model computes."""

    place: ClassVar[str] = "model."
    dtype: str = setting("float32", DTYPE, "of the computation; weights that learn are float32")


@dataclass
class AverageSettings(Settings):
    """Setting of the moving average of trained weights."""

    place: ClassVar[str] = "training."
    ema: float | int = setting(0.99, SHARE, "decay of the moving average of the weights")


@dataclass
class ScheduleSettings(Settings):
    """Settings of the length of a run, and of the iterations between two lines of the log and two snapshots."""

    place: ClassVar[str] = "training."
    n_iters: int | None = setting(100, COUNT, "iterations of the run")
    log_freq: int = setting(10, COUNT, "iterations between two lines of the log")
    snapshot_freq: int = setting(
        100, COUNT, "iterations between two snapshots: checkpoints/, the model or policy, samples"
    )


@dataclass
class EvaluatedSettings(ScheduleSettings):
    """Settings of the schedule of a run with evaluations on held-out data."""

    eval_freq: int = setting(100, COUNT, "iterations between two evaluations on held-out data")


@dataclass
class PreemptionSettings(Settings):
    """Settings of the schedule of resume checkpoints."""

    place: ClassVar[str] = "training."
    snapshot_freq_for_preemption: int = setting(
        20, COUNT, "iterations between two resume checkpoints, from which a killed run continues"
    )


@dataclass
class BatchSettings(Settings):
    """Settings of the batch of an update."""

    place: ClassVar[str] = "training."
    batch_size: int = setting(32, ROWS, "rows of an update, over all processes and parts")
    accum: int = setting(1, ROWS, "parts that a batch is cut into, for memory")


@dataclass
class TunedSettings(BatchSettings, EvaluatedSettings):
    """Settings of a training by transformers or TRL, in epochs or iterations."""

    n_iters: int | None = setting(None, Maybe(COUNT), "updates of the run; null: as many as training.epochs needs")
    epochs: int = setting(1, Whole(1, 1_000_000), "passes over the data, where training.n_iters is null")
    gradient_checkpointing: bool = setting(False, FLAG, "compute activations again in the backward pass, for memory")
    dropout: bool = setting(False, FLAG, "use the model's own dropout while it learns")


@dataclass
class EvalSettings(Settings):
    """Settings of evaluations on held-out rows."""

    place: ClassVar[str] = "eval."
    batch_size: int = setting(32, ROWS, "held-out rows that are evaluated together")


@dataclass
class RateSettings(Settings):
    """Settings of the learning rate, its schedule, and the clipping of gradients."""

    place: ClassVar[str] = "optim."
    lr: float | int = setting(1e-3, Number(0, 10), "learning rate after the warm-up")
    weight_decay: float | int = setting(0.0, Number(0, 10), "weight decay")
    warmup: int | None = setting(0, COUNT_OR_NONE, "updates of the linear warm-up")
    grad_clip: float | int = setting(1.0, Number(0, 1e12, open_low=True), "largest norm of the gradient")
    schedule: str = setting(
        "constant", OneOf(("constant", "linear", "cosine")), "of the learning rate: constant, linear or cosine to zero"
    )


@dataclass
class OptimSettings(RateSettings):
    """Settings of AdamW with a warm-up and clipped gradients."""

    betas: list[float | int] = setting([0.9, 0.999], ListOf(PART, "[0.9,0.999]", (2, 2)), "decay rates of the moments")
    eps: float | int = setting(1e-8, Number(0, 1, open_low=True), "is added to the root of the second moment")


@dataclass
class TunedOptimSettings(RateSettings):
    """Settings of the optimizer of a run by transformers or TRL."""

    optimiser: str = setting("adamw", NAME, "adamw or rmsprop")


@dataclass
class RewardOptimSettings(OptimSettings, TunedOptimSettings):
    """Settings of the optimizer of train-reward, which trains by transformers or by the trainer of this project."""


@dataclass
class TunedRunSettings(RunSettings):
    """Settings of a run by transformers or TRL."""

    model: ComputeSettings = section(ComputeSettings)
    training: TunedSettings = section(TunedSettings)
    eval: EvalSettings = section(EvalSettings)
    optim: TunedOptimSettings = section(TunedOptimSettings)


@dataclass
class ProjectSettings(Settings):
    """Settings of logging to Weights and Biases."""

    place: ClassVar[str] = "wandb."
    mode: str = setting("offline", OneOf(("online", "offline", "disabled")), "online, offline or disabled")
    project: str = setting("unmask", NAME, "name of the project in wandb")


@dataclass
class WandbSettings(ProjectSettings):
    """Settings of logging to Weights and Biases, with a name for the run."""

    name: str | int | float | None = setting(
        None, Maybe(Text(number=True)), "name of the run in wandb; null: a random one"
    )
