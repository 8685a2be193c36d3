"""From a configuration to guided decoding: which reward, how it reads the language model's tokens, and which decoder.

Settings are those of `guide` in configs/sampler/default.yaml; everything wrong with them is refused here, before any work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from omegaconf import DictConfig
from torch import Tensor

from dlm.ends import before_end, end_tokens, has_end, texts_of
from dlm.environment import UnmaskingEnvironment
from dlm.fingerprint import fingerprint_of, mismatch
from dlm.masked_lm import MaskedLM
from dlm.observation import Observation
from dlm.token_rule import TokenRule
from policy.build import shipped
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
from samplers.best_of import best_of
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
from samplers.loop import Decoder, Strategy, sample
from samplers.samples import Samples
from samplers.siblings import SiblingCache
from samplers.where import WHERE

GUIDED = (*METHODS, "best_of_n", "top_k")
POSITIONS = ("independent", "pair", "joint")
READS = ("siblings", "rows", "texts")
Finished = Callable[[Tensor, Tensor | None], Tensor]  # canvases, and where each begins -> rewards


@dataclass
class Guide:
    """A way to decode with a reward. values: what reads candidates (None: nothing does); best: of best-of-N, how many samples are
    drawn of each row, and their rewards."""

    decoder: Decoder
    values: Values | None = None
    best: tuple[int, Finished] | None = None
    finished_rows: int = 0

    @property
    def reward_rows(self) -> int:
        """Rows that the reward has read so far."""
        return self.finished_rows + (self.values.rows if self.values else 0)

    def record(self) -> dict[str, int]:
        """What decoding cost besides the model."""
        return {"reward_rows": self.reward_rows}

    def decode(
        self,
        environment: UnmaskingEnvironment,
        canvas: Int[Tensor, "row position"],
        seed: int = 0,
        row_id: Int[Tensor, "row"] | None = None,
        start: Int[Tensor, "row"] | None = None,
        on_step: Callable[[Observation, Int[Tensor, "active"]], None] | None = None,
    ) -> Samples:
        """Every row of `canvas`; arguments as of `samplers.loop.sample`."""
        if self.best is None:
            return sample(environment, self.decoder, canvas, seed, row_id, on_step=on_step, start=start)
        count, reward = self.best
        self.finished_rows += len(canvas) * count
        return best_of(environment, self.decoder, canvas, count, reward, seed, row_id, start)[0]


def build_guide(config: DictConfig, model: MaskedLM, first: int, length: int) -> Guide:
    """The guide that `config.sampler` asks for. first: where answers begin on the canvas; length: its positions.

    Raises ValueError for what this model or this reward does not allow.
    """
    sampler, guide = config.sampler, config.sampler.guide
    name = sampler.strategy
    columns = model.vocab_size - (not model.causal)
    where = WHERE[unmask_rule(guide.unmask, model)]()
    if sampler.get("confidence", "model") != "model":
        raise ValueError(
            f"sampler.confidence={sampler.confidence} is for strategies without a reward; strategy {name!r} reads the model's "
            "own confidences: leave it out"
        )
    check_guide(guide.k, 0.0 if guide.beta is None else guide.beta, columns)
    if name in ("best_of_n", "top_k"):
        what = TokenRule(float(sampler.temperature), float(sampler.top_p), guide.k)
        if name == "top_k":
            return Guide(Strategy(where, what))
        if isinstance(guide.samples, bool) or not isinstance(guide.samples, int) or guide.samples < 1:
            raise ValueError(f"sampler.guide.samples={guide.samples} must be a whole number of at least 1; change it")
        if (what.temperature == 0 or guide.k == 1) and guide.samples > 1:
            raise ValueError(
                "best_of_n at temperature 0, or with k=1, would draw the same sample each time; raise them"
            )
        reward = asked_reward(guide.reward, name, model)
        score = score_finished(reward, model, first)
        return Guide(Strategy(where, what), best=(guide.samples, score))
    if (sampler.temperature, sampler.top_p, sampler.top_k) != (1, 1, 0):
        raise ValueError(
            f"strategy {name!r} writes by its own law; leave sampler.temperature, top_p and top_k out (sampler.guide.temperature "
            "is that of the tilted law)"
        )
    method = METHODS[name]
    beta = float(method.beta if guide.beta is None else guide.beta)
    temperature = float(method.temperature if guide.temperature is None else guide.temperature)
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"sampler.guide.temperature={temperature} must be a finite number of at least 0; change it")
    values = build_values(name, guide, model, first, length)
    if guide.positions not in POSITIONS:
        raise ValueError(f"sampler.guide.positions={guide.positions!r} is unknown; use one of {', '.join(POSITIONS)}")
    if guide.positions == "independent":
        return Guide(Guided(where, values, beta, guide.k, temperature), values)
    if model.causal:
        raise ValueError(
            f"sampler.guide.positions={guide.positions} is of a masked model; a causal one writes one position"
        )
    if guide.positions == "pair":
        if sampler.budget is not None:
            raise ValueError("positions=pair writes one position a step, whatever the budget; leave sampler.budget out")
        return Guide(GuidedPair(where, values, beta, guide.k, temperature), values)
    if name == "value_head":
        raise ValueError("a vocabulary head values single tokens; use sampler.guide.positions=independent or pair")
    if isinstance(guide.proposals, bool) or not isinstance(guide.proposals, int) or guide.proposals < 1:
        raise ValueError(f"sampler.guide.proposals={guide.proposals} must be a whole number of at least 1; change it")
    what = TokenRule(top_k=guide.k)
    return Guide(JointProposals(where, values, beta, guide.proposals, what, temperature), values)


def unmask_rule(name: str | None, model: MaskedLM) -> str:
    """Which masks are written next: leftmost for a causal model, else `name`, by default the most confident."""
    if name is not None and name not in WHERE:
        raise ValueError(f"unmask={name!r} is unknown; use one of {', '.join(WHERE)}")
    if model.causal and name not in (None, "leftmost"):
        raise ValueError(f"unmask={name} needs a masked model and this one is causal; leave it out")
    return name or ("leftmost" if model.causal else "confidence")


def asked_reward(path: str | None, strategy: str, model: MaskedLM) -> RewardModel | TextReward:
    """ValueError where none is named."""
    if path is None:
        raise ValueError(f"strategy {strategy!r} needs a reward; give --reward RUN_OR_ID")
    return load_reward(shipped(str(path)), next(model.parameters()).device)


def build_values(name: str, guide: DictConfig, model: MaskedLM, first: int, length: int) -> Values:
    """How the reward of strategy `name` reads candidates."""
    if guide.read not in (None, *READS):
        raise ValueError(
            f"sampler.guide.read={guide.read!r} is unknown; use one of {', '.join(READS)}, or leave it out"
        )
    if name == "value_head":
        return HeadValues(asked_head(guide.reward, model))
    reward = asked_reward(guide.reward, name, model)
    if model.tokenizer is None:
        raise ValueError(
            f"the tokenizer of {model.model_id} cannot be loaded, which a reward needs; add tokenizer.json"
        )
    kind = reward.kind if isinstance(reward, RewardModel) else "full"
    if kind not in METHODS[name].reads:
        fitting = " or ".join(each for each, method in METHODS.items() if kind in method.reads)
        raise ValueError(
            f"strategy {name!r} takes a reward that was trained on {' or '.join(METHODS[name].reads)} rows and {guide.reward} "
            f"is of kind {kind!r}; use {fitting}, or give another reward"
        )
    if kind == "mask" and model.causal:
        raise ValueError(
            f"{guide.reward} was trained on canvases with masks, and a causal model has none; give a prefix reward"
        )
    same = isinstance(reward, RewardModel) and shares_tokens(reward, model.tokenizer)
    causal = isinstance(reward, ClassifierReward) and reward.causal and model.causal
    if guide.read in ("siblings", "rows") and not same:
        raise ValueError(
            f"sampler.guide.read={guide.read} needs a reward that reads the model's own token ids, and the tokenizer of "
            f"{guide.reward} is another; leave it out, and candidates are decoded and encoded again"
        )
    if guide.read == "siblings" and not causal:
        raise ValueError(
            f"sampler.guide.read=siblings needs a causal language model and a causal reward model, whose keys and values can be "
            f"kept, and {guide.reward} with this model is not such a pair; use rows"
        )
    ends = end_tokens(model.tokenizer)
    if not same or guide.read == "texts":
        if kind == "mask":
            raise ValueError(
                f"{guide.reward} reads masks and its tokenizer is not the model's; give one trained on its ids"
            )
        own = Template(first=first, end=ends[0] if ends else None, turns=tuple(ends[1:]))
        assert isinstance(reward, TextReward)
        decode = partial(model.tokenizer.batch_decode, skip_special_tokens=True)  # as answers are (dlm/ends.py)
        return Texts(reward.score_texts, decode, own, kind)
    assert isinstance(reward, RewardModel)
    template = template_of(reward, first, ends)
    longest = length + len(template.front) + len(template.between)
    if isinstance(reward, ClassifierReward) and longest > reward.max_length:
        raise ValueError(
            f"prompt and answer are up to {longest} tokens and {guide.reward} reads {reward.max_length}; shorten either, or give "
            "sampler.guide.read=texts, which cuts prompts as in training"
        )
    if isinstance(reward, ClassifierReward) and causal and guide.read != "rows":
        return Siblings(SiblingCache(reward.model.base_model, reward.score_hidden), template)
    return Canvases(reward, template)


def asked_head(path: str | None, model: MaskedLM) -> VocabularyHead:
    """The vocabulary head of this model. ValueError for one that was trained on another."""
    if path is None:
        raise ValueError("strategy 'value_head' needs a vocabulary head; give --reward RUN")
    head = load_head(str(path), next(model.parameters()).device)
    if (head.kind == "prefix") != model.causal:
        raise ValueError(
            f"{path} is a head of {head.trunk}, which is {'causal' if head.kind == 'prefix' else 'masked'}, and this model is "
            f"not; give --model {head.trunk}"
        )
    rows, width = head.linear.weight.shape
    if (rows, width) != (model.vocab_size, model.hidden_size):
        raise ValueError(
            f"{path} is a head of {head.trunk} ({width} wide, {rows} tokens), and this model is {model.hidden_size} wide with "
            f"{model.vocab_size} tokens; give --model {head.trunk}"
        )
    if head.trained_on is not None and (found := mismatch(head.trained_on, fingerprint_of(model))):
        raise ValueError(f"the vocabulary head {path} {found}; give the model that it was trained on by --model")
    return head


def template_of(reward: RewardModel, first: int, ends: Sequence[int]) -> Template:
    """The template of `rewards.template.encode`, around ids of the model. ends: its end tokens, the end of sequence first."""
    tokenizer: Any = reward.tokenizer
    front, _ = encode(tokenizer, "", "", finished=False)
    separator = tokenizer.sep_token_id if tokenizer.cls_token_id is not None else None
    between = (separator,) if separator is not None and first else ()
    end = ends[0] if ends else None
    return Template(tuple(front), between, first, end, tokenizer.mask_token_id, tuple(ends[1:]))


def score_finished(reward: RewardModel | TextReward, model: MaskedLM, first: int) -> Finished:
    """The reward of finished samples, as an evaluation of their texts gives it."""
    if not isinstance(reward, TextReward):
        raise ValueError(f"a {type(reward).__name__} scores no finished texts; give another reward")

    def score(tokens: Int[Tensor, "row position"], start: Int[Tensor, "row"] | None) -> Tensor:
        begins = [0] * len(tokens) if start is None else start.tolist()
        prompts = [row[begin:first] for row, begin in zip(tokens.tolist(), begins, strict=True)]
        texts, finished = answer_texts(model, tokens[:, first:])
        given = model.tokenizer.batch_decode(prompts, skip_special_tokens=True)
        return reward.score_texts(given, texts, finished).to(tokens.device)

    return score


def answer_texts(model: MaskedLM, answers: Int[Tensor, "row position"]) -> tuple[list[str], list[bool]]:
    """The answers up to their end (dlm/ends.py), and whether each came to it."""
    ends, free = end_tokens(model.tokenizer), torch.ones_like(answers, dtype=torch.bool)
    return texts_of(answers, before_end(answers, free, ends), model.tokenizer), has_end(answers, free, ends).tolist()
