"""Settings of the training of twists: targets (configs/target), the network, exact samples, evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from dlm.settings import SourceSettings
from training.fields import Kinds, Settings, section, setting
from training.ranges import (
    COUNT,
    COUNT_OR_NONE,
    FLAG,
    LENGTH,
    NAME,
    ROWS,
    SHARE,
    SIZE,
    WEIGHT,
    WORDS,
    ListOf,
    Maybe,
    Number,
    OneOf,
    Whole,
)
from training.settings import (
    ComputeSettings,
    OptimSettings,
    PreemptionSettings,
    RunSettings,
    ScheduleSettings,
    WandbSettings,
)

ANY = Number(-1e6, 1e6)


@dataclass
class TargetSettings(Settings):
    """Setting that every target has: its kind."""

    place: ClassVar[str] = "target."
    kind: str = setting("infilling", NAME, "class, threshold, infilling, continuation, latex or reward")

    @property
    def exponent(self) -> float:
        """The value of beta, or 1 for a target without it."""
        return 1.0

    def values(self) -> dict[str, Any]:
        """Return names and values, as `build_target` reads them and a twist stores them."""
        return asdict(self)


@dataclass
class WeightedTarget(TargetSettings):
    """Settings of a target whose log-potential is multiplied by beta."""

    beta: float | int = setting(1.0, ANY, "multiplies the log-potential; exact samples exist at 1")

    @property
    def exponent(self) -> float:
        return float(self.beta)


@dataclass
class InfillingTarget(WeightedTarget):
    """Settings of the potential log p(continuation | text) of the model itself. The continuation is an input of the twist."""

    tokens: int = setting(2, LENGTH, "tokens that follow, and are given")
    form: str | None = setting(None, Maybe(NAME), "as of the target continuation; null: log_prob")

    def values(self) -> dict[str, Any]:
        """Return names and values; `form` only if it is set."""
        return {name: value for name, value in super().values().items() if value is not None}


@dataclass
class ContinuationSettings(WeightedTarget):
    """Settings of the potential log p(fixed continuation | generated text) of the model itself."""

    kind: str = setting("continuation", NAME, "continuation")
    text: str | int | float = setting(" The end.", WORDS, "the text that follows")
    form: str = setting(
        "log_prob", NAME, "log_prob, prob (beta p, as a log-potential) or posterior (divided by p of the response)"
    )


@dataclass
class ClassSettings(WeightedTarget):
    """Settings of the potential log p(class | text) of a classifier."""

    kind: str = setting("class", NAME, "class")
    classifier: str = setting("LiYuan/amazon-review-sentiment-analysis", NAME, "a sequence classifier")
    classes: int = setting(5, SIZE, "logits of the classifier")
    label: int | None = setting(
        0, Maybe(COUNT_OR_NONE), "the class; null: one is drawn for each text, and given to the twist"
    )


@dataclass
class ThresholdSettings(TargetSettings):
    """Settings of a potential that is 1 if a logit of a classifier is on one side of a threshold, else 1e-16."""

    kind: str = setting("threshold", NAME, "threshold")
    classifier: str = setting("nicholasKluge/ToxicityModel", NAME, "a sequence classifier")
    classes: int = setting(1, SIZE, "logits of the classifier")
    threshold: float | int = setting(-5.0, ANY, "the logit that separates")
    above: bool = setting(False, FLAG, "texts above the threshold are meant")
    label: int | None = setting(None, Maybe(COUNT_OR_NONE), "number of the logit; null: 0")
    against: int | None = setting(
        None, Maybe(COUNT_OR_NONE), "number of a logit that is subtracted from it; null: none"
    )

    def values(self) -> dict[str, Any]:
        """Return names and values; logits only if they are set."""
        return {name: value for name, value in super().values().items() if value is not None}


@dataclass
class LatexTarget(TargetSettings):
    """Settings of a potential that is 1 if a text has formulas and all of them are valid, else 1e-16."""

    kind: str = setting("latex", NAME, "latex")


@dataclass
class RewardTargetSettings(WeightedTarget):
    """Settings of the potential exp(beta (reward - highest)) of any reward of texts."""

    kind: str = setting("reward", NAME, "reward")
    reward: str = setting("vader", NAME, "a reward of texts (rewards/models.py)")
    highest: float | int = setting(
        1.0, ANY, "the highest value of the reward: phi is then a probability, and there are exact samples at any beta"
    )


TARGETS: dict[str, type[TargetSettings]] = {
    "class": ClassSettings, "threshold": ThresholdSettings, "infilling": InfillingTarget, "continuation": ContinuationSettings,
    "latex": LatexTarget, "reward": RewardTargetSettings,
}  # fmt: skip
SECTION = Kinds("kind", TARGETS, InfillingTarget)


def target_settings(values: Mapping[str, Any]) -> TargetSettings:
    """Return the target of a stored configuration. ValueError for a value outside its range."""
    kind = SECTION.kind(values, "target.")
    assert issubclass(kind, TargetSettings)
    return kind.of(values, strict=False)


@dataclass
class TwistNetworkSettings(Settings):
    """Settings of the network of a twist."""

    place: ClassVar[str] = "twist."
    trunk: str = setting("own", NAME, "own (the frozen model's), separate (a trained copy) or lora")
    layers: int = setting(1, Whole(1, 1000), "layers of the head: 1 is linear, more an MLP")
    multiplier: float | int = setting(
        1.0, Number(0, 1000, open_low=True), "inner width of the head, in widths of its input"
    )
    rank: int = setting(4, SIZE, "rank of trunk=lora")
    state: bool = setting(
        False, FLAG, "add a scalar head for whole states (masked models), for steps that commit several positions"
    )


@dataclass
class TwistPPOSettings(Settings):
    """Settings of PPO on the proposal."""

    place: ClassVar[str] = "ppo."
    epochs: int = setting(4, Whole(1, 10_000), "updates for each batch")
    clip: float | int = setting(0.2, WEIGHT, "clipping of the ratio")
    gae_decay: float | int = setting(0.95, SHARE, "lambda of generalised advantages")
    value_weight: float | int = setting(0.1, WEIGHT, "weight of the loss of the value head")


@dataclass
class TwistSchedule(ScheduleSettings, PreemptionSettings):
    """Batches and schedule of train-twist."""

    batch_size: int = setting(100, ROWS, "sequences of an update, over all processes")
    particles: int = setting(1, ROWS, "infilling, and label=null: sequences of each condition; ctl needs at least 2")
    epochs: int = setting(8, Whole(0, 1_000_000), "epochs; 0 measures the twist of init without learning")
    updates_per_epoch: int = setting(100, Whole(1, 1_000_000), "updates of an epoch")
    schedule: str = setting("constant", NAME, "constant, or exp2: 2, 2, 4, 8, ... updates an epoch, 2^epochs in all")
    n_iters: int | None = setting(
        None,
        Maybe(COUNT_OR_NONE),
        "follows from training.epochs; a run that has ended continues by resume=RUN training.epochs=N",
    )


@dataclass
class PosteriorSettings(Settings):
    """Settings of exact samples of the target, which upper bounds and KL divergences need."""

    place: ClassVar[str] = "posterior."
    path: str | None = setting(None, Maybe(NAME), "a file of mode=collect; null: collected at the start, into the run")
    count: int = setting(2000, COUNT_OR_NONE, "exact samples; 0: none, lower bounds only")
    batch: int = setting(500, ROWS, "samples of the model at a time, of which some are kept")
    most: int = setting(10_000_000, COUNT, "samples of the model in all, after which collecting stops with an error")
    order: str = setting(
        "written",
        OneOf(("written", "uniform")),
        "order in which masked models learn from them: written (as generated) or uniform (drawn anew, as noise does)",
    )


@dataclass
class TwistEvalSettings(Settings):
    """Evaluations before epochs and at the end."""

    place: ClassVar[str] = "eval."
    every: int | None = setting(1, Maybe(COUNT), "epochs between evaluations; null: at the end only")
    samples: int = setting(2000, ROWS, "samples of the proposal, over which F is a mean")
    particles: list[int] = setting([32, 500], ListOf(ROWS, "[32,500]"), "numbers of particles for bounds on log Z")
    sweeps: int = setting(4, ROWS, "sweeps of each bound; with conditions, log Z is also over all exact samples")
    log_z: float | int | None = setting(None, Maybe(Number()), "a known log Z, in place of the midpoint of the bounds")
    texts: int = setting(4, Whole(0, 1_000_000), "samples that are written down")


@dataclass
class TwistTrainingSettings(RunSettings):
    """Settings of train-twist."""

    mode: str = setting(
        "train", NAME, "train, collect (exact samples of the target only) or samples (of the runs in compare)"
    )
    prompt: str | int | float = setting("Once upon a time", WORDS, "every text begins with it")
    length: int = setting(10, LENGTH, "tokens that are generated behind the prompt")
    init: str | None = setting(
        None, Maybe(NAME), "a run whose twist is trained further (of ctl, rl, sixo, fudge the method may differ)"
    )
    method: str = setting("ctl", NAME, "ctl, rl, sixo, fudge, dpg or ppo")
    positives: str | None = setting(
        None, Maybe(NAME), "samples in place of the target's: sis, smc, exact, csmc or none; null: as published"
    )
    compare: list[str] = setting(
        [], ListOf(NAME, "[RUN,RUN]", (0, 100)), "mode=samples: runs whose infills are shown together"
    )
    samples: int = setting(10, ROWS, "mode=samples: conditions")
    dlm: SourceSettings = section(SourceSettings, path="example/stories_causal")
    model: ComputeSettings = section(ComputeSettings)
    target: TargetSettings = section(SECTION)
    twist: TwistNetworkSettings = section(TwistNetworkSettings)
    ppo: TwistPPOSettings = section(TwistPPOSettings)
    training: TwistSchedule = section(
        TwistSchedule, log_freq=100, snapshot_freq=1_000_000, snapshot_freq_for_preemption=100
    )
    posterior: PosteriorSettings = section(PosteriorSettings)
    eval: TwistEvalSettings = section(TwistEvalSettings)
    optim: OptimSettings = section(OptimSettings, lr=1e-4, grad_clip=1e9)
    wandb: WandbSettings = section(WandbSettings)


def stored_twist_settings(values: Mapping[str, Any]) -> TwistTrainingSettings:
    """Return the settings of a stored run, with null for its paths. ValueError for a value outside its range."""
    return TwistTrainingSettings.of({key: value for key, value in values.items() if key != "wandb"}, strict=False)
