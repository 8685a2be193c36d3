"""Rewards that a Python caller gives: a function of texts, or an object with `score_texts`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rewards.models import TextReward
from training.ranges import as_text

CALLERS = "python:"  # in a stored setting, before the name of an object of a Python caller


@dataclass(frozen=True)
class FunctionReward:
    """A function of a list of texts, which returns one number for each, as a reward of texts.

    Example:
        >>> FunctionReward(lambda texts: [len(text) for text in texts]).score_texts([""], ["a cat"]).tolist()
        [5.0]
    """

    function: Callable[[list[str]], Sequence[float] | Tensor]

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.function.__name__ if isinstance(self.function, FunctionType) else type(self.function).__name__

    def score_texts(
        self, prompts: list[str], texts: list[str], finished: Sequence[bool] | None = None
    ) -> Float[Tensor, "row"]:
        """Return the values of the function.

        ValueError if it returns no numbers, or another number of values than texts. An error of the function itself reaches the
        caller.
        """
        found: Any = self.function(texts)
        try:
            values = torch.as_tensor(found, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:  # of the conversion, not of the function
            raise ValueError(
                f"the reward {self.name} returned {as_text(repr(found))} of type {type(found).__name__} for {len(texts)} texts; "
                "return a list or a tensor with one number for each text"
            ) from error
        if values.shape != (len(texts),):
            raise ValueError(
                f"the reward {self.name} returned values of shape {list(values.shape)} for {len(texts)} texts; return one number "
                "for each text"
            )
        return values


@dataclass(frozen=True)
class FiniteReward(FunctionReward):
    """A function as the reward of decoding, which needs a number for every text. Training leaves out a text without one."""

    def score_texts(
        self, prompts: list[str], texts: list[str], finished: Sequence[bool] | None = None
    ) -> Float[Tensor, "row"]:
        """Return the values of the function. ValueError for NaN and +inf; -inf is the lowest reward."""
        values = super().score_texts(prompts, texts, finished)
        wrong = (values.isnan() | (values == torch.inf)).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(
                f"the reward {self.name} returned {values[wrong[0]].item()} for the text {as_text(repr(texts[wrong[0]]))}; "
                "return a finite number"
            )
        return values


def reward_of(reward: Any, argument: str = "reward") -> TextReward:
    """Return a reward of texts: the object itself, or a function of texts as one. ValueError for other objects.

    argument: its name, for the message.
    """
    if isinstance(reward, TextReward):
        return reward
    if not callable(reward):
        raise ValueError(
            f"{argument}={as_text(reward)} of type {type(reward).__name__} has no `score_texts` and cannot be called; give a "
            "name, a reward model, or a function of a list of texts"
        )
    function: Any = reward
    return FunctionReward(function)


def decoding_reward(reward: Any) -> TextReward:
    """Return a reward of texts for decoding. ValueError for an object that is none."""
    found = reward_of(reward)
    return FiniteReward(found.function) if isinstance(found, FunctionReward) else found


def name_of(reward: TextReward) -> str:
    """Return the name of a reward, for messages and stored configurations."""
    return reward.name if isinstance(reward, FunctionReward) else type(reward).__name__
