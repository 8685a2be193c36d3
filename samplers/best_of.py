"""Best of N: draw N samples of each row and keep the one with the highest reward.

The N samples differ, because each has its own row id and so its own random draws. (A published script draws with top_p=0,
which leaves one token, and so compares N equal samples.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.loop import OnStep, Record, StepDecoder
from samplers.samples import Samples


@dataclass
class BestOf:
    """Draw `count` samples of each row by `decoder` and keep the one with the highest reward.

    Args:
        decoder: draws the samples.
        count: samples per row (N).
        reward: of finished canvases, given the column where each begins (None: column 0). -inf is the lowest reward; if all
            samples of a row have it, the first one is kept.
    """

    decoder: StepDecoder
    count: int
    reward: Callable[[Int[Tensor, "many position"], Int[Tensor, "many"] | None], Tensor]

    def decode(
        self,
        model: MaskedLM,
        prompts: Prompts,
        options: DecodeOptions,
        seed: int = 0,
        row_id: Int[Tensor, "row"] | None = None,
        record: Record | None = None,
        on_step: OnStep | None = None,
    ) -> Samples:
        """Decode every prompt (`samplers.loop.Decoder.decode`). The NFE of a row is the sum over its N samples.

        Raises:
            FloatingPointError: a reward is NaN; the message names the rows.
        """
        samples, rewards = self.candidates(model, prompts, options, seed, row_id, on_step)
        best = rewards.argmax(1) + torch.arange(len(rewards), device=rewards.device) * self.count
        evaluations = samples.evaluations.view(-1, self.count).sum(1)
        return replace(samples.take(best), evaluations=evaluations, reward_rows=rewards.numel())

    def candidates(
        self, model: MaskedLM, prompts: Prompts, options: DecodeOptions, seed: int = 0,
        row_id: Int[Tensor, "row"] | None = None, on_step: OnStep | None = None,
    ) -> tuple[Samples, Float[Tensor, "row count"]]:  # fmt: skip
        """Draw all N samples of every row and score them. Samples of a row are consecutive."""
        device = prompts.canvas.device
        row_id = torch.arange(len(prompts.canvas), device=device) if row_id is None else row_id
        many = (row_id.unsqueeze(1) * self.count + torch.arange(self.count, device=device)).flatten()
        copies = prompts.repeat(self.count)
        samples = self.decoder.decode(model, copies, options, seed, many, on_step=on_step)
        rewards = self.reward(samples.tokens, copies.start).view(-1, self.count)
        wrong = (rewards.isnan() | (rewards == torch.inf)).any(1)
        if bool(wrong.any()):
            raise FloatingPointError(
                f"the reward of a sample is not a finite number (row {', '.join(map(str, row_id[wrong].tolist()[:5]))}); check "
                "the reward model"
            )
        return samples, rewards
