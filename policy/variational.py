"""The variational objective: a masking order q and an unmasking order, both learned, bound the likelihood of clean text.

Source: genpolicy ("Trainable Policy for Fast Sampling", sjchen0/genpolicy). From a clean row, K steps mask equal parts of
it by the masking channel. The bound scores the frozen model's tokens and the unmasking channel's selections in the reverse
direction. What differs: the masking channel learns, by REINFORCE with the entropy term of the bound; selections are scored
as a sequence without replacement, in the reverse of the masking order, so that the quantity is a bound; each canvas is
evaluated once (K + 1 evaluations, not 2 K); given positions stay. A network without a masking channel masks uniformly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.environment import UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from losses import variational_loss
from policy.actions import FixedCount
from policy.base import PolicyNetwork
from policy.networks import HiddenMLP
from policy.unmasker import distribution_settings


@dataclass
class MaskingPath:
    """K masking steps of B rows: the network's inputs before and after each step, the selections, and log p of the masked
    tokens.

    Canvas k has k steps of masks.
    """

    inputs: list[dict[str, Tensor]]  # K + 1 canvases, from clean to blank
    order: list[Int[Tensor, "row position"]]  # K: ranks of the positions masked
    eligible: list[Bool[Tensor, "row position"]]  # K: what could be masked
    log_token: Float[Tensor, "row step"]


def masking_scores(network: PolicyNetwork, inputs: dict[str, Tensor]) -> Float[Tensor, "row position"]:
    """Return the scores of the masking channel, or zeros (uniform)."""
    if isinstance(network, HiddenMLP):
        return network(**inputs)[..., 0]
    return torch.zeros(inputs["masked"].shape, device=inputs["masked"].device)


@torch.no_grad()
def masking_path(
    model: MaskedLM,
    network: PolicyNetwork,
    tokens: Int[Tensor, "row position"],
    given: Bool[Tensor, "row position"],
    steps: int,
    draws: Draws,
) -> MaskingPath:
    """Mask `tokens` outside `given` in `steps` parts by the masking channel, with one evaluation of the model per canvas.

    The parts mirror sampling: in sampling the first steps commit the remainder, so here the last steps mask it.
    """
    environment = UnmaskingEnvironment(model, DecodeOptions(steps))
    blank = environment.reset(Prompts(tokens.masked_fill(~given, model.mask_id)))
    total = blank.to_write
    row_id = torch.arange(len(tokens), device=tokens.device)
    inputs, orders, eligibles, log_tokens = [], [], [], []
    canvas, order = tokens, None
    for k in range(steps + 1):
        observation = environment.reset(Prompts(canvas))
        observation.to_write, observation.time = total, ((steps - k) / total.clamp(min=1)).clamp(max=1)
        inputs.append(network.inputs(observation, everywhere=True))
        if order is not None:
            selected = order > 0
            log_tokens.append(observation.log_prob(selected, tokens))
        if k == steps:
            break
        eligible = (canvas != model.mask_id) & ~given
        back = steps - 1 - k  # the sampling step that this masking step undoes
        count = total // steps + (back < total % steps).long()
        uniforms = draws.uniform("where", row_id, torch.full_like(row_id, k), tokens.shape[1])
        order = FixedCount().sample(masking_scores(network, inputs[-1]), eligible, uniforms, count)
        orders.append(order)
        eligibles.append(eligible)
        canvas = torch.where(order > 0, model.mask_id, canvas)
    return MaskingPath(inputs, orders, eligibles, torch.stack(log_tokens, 1))


def reverse(order: Int[Tensor, "row position"]) -> Int[Tensor, "row position"]:
    """Return the same selections with their ranks reversed."""
    return torch.where(order > 0, order.amax(1, keepdim=True) + 1 - order, 0)


def bound_loss(
    network: PolicyNetwork,
    path: MaskingPath,
    given: Bool[Tensor, "row position"],
    reinforce: float,
    everywhere: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return (loss, negative bound in nats per token) of a path, for the current network; only the network runs.

    Args:
        everywhere: see `variational_loss`.
    """
    distribution = FixedCount()
    log_mask, log_unmask = [], []
    for k, (order, eligible) in enumerate(zip(path.order, path.eligible, strict=True)):
        log_mask.append(distribution.log_prob(masking_scores(network, path.inputs[k]), eligible, order))
        masked_after = (~eligible & ~given) | (order > 0)
        scores = network.scores(**path.inputs[k + 1])
        log_unmask.append(distribution.log_prob(scores, masked_after, reverse(order), **distribution_settings(network)))
    length = (~given).sum(1).clamp(min=1)
    return variational_loss(
        path.log_token, torch.stack(log_unmask, 1), torch.stack(log_mask, 1), length, reinforce, everywhere
    )
