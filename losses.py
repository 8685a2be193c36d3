"""Every training objective as a pure function of tensors: denoising cross-entropies, GRPO, PPO, the variational objective.

Denoising: t-DCE, lambda-DCE and k-DCE of RADD (2406.03736), plain masked cross-entropy, and next-token loss. The published
t-DCE subtracts a term that does not depend on the network and only adds variance; it is left out here. Losses are per token
(nats), where the published code sums over a row: AdamW does not notice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

# ---------------------------------------------------------------------------------------------------------------- denoising


def low_discrepancy_times(
    rows: int, uniform: Float[Tensor, "..."], low: float = 1e-3, high: float = 1.0
) -> Float[Tensor, "row"]:
    """One time a row, spread evenly over [low, high): the offset is random, the gaps are not, so that the mean over a
    batch hardly varies. `uniform`: a single number in [0, 1) shared by the rows, or one per row to jitter inside its cell."""
    even = (torch.arange(rows, dtype=uniform.dtype, device=uniform.device) / rows + uniform) % 1
    return low + (high - low) * even


def mask_exactly(uniforms: Float[Tensor, "row position"], count: Int[Tensor, "row"]) -> Bool[Tensor, "row position"]:
    """Exactly count[row] positions, uniformly: those of the lowest uniforms."""
    rank = uniforms.argsort(1).argsort(1)
    return rank < count.unsqueeze(1)


def denoising_loss(
    log_prob: Float[Tensor, "masked"],
    row: Int[Tensor, "masked"],
    weight: Float[Tensor, "row"],
    length: int,
) -> Float[Tensor, ""]:
    """-sum over masked positions of weight[row] * log p(token), averaged over rows * length: nats per token.

    With the weights of `dlm.pretrain.corrupt` this is the t-DCE, lambda-DCE or k-DCE bound on -log p(x) / length.
    """
    return -(weight[row] * log_prob).sum() / (len(weight) * length)


def next_token_loss(
    logits: Float[Tensor, "row position vocabulary"], tokens: Int[Tensor, "row position"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of tokens[1:] given what precedes, in nats."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
