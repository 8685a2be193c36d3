"""Checks of the choices of a user's unmasking rule or decoder: an invalid choice raises one sentence that names the object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.observation import Decision, Observation
from samplers.loop import StepDecoder, Unmasker


def check_order(order: Any, observation: Observation, name: str) -> None:
    """Refuse ranks of another shape than the canvases, and selected positions that are not open.

    Args:
        name: of the object that chose, for the message.

    Raises:
        ValueError: names the object, the sample and the position.
    """
    expected = list(observation.tokens.shape)
    if not isinstance(order, Tensor) or list(order.shape) != expected or order.is_floating_point():
        found = (
            f"shape {list(order.shape)} and type {order.dtype}" if isinstance(order, Tensor) else type(order).__name__
        )
        raise ValueError(
            f"{name} returned ranks of {found}; return whole numbers of shape {expected}, 0 for positions to leave"
        )
    wrong = (order > 0) & ~observation.writable
    if bool(wrong.any()):
        row, position = (int(place) for place in wrong.nonzero()[0])
        raise ValueError(
            f"{name} selected position {position} of sample {int(observation.row_id[row])}, which is not open; select positions "
            "where observation.writable is True"
        )


@dataclass
class CheckedRule:
    """An unmasking rule whose selected positions are checked."""

    rule: Unmasker

    def choose(
        self, observation: Observation, draws: Draws
    ) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row"]]:
        """Return the choice of the rule. ValueError for positions that are not open."""
        name = f"the unmasking rule {type(self.rule).__name__}"
        found: Any = self.rule.choose(observation, draws)
        if not isinstance(found, tuple) or len(found) != 2:
            raise ValueError(f"`choose` of {name} returned {type(found).__name__}; return ranks and log-probabilities")
        order, log_positions = found
        check_order(order, observation, name)
        return order.to(torch.long), log_positions


@dataclass
class CheckedDecoder(StepDecoder):
    """A step decoder whose decisions are checked."""

    decoder: StepDecoder

    def decide(self, observation: Observation, draws: Draws) -> Decision:
        """Return the decision of the decoder. ValueError for positions that are not open."""
        decision = self.decoder.decide(observation, draws)
        check_order(decision.order, observation, f"the decoder {type(self.decoder).__name__}")
        return decision
