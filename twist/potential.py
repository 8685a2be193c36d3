"""A twist and its target as the potential of a particle filter: logit biases of tokens, psi of states, phi of finished
text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.observation import Observation
from twist.network import TwistModel
from twist.targets import Target


@dataclass
class TwistPotential:
    """given: the condition of each sample, [filter] or [filter, token]; particles: of each sample."""

    twist: TwistModel
    target: Target
    particles: int
    given: Tensor | None = None

    def __post_init__(self):
        self._given = None if self.given is None else self.given.repeat_interleave(self.particles, 0)
        self._condition: Tensor | None = None
        if self.given is not None and self.twist.settings["condition"] != "none":
            with torch.no_grad():  # once a sample: its particles share it
                self._condition = self.twist.encode(self.given).repeat_interleave(self.particles, 0)

    def logit_bias(
        self, hidden: Float[Tensor, "read width"], row: Int[Tensor, "read"]
    ) -> Float[Tensor, "read vocabulary"]:
        condition = None if self._condition is None else self._condition[row]
        return self.twist.log_psi_next(self.twist.own(hidden), condition)

    def log_psi(self, observation: Observation) -> Float[Tensor, "row"]:
        """Return log psi by the scalar head. Its forward pass is the one that the next step needs anyway."""
        hidden = observation.hidden(observation.masked)
        return self.twist.log_psi_state(
            hidden[..., -self.twist.model.hidden_size :], observation.masked, self._condition
        )

    def final(
        self, tokens: Int[Tensor, "finished position"], rows: Int[Tensor, "finished"]
    ) -> Float[Tensor, "finished"]:
        return self.target.log_phi(tokens, None if self._given is None else self._given[rows])

    def select(self, index):
        """Do nothing: conditions belong to samples, and particles stay within their sample."""
