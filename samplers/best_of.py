"""Best of N: N samples of each row, the one of the highest reward is kept.

The N differ: each has a row id, and so draws, of its own. (A published script draws with top_p=0, which leaves one token, and so
compares N equal samples.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.environment import UnmaskingEnvironment
from samplers.loop import Decoder, sample
from samplers.samples import Samples


def best_of(
    environment: UnmaskingEnvironment,
    strategy: Decoder,
    canvas: Int[Tensor, "row position"],
    count: int,
    reward: Callable[[Int[Tensor, "many position"], Int[Tensor, "many"] | None], Tensor],
    seed: int = 0,
    row_id: Int[Tensor, "row"] | None = None,
    start: Int[Tensor, "row"] | None = None,
) -> tuple[Samples, Float[Tensor, "row count"]]:
    """The best sample of each row, whose evaluations are those of all N; and the rewards of all.

    reward: of finished canvases and where each begins; -inf is the worst there is, and a row all of whose samples have it keeps
    the first. Raises FloatingPointError where it is no number, and names the rows.
    """
    row_id = torch.arange(len(canvas), device=canvas.device) if row_id is None else row_id
    many = (row_id.unsqueeze(1) * count + torch.arange(count, device=canvas.device)).flatten()
    starts = None if start is None else start.repeat_interleave(count)
    samples = sample(environment, strategy, canvas.repeat_interleave(count, 0), seed, many, start=starts)
    rewards = reward(samples.tokens, starts).view(-1, count)
    wrong = (rewards.isnan() | (rewards == torch.inf)).any(1)
    if bool(wrong.any()):
        raise FloatingPointError(
            f"the reward of a sample is not a finite number (row {', '.join(map(str, row_id[wrong].tolist()[:5]))}); check the "
            "reward model"
        )
    best = rewards.argmax(1) + torch.arange(len(canvas), device=canvas.device) * count
    kept = samples.take(best)
    return replace(kept, evaluations=samples.evaluations.view(-1, count).sum(1)), rewards
