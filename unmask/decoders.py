"""Build decoders from sampler settings: rules and policies, reward-guided decoders, particle filters, SEDD's own samplers.

Settings that do not fit the model or the prompts are refused here, before any work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.board import BoardTokenizer
from dlm.encoding import model_ids
from dlm.ends import before_end, end_tokens, has_end, texts_of
from dlm.fingerprint import fingerprint_of, mismatch
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from dlm.token_rule import TokenRule
from policy.base import PolicyNetwork
from policy.checkpoints import load_policy
from policy.networks import HiddenMLP
from policy.unmasker import PolicyReviser, PolicyUnmasker, check_alpha
from rewards.models import (
    ClassifierReward,
    RewardModel,
    TextReward,
    VocabularyHead,
    load_head,
    load_reward,
    shares_tokens,
)
from rewards.template import encode
from samplers.best_of import BestOf
from samplers.correctors import Informed
from samplers.editing import WINO, Edit
from samplers.fk import Steering
from samplers.guided import (
    METHODS,
    Canvases,
    Guided,
    GuidedPair,
    HeadValues,
    JointProposals,
    Siblings,
    Template,
    Texts,
    Values,
    check_guide,
)
from samplers.heuristics import UNMASKING_RULES, AsSampled, Window, check_confidence
from samplers.history import Credit, Klass, SlowFast
from samplers.lookahead import Lopa, Punt
from samplers.loop import Decoder, Reviser, Strategy, Unmasker
from samplers.moves import ORDERS, GibbsMove
from samplers.names import EVERY_STRATEGY, FILTERS, GUIDED, POSITIONS, PREDICTORS, REVISING, SELECTING
from samplers.particles import RESAMPLE, SCHEMES
from samplers.planning import P2, PRISM
from samplers.quality import HeadQuality, LeaveOut, Quality, SeenProbability, load_quality
from samplers.revision import ReMDM
from samplers.scores import ScoreDecoder
from samplers.settings import (
    ACTIONS,
    PICKS,
    PROPOSALS,
    READS,
    RULE_SETTINGS,
    GuideSettings,
    PolicySettings,
    QualitySettings,
    SamplerSettings,
    SMCSettings,
    check_strategy,
    guided_rule,
    highest_setting,
    idle,
    strategy_name,
)
from samplers.siblings import SiblingCache
from samplers.smc import Finish, Move, ParticleDecoder, Plain, Potential, Proposal, stay
from samplers.twisted import TwistedJoint, TwistedTokens
from training.hub import shipped
from training.ranges import as_text
from twist.network import TwistModel, load_twist, read_about, twist_directory
from twist.objectives import check_resampling
from twist.potential import TwistPotential
from twist.tail import BeforeTail, with_tail
from twist.targets import Target, build_target, check_continuation, text_reward


@dataclass(frozen=True)
class Layout:
    """The layout of canvases, for decoders that use a reward.

    first: position at which answers begin; length: positions of a canvas; opened: open positions of a canvas.
    """

    first: int
    length: int
    opened: int

    @classmethod
    def of(cls, prompts: Prompts, mask_id: int) -> Layout:
        """Return the layout of prompts with equal layout."""
        open_positions = prompts.open_positions(mask_id)[0].nonzero().squeeze(1)
        return cls(int(open_positions[0]), prompts.canvas.shape[1], len(open_positions))


def build_decoder(
    settings: SamplerSettings,
    model: MaskedLM,
    layout: Layout,
    seed: int = 0,
    suffix: str | None = None,
    reward: TextReward | None = None,
) -> Decoder:
    """Return the decoder that the settings describe.

    Args:
        layout: of the canvases to decode.
        seed: of the completions by which Feynman-Kac steering estimates its reward.
        suffix: the continuation for a twist of an infilling target.
        reward: replaces the reward that `settings.guide.reward` names.

    Raises:
        ValueError: for settings that the model, the policy, the reward or the twist does not allow.
    """
    check_strategy(settings.strategy, EVERY_STRATEGY)
    if settings.strategy in GUIDED:
        return build_guided(settings, model, layout, reward)
    if settings.strategy in FILTERS:
        return build_particles(settings, model, layout, seed, suffix, reward)
    if strategy_name(settings.strategy, model) in PREDICTORS:
        return build_score_decoder(settings, model)
    return build_step_decoder(settings, model)


def build_options(
    settings: SamplerSettings, model: MaskedLM, layout: Layout, stop: bool | None = None, measure_drift: bool = False
) -> DecodeOptions:
    """Return the options of decoding that the settings describe.

    Args:
        stop: rows end at their end of sequence or of turn. None: as `settings.stop` says.

    Raises:
        ValueError: for an end of sequence that the model does not have.
    """
    stop = settings.stop if stop is None else stop
    ends = end_tokens(model.tokenizer)
    if not ends and (settings.stop or settings.logits_eos_inf or settings.confidence_eos_eot_inf):
        raise ValueError(f"{model.label} has no end of sequence; leave stop and the eos settings out")
    # Strategies that take as many steps as they need may have blocks that do not divide `steps`.
    steps = layout.opened if model.causal or idle(settings, "sampler.steps") else settings.steps
    return DecodeOptions(
        max(1, steps), settings.block_length, budget=settings.budget, ends=ends if stop else (),
        never_tokens=ends[:1] if settings.logits_eos_inf else (),
        last_tokens=ends if settings.confidence_eos_eot_inf else (), guidance=float(settings.guidance), cache=settings.cache,
        refresh=settings.refresh, alpha=settings.alpha, measure_drift=measure_drift,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- rules and policies


def token_sampler(settings: SamplerSettings) -> TokenRule:
    """Return the token sampler of strategies without a reward."""
    return TokenRule(float(settings.temperature), float(settings.top_p), settings.top_k)


StepwiseDecoder = Strategy | Reviser | Credit | Punt | Lopa


def build_step_decoder(settings: SamplerSettings, model: MaskedLM) -> StepwiseDecoder:
    """Return a rule or a policy with a token sampler, or a decoder that revises, remembers steps or looks ahead.

    Raises:
        ValueError: for settings that the model or the policy does not allow.
    """
    name = strategy_name(settings.strategy, model)
    if name in REVISING:
        return build_reviser(settings, model)
    if name in SELECTING:
        return build_selector(settings, model)
    return with_revision(build_rule_decoder(settings, model), settings)


def with_revision(decoder: Strategy, settings: SamplerSettings) -> Strategy | Reviser:
    """Return the decoder of a policy that was trained with policy.revises; other decoders are returned unchanged.

    Raises:
        ValueError: there is no budget, or the settings do not fit the policy.
    """
    policy = settings.policy
    if not isinstance(decoder.rule, PolicyUnmasker) or not decoder.rule.network.revises:
        if policy.reopen_threshold is not None:
            raise ValueError(
                f"sampler.policy.reopen_threshold={policy.reopen_threshold} is for policies that were trained with "
                "policy.revises; leave it out"
            )
        return decoder
    if settings.budget is None:
        raise ValueError(
            f"the policy {policy.path} opens positions again and may never end without a budget of evaluations; give "
            "sampler.budget=8, for example"
        )
    return PolicyReviser(decoder.token_sampler, decoder.rule, policy.reopen_threshold)


def with_tokens(decoder: StepwiseDecoder, tokens: TokenRule) -> StepwiseDecoder:
    """Return the decoder with another token sampler."""
    if not isinstance(decoder, Strategy):
        return replace(decoder, token_sampler=tokens)
    rule = decoder.rule
    return Strategy(replace(rule, token_sampler=tokens) if isinstance(rule, AsSampled) else rule, tokens)


def build_reviser(settings: SamplerSettings, model: MaskedLM) -> Reviser:
    """Return a decoder that revises committed tokens.

    Raises:
        ValueError: for settings that the model or the decoder does not allow.
    """
    name, tokens = strategy_name(settings.strategy, model), token_sampler(settings)
    check_confidence(settings.confidence, name, "sampler.confidence")
    check_alpha(None, settings.alpha)
    if settings.cache is not None and settings.block_length is not None:
        raise ValueError(
            f"sampler.cache={settings.cache} keeps the keys of earlier blocks, which strategy {name!r} would make stale; leave "
            "sampler.block_length out, as a cache recomputes all positions of a single block, or leave the cache out"
        )
    if name == "wino":
        check_shadow(settings, model)
    if name == "informed":
        check_counted(settings, name)
    own, judged = vars(getattr(settings, name)), {}
    if name == "prism" or (name == "p2" and settings.p2.reads == "quality"):
        if settings.quality.source == "leave_out":
            check_counted(settings, f"{name} with quality.source=leave_out")
        judged = {"quality": build_quality(settings.quality, model)}
    kinds: dict[str, type[Reviser]] = {
        "remdm": ReMDM, "p2": P2, "wino": WINO, "prism": PRISM, "edit": Edit, "informed": Informed
    }  # fmt: skip
    return kinds[name](tokens, **own, **judged)


def check_shadow(settings: SamplerSettings, model: MaskedLM) -> None:
    """Refuse a model, guidance and a cache that do not go with a shadow block: ValueError."""
    if not model.has_shadow:
        raise ValueError(
            f"strategy 'wino' needs RADD, MDLM or LLaDA, which predict a token at its own position and run with an attention "
            f"mask, and {model.label} does not; use edit"
        )
    given = {"guidance": settings.guidance or None, "cache": settings.cache}
    if wrong := [f"sampler.{key}={as_text(value)}" for key, value in given.items() if value is not None]:
        raise ValueError(
            f"strategy 'wino' evaluates a canvas with a shadow block behind it; leave {' and '.join(wrong)} out, or use edit"
        )


def check_counted(settings: SamplerSettings, name: str) -> None:
    """Refuse a budget and guidance for a decoder that evaluates canvases with more masks: ValueError."""
    if settings.budget is not None:
        raise ValueError(
            f"strategy {name!r} spends several evaluations in a step, which sampler.budget={settings.budget} cannot end in time; "
            "give sampler.steps in its place"
        )
    if settings.guidance:
        raise ValueError(
            f"strategy {name!r} evaluates canvases with more masks, which sampler.guidance={as_text(settings.guidance)} does not "
            "mix; leave it out"
        )


def build_selector(settings: SamplerSettings, model: MaskedLM) -> StepwiseDecoder:
    """Return a decoder that remembers earlier steps or evaluates candidate canvases, and commits each position once.

    Raises:
        ValueError: for settings that the decoder does not allow.
    """
    name, tokens = strategy_name(settings.strategy, model), token_sampler(settings)
    check_confidence(settings.confidence, name, "sampler.confidence")
    check_alpha(None, settings.alpha)
    own = vars(getattr(settings, name))
    if name == "klass":
        return Strategy(Klass(**own), tokens)
    if name == "slowfast":
        return Strategy(SlowFast(**own), tokens)
    if name == "credit":
        return Credit(tokens, **own)
    if settings.cache is not None:
        raise ValueError(
            f"sampler.cache={settings.cache} approximates the canvas, and strategy {name!r} compares it with canvases that are "
            "evaluated in full; leave sampler.cache out"
        )
    if settings.guidance:
        raise ValueError(
            f"sampler.guidance={settings.guidance} evaluates two canvases at once, and strategy {name!r} evaluates candidates "
            "without guidance; leave sampler.guidance out"
        )
    return Punt(tokens, **own) if name == "punt" else Lopa(tokens, **own)


def build_rule_decoder(settings: SamplerSettings, model: MaskedLM) -> Strategy:
    """Return a rule or a policy with a token sampler."""
    name = strategy_name(settings.strategy, model)
    if name in REVISING:
        raise ValueError(
            f"strategy {name!r} revises tokens, and here a rule that commits each position once is needed; use it to sample, not "
            "here"
        )
    if name in SELECTING:
        raise ValueError(
            f"strategy {name!r} remembers steps or evaluates candidate canvases, and here a rule that only sees the state is "
            "needed; use it to sample, not here"
        )
    if name in PREDICTORS:
        raise ValueError(
            f"strategy {name!r} chooses positions and tokens at once, on the whole canvas; use it to sample, not here"
        )
    tokens = token_sampler(settings)
    check_confidence(settings.confidence, name, "sampler.confidence")
    if name == "policy":
        policy = build_policy_rule(settings.policy, model)
        check_alpha(policy.network, settings.alpha)
        return Strategy(policy, tokens)
    check_alpha(None, settings.alpha)
    rule = build_rule(settings, name)
    return Strategy(AsSampled(rule, tokens) if settings.confidence == "sampling" else rule, tokens)


def build_rule(settings: SamplerSettings, name: str) -> Unmasker:
    """Return a rule of UNMASKING_RULES with its parameter."""
    if name not in RULE_SETTINGS:
        return UNMASKING_RULES[name]()
    key = RULE_SETTINGS[name]
    value, highest = getattr(settings, key), highest_setting(name)
    if not 0 <= value <= highest:
        raise ValueError(f"sampler.{key}={value} must be a number from 0 to {highest}; change it")
    return Window(float(value), settings.window) if name == "window" else UNMASKING_RULES[name](float(value))


def build_quality(settings: QualitySettings, model: MaskedLM) -> Quality:
    """Return the source of the quality of committed tokens, for a rule that revises them.

    Raises:
        ValueError: the head is not given, not there, or of another model.
    """
    if settings.source == "seen":
        return SeenProbability()
    if settings.source == "leave_out":
        return LeaveOut(settings.parts)
    if settings.path is None:
        raise ValueError(
            "sampler.quality.source=head needs sampler.quality.path, a run of train-quality on this model; give it, or use "
            "sampler.quality.source=seen or leave_out"
        )
    return HeadQuality(load_quality(shipped(settings.path), model))


def build_policy_rule(settings: PolicySettings, model: MaskedLM) -> PolicyUnmasker:
    """Load a trained policy as an unmasking rule, on the device of the model."""
    check_action(settings)  # before the policy is read
    network = load_policy(shipped(settings.path), model=model, other_model=settings.other_model)
    return policy_rule(network, settings, model)


def check_action(settings: PolicySettings) -> str:
    """Return the action of a policy, by default `fixed`. ValueError for one that leaves positions open."""
    action = settings.action or "fixed"
    if action not in ACTIONS:
        raise ValueError(f"sampler.policy.action={action!r} cannot be sampled from; use one of {', '.join(ACTIONS)}")
    return action


def policy_rule(network: PolicyNetwork, settings: PolicySettings, model: MaskedLM) -> PolicyUnmasker:
    """Return a policy network as an unmasking rule, on the device of the model. Of the settings `path` is not used.

    Raises:
        ValueError: the action leaves positions open, or does not fit the network.
    """
    action = check_action(settings)
    if isinstance(network, HiddenMLP) and action != "fixed":
        raise ValueError(
            f"the policy {settings.path} scores positions against each other (hidden_mlp), so sampler.policy.action "
            f"must be fixed, not {action}; leave it out"
        )
    network.to(model.device)
    if network.revises and settings.action is None:
        action = "threshold"  # equal parts leave no choice of what to open again
    return PolicyUnmasker(network, action, float(settings.temperature), float(settings.beta), float(settings.threshold))


def build_score_decoder(settings: SamplerSettings, model: MaskedLM) -> ScoreDecoder:
    """Return SEDD's own sampler. ValueError for settings that it does not support: it samples the distribution of the
    scores.
    """
    name = strategy_name(settings.strategy, model)
    neutral = {"temperature": 1, "top_p": 1, "top_k": 0, "guidance": 0, "budget": None, "block_length": None, "cache": None,
               "refresh": None, "alpha": None, "stop": False, "logits_eos_inf": False,
               "confidence_eos_eot_inf": False, "confidence": "model"}  # fmt: skip
    wrong = [
        f"sampler.{key}={as_text(getattr(settings, key))}"
        for key, value in neutral.items()
        if getattr(settings, key) != value
    ]
    if wrong:
        raise ValueError(
            f"strategy {name!r} samples the model's own scores on the whole canvas; leave {', '.join(wrong)} out, or use "
            "another strategy"
        )
    return ScoreDecoder(name)


# ------------------------------------------------------------------------------------------------------- guided by a reward


def build_guided(
    settings: SamplerSettings, model: MaskedLM, layout: Layout, reward: TextReward | None = None
) -> Decoder:
    """Return a decoder that is guided by a reward."""
    guide, name = settings.guide, str(settings.strategy)
    rule = UNMASKING_RULES[guided_rule(guide.unmask, model)]()
    if settings.confidence != "model":
        raise ValueError(
            f"sampler.confidence={settings.confidence} is for strategies without a reward; strategy {name!r} reads the model's "
            "own confidences: leave it out"
        )
    check_guide(guide.k, 0.0 if guide.beta is None else guide.beta, model.vocab_size - (not model.causal))
    if name in ("best_of_n", "top_k"):
        return build_best_of(settings, model, layout, rule, reward)
    if (settings.temperature, settings.top_p, settings.top_k) != (1, 1, 0):
        raise ValueError(
            f"strategy {name!r} has its own token distribution; leave sampler.temperature, top_p and top_k out and set "
            "sampler.guide.temperature"
        )
    method = METHODS[name]
    beta = float(method.beta if guide.beta is None else guide.beta)
    temperature = float(method.temperature if guide.temperature is None else guide.temperature)
    values = build_values(settings, model, layout, reward)
    if guide.positions not in POSITIONS:
        raise ValueError(f"sampler.guide.positions={guide.positions!r} is unknown; use one of {', '.join(POSITIONS)}")
    if guide.positions == "independent":
        return Guided(rule, values, beta, guide.k, temperature)
    if model.causal:
        raise ValueError(
            f"sampler.guide.positions={guide.positions} is for masked models; leave it out, as a causal model "
            "commits one position per step"
        )
    if guide.positions == "pair":
        if settings.budget is not None:
            raise ValueError("positions=pair commits one position per step, with any budget; leave sampler.budget out")
        return GuidedPair(rule, values, beta, guide.k, temperature)
    if name == "value_head":
        raise ValueError("a vocabulary head values single tokens; use sampler.guide.positions=independent or pair")
    return JointProposals(rule, values, beta, guide.proposals, TokenRule(top_k=guide.k), temperature)


def build_best_of(
    settings: SamplerSettings, model: MaskedLM, layout: Layout, rule: Unmasker, reward: TextReward | None
) -> Decoder:
    """Return the decoder of strategies best_of_n and top_k, which draw among the k best tokens."""
    guide = settings.guide
    tokens = TokenRule(float(settings.temperature), float(settings.top_p), guide.k)
    if settings.strategy == "top_k":
        return Strategy(rule, tokens)
    if (tokens.temperature == 0 or guide.k == 1) and guide.samples > 1:
        raise ValueError("best_of_n at temperature 0, or with k=1, would draw the same sample each time; raise them")
    check_writes_text(model)
    scored = reward or requested_reward(settings, model)
    return BestOf(Strategy(rule, tokens), guide.samples, score_finished(scored, model, layout.first))


def check_writes_text(model: MaskedLM) -> None:
    """Refuse a model whose samples are no texts, which a reward reads: ValueError."""
    if model.tokenizer is None:
        raise ValueError(f"a reward reads text and the tokenizer of {model.label} cannot be loaded; add tokenizer.json")
    if isinstance(model.tokenizer, BoardTokenizer):
        raise ValueError(f"a reward reads text and {model.label} is a model of boards; use a strategy without a reward")


def requested_reward(settings: SamplerSettings, model: MaskedLM) -> RewardModel | TextReward:
    """Return the reward `settings.guide.reward`. ValueError if none is named."""
    if settings.guide.reward is None:
        raise ValueError(
            f"strategy {settings.strategy!r} needs a reward; give a name, a run or a hub id (--reward, reward=)"
        )
    return load_reward(shipped(settings.guide.reward), model.device)


def build_values(settings: SamplerSettings, model: MaskedLM, layout: Layout, given: TextReward | None = None) -> Values:
    """Return the evaluation of candidates by the strategy's reward. given: replaces the reward that the settings name."""
    guide, name = settings.guide, str(settings.strategy)
    if guide.read not in (None, *READS):
        raise ValueError(
            f"sampler.guide.read={guide.read!r} is unknown; use one of {', '.join(READS)}, or leave it out"
        )
    if name == "value_head":
        if given is not None:
            raise ValueError(
                f"strategy 'value_head' reads a vocabulary head and {guide.reward} is a reward of texts; name a run that trained "
                "a head (--reward, reward=)"
            )
        return HeadValues(requested_head(guide.reward, model))
    reward = given or requested_reward(settings, model)
    check_writes_text(model)
    kind = reward.kind if isinstance(reward, RewardModel) else "full"
    check_kind(name, kind, str(guide.reward), model)
    same = isinstance(reward, RewardModel) and shares_tokens(reward, model.tokenizer)
    causal = isinstance(reward, ClassifierReward) and reward.causal and model.causal
    check_read(settings, same, causal)
    if not isinstance(reward, RewardModel) or not same or guide.read == "texts":
        return _values_of_texts(reward, kind, model, layout, guide)
    return _values_of_ids(reward, causal, model, layout, guide)


def _values_of_texts(
    reward: RewardModel | TextReward, kind: str, model: MaskedLM, layout: Layout, guide: GuideSettings
) -> Values:
    """Return the evaluation by a reward that reads texts: its tokenizer differs from the model's, or `guide.read` is texts."""
    if kind == "mask":
        raise ValueError(
            f"{guide.reward} reads masks and its tokenizer is not the model's; give one trained on its ids"
        )
    assert isinstance(reward, TextReward) and model.tokenizer is not None
    ends = end_tokens(model.tokenizer)
    own = Template(first=layout.first, end=ends[0] if ends else None, turns=ends[1:])
    decode = partial(model.tokenizer.batch_decode, skip_special_tokens=True)  # as answers are (dlm/ends.py)
    return Texts(reward.score_texts, decode, own, kind)


def _values_of_ids(reward: RewardModel, causal: bool, model: MaskedLM, layout: Layout, guide: GuideSettings) -> Values:
    """Return the evaluation by a reward that reads the model's token ids. causal: both reward and model are causal."""
    template = template_of(reward, layout.first, end_tokens(model.tokenizer))
    longest = layout.length + len(template.front) + len(template.between)
    if isinstance(reward, ClassifierReward) and longest > reward.max_length:
        raise ValueError(
            f"prompt and answer are up to {longest} tokens and {guide.reward} reads {reward.max_length}; shorten either, or give "
            "sampler.guide.read=texts, which cuts prompts as in training"
        )
    if isinstance(reward, ClassifierReward) and causal and guide.read != "rows":
        return Siblings(SiblingCache(reward.model.base_model, reward.score_hidden), template)
    return Canvases(reward, template)


def check_kind(strategy: str, kind: str, path: str, model: MaskedLM) -> None:
    """Refuse a reward that was trained on other rows than the strategy, or the model, has: ValueError."""
    if kind not in METHODS[strategy].reads:
        fitting = " or ".join(each for each, method in METHODS.items() if kind in method.reads)
        raise ValueError(
            f"strategy {strategy!r} takes a reward that was trained on {' or '.join(METHODS[strategy].reads)} rows and {path} "
            f"is of kind {kind!r}; use {fitting}, or give another reward"
        )
    if kind == "mask" and model.causal:
        raise ValueError(
            f"{path} was trained on canvases with masks, and a causal model has none; give a prefix reward"
        )


def check_read(settings: SamplerSettings, same_tokens: bool, causal: bool) -> None:
    """Refuse a mode of `read` that the reward does not allow: ValueError."""
    guide = settings.guide
    if guide.read in ("siblings", "rows") and not same_tokens:
        raise ValueError(
            f"sampler.guide.read={guide.read} needs a reward that reads the model's own token ids, and the tokenizer of "
            f"{guide.reward} is another; leave it out, and candidates are decoded and encoded again"
        )
    if guide.read == "siblings" and not causal:
        raise ValueError(
            f"sampler.guide.read=siblings needs a causal language model and a causal reward model, whose keys and values can be "
            f"kept, and {guide.reward} with this model is not such a pair; use rows"
        )


def requested_head(path: str | None, model: MaskedLM) -> VocabularyHead:
    """Return the vocabulary head of this model. ValueError for a head that was trained on another model."""
    if path is None:
        raise ValueError(
            "strategy 'value_head' needs a vocabulary head; give a run that trained one (--reward, reward=)"
        )
    head = load_head(str(path), model.device)
    if (head.kind == "prefix") != model.causal:
        raise ValueError(
            f"{path} is a head of {head.trunk}, which is {'causal' if head.kind == 'prefix' else 'masked'}, and this model is "
            f"not; give the model {head.trunk} (--model)"
        )
    rows, width = head.linear.weight.shape
    if (rows, width) != (model.vocab_size, model.hidden_size):
        raise ValueError(
            f"{path} is a head of {head.trunk} ({width} wide, {rows} tokens), and this model is {model.hidden_size} wide with "
            f"{model.vocab_size} tokens; give the model {head.trunk} (--model)"
        )
    if head.trained_on is not None and (found := mismatch(head.trained_on, fingerprint_of(model))):
        raise ValueError(f"the vocabulary head {path} {found}; give the model that it was trained on (--model)")
    return head


def template_of(reward: RewardModel, first: int, ends: Sequence[int]) -> Template:
    """Return the template of `rewards.template.encode` around ids of the model.

    Args:
        first: where answers begin on the canvas.
        ends: the model's end tokens, the end of sequence first.
    """
    tokenizer: Any = reward.tokenizer
    front, _ = encode(tokenizer, "", "", finished=False)
    separator = tokenizer.sep_token_id if tokenizer.cls_token_id is not None else None
    between = (separator,) if separator is not None and first else ()
    end = ends[0] if ends else None
    return Template(tuple(front), between, first, end, tokenizer.mask_token_id, tuple(ends[1:]))


def score_finished(
    reward: RewardModel | TextReward, model: MaskedLM, first: int
) -> Callable[[Int[Tensor, "row position"], Int[Tensor, "row"] | None], Float[Tensor, "row"]]:
    """Return the reward of finished canvases, equal to that of their texts in an evaluation."""
    if not isinstance(reward, TextReward):
        raise ValueError(f"a {type(reward).__name__} scores no finished texts; give another reward")

    def score(tokens: Int[Tensor, "row position"], start: Int[Tensor, "row"] | None) -> Float[Tensor, "row"]:
        begins = [0] * len(tokens) if start is None else start.tolist()
        prompts = [row[begin:first] for row, begin in zip(tokens.tolist(), begins, strict=True)]
        texts, finished = answer_texts(model, tokens[:, first:])
        given = model.tokenizer.batch_decode(prompts, skip_special_tokens=True)
        return reward.score_texts(given, texts, finished).to(tokens.device)

    return score


def answer_texts(model: MaskedLM, answers: Int[Tensor, "row position"]) -> tuple[list[str], list[bool]]:
    """Return the answers up to their end (dlm/ends.py), and whether each has an end token."""
    ends, free = end_tokens(model.tokenizer), torch.ones_like(answers, dtype=torch.bool)
    return texts_of(answers, before_end(answers, free, ends), model.tokenizer), has_end(answers, free, ends).tolist()


# ---------------------------------------------------------------------------------------------------------------- particles


def twist_description(settings: SMCSettings) -> dict[str, Any]:
    """Return the twist's description: its model, prompt and length are defaults of sampling. ValueError without a twist."""
    if settings.twist is None:
        raise ValueError("strategy twisted_smc needs a twist; give a run of train-twist (--twist, smc={'twist': RUN})")
    return read_about(twist_directory(settings.twist))


def check_smc(settings: SMCSettings) -> None:
    """Refuse unknown names, and an exponent with the base proposal: ValueError."""
    if settings.proposal == "base" and settings.exponent != 1:
        raise ValueError(
            f"sampler.smc.exponent={settings.exponent} needs a twisted proposal, and the proposal is base; leave one of them out"
        )
    known = {"resample": RESAMPLE, "scheme": tuple(SCHEMES), "pick": PICKS, "proposal": (None, *PROPOSALS)}
    for key, values in known.items():
        if getattr(settings, key) not in values:
            names = ", ".join(str(value) for value in values if value is not None)
            raise ValueError(f"sampler.smc.{key}={getattr(settings, key)!r} is unknown; use one of {names}")
    check_strategy(settings.unmask, (*UNMASKING_RULES, "policy", *PREDICTORS))


def build_particles(
    settings: SamplerSettings,
    model: MaskedLM,
    layout: Layout,
    seed: int,
    suffix: str | None,
    reward: TextReward | None = None,
) -> ParticleDecoder:
    """Return a particle filter: twisted SMC, or Feynman-Kac steering."""
    smc = settings.smc
    check_smc(smc)
    if settings.stop:
        raise ValueError("particles are compared at one length; leave sampler.stop out")
    if settings.strategy == "fk":
        return build_steering(settings, model, layout, seed, reward)
    if settings.guidance != 0:
        raise ValueError(
            f"sampler.guidance={settings.guidance} mixes two hidden states of each canvas, and the twist reads one; leave "
            "sampler.guidance out"
        )
    about = twist_description(smc)
    model = with_tail(model, about["target"])
    twist, about = load_twist(twist_directory(str(smc.twist)), model)
    if smc.resample != "never":
        check_resampling(str(about.get("method")), str(smc.twist))
    target = build_target(about["target"], model, layout.first, layout.opened, reward)
    return build_twisted(settings, model, twist, target, twist_condition(settings, model, about, layout, suffix))


def particle_rule(settings: SamplerSettings, model: MaskedLM, default: str) -> Strategy:
    """Return the rule and the token sampler of the particles."""
    return build_rule_decoder(replace(settings, strategy=settings.smc.unmask or default), model)


def particle_decoder(
    smc: SMCSettings,
    parts: Callable[[int], tuple[Proposal, Potential]],
    model: MaskedLM,
    strategy: Strategy,
    states: bool,
) -> ParticleDecoder:
    """Return a particle decoder with these settings.

    Args:
        strategy: of the particles.
        states: the potential is a function of the state, so that moves keep the target.

    Raises:
        ValueError: moves would not keep the target.
    """
    move: Move = stay
    if smc.moves:
        if model.causal or not states or not isinstance(strategy.rule, tuple(ORDERS.values())):
            raise ValueError(
                f"sampler.smc.moves={smc.moves} keeps the target for masked models, potentials of states (fk with "
                "potential=difference, twists with a state head) and orders that do not depend on tokens: sampler.smc.unmask="
                f"{', '.join(ORDERS)}; change these, or leave moves out"
            )
        move = GibbsMove(smc.moves, strategy.token_sampler)
    return ParticleDecoder(parts, smc.particles, smc.resample, smc.scheme, smc.interval, smc.pick, model, move)


def build_steering(
    settings: SamplerSettings, model: MaskedLM, layout: Layout, seed: int, given: TextReward | None = None
) -> ParticleDecoder:
    """Return Feynman-Kac steering."""
    smc, reward = settings.smc, given or settings.guide.reward
    if smc.twist is not None:
        raise ValueError(
            "strategy fk weighs states by a reward and reads no twist; leave the twist out, or take twisted_smc"
        )
    if reward is None:
        raise ValueError("strategy fk needs a reward; give a name or a run of train-reward (--reward, reward=)")
    check_writes_text(model)
    score, scale = text_reward(reward, model, layout.first), float(smc.scale)
    strategy = particle_rule(settings, model, "leftmost" if model.causal else "direct")

    def parts(samples: int) -> tuple[Proposal, Potential]:
        if smc.resample == "never":  # no state is weighed
            return Plain(strategy), Finish(lambda tokens, rows: scale * score(tokens))
        return Plain(strategy), Steering(score, scale, smc.potential, smc.completions, strategy.token_sampler, seed)

    Steering(score, scale, smc.potential, smc.completions)  # refuses an unknown potential
    states = smc.potential == "difference" and smc.resample != "never"
    return particle_decoder(smc, parts, model, strategy, states)


def build_twisted(
    settings: SamplerSettings, model: MaskedLM, twist: TwistModel, target: Target, given: Int[Tensor, "*token"] | None
) -> ParticleDecoder:
    """Return twisted SMC. given: the condition of the twist."""
    smc, of_state = settings.smc, twist.state_head is not None
    kind = smc.proposal or ("tokens" if model.causal or of_state else "joint")
    if kind == "joint" and (model.causal or smc.unmask is not None):
        raise ValueError(
            "proposal joint lets the twist choose among the positions of a masked model, and here "
            + ("the model is causal" if model.causal else f"sampler.smc.unmask={smc.unmask} does")
            + "; use sampler.smc.proposal=tokens"
        )
    if kind == "joint" and settings.budget is not None:
        raise ValueError(
            f"proposal joint commits one position per step, so sampler.budget={settings.budget} has no effect; leave it out, "
            "or use sampler.smc.proposal=tokens with a twist that has a state head"
        )
    # A rule that commits several positions a step commits equally many of each particle: psi of states is then comparable,
    # even if the learned psi is undetermined up to a factor per step.
    strategy = particle_rule(settings, model, "leftmost" if model.causal else "random" if of_state else "first_hitting")

    def parts(samples: int) -> tuple[Proposal, Potential]:
        own = None if given is None else given.expand(samples, *given.shape)
        potential = TwistPotential(twist, target, smc.particles, own)
        if kind == "joint":
            return TwistedJoint(strategy.token_sampler, potential.logit_bias, float(smc.exponent)), potential
        if kind == "base" and of_state:
            return Plain(strategy), potential
        exponent = 0.0 if kind == "base" else float(smc.exponent)
        return TwistedTokens(strategy.rule, strategy.token_sampler, potential.logit_bias, of_state, exponent), potential

    parts(1)  # refuses what does not fit
    return particle_decoder(smc, parts, twist.sampled(), strategy, of_state and kind != "joint")


def twist_condition(
    settings: SamplerSettings, model: MaskedLM, about: dict[str, Any], layout: Layout, suffix: str | None
) -> Int[Tensor, "*token"] | None:
    """Return the condition of the twist: for infilling the tokens of `suffix`, or a class; None without a condition."""
    condition, device, label = about["twist"]["condition"], model.device, settings.smc.label
    if condition == "class":
        classes = about["twist"]["classes"]
        if label is None or not 0 <= label < classes:
            raise ValueError(
                f"this twist is conditioned on one of {classes} classes and sampler.smc.label={label}; give a number from 0 to "
                f"{classes - 1}"
            )
        return torch.tensor(label, device=device)
    if label is not None:
        raise ValueError(
            f"sampler.smc.label={label} is for twists that are conditioned on a class, and this one is not; leave it out"
        )
    if about["target"]["kind"] != "infilling":
        return None
    if not suffix:
        raise ValueError("this twist is conditioned on the text that follows; give this text (--suffix, suffix=)")
    given = torch.tensor(model_ids(model, suffix, "the suffix"), device=device)
    if len(given) != about["target"]["tokens"]:
        raise ValueError(
            f"the suffix {suffix!r} is {len(given)} tokens and this twist was learnt for {about['target']['tokens']} that follow "
            f"(target.tokens); give a text of {about['target']['tokens']}"
        )
    whole = model.whole if isinstance(model, BeforeTail) else model
    check_continuation(whole, layout.first, layout.opened, len(given))
    return given
