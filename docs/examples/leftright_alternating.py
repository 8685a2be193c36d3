"""A new *where* rule: from both ends inward. It never looks at the model, so a step of it costs one evaluation at most.

To use it from the command line, move the class to samplers/heuristics.py and add `"left_right": LeftRight` to UNMASKING_RULES.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.observation import Observation
from samplers.heuristics import nothing


@dataclass
class LeftRight:
    """A fixed count a step: leftmost, rightmost, second from the left, second from the right, ..."""

    def choose(
        self, observation: Observation, draws: Draws
    ) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row"]]:
        writable = observation.writable
        from_left = writable.cumsum(1)  # 1, 2, 3, ... among the positions that may be written
        from_right = writable.flip(1).cumsum(1).flip(1)
        right_first = ((observation.block_masks - writable.sum(1)) % 2).unsqueeze(1)  # an odd number is written
        turn = torch.minimum(2 * from_left - 1 + right_first, 2 * from_right - right_first)
        selected = writable & (turn <= observation.count().unsqueeze(1))
        return torch.where(selected, turn, 0), nothing(observation)
