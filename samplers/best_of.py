"""Best of N: N samples of each row, of which the one of highest reward is kept.

The N samples differ, since each has a row id and so random draws of its own. (A published script draws with top_p=0, which leaves
one token, and so compares N equal samples.)
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
    """Best of `count` samples of `decoder`, by a reward of finished canvases.

    reward: of canvases and where each begins (None: at column 0). -inf is the lowest reward; a row all of whose samples have it
    keeps the first one.
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
        """See `samplers.loop.Decoder.decode`; the evaluations of a row are those of all its samples.

        Raises FloatingPointError where a reward is not a number, and names the rows.
        """
        samples, rewards = self.candidates(model, prompts, options, seed, row_id, on_step)
        best = rewards.argmax(1) + torch.arange(len(rewards), device=rewards.device) * self.count
        evaluations = samples.evaluations.view(-1, self.count).sum(1)
        return replace(samples.take(best), evaluations=evaluations, reward_rows=rewards.numel())

    def candidates(
        self, model: MaskedLM, prompts: Prompts, options: DecodeOptions, seed: int = 0,
        row_id: Int[Tensor, "row"] | None = None, on_step: OnStep | None = None,
    ) -> tuple[Samples, Float[Tensor, "row count"]]:  # fmt: skip
        """All samples, those of a row one behind the other, and their rewards."""
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
