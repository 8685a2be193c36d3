"""Heads of twists: from a hidden state to log psi of the text with each token next, or to log psi of the text as it stands.

Zhao et al. (2404.17546): one V-vector per position, so that psi of every next token costs one pass; linear, or an MLP with ReLU;
conditioned by what is set beside the hidden state; log psi any number or, for FUDGE, the logarithm of a probability.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class TwistHead(nn.Module):
    """[.., width] (and [.., condition]) -> [.., columns].

    layers: 1 is linear, else an MLP whose inner widths are `multiplier` times its input's; bounded: log psi = log sigmoid; level:
    one column more, added to all, for losses that fit what psi is and not how it differs: a level that each column had to learn
    for itself would leave the tokens that were not seen yet above those that were, and the proposal would prefer them.
    At the start psi is the same everywhere, and the proposal is the model: the last layer is 0. (Published are random weights,
    which come to nearly that on states of unit size; on those of a masked model of ours they put the proposal 20 nats away.)
    """

    def __init__(
        self, width: int, columns: int, layers: int = 1, multiplier: float | int = 1.0, condition: int = 0,
        bounded: bool = False, level: bool = False,
    ):  # fmt: skip
        super().__init__()
        if layers < 1:
            raise ValueError(f"a twist head of layers={layers} is none; give at least 1")
        inner = int((width + condition) * multiplier)
        sizes = [width + condition, *[inner] * (layers - 1)]
        self.inner = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.last = nn.Linear(sizes[-1], columns)
        self.level = nn.Linear(sizes[-1], 1) if level else None
        self.bounded = bounded
        for layer in self.inner:
            nn.init.xavier_normal_(layer.weight)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        for layer in (self.last, self.level):
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def _before_last(self, hidden: Tensor, condition: Tensor | None) -> Tensor:
        states = hidden if condition is None else torch.cat((hidden, condition), -1)
        for layer in self.inner:
            states = F.relu(layer(states))
        return states

    def _as_log_psi(self, values: Tensor) -> Tensor:
        return F.logsigmoid(values) if self.bounded else values

    def forward(
        self, hidden: Float[Tensor, "*batch width"], condition: Float[Tensor, "*batch given"] | None = None
    ) -> Float[Tensor, "*batch columns"]:
        states = self._before_last(hidden, condition)
        values = self.last(states)
        return self._as_log_psi(values if self.level is None else values + self.level(states))

    def of(
        self, hidden: Float[Tensor, "read width"], tokens: Int[Tensor, "read"],
        condition: Float[Tensor, "read given"] | None = None,
    ) -> Float[Tensor, "read"]:  # fmt: skip
        """`forward` at one column each: no row as long as the vocabulary exists."""
        states = self._before_last(hidden, condition)
        values = (states * self.last.weight[tokens]).sum(-1) + self.last.bias[tokens]
        return self._as_log_psi(values if self.level is None else values + self.level(states).squeeze(-1))
