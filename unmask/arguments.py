"""Checks of the arguments of `unmask.sample`. Each refusal is one sentence that names the argument and its value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from typing_extensions import TypeIs

from dlm.masked_lm import MaskedLM
from policy.base import PolicyNetwork
from policy.checkpoints import check_fits, check_trained_on
from policy.unmasker import PolicyUnmasker
from samplers.loop import Strategy, Unmasker
from samplers.settings import SamplerSettings, check_given, idle
from training.ranges import ANY_SEED, COUNT, LENGTH, ROWS, Range, Text, Whole, as_text

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
RANGES: dict[str, Range] = {
    "template": Text(empty=True), "suffix": Text(empty=True), "length": LENGTH, "num_samples": COUNT, "batch_size": ROWS,
    "seed": ANY_SEED,
}  # fmt: skip
OPTIONAL = ("template", "suffix", "length")  # None stands for the default
# The settings that an object reads in place of a strategy's name: a decoder, and an unmasking rule.
OF_DECODER = (
    "steps", "budget", "alpha", "block_length", "cache", "refresh", "guidance", "stop", "logits_eos_inf",
    "confidence_eos_eot_inf", "policy.other_model",
)  # fmt: skip
OF_RULE = (*OF_DECODER, "temperature", "top_p", "top_k")


def check_arguments(arguments: Mapping[str, Any], on_step: object) -> None:
    """Refuse arguments of `sample` outside their ranges: ValueError."""
    for name, value in arguments.items():
        if not RANGES[name].holds(plain(value)) and not (value is None and name in OPTIONAL):
            raise ValueError(f"{name}={as_text(repr(value))} must be {RANGES[name].allowed}; change it")
    if on_step is not None and not callable(on_step):
        raise ValueError(f"on_step={as_text(on_step)} cannot be called; give a function of an observation and of rows")


def plain(value: Any) -> Any:
    """Return tensors, arrays and numbers of NumPy, also as items of a list, as those of Python."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def checked_prompts(model: MaskedLM, prompts: Any) -> Any:
    """Return prompts as texts and lists. ValueError for an object that is neither a prompt nor a list of prompts."""
    prompts = plain(prompts)
    if prompts is None or isinstance(prompts, str):
        return prompts
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise ValueError(
            f"prompts={as_text(prompts)} of type {type(prompts).__name__} must be a text, token ids, chat messages, or a list of "
            "these; change it"
        )
    found = list(prompts)
    for prompt in [found] if is_prompt(found) else found:
        check_prompt(model, prompt)
    return found


def is_prompt(prompts: object) -> TypeIs[Prompt]:
    """Return whether an object is one prompt, and not a list of prompts."""
    return isinstance(prompts, str) or (
        isinstance(prompts, Sequence) and bool(prompts) and isinstance(prompts[0], int | Mapping)
    )


def check_prompt(model: MaskedLM, prompt: Any) -> None:
    """Refuse one prompt that is neither a text, token ids of the model nor chat messages: ValueError."""
    if prompt is None or isinstance(prompt, str):
        return
    if not isinstance(prompt, Sequence):
        raise ValueError(
            f"the prompt {as_text(prompt)} of type {type(prompt).__name__} must be a text, token ids or chat messages; change it"
        )
    if not prompt:
        raise ValueError("the prompt [] has no token ids; give at least one, or None for a blank canvas")
    if isinstance(prompt[0], Mapping):
        wrong = [one for one in prompt if not isinstance(one, Mapping) or not {"role", "content"} <= one.keys()]
        if wrong:
            raise ValueError(f"the chat message {as_text(wrong[0])} must have the keys 'role' and 'content'; change it")
        return
    token = Whole(0, model.vocab_size - 1)
    if wrong := [one for one in prompt if not token.holds(one) and one != model.mask_id]:
        raise ValueError(
            f"the prompt {as_text(prompt)} has {as_text(wrong[0])}, which is no token id; every token id is {token.allowed}"
        )


def check_used(
    model: MaskedLM, strategy: object, settings: SamplerSettings, given: Mapping[str, Any], reward: object
) -> None:
    """Refuse keyword arguments that the strategy or the model does not read.

    Args:
        given: settings that the caller gave, nested ones as dictionaries. Defaults do not count.

    Raises:
        ValueError: names the argument and the strategy.
    """
    keys = given_keys(given)
    if "steps" in keys and model.causal:
        raise ValueError("steps would do nothing with a causal model, which commits one token a step; leave it out")
    if isinstance(strategy, PolicyNetwork):
        settings = replace(settings, strategy="policy")
        if "policy.path" in keys:
            raise ValueError("policy.path would do nothing with a policy as the strategy; leave one of them out")
    elif strategy is not None and not isinstance(strategy, str | SamplerSettings):
        return check_used_by_object(strategy, keys + (["reward"] if reward is not None else []))
    check_given(settings, {f"sampler.{key}": key for key in keys}, "strategy=")
    of_twist = settings.strategy == "twisted_smc" and not isinstance(reward, str)  # `build_target` checks it
    if reward is not None and not of_twist and (reason := idle(settings, "sampler.guide.reward", "strategy=")):
        raise ValueError(f"reward {reason}")
    if reward is not None and settings.guide.reward is not None:
        raise ValueError(f"reward and guide.reward={settings.guide.reward} name two rewards; leave one of them out")


def check_used_by_object(strategy: object, keys: list[str]) -> None:
    """Refuse arguments that a rule or a decoder of the caller does not read: ValueError."""
    known = OF_RULE if isinstance(strategy, Unmasker) else OF_DECODER
    if unread := [key for key in keys if key not in known]:
        raise ValueError(
            f"{unread[0]} would do nothing with strategy={type(strategy).__name__}(...), an object that does not read it; leave "
            "it out"
        )


def given_keys(settings: Mapping[str, Any], before: str = "") -> list[str]:
    """Return the keys of settings, those of nested dictionaries in dots."""
    found: list[str] = []
    for key, value in settings.items():
        found += given_keys(value, f"{before}{key}.") if isinstance(value, Mapping) else [f"{before}{key}"]
    return found


def check_policy(strategy: object, settings: SamplerSettings, model: MaskedLM) -> None:
    """Refuse a policy, as an object, that was trained on another model or does not fit this one: ValueError."""
    rule = strategy.rule if isinstance(strategy, Strategy) else strategy
    network = rule.network if isinstance(rule, PolicyUnmasker) else rule
    if isinstance(network, PolicyNetwork):
        check_trained_on(network, type(network).__name__, model, settings.policy.other_model)
        check_fits(network, model)
