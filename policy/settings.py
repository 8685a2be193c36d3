"""Settings of policy networks, of the algorithms that train them, and of the rollouts that they learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from data.settings import SECTION as DATA
from data.settings import DataSettings
from dlm.settings import SourceSettings
from rewards.settings import SECTION as REWARDS
from rewards.settings import RewardSettings
from samplers.settings import PolicySettings
from training.fields import Kinds, Settings, default_of, section, setting
from training.ranges import (
    ABOVE_0,
    CACHE,
    COUNT_OR_NONE,
    FLAG,
    LENGTH,
    NAME,
    ROWS,
    SHARE,
    SIZE,
    WEIGHT,
    ListOf,
    Maybe,
    Number,
    Whole,
)
from training.settings import (
    AverageSettings,
    BatchSettings,
    ComputeSettings,
    EvalSettings,
    EvaluatedSettings,
    OptimSettings,
    PreemptionSettings,
    RunSettings,
    WandbSettings,
)

# ---------------------------------------------------------------------------------------------------------------- networks

TIME_PERIOD = "period of the embedding of time"


@dataclass
class NetworkSettings(Settings):
    """Setting that every policy network has: its type."""

    place: ClassVar[str] = "policy."
    exact: ClassVar[bool] = True
    policy_type: str = setting("hidden_mlp", NAME, "agreement, dit_confidence, dit_hidden, hidden_blocks or hidden_mlp")

    @classmethod
    def refusal(cls, unknown: list[str], prefix: str) -> str:
        """Return the error message for settings of another network, such as those of an experiment whose network was replaced."""
        undo = " ".join(f"~{prefix}{name}" for name in sorted(unknown))
        return (
            f"policy={default_of(cls.entries()['policy_type'])} has no {', '.join(sorted(unknown))}; leave it out (of what an "
            f"experiment says: {undo}), or use another policy"
        )


@dataclass
class HiddenMLPSettings(NetworkSettings):
    """Settings of genpolicy's PolicyNet, which reads hidden states and time, and has a masking and an unmasking channel."""

    time_exponent: float | int = setting(0.9, Number(0, 100), "exponent of time in front of the network")


@dataclass
class AgreementSettings(NetworkSettings):
    """Settings of the network that compares the best tokens of pairs of positions by learned relations; it fits canvases of
    one length."""

    policy_type: str = setting("agreement", NAME, "agreement")
    length: int | None = setting(None, Maybe(LENGTH), "positions to decode; null: the model's longest canvas")
    relations: int = setting(8, SIZE, "relations between positions")
    candidates: int = setting(3, SIZE, "best tokens of a position that are compared with those of others")
    width: int = setting(64, SIZE, "width of the network")
    top_k: int = setting(6, SIZE, "best tokens that are read at each position")
    smart_init: float | int = setting(0.0, Number(-100, 100), "is added to the log-odds of the best token")
    revises: bool = setting(False, FLAG, "also learn which committed positions to open again; needs sampler.budgets")


@dataclass
class DitConfidenceSettings(NetworkSettings):
    """Settings of DiT blocks over confidences: dit_confidence of "Learning Unmasking Policies", 331,265 parameters by default."""

    policy_type: str = setting("dit_confidence", NAME, "dit_confidence")
    hidden_dim: int = setting(128, SIZE, "width of the blocks")
    feedforward_dim: int = setting(512, SIZE, "width inside the feed-forward layers")
    num_heads: int | None = setting(2, Maybe(SIZE), "attention heads; they divide policy.hidden_dim")
    time_embed_dim: int = setting(128, SIZE, "width of the embedding of time")
    confidences_top_p: int = setting(1, SIZE, "highest probabilities that are read at each position")
    num_blocks: int = setting(1, SIZE, "blocks")
    time_period: float | int = setting(1, ABOVE_0, TIME_PERIOD)
    smart_init: float | int = setting(
        -2.0,
        Number(-100, 100),
        "initial score: -2 selects about 12 % of the positions a step; 0 for plackett_luce and fixed",
    )
    read_all: bool = setting(False, FLAG, "also read the confidences of committed positions")
    repulsion: int = setting(
        0, Whole(0, 100_000), "positions of one step learn to keep this distance (action fixed only); 0: independent"
    )
    hidden_size: int | None = setting(
        0, Maybe(Whole(0, 100_000)), "0: confidences only, fits any model; null: also reads the model's hidden states"
    )


@dataclass
class DitHiddenSettings(NetworkSettings):
    """Settings of a new block of the model's kind on its hidden states: dit_hidden, 302.6M parameters for LLaDA-8B; it fits
    that model only."""

    policy_type: str = setting("dit_hidden", NAME, "dit_hidden")
    num_blocks: int = setting(1, SIZE, "blocks")
    time_embed_dim: int = setting(128, SIZE, "width of the embedding of time")
    time_period: float | int = setting(1, ABOVE_0, TIME_PERIOD)
    smart_init: float | int = setting(-2.0, Number(-100, 100), "initial score")
    num_heads: int | None = setting(
        None, Maybe(SIZE), "attention heads; null: those of the model (LLaDA, Dream), for other models 12, for example"
    )
    mlp_size: int | None = setting(
        None,
        Maybe(SIZE),
        "width inside the feed-forward layer; null: that of the model, for other models 3072, for example",
    )


@dataclass
class HiddenBlocksSettings(NetworkSettings):
    """Settings of copies of the model's last blocks, which run on its hidden states and learn where its best tokens can be
    trusted."""

    policy_type: str = setting("hidden_blocks", NAME, "hidden_blocks")
    num_blocks: int = setting(2, SIZE, "blocks that are copied")
    time_embed_dim: int = setting(64, SIZE, "width of the embedding of time")
    smart_init: float | int = setting(0.0, Number(-100, 100), "initial score")


NETWORKS: dict[str, type[NetworkSettings]] = {
    "agreement": AgreementSettings, "dit_confidence": DitConfidenceSettings, "dit_hidden": DitHiddenSettings,
    "hidden_mlp": HiddenMLPSettings, "hidden_blocks": HiddenBlocksSettings,
}  # fmt: skip

# -------------------------------------------------------------------------------------------------------------- algorithms

LAW = "how positions are drawn while training: bernoulli, plackett_luce or fixed"


@dataclass
class AlgorithmSettings(Settings):
    """Setting that every algorithm has: its name."""

    place: ClassVar[str] = "algorithm."
    name: str = setting("variational", NAME, "variational, grpo, ppo or imitation")

    @classmethod
    def check_values(cls, values: Mapping[str, Any]) -> None:
        """Refuse experts of another algorithm than GRPO: ValueError."""
        if "experts" not in cls.entries() and (values.get("experts") or {}).get("thresholds"):
            raise ValueError(
                f"algorithm.experts steers GRPO, and algorithm={values.get('name')} takes no experts; leave them out"
            )


@dataclass
class DrawnSettings(AlgorithmSettings):
    """Settings of an algorithm that scores decisions under an action distribution."""

    action: str = setting("bernoulli", NAME, LAW)


@dataclass
class VariationalSettings(AlgorithmSettings):
    """Settings of the variational bound on clean texts (policy/variational.py)."""

    reinforce: float | int = setting(
        1.0, WEIGHT, "weight of the score-function term of the masking channel; 0 leaves that channel untrained"
    )


@dataclass
class TeachingSettings(Settings):
    """Settings of a teacher whose decisions a policy imitates (policy/imitation.py)."""

    place: ClassVar[str] = "algorithm.warm_start."
    expert: str = setting(
        "threshold",
        NAME,
        "answers (data that has them), leftmost, threshold, factor, entropy_bound or confidence_noisy",
    )
    block_length: int | None = setting(
        None, Maybe(LENGTH), "a rule decodes in blocks of so many positions; null: one block"
    )
    only_correct: bool = setting(False, FLAG, "learn only from rollouts with a reward above 0 (OnTrack)")
    setting: float | int = setting(
        0.9, WEIGHT, "the setting of a rule; of answers: the weight of a wrong best token in the loss"
    )


@dataclass
class WarmStartSettings(TeachingSettings):
    """Settings of imitation before the first iteration."""

    updates: int = setting(0, COUNT_OR_NONE, "updates of imitation before the first iteration; 0: none")


@dataclass
class ImitationSettings(DrawnSettings, TeachingSettings):
    """Settings of imitation of a teacher, as a start for grpo and ppo."""

    place: ClassVar[str] = "algorithm."
    name: str = setting("imitation", NAME, "imitation")
    action: str = setting("bernoulli", NAME, "the distribution under which the positions of a rule are to be likely")
    expert: str = setting(
        "answers", NAME, "answers (data that has them), leftmost, threshold, factor, entropy_bound or confidence_noisy"
    )
    setting: float | int = setting(
        10.0, WEIGHT, "the setting of a rule; of answers: the weight of a wrong best token in the loss"
    )


@dataclass
class ExpertsSettings(Settings):
    """Settings of rollouts of a threshold rule in blocks that join each group (policy/experts.py)."""

    place: ClassVar[str] = "algorithm.experts."
    thresholds: list[float | int] = setting(
        [], ListOf(SHARE, "[0.9]", (0, 100)), "thresholds of the experts, one rollout of each for every prompt"
    )
    block_length: int | None = setting(32, Maybe(LENGTH), "positions of a block of the experts; null: one block")


@dataclass
class ClippedSettings(DrawnSettings):
    """Settings that GRPO and PPO share."""

    group_size: int = setting(1, ROWS, "rollouts of a prompt")
    inner_updates: int = setting(1, Whole(1, 10_000), "updates for each batch of rollouts")
    clip: float | int = setting(0.2, WEIGHT, "clipping of the ratio of a decoding step")
    warm_start: WarmStartSettings = section(WarmStartSettings)


@dataclass
class GRPOSettings(ClippedSettings):
    """Settings of group-relative policy optimization (policy/grpo.py)."""

    name: str = setting("grpo", NAME, "grpo")
    group_size: int = setting(8, ROWS, "rollouts of a prompt; at least 2")
    inner_updates: int = setting(2, Whole(1, 10_000), "updates for each batch of rollouts")
    clip: float | int = setting(0.5, WEIGHT, "clipping of the ratio of a decoding step")
    advantage_std: bool = setting(False, FLAG, "divide advantages by the standard deviation of the group")
    kl: float | int = setting(0.0, WEIGHT, "weight of the KL to the policy that training starts from")
    experts: ExpertsSettings = section(ExpertsSettings)


@dataclass
class PPOSettings(ClippedSettings):
    """Settings of proximal policy optimization with a value head (policy/ppo.py)."""

    name: str = setting("ppo", NAME, "ppo")
    inner_updates: int = setting(4, Whole(1, 10_000), "updates for each batch of rollouts")
    gae_decay: float | int = setting(0.95, SHARE, "lambda of generalised advantages")
    value_weight: float | int = setting(0.5, WEIGHT, "weight of the loss of the value head")


ALGORITHMS: dict[str, type[AlgorithmSettings]] = {
    "grpo": GRPOSettings, "ppo": PPOSettings, "imitation": ImitationSettings, "variational": VariationalSettings,
}  # fmt: skip

# --------------------------------------------------------------------------------------------------------------------- runs


@dataclass
class FrozenModelSettings(ComputeSettings):
    """Settings of the frozen model that a policy reads."""

    sharded: bool = setting(
        False, FLAG, "split its blocks over the processes (FSDP2), where it does not fit one device"
    )


@dataclass
class RolloutSettings(Settings):
    """Settings of the decoding of rollouts."""

    place: ClassVar[str] = "sampler."
    length: int | None = setting(None, Maybe(LENGTH), "of text: positions of the canvas; null: the model's longest")
    temperature: float | int = setting(1.0, WEIGHT, "of the tokens; 0 commits the most likely token")
    block_length: int | None = setting(
        None, Maybe(LENGTH), "positions of a semi-autoregressive block behind the prompt; null: one block"
    )
    cache: str | None = setting(None, CACHE, "keys and values kept within a block (LLaDA, Dream); approximate")
    refresh: int | None = setting(
        None, Maybe(LENGTH), "evaluations after which a cached row is recomputed; null: at the start of each block"
    )


@dataclass
class PolicyRolloutSettings(RolloutSettings):
    """Settings of the decoding of rollouts by the policy in training."""

    steps: int = setting(16, LENGTH, "equal decoding steps of action fixed and of the variational objective")
    budgets: list[int] | None = setting(
        None,
        Maybe(ListOf(LENGTH, "[2,4,8]")),
        "grpo, ppo: network evaluations of a rollout, one of this list for each prompt; the last commits all open positions",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.budgets is not None and self.block_length is not None:
            raise ValueError(
                "with sampler.budgets the last evaluation commits all open positions, which sampler.block_length does not "
                "allow; leave one out"
            )


@dataclass
class ModelRolloutSettings(RolloutSettings):
    """Settings of the decoding of rollouts by the model in training: keys of a decoder, as in `sampler`."""

    strategy: str = setting("random", NAME, "any strategy that is neither guided nor a particle filter")
    steps: int = setting(8, LENGTH, "equal decoding steps")
    threshold: float | int = setting(
        0.9, SHARE, "strategies threshold and window: commit where the best token is this probable"
    )
    window: int = setting(4, LENGTH, "strategy window: leftmost open positions of each row")
    factor: float | int = setting(1.0, WEIGHT, "strategy factor")
    entropy_bound: float | int = setting(0.5, WEIGHT, "strategy entropy_bound, in nats")
    noise: float | int = setting(1.0, WEIGHT, "strategy confidence_noisy: standard deviation of the noise")
    alpha: float | int | None = setting(None, Maybe(WEIGHT), "weight of speed, for a policy trained with reward.alphas")
    policy: PolicySettings = section(PolicySettings)


@dataclass
class PolicySchedule(BatchSettings, EvaluatedSettings, PreemptionSettings, AverageSettings):
    """Batches and schedule of policy learning."""

    chunk: int = setting(1024, ROWS, "decoding steps that go through the policy together in an update, for memory")


@dataclass
class PolicyEvalSettings(EvalSettings):
    """Evaluations of a policy on held-out prompts."""

    first: bool = setting(False, FLAG, "also evaluate before the first update")
    action: str = setting(
        "fixed", NAME, "how the policy chooses positions there: fixed, bernoulli_argmax or plackett_luce"
    )
    temperature: float | int = setting(1.0, WEIGHT, "divides the policy's scores there; training draws at 1")


@dataclass
class PolicyTrainingSettings(RunSettings):
    """Settings of train-policy."""

    init: str | None = setting(
        None, Maybe(NAME), "a policy to start from (a run, a directory, a file); policy= is then not used"
    )
    init_other_model: bool = setting(
        False, FLAG, "init may have been trained on another model (policies that read confidences only)"
    )
    init_trust: float | int | None = setting(
        None,
        Maybe(Number(0, 1, open_low=True, open_high=True)),
        "0.97: sigmoid(score) starts at 1/2 where init says that a token is right with probability 0.97",
    )
    dlm: SourceSettings = section(SourceSettings)
    model: FrozenModelSettings = section(FrozenModelSettings)
    policy: NetworkSettings = section(Kinds("policy_type", NETWORKS, HiddenMLPSettings))
    algorithm: AlgorithmSettings = section(Kinds("name", ALGORITHMS, VariationalSettings))
    reward: RewardSettings = section(REWARDS)
    data: DataSettings = section(DATA)
    sampler: PolicyRolloutSettings = section(PolicyRolloutSettings)
    training: PolicySchedule = section(
        PolicySchedule,
        batch_size=8,
        n_iters=60,
        log_freq=5,
        eval_freq=20,
        snapshot_freq=30,
        snapshot_freq_for_preemption=10,
    )
    eval: PolicyEvalSettings = section(PolicyEvalSettings, batch_size=8)
    optim: OptimSettings = section(OptimSettings, warmup=5)
    wandb: WandbSettings = section(WandbSettings)
