"""Targets: log phi of finished text, so that sigma(text) = p(text) phi(text) / Z.

Targets of Zhao et al. (2404.17546): the class of a classifier to the power beta, a threshold on a score, the probability of
a continuation, per row or fixed (infilling); also the validity of formulas, and any reward. All are stable logarithms: log
sigmoid and log softmax, never the logarithm of a probability. `given` is the condition of each row: tokens [row, token], or
a class [row]. Classifiers read text: the prompt and the response up to its end, without special tokens; long texts lose
their beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.causal_lm import CausalLM, sequence_log_prob
from dlm.encoding import model_ids
from dlm.ends import before_end, end_tokens, has_end, texts_of
from dlm.masked_lm import MaskedLM
from rewards.functions import CALLERS
from rewards.latex import is_valid, spans
from rewards.models import SequenceClassifier, TextReward, class_log_probs, load_reward
from rewards.models import load_classifier as load_sequence_classifier
from twist.tail import BeforeTail

FLOOR = 1e-16  # of a potential that is 0 or 1: in log space finite, so that a filter can go on
CONTINUATIONS = ("log_prob", "prob", "posterior")


@runtime_checkable
class Target(Protocol):
    """Log-potential log phi of finished rows, prompt included, in float32. `given` is the condition of each row, for a target
    with conditions."""

    @property
    def beta(self) -> float:
        """Factor of log phi."""
        ...

    def log_phi(self, tokens: Int[Tensor, "row position"], given: Tensor | None = None) -> Float[Tensor, "row"]: ...


def load_classifier(path: str, device: torch.device, classes: int | None = None) -> SequenceClassifier:
    """Load a classifier from a run, a directory or a hub id; no remote code runs. classes: required number of logits, else
    ValueError.
    """
    found = load_sequence_classifier(path, device)
    logits = found.model.config.num_labels
    if classes is not None and logits != classes:
        raise ValueError(
            f"the classifier {path} has {logits} classes and target.classes={classes}; give one of {classes} classes, or set "
            f"target.classes={logits}"
        )
    return found


@dataclass
class ClassifiedTexts:
    """Apply a function of texts to token ids: the prompt (the first `first` positions) and the response up to its end
    (dlm/ends.py).

    Ids that only the model has (its mask token) are dropped.
    """

    tokenizer: Any
    read: Callable[[list[str]], Tensor]
    first: int = 0

    def __call__(self, tokens: Int[Tensor, "row position"]) -> Tensor:
        free = behind(tokens, self.first)
        kept = ~free | before_end(tokens, free, end_tokens(self.tokenizer))
        return self.read(texts_of(tokens, kept, self.tokenizer)).to(tokens.device)


def behind(tokens: Int[Tensor, "row position"], first: int) -> Bool[Tensor, "row position"]:
    """Mark the positions behind a prompt of `first` tokens."""
    return (torch.arange(tokens.shape[1], device=tokens.device) >= first).expand_as(tokens)


@dataclass
class ClassTarget:
    """beta * log p(class | text).

    logits: tokens -> [row, class], or one logit, of class 1 (its sigmoid) against class 0; label: the class, counted from 0
    (None: that of each row, `given`); of_logits: from logits to log p of each label. By default classes exclude each other
    (`SequenceClassifier.log_probs` handles multi-label classifiers and regressions).
    """

    logits: Callable[[Int[Tensor, "row position"]], Float[Tensor, "row logit"]]
    label: int | None
    beta: float = 1.0
    of_logits: Callable[[Float[Tensor, "row logit"]], Float[Tensor, "row label"]] = class_log_probs

    def log_probs(self, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row label"]:
        """Return log p(class | text)."""
        return self.of_logits(self.logits(tokens))

    def log_phi(self, tokens: Int[Tensor, "row position"], given: Tensor | None = None) -> Float[Tensor, "row"]:
        label = given if self.label is None else torch.full_like(tokens[:, 0], self.label)
        assert label is not None
        return self.beta * self.log_probs(tokens).gather(1, label.unsqueeze(1)).squeeze(1)


@dataclass
class ThresholdTarget:
    """log of 1 or 1e-16: whether a score is above (or below) a threshold."""

    score: Callable[[Int[Tensor, "row position"]], Float[Tensor, "row"]]
    threshold: float
    above: bool = True
    floor: float = FLOOR
    beta: float = 1.0  # weight of log phi; a threshold has none

    def log_phi(self, tokens: Int[Tensor, "row position"], given: Tensor | None = None) -> Float[Tensor, "row"]:
        score = self.score(tokens)
        passes = score > self.threshold if self.above else score < self.threshold
        return torch.zeros_like(score).masked_fill(~passes, math.log(self.floor))


@dataclass
class RewardTarget:
    """beta * (reward - highest). highest: upper bound of the reward, so that phi is a probability; it only changes Z."""

    score: Callable[[Int[Tensor, "row position"]], Float[Tensor, "row"]]
    beta: float = 1.0
    highest: float = 0.0

    def log_phi(self, tokens: Int[Tensor, "row position"], given: Tensor | None = None) -> Float[Tensor, "row"]:
        return self.beta * (self.score(tokens) - self.highest)


@dataclass
class ContinuationTarget:
    """For a causal model p: the continuation of the text, `text`, or `given` of each row (infilling).

    form: log_prob beta * log p(continuation | text); prob beta * p(continuation | text), as a log potential; posterior beta
    * log p(continuation | text) - log p(text behind the prompt), so that sigma is the continuation's likelihood only.
    """

    model: CausalLM
    text: Int[Tensor, "token"] | None = None
    beta: float = 1.0
    form: str = "log_prob"
    first: int = 0  # length of the prompt

    def log_phi(self, tokens: Int[Tensor, "row position"], given: Tensor | None = None) -> Float[Tensor, "row"]:
        follows = given if self.text is None else self.text.to(tokens.device).expand(len(tokens), -1)
        assert follows is not None
        each = sequence_log_prob(self.model, torch.cat((tokens, follows), 1))
        log_prob = each[:, tokens.shape[1] :].sum(1)
        if self.form == "prob":
            return self.beta * log_prob.exp()
        own = each[:, self.first : tokens.shape[1]].sum(1) if self.form == "posterior" else 0.0
        return self.beta * log_prob - own


@dataclass
class RevealedTarget:
    """For a masked model: beta times the sum of log p of the continuation's tokens (`text`, or `given` of each row).

    Tokens are revealed from the left, each predicted on the canvas at that moment; one forward pass each.
    """

    model: MaskedLM
    text: Int[Tensor, "token"] | None = None
    beta: float = 1.0

    @torch.no_grad()
    def log_phi(self, tokens: Int[Tensor, "row position"], given: Tensor | None = None) -> Float[Tensor, "row"]:
        follows = given if self.text is None else self.text.to(tokens.device).expand(len(tokens), -1)
        assert follows is not None
        canvas = F.pad(tokens, (0, follows.shape[1]), value=self.model.mask_id)
        total = torch.zeros(len(tokens), device=tokens.device)
        for column, token in enumerate(follows.unbind(1), tokens.shape[1]):
            read = torch.zeros_like(canvas, dtype=torch.bool)
            read[:, column] = True
            hidden, size = self.model.hidden(canvas, read), self.model.chunk(canvas.device)
            pieces = zip(hidden.split(size), token.split(size), strict=True)
            total -= torch.cat([F.cross_entropy(self.model.head(h), t, reduction="none") for h, t in pieces])
            canvas[:, column] = token
        return self.beta * total


def text_reward(
    reward: str | TextReward, model: MaskedLM, prompt: int
) -> Callable[[Int[Tensor, "row position"]], Float[Tensor, "row"]]:
    """Return a reward of texts, or the reward of that name (rewards/models.py), as a reward of canvases.

    Args:
        prompt: number of positions at the start of a canvas that are the prompt.
    """
    if isinstance(reward, str):
        loaded = load_reward(reward, next(model.parameters()).device)
        assert isinstance(loaded, TextReward)
        reward = loaded
    ends = end_tokens(model.tokenizer)

    def score(tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row"]:
        free = behind(tokens, prompt)
        prompts = texts_of(tokens, ~free, model.tokenizer)
        answers = texts_of(tokens, before_end(tokens, free, ends), model.tokenizer)
        return reward.score_texts(prompts, answers, has_end(tokens, free, ends).tolist()).to(tokens.device)

    return score


def valid_formulas(texts: list[str]) -> Float[Tensor, "row"]:
    """Return 1 for texts that have formulas, all of them valid, else 0."""

    def valid(text: str) -> bool:
        pieces, _ = spans(text)
        return bool(pieces) and all(piece.closed and is_valid(piece.text) for piece in pieces)

    return torch.tensor([float(valid(text)) for text in texts])


def encoded(model: MaskedLM, text: str) -> Int[Tensor, "token"]:
    """Return the tokens of a continuation. ValueError for an empty one."""
    tokens = model_ids(model, text, "target.text") if text else []
    if not tokens:
        raise ValueError("target.text is empty, and the target is how likely it is that this text follows; give some")
    return torch.tensor(tokens)


def check_continuation(model: MaskedLM, prompt: int, written: int, given: int) -> None:
    """Refuse lengths that do not fit: ValueError."""
    if given > written:
        raise ValueError(
            f"the text is conditioned on {given} tokens and {written} are written; give at most as many as are written"
        )
    if prompt + written + given > model.max_length:
        raise ValueError(
            f"a prompt of {prompt}, {written} written and {given} given tokens are {prompt + written + given}, and the model "
            f"reads {model.max_length}; shorten the output"
        )


def classified_target(settings: Mapping[str, Any], model: MaskedLM, prompt: int, written: int) -> Target:
    """Build the target `class` (the probability of a label) or `threshold` (a logit, or a difference of two, on one side of
    a bound).
    """
    kind, label, name = settings["kind"], settings.get("label"), settings["classifier"]
    loaded = load_classifier(name, next(model.parameters()).device, settings.get("classes"))
    classifier = ClassifiedTexts(model.tokenizer, loaded, prompt)
    _check_label(label, kind, loaded, name)
    if kind == "class":
        return ClassTarget(classifier, label, _beta(settings), loaded.log_probs)
    against = settings.get("against")  # the other logit of a difference; None: one logit

    def score(tokens: Tensor) -> Tensor:
        logits = classifier(tokens)
        return logits[:, label or 0] - (0.0 if against is None else logits[:, against])

    return ThresholdTarget(score, float(settings["threshold"]), settings.get("above", True))


def _check_label(label: int | None, kind: str, loaded: SequenceClassifier, name: str) -> None:
    """Refuse a label that the classifier lacks, and a missing label if no class can be drawn: ValueError."""
    logits = loaded.model.config.num_labels
    exclusive = loaded.problem not in ("multi_label_classification", "regression")
    classes = max(2, logits) if kind == "class" and exclusive else logits
    if kind == "class" and label is None and not exclusive:
        raise ValueError(
            f"target.label=null draws a class for each text, and the labels of {name} are no classes of "
            f"which one is drawn ({loaded.problem}); give a label from 0 to {logits - 1}"
        )
    if label is not None and not 0 <= label < classes:
        raise ValueError(
            f"target.label={label} and the classifier {name} has {classes} classes; give one from 0 to {classes - 1}"
        )


def following_target(settings: Mapping[str, Any], model: MaskedLM, prompt: int, written: int) -> Target:
    """Build the target `infilling` (the probability of the tokens that follow in the data) or `continuation` (that of a
    fixed text).
    """
    kind, form, beta = settings["kind"], settings.get("form", "log_prob"), _beta(settings)
    if form not in CONTINUATIONS:
        raise ValueError(f"target.form={form!r} is unknown; use one of {', '.join(CONTINUATIONS)}")
    if isinstance(model, BeforeTail):
        if form != "log_prob":
            raise ValueError(f"target.form={form} needs a causal model, and this one is masked; use form=log_prob")
        follows = encoded(model, settings["text"]) if kind == "continuation" else None
        check_continuation(model.whole, prompt, max(written, model.tail if follows is not None else 0), model.tail)
        return RevealedTarget(model.whole, follows, beta)
    assert isinstance(model, CausalLM)
    if kind == "infilling":
        check_continuation(model, prompt, written, settings["tokens"])
        return ContinuationTarget(model, None, beta, form, prompt)
    text = encoded(model, settings["text"])
    check_continuation(model, prompt, max(written, len(text)), len(text))
    return ContinuationTarget(model, text, beta, form, prompt)


def latex_target(settings: Mapping[str, Any], model: MaskedLM, prompt: int, written: int) -> Target:
    """Build the target `latex`: a text has formulas and all of them are valid."""
    return ThresholdTarget(ClassifiedTexts(model.tokenizer, valid_formulas, prompt), 0.5)


def reward_target(
    settings: Mapping[str, Any], model: MaskedLM, prompt: int, reward: TextReward | None = None
) -> Target:
    """Build the target `reward`: log phi is beta times a reward of texts. reward: in place of the one that the settings name."""
    if reward is None and settings["reward"].startswith(CALLERS):
        name = settings["reward"].removeprefix(CALLERS)
        raise ValueError(f"the target is the caller's reward {name}, which no file holds; give it again: reward={name}")
    score = text_reward(settings["reward"] if reward is None else reward, model, prompt)
    return RewardTarget(score, _beta(settings), float(settings.get("highest", 0.0)))


def _beta(settings: Mapping[str, Any]) -> float:
    return float(settings.get("beta", 1.0))


TARGETS: dict[str, Callable[[Mapping[str, Any], MaskedLM, int, int], Target]] = {
    "class": classified_target,
    "threshold": classified_target,
    "infilling": following_target,
    "continuation": following_target,
    "latex": latex_target,
}


def build_target(
    settings: Mapping[str, Any], model: MaskedLM, prompt: int, written: int, reward: TextReward | None = None
) -> Target:
    """Build the target of a configuration with `kind` (configs/target).

    Args:
        prompt, written: number of given and of generated positions.
        reward: of kind `reward`: in place of the one that the settings name.

    Raises:
        ValueError: a setting is unknown or does not fit.
    """
    kind = settings["kind"]
    if prompt + written > model.max_length:
        raise ValueError(
            f"a prompt of {prompt} and an output of {written} positions are {prompt + written}, and the model reads "
            f"{model.max_length}; shorten the output"
        )
    if kind == "reward":
        return reward_target(settings, model, prompt, reward)
    if reward is not None:
        raise ValueError(f"a reward would do nothing with target.kind={kind}, which has none; leave it out")
    if kind not in TARGETS:
        raise ValueError(f"target.kind={kind!r} is unknown; use one of {', '.join((*TARGETS, 'reward'))}")
    return TARGETS[kind](settings, model, prompt, written)
