"""A new backbone: a Markov chain as a MaskedLM. Its predictions are the exact conditionals, so its samples can be checked.

Given the tokens that stand, the one at position i depends on the nearest to its left and the nearest to its right:
p(v) ~ P^(distance to the left)[left, v] * P^(distance to the right)[v, right].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dlm.masked_lm import MaskedLM


class BigramLM(MaskedLM):
    """start: probability of each first token; transition[a, b]: of b after a."""

    def __init__(
        self, start: Float[Tensor, "token"], transition: Float[Tensor, "token token"], max_length: int, tokenizer=None
    ):
        super().__init__(nn.Identity())
        self.mask_id = len(start)
        self.vocab_size = self.mask_id + 1  # the mask's column is among the logits
        self.max_length, self.hidden_size, self.tokenizer = max_length, 4, tokenizer
        # One more state, before the first token: `start` is then a transition like the others.
        step = torch.cat([F.pad(transition, (0, 1)), F.pad(start, (0, 1)).unsqueeze(0)]).double()
        powers = [torch.linalg.matrix_power(step, distance) for distance in range(max_length + 1)]
        self.log_powers = nn.Parameter(torch.stack(powers).log().float(), requires_grad=False)

    def hidden_rows(
        self, tokens: Int[Tensor, "row position"], read: Bool[Tensor, "row position"], sigma=None
    ) -> Float[Tensor, "read 4"]:
        """The nearest token on either side of each position read, and how far it is; `mask_id` where there is none."""
        length = tokens.shape[1]
        place = torch.arange(length, device=tokens.device).expand_as(tokens)
        known = tokens != self.mask_id
        left = torch.where(known, place, -1).cummax(1).values
        right = torch.where(known, place, length).flip(1).cummin(1).values.flip(1)
        around = F.pad(tokens, (1, 1), value=self.mask_id)  # position i of `tokens` is i + 1 here
        left_token, right_token = around.gather(1, left + 1), around.gather(1, right + 1)
        return torch.stack([left_token, place - left, right_token, right - place], -1)[read].float()

    def head(self, hidden: Float[Tensor, "read 4"]) -> Float[Tensor, "read column"]:
        left, before, right, after = hidden.long().unbind(1)
        forward = self.log_powers[before, left, : self.mask_id]
        backward = self.log_powers[after, : self.mask_id, right]
        logits = forward + torch.where((right == self.mask_id).unsqueeze(1), 0.0, backward)
        return F.pad(logits, (0, 1), value=-torch.inf)
