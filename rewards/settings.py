"""Settings of the rewards that a policy or a model learns from (configs/reward), and of reward models."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from training.fields import Kinds, Settings, section, setting
from training.ranges import FLAG, LENGTH, NAME, SIZE, WEIGHT, ListOf, Maybe, Number, Whole
from training.settings import (
    AverageSettings,
    RewardOptimSettings,
    TunedRunSettings,
    TunedSettings,
)

SPEED = "weight of the log speed factor"


@dataclass
class RewardSettings(Settings):
    """Setting that every reward has: its name."""

    place: ClassVar[str] = "reward."
    name: str = setting("likelihood", NAME, "bound, latex, learned, likelihood, puzzle or right")

    @property
    def weights_of_speed(self) -> list[float]:
        """The weights of speed from which the weight of each prompt is drawn; empty for a reward without `alphas`."""
        return []


@dataclass
class BoundSettings(RewardSettings):
    """Settings of the reward `bound`: the likelihood bound of a clean text that is revealed in the order of the policy, step
    by step."""

    name: str = setting("bound", NAME, "bound")


@dataclass
class PenaltySettings(RewardSettings):
    """Settings of a reward of texts with a penalty for low entropy and a factor for speed."""

    entropy_floor: float | int = setting(0.0, Number(0, 1000), "unigram entropy (nats) below which the penalty starts")
    weight: float | int = setting(1.0, WEIGHT, "penalty for each nat below reward.entropy_floor")
    alpha: float | int = setting(0.0, WEIGHT, SPEED)


@dataclass
class LikelihoodSettings(PenaltySettings):
    """Settings of the log-likelihood of a text under a causal judge on the same tokens."""

    judge: str | None = setting("example/stories_causal", Maybe(NAME), "a causal model on the same tokens")
    entropy_floor: float | int = setting(3.9, Number(0, 1000), "unigram entropy (nats) below which the penalty starts")
    weight: float | int = setting(4.0, WEIGHT, "penalty for each nat below reward.entropy_floor")


@dataclass
class LearnedSettings(PenaltySettings):
    """Settings of a reward model, or of a reward from a package (rewards/models.py)."""

    name: str = setting("learned", NAME, "learned")
    model: str | None = setting(
        None,
        Maybe(NAME),
        "a run of train-reward, vader, profanity, brevity, embedding:ID, or a sequence classifier, ID or ID#LABEL",
    )
    judge: str | None = setting(None, Maybe(NAME), "another reward, which is logged and not maximised")


@dataclass
class TermSettings(Settings):
    """Weights of the terms of the reward for formulas."""

    place: ClassVar[str] = "reward.terms."
    valid: float | int = setting(0.6, WEIGHT, "weight of the share of formulas that are valid")
    progress: float | int = setting(0.1, WEIGHT, "weight of the share of a formula before its first error")
    structure: float | int = setting(0.15, WEIGHT, "weight of fractions, roots, sums and their like in valid formulas")
    commands: float | int = setting(0.1, WEIGHT, "weight of the number of different commands in valid formulas")
    length: float | int = setting(0.05, WEIGHT, "weight of a length inside reward.window")
    repetition: float | int = setting(0.3, WEIGHT, "weight of repetition, which is subtracted")

    def as_dict(self) -> dict[str, float]:
        """Return the weights by the names of the terms."""
        return asdict(self)


@dataclass
class LatexSettings(RewardSettings):
    """Settings of the reward of formulas: their validity, and capped bonuses for the content of valid formulas
    (rewards/latex.py)."""

    name: str = setting("latex", NAME, "latex")
    bare: bool = setting(False, FLAG, "the whole answer is a formula, without dollars")
    terms: TermSettings = section(TermSettings)
    window: list[int] = setting(
        [4, 200], ListOf(Whole(0), "[4,200]", (2, 2)), "characters that earn the whole length bonus"
    )
    alpha: float | int = setting(0.0, WEIGHT, SPEED)


@dataclass
class SpeedSettings(RewardSettings):
    """Settings of a reward with a factor for speed, whose weight may be drawn for each prompt."""

    alpha: float | int = setting(
        1.0, WEIGHT, "exponent of the speed factor ((L - NFE + 1) / L)^alpha, or weight of the cost NFE / L"
    )
    alphas: list[float | int] | None = setting(
        None,
        Maybe(ListOf(WEIGHT, "[0,1,3]", (0, 1000))),
        "draw alpha from this list for each prompt and give it to the policy (sampler.alpha when sampling)",
    )

    @property
    def weights_of_speed(self) -> list[float]:
        return [float(alpha) for alpha in self.alphas or ()]


@dataclass
class PuzzleRewardSettings(SpeedSettings):
    """Settings of the reward of puzzles: whether a Sudoku is solved, and how fast."""

    name: str = setting("puzzle", NAME, "puzzle")
    additive: bool = setting(False, FLAG, "solved - alpha NFE / L in place of solved times the speed factor")


@dataclass
class RightSettings(SpeedSettings):
    """Settings of the reward of answers to questions: a weighted sum of functions of correctness and speed, each of which is
    logged."""

    name: str = setting("right", NAME, "right")
    functions: list[str] = setting(
        ["correct_times_speed"],
        ListOf(NAME, "[correct_times_speed]"),
        "of correct_times_speed, correct_minus_cost, correct, partly_correct, format; NAME@DATASET for one data set",
    )
    weights: list[float | int] = setting(
        [1.0], ListOf(Number(-1e6, 1e6), "[1.0]"), "weights of the functions, in their order; 0 only logs"
    )


REWARDS: dict[str, type[RewardSettings]] = {
    "bound": BoundSettings, "latex": LatexSettings, "learned": LearnedSettings, "likelihood": LikelihoodSettings,
    "puzzle": PuzzleRewardSettings, "right": RightSettings,
}  # fmt: skip
SECTION = Kinds("name", REWARDS, LikelihoodSettings)


# ------------------------------------------------------------------------------------------------------------- reward models


@dataclass
class RewardModelSettings(Settings):
    """Settings of the input and output of a reward model."""

    place: ClassVar[str] = "reward."
    kind: str = setting("full", NAME, "full (whole answers), prefix (cut at one length) or mask (under one mask)")
    head: str = setting(
        "sequence",
        NAME,
        "sequence (a number for a row) or vocabulary (a value for every next token, on the frozen init)",
    )


@dataclass
class EncoderSettings(Settings):
    """Size of a new ModernBERT, the reward model if init is null."""

    place: ClassVar[str] = "encoder."
    tokenizer: str = setting("example/stories", NAME, "a directory or an id of the hub")
    hidden_size: int = setting(128, SIZE, "width of the hidden states")
    intermediate_size: int = setting(256, SIZE, "width inside the feed-forward layers")
    num_layers: int = setting(4, SIZE, "transformer layers")
    num_heads: int = setting(4, SIZE, "attention heads; they divide encoder.hidden_size")
    max_length: int = setting(512, LENGTH, "tokens of a row")


@dataclass
class RewardSchedule(TunedSettings, AverageSettings):
    """Batches and schedule of train-reward."""


@dataclass
class RewardTrainingSettings(TunedRunSettings):
    """Settings of the training of a reward model, without its data."""

    init: str | None = setting(
        None,
        Maybe(NAME),
        "the model to start from, a sequence classifier or a language model (hub id, directory, smollm2); null: a new "
        "encoder; reward.head=vocabulary: the frozen model",
    )
    reward: RewardModelSettings = section(RewardModelSettings)
    encoder: EncoderSettings = section(EncoderSettings)
    training: RewardSchedule = section(RewardSchedule)
    optim: RewardOptimSettings = section(RewardOptimSettings, lr=1e-4, schedule="linear")
