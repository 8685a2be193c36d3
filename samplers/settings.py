"""Settings of decoders, the names of all strategies, and which strategy reads which setting."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar

from dlm.masked_lm import MaskedLM, SeddLM
from samplers.fk import POTENTIALS
from samplers.heuristics import ADAPTIVE, CONFIDENT, UNMASKING_RULES
from samplers.names import (
    COMMIT_ORDERS,
    CONFIDENCES,
    CORRECTED,
    DECODERS,
    EVERY_STRATEGY,
    FILTERS,
    GUIDED,
    P2_READS,
    P2_SCHEDULES,
    P2_SCORES,
    POSITIONS,
    PREDICTORS,
    PRISM_FORMS,
    QUALITY,
    QUALITY_SOURCES,
    REMASK_SCHEDULES,
    RULES,
    SELECTING,
    STEPWISE_GUIDED,
    STRATEGIES,
)
from samplers.particles import RESAMPLE, SCHEMES
from training.fields import Settings, section, setting
from training.ranges import (
    COUNT,
    COUNT_OR_NONE,
    FLAG,
    LENGTH,
    NAME,
    PART,
    ROWS,
    SHARE,
    WEIGHT,
    Maybe,
    Number,
    OneOf,
    Whole,
)

ACTIONS = ("fixed", "bernoulli_argmax", "plackett_luce", "threshold")  # actions of a policy that leave no position open
READS = ("siblings", "rows", "texts")
PROPOSALS = ("joint", "tokens", "base")
PICKS = ("draw", "best")
# The setting of a decoder that an evaluation sweeps, a key of the section of its name.
REVISING_SETTINGS = {
    "remdm": "eta", "p2": "eta", "wino": "threshold", "prism": "count", "edit": "threshold", "informed": "rounds"
}  # fmt: skip
SELECTING_SETTINGS = {
    "klass": "threshold", "slowfast": "threshold", "credit": "threshold", "punt": "epsilon", "lopa": "threshold"
}  # fmt: skip
SECTION_SETTINGS = REVISING_SETTINGS | SELECTING_SETTINGS
# The setting that is a rule's parameter.
RULE_SETTINGS = {
    "threshold": "threshold",
    "window": "threshold",
    "factor": "factor",
    "entropy_bound": "entropy_bound",
    "confidence_noisy": "noise",
}


@dataclass
class PolicySettings(Settings):
    """Settings of strategy `policy`: a trained policy as an unmasking rule."""

    place: ClassVar[str] = "sampler.policy."
    path: str = setting("example/014609", NAME, "a directory, a run, a .pth or a .safetensors file of a policy")
    other_model: bool = setting(
        False, FLAG, "use the policy with another model than it was trained on (policies that read confidences only)"
    )
    action: str | None = setting(
        None, Maybe(NAME), f"how positions are chosen by the policy's scores: {', '.join(ACTIONS)}; null: fixed"
    )
    temperature: float | int = setting(1.0, WEIGHT, "divides the policy's scores")
    beta: float | int = setting(1.0, WEIGHT, "multiplies the probabilities of action bernoulli_argmax")
    threshold: float | int = setting(
        0.5, SHARE, "of action threshold: commit all positions that the policy trusts this much"
    )
    reopen_threshold: float | int | None = setting(
        None,
        Maybe(SHARE),
        "of action threshold and a policy that revises: open committed positions again at this probability; null: threshold",
    )


@dataclass
class GuideSettings(Settings):
    """Settings of strategies that are guided by a reward."""

    place: ClassVar[str] = "sampler.guide."
    reward: str | None = setting(
        None, Maybe(NAME), "a run of train-reward, a sequence classifier, or a name such as vader; fk takes it too"
    )
    beta: float | int | None = setting(None, Maybe(Number(-1e6, 1e6)), "weight of the reward; null: as published")
    k: int = setting(10, COUNT, "tokens that are candidates at a position; best_of_n and top_k draw among so many")
    temperature: float | int | None = setting(
        None, Maybe(WEIGHT), "of the guided distribution, 0 takes the best candidate; null: as published"
    )
    unmask: str | None = setting(None, Maybe(NAME), "unmasking rule; null: confidence, of a causal model leftmost")
    positions: str = setting("independent", NAME, f"several positions a step: {', '.join(POSITIONS)}")
    proposals: int = setting(8, ROWS, "proposals of positions=joint")
    samples: int = setting(10, ROWS, "samples of best_of_n")
    read: str | None = setting(
        None, Maybe(NAME), f"how the reward reads candidates: {', '.join(READS)}; null: the cheapest that it allows"
    )


@dataclass
class SMCSettings(Settings):
    """Settings of the strategies twisted_smc and fk, which decode several particles for each sample."""

    place: ClassVar[str] = "sampler.smc."
    particles: int = setting(8, ROWS, "particles of each sample")
    resample: str = setting("ess", NAME, f"when particles are resampled: {', '.join(RESAMPLE)}")
    scheme: str = setting("systematic", NAME, f"how particles are resampled: {', '.join(SCHEMES)}")
    moves: int = setting(
        0,
        COUNT_OR_NONE,
        "committed tokens of each particle that are drawn anew after each weighting (the target stays)",
    )
    interval: int = setting(1, COUNT, "steps after which states are weighed and particles resampled")
    pick: str = setting("draw", NAME, "the particle that is kept: draw (by weight) or best (highest potential)")
    unmask: str | None = setting(None, Maybe(NAME), "unmasking rule of the particles; null: as model and twist allow")
    twist: str | None = setting(None, Maybe(NAME), "twisted_smc: a run of train-twist")
    proposal: str | None = setting(
        None, Maybe(NAME), f"twisted_smc: {', '.join(PROPOSALS)}; null: as model and twist allow"
    )
    exponent: float | int = setting(1.0, WEIGHT, "twisted_smc: exponent of the twist in the proposal")
    label: int | None = setting(None, Maybe(Whole(0)), "twisted_smc: the class, of a twist that is conditioned on one")
    potential: str = setting("difference", NAME, f"fk: {', '.join(POTENTIALS)}")
    scale: float | int = setting(1.0, Number(-1e6, 1e6), "fk: weight of the reward (lambda)")
    completions: int = setting(4, ROWS, "fk, masked models: completions of a state on which its reward is taken")


@dataclass
class ReMDMSettings(Settings):
    """Settings of strategy `remdm`: ancestral sampling that masks committed positions again (samplers/revision.py)."""

    place: ClassVar[str] = "sampler.remdm."
    schedule: str = setting("cap", OneOf(REMASK_SCHEDULES), "of the probability of remasking")
    eta: float | int | None = setting(
        None, Maybe(SHARE), "strength of remasking; null: as published, cap 0.008, rescale 0.015, loop 0.02"
    )
    switch: float | int | None = setting(
        None,
        Maybe(SHARE),
        "cap, rescale, conf: remask once the time, which falls from 1 to 0, is below this; null: always",
    )
    begin: float | int = setting(0.55, PART, "loop: time at which remasking begins")
    end: float | int = setting(0.05, PART, "loop: time at which remasking ends")
    level: float | int = setting(
        0.9, Number(0, 1, open_low=True, open_high=True), "loop: share of committed positions while it remasks"
    )


@dataclass
class EditSettings(Settings):
    """Settings of strategy `edit`: thresholds for committing and for replacing tokens (samplers/editing.py)."""

    place: ClassVar[str] = "sampler.edit."
    threshold: float | int = setting(0.5, SHARE, "commit where the best token is more probable than this")
    edit_threshold: float | int = setting(
        0.0, SHARE, "replace a committed token where another one is best and more probable than this; 1: never"
    )
    rounds: int = setting(
        16, COUNT_OR_NONE, "edit rounds of a full block; with remask: steps that open positions again"
    )
    remask: bool = setting(False, FLAG, "open the position again, in place of writing the other token")


@dataclass
class P2Settings(Settings):
    """Settings of strategy `p2`: path planning, which masks the positions of lowest score (samplers/planning.py)."""

    place: ClassVar[str] = "sampler.p2."
    schedule: str = setting("linear", OneOf(P2_SCHEDULES), "kappa, the share of committed positions")
    eta: float | int = setting(
        1.0, WEIGHT, "multiplies the log-scores of committed positions: 0 keeps them, above 1 masks more of them again"
    )
    reads: str = setting(
        "shown",
        OneOf(P2_READS),
        "score of a committed position: of the token shown (paper), of one drawn there (published code), or its quality",
    )
    score: str = setting("probability", OneOf(P2_SCORES), "probability, or random")


@dataclass
class PRISMSettings(Settings):
    """Settings of strategy `prism`: tokens of lowest quality are masked again (samplers/planning.py)."""

    place: ClassVar[str] = "sampler.prism."
    form: str = setting(
        "count", OneOf(PRISM_FORMS), "number of tokens masked again: fixed (Sudoku), or binomial (OpenWebText)"
    )
    count: int = setting(4, COUNT, "form count: tokens that a step masks again")
    eta: float | int = setting(0.01, SHARE, "form binomial: largest probability of masking a token again")
    begin: float | int = setting(0.0, SHARE, "share of the steps after which tokens are masked again")
    end: float | int = setting(1.0, SHARE, "share of the steps after which no token is masked again")
    order: str = setting("random", OneOf(COMMIT_ORDERS), "of the positions that are committed")


@dataclass
class WINOSettings(Settings):
    """Settings of strategy `wino`: commit generously, and mask again by a shadow block (samplers/editing.py)."""

    place: ClassVar[str] = "sampler.wino."
    threshold: float | int = setting(0.6, SHARE, "commit where the best token is more probable than this")
    remask_threshold: float | int = setting(
        0.9, SHARE, "mask a token again whose probability by its shadow is below this; 0: never"
    )


@dataclass
class InformedSettings(Settings):
    """Settings of strategy `informed`: committed tokens are drawn again from exact conditionals (samplers/correctors.py)."""

    place: ClassVar[str] = "sampler.informed."
    count: int = setting(1, COUNT, "tokens that a corrector step draws again, all at once")
    rounds: int = setting(1, COUNT_OR_NONE, "corrector steps after each step that commits")
    select: str = setting("margin", OneOf(CORRECTED), "of the tokens: lowest log-margin with Gumbel noise, or uniform")
    noise: float | int = setting(1.0, WEIGHT, "select margin: scale of the Gumbel noise")
    order: str = setting("random", OneOf(COMMIT_ORDERS), "of the positions that are committed")
    parts: int | None = setting(
        None, Maybe(ROWS), "select margin: evaluations of a corrector step; null: one for each committed token, exact"
    )


@dataclass
class KlassSettings(Settings):
    """Settings of strategy `klass`: commit what is confident and has settled (samplers/history.py)."""

    place: ClassVar[str] = "sampler.klass."
    threshold: float | int = setting(0.6, SHARE, "commit where the best token is more probable than this, and kl holds")
    kl: float | int = setting(
        0.01, WEIGHT, "nats by which the distribution of a position may have changed since the previous step"
    )
    history: int = setting(2, COUNT, "last steps in which kl must hold")


@dataclass
class SlowFastSettings(Settings):
    """Settings of strategy `slowfast`: slow steps look for a stable span, fast steps fill it (samplers/history.py)."""

    place: ClassVar[str] = "sampler.slowfast."
    threshold: float | int = setting(0.85, SHARE, "fast steps commit where the best token is this probable")
    span_threshold: float | int = setting(
        0.1, SHARE, "the span ends behind the last position whose best token is more probable than this"
    )
    slow_steps: int = setting(8, COUNT, "slow steps in a row, at most")
    k: int = setting(1, COUNT, "positions that a slow step commits")


@dataclass
class CreditSettings(Settings):
    """Settings of strategy `credit`: a threshold on logits that reward the best tokens of earlier steps."""

    place: ClassVar[str] = "sampler.credit."
    threshold: float | int = setting(0.9, SHARE, "commit where the best token is this probable")
    alpha: float | int = setting(0.7, WEIGHT, "weight of log(1 + credit) in the logits")
    beta: float | int = setting(0.8, SHARE, "factor of credits in each step")
    gamma: float | int = setting(0.2, WEIGHT, "exponent of the best token's probability, which its credit grows by")
    adaptive: bool = setting(
        False, FLAG, "gamma is 1, and alpha and beta are the committed share of the block (parameter-free)"
    )


@dataclass
class PuntSettings(Settings):
    """Settings of strategy `punt`: tests of independence on halves of the candidates (samplers/lookahead.py)."""

    place: ClassVar[str] = "sampler.punt."
    epsilon: float | int = setting(
        0.01, WEIGHT, "nats by which more confident tokens may change the distribution of a position that is committed"
    )
    candidates: int = setting(0, COUNT_OR_NONE, "most confident positions that are tested; 0: all of the block")


@dataclass
class LopaSettings(Settings):
    """Settings of strategy `lopa`: the best of several canvases, by the confidence that they leave."""

    place: ClassVar[str] = "sampler.lopa."
    threshold: float | int = setting(0.9, SHARE, "the anchor commits where the best token is this probable")
    branches: int = setting(7, Whole(0, 1_000_000), "canvases beside the anchor, with one more position each; 0: none")


@dataclass
class QualitySettings(Settings):
    """Settings of the source that says how likely a committed token is right (samplers/quality.py)."""

    place: ClassVar[str] = "sampler.quality."
    source: str = setting(
        "seen",
        OneOf(QUALITY_SOURCES),
        "seen (the model's output, which sees the token), leave_out (further evaluations, with the token masked) or head",
    )
    path: str | None = setting(
        None,
        Maybe(NAME),
        "source head: a run of train-quality, a directory or a hub id of a quality head of this model",
    )
    parts: int = setting(
        4, ROWS, "source leave_out: evaluations, each with another part of the tokens masked; all tokens: exact"
    )


@dataclass
class SamplerSettings(Settings):
    """Settings of a decoder: strategy, budget, blocks, cache, tokens."""

    place: ClassVar[str] = "sampler."
    strategy: str | None = setting(None, Maybe(NAME), "null: direct, of a causal model leftmost")
    steps: int = setting(
        16, LENGTH, "equal decoding steps over the whole canvas; a causal model commits one token a step"
    )
    budget: int | None = setting(
        None, Maybe(LENGTH), "network evaluations that a sample may cost; the last one commits every open position"
    )
    alpha: float | int | None = setting(
        None, Maybe(WEIGHT), "weight of speed, for a policy that was trained with reward.alphas"
    )
    block_length: int | None = setting(
        None, Maybe(LENGTH), "positions of a semi-autoregressive block; it must divide the response"
    )
    cache: str | None = setting(
        None, Maybe(OneOf(("prefix", "dual"))), "keys and values kept within a block (LLaDA, Dream); approximate"
    )
    refresh: int | None = setting(
        None, Maybe(LENGTH), "evaluations after which a cached row is recomputed; null: at the start of each block"
    )
    guidance: float | int = setting(
        0.0,
        WEIGHT,
        "classifier-free guidance w: (1 + w) * with the prompt - w * without it; an evaluation then counts twice",
    )
    stop: bool = setting(False, FLAG, "a sample ends where it commits the tokenizer's end of sequence")
    logits_eos_inf: bool = setting(False, FLAG, "never commit the end of sequence")
    confidence_eos_eot_inf: bool = setting(False, FLAG, "positions of an end token count as least confident")
    threshold: float | int = setting(
        0.9, SHARE, "strategies threshold and window: commit where the best token is this probable"
    )
    window: int = setting(4, LENGTH, "strategy window: threshold within this many leftmost open positions of each row")
    factor: float | int = setting(1.0, WEIGHT, "strategy factor: the n most confident while (n + 1)(1 - p_n) < factor")
    entropy_bound: float | int = setting(0.5, WEIGHT, "strategy entropy_bound, in nats")
    noise: float | int = setting(
        1.0, WEIGHT, "strategy confidence_noisy: standard deviation of the noise on the log-margin"
    )
    confidence: str = setting(
        "model", NAME, f"distribution of confidences: {', '.join(CONFIDENCES)} (after temperature, top_p, top_k)"
    )
    temperature: float | int = setting(1.0, WEIGHT, "of the tokens; 0 commits the most likely token")
    top_p: float | int = setting(1.0, Number(0, 1, open_low=True), "smallest set of tokens with this probability")
    top_k: int = setting(0, Whole(0), "most likely tokens to draw from; 0: all")
    policy: PolicySettings = section(PolicySettings)
    guide: GuideSettings = section(GuideSettings)
    smc: SMCSettings = section(SMCSettings)
    remdm: ReMDMSettings = section(ReMDMSettings)
    p2: P2Settings = section(P2Settings)
    wino: WINOSettings = section(WINOSettings)
    prism: PRISMSettings = section(PRISMSettings)
    edit: EditSettings = section(EditSettings)
    informed: InformedSettings = section(InformedSettings)
    klass: KlassSettings = section(KlassSettings)
    slowfast: SlowFastSettings = section(SlowFastSettings)
    credit: CreditSettings = section(CreditSettings)
    punt: PuntSettings = section(PuntSettings)
    lopa: LopaSettings = section(LopaSettings)
    quality: QualitySettings = section(QualitySettings)

    def __post_init__(self):
        super().__post_init__()
        check_strategy(self.strategy)


# ------------------------------------------------------------------------------------------- which strategy reads which setting

IN_STEPS = tuple(name for name in UNMASKING_RULES if name not in ADAPTIVE)  # rules that commit `steps` equal parts
# The strategies that read a setting; the first entry that fits a key decides, and a key without one is read by all.
READERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((f"sampler.{key}", tuple(name for name, own in RULE_SETTINGS.items() if own == key))
      for key in dict.fromkeys(RULE_SETTINGS.values())),
    ("sampler.window", ("window",)),
    ("sampler.steps", (*IN_STEPS, "policy", "remdm", "p2", "prism", "informed", "klass", *PREDICTORS, *GUIDED, *FILTERS)),
    ("sampler.confidence_eos_eot_inf", (*CONFIDENT, "policy", "wino", "edit", *SELECTING, *GUIDED, *FILTERS)),
    # best_of_n and top_k read guide.k in its place
    ("sampler.top_k", (*STRATEGIES, *DECODERS, *PREDICTORS, *STEPWISE_GUIDED, *FILTERS)),
    ("sampler.policy", ("policy",)),
    *((f"sampler.{name}", (name,)) for name in DECODERS),
    ("sampler.guide.reward", (*STEPWISE_GUIDED, "best_of_n", "fk")),
    ("sampler.guide.samples", ("best_of_n",)),
    ("sampler.guide.k", GUIDED),
    ("sampler.guide.unmask", GUIDED),
    ("sampler.guide", STEPWISE_GUIDED),
    *((f"sampler.smc.{key}", ("twisted_smc",)) for key in ("twist", "proposal", "exponent", "label")),
    *((f"sampler.smc.{key}", ("fk",)) for key in ("potential", "scale", "completions")),
    ("sampler.smc", FILTERS),
    ("sampler.quality", QUALITY),
)  # fmt: skip
# Of these strategies: a setting that is read only where another one has one of these values.
READ_WITH: tuple[tuple[str, tuple[str, ...], str, tuple[str | bool | None, ...]], ...] = (
    ("sampler.steps", ("policy",), "sampler.policy.action", (None, "fixed")),
    ("sampler.steps", GUIDED, "sampler.guide.unmask", (None, *IN_STEPS)),
    ("sampler.steps", FILTERS, "sampler.smc.unmask", (None, *IN_STEPS, "policy")),
    ("sampler.policy.threshold", ("policy",), "sampler.policy.action", ("threshold",)),
    ("sampler.policy.reopen_threshold", ("policy",), "sampler.policy.action", ("threshold",)),
    ("sampler.policy.beta", ("policy",), "sampler.policy.action", ("bernoulli_argmax",)),
    ("sampler.remdm.eta", ("remdm",), "sampler.remdm.schedule", ("cap", "rescale", "loop")),
    ("sampler.remdm.switch", ("remdm",), "sampler.remdm.schedule", ("cap", "rescale", "conf")),
    ("sampler.p2.reads", ("p2",), "sampler.p2.score", ("probability",)),
    *((f"sampler.quality.{key}", ("p2",), "sampler.p2.reads", ("quality",)) for key in ("source", "path", "parts")),
    ("sampler.prism.count", ("prism",), "sampler.prism.form", ("count",)),
    ("sampler.prism.eta", ("prism",), "sampler.prism.form", ("binomial",)),
    *((f"sampler.informed.{key}", ("informed",), "sampler.informed.select", ("margin",)) for key in ("noise", "parts")),
    *((f"sampler.remdm.{key}", ("remdm",), "sampler.remdm.schedule", ("loop",)) for key in ("begin", "end", "level")),
    *((f"sampler.credit.{key}", ("credit",), "sampler.credit.adaptive", (False,)) for key in ("alpha", "beta", "gamma")),
    ("sampler.guide.proposals", STEPWISE_GUIDED, "sampler.guide.positions", ("joint",)),
    ("sampler.quality.path", QUALITY, "sampler.quality.source", ("head",)),
    ("sampler.quality.parts", QUALITY, "sampler.quality.source", ("leave_out",)),
    *((f"sampler.smc.{key}", FILTERS, "sampler.smc.resample", ("ess", "every"))
      for key in ("scheme", "interval", "potential", "completions")),
)  # fmt: skip
NAMED = 4  # strategies that a refusal names


def check_strategy(name: object, known: tuple[str, ...] = EVERY_STRATEGY) -> None:
    """Refuse an unknown strategy: ValueError with the nearest name. Registered rules are known."""
    known = (*known, *(rule for rule in UNMASKING_RULES if rule not in known))
    if name is not None and name not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? Expected" if near else "expected"
        raise ValueError(f"strategy {name!r} is unknown; {hint} one of {', '.join(known)}")


def strategy_name(name: str | None, model: MaskedLM) -> str:
    """Return the strategy to use: `name`, or by default direct, and leftmost for a causal model.

    Raises:
        ValueError: the model does not support the strategy.
    """
    check_strategy(name, (*STRATEGIES, *DECODERS, *PREDICTORS))
    if name in PREDICTORS and not isinstance(model, SeddLM):
        raise ValueError(f"strategy {name!r} steps on the scores of a SEDD, and this model is none; use direct")
    if model.causal and name not in (None, "leftmost"):
        raise ValueError(f"strategy {name!r} needs a masked model and this one is causal; use leftmost")
    return name or ("leftmost" if model.causal else "direct")


def guided_rule(name: str | None, model: MaskedLM) -> str:
    """Return the unmasking rule of a guided decoder: leftmost for a causal model, else `name`, by default confidence."""
    if name is not None and name not in UNMASKING_RULES:
        raise ValueError(f"unmask={name!r} is unknown; use one of {', '.join(UNMASKING_RULES)}")
    if model.causal and name not in (None, "leftmost"):
        raise ValueError(f"unmask={name} needs a masked model and this one is causal; leave it out")
    return name or ("leftmost" if model.causal else "confidence")


def highest_setting(name: str) -> float:
    """Return the largest allowed value of a rule's parameter (RULE_SETTINGS): 1 for a probability."""
    return 1.0 if RULE_SETTINGS[name] == "threshold" else float("inf")


def readers_of(key: str) -> tuple[str, ...]:
    """Return the strategies that use a setting, given its key `sampler.…`; empty: all of them."""
    return next((readers for start, readers in READERS if key == start or key.startswith(f"{start}.")), ())


def as_shipped(name: str | bool | None) -> str | bool | None:
    """Return direct for a registered rule, which may read the same settings; other names are returned unchanged."""
    return "direct" if name in UNMASKING_RULES and name not in RULES else name


def idle(settings: SamplerSettings, key: str, flag: str = "--strategy ") -> str:
    """Explain why `settings.strategy` does not use a setting, and what to use; empty if it does.

    Args:
        key: of the setting, `sampler.…`.
        flag: text before the name of a strategy in the message.
    """
    strategy = settings.strategy or "direct"
    reading = {strategy, settings.smc.unmask} if strategy in FILTERS else {strategy}  # particles go by a rule too
    reading = {as_shipped(name) for name in reading}
    readers = readers_of(key)
    if readers and not reading & set(readers):
        others = f"{flag}{' or '.join(readers)}" if len(readers) <= NAMED else f"another strategy, as {readers[0]}"
        return f"would do nothing with {flag}{strategy}; leave it out, or use {others}"
    for own, strategies, other, values in READ_WITH:
        if key == own and reading & set(strategies):
            value = attrgetter(other.removeprefix("sampler."))(settings)
            if as_shipped(value) not in values:
                known = [str(allowed) for allowed in values if allowed is not None]
                others = " or ".join(known) if len(known) <= NAMED else f"{known[0]}, for example"
                return f"would do nothing with {other}={value}; leave it out, or use {other}={others}"
    return ""


def check_given(settings: SamplerSettings, given: Mapping[str, str], flag: str = "--strategy ") -> None:
    """Refuse a setting that the strategy does not use.

    Args:
        given: key of a setting (`sampler.…`) -> its name for the user, for each setting that the user gave. Defaults do not
            count.
        flag: text before the name of a strategy in the message.

    Raises:
        ValueError: names the setting, the strategy, and the strategies that use it.
    """
    for key, name in given.items():
        if not key.startswith("sampler."):
            continue
        value = attrgetter(key.removeprefix("sampler."))(settings)
        if value is not None and value is not False and (reason := idle(settings, key, flag)):
            raise ValueError(f"{name} {reason}")
