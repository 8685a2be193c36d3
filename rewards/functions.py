"""A user's function of texts as a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType

import torch
from jaxtyping import Float
from torch import Tensor


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

        ValueError if it returns another number of values than texts. An error of the function itself reaches the caller.
        """
        values = torch.as_tensor(self.function(texts), dtype=torch.float32)
        if values.shape != (len(texts),):
            raise ValueError(
                f"the reward {self.name} returned values of shape {list(values.shape)} for {len(texts)} texts; return one number "
                "for each text"
            )
        return values
