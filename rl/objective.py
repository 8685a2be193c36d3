"""The gradient of an objective of estimated log-likelihoods, with bounded memory.

An objective may be a nonlinear function of the sum over many canvases of a row (a ratio, a logarithm). It is therefore
differentiated in two stages: the outputs of all canvases are computed without a graph; the objective is differentiated with
respect to these numbers; then each canvas runs again with its derivative as weight. Memory is that of one chunk of
canvases, whatever the number of masks (BGPO, 2510.11683, uses a linear bound; this is exact). Canvases with derivative zero
(no advantage, clipped) do not run again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.likelihood import Estimator, Views, known_terms, terms
from dlm.masked_lm import MaskedLM
from losses import clipped_policy_loss, kl_to_reference

RATIOS = ("sequence", "token")


def backward(
    model: MaskedLM,
    estimator: Estimator,
    tokens: Int[Tensor, "row position"],
    views: Views,
    loss_of: Callable[[Float[Tensor, "row position"]], Float[Tensor, ""]],
    chunk: int,
    push_down: Bool[Tensor, "row"] | None = None,
    start: Int[Tensor, "row"] | None = None,
    known: Float[Tensor, "view position"] | None = None,
) -> float:
    """Add the gradient of loss_of(estimate) to the parameters, and return the loss. known: `terms` under the current
    weights, if known.
    """

    def loss_at(values: Float[Tensor, "view position"]) -> Float[Tensor, ""]:
        return loss_of(estimator.combine(values, views, len(tokens), push_down))

    if known is None and 0 < len(views) <= chunk:
        loss = loss_at(terms(model, estimator, tokens, views, start))
        if loss.requires_grad:
            loss.backward()
        return float(loss.detach())
    values = known_terms(model, estimator, tokens, views, chunk, start) if known is None else known
    values = values.detach().requires_grad_()
    loss = loss_at(values)
    (derivative,) = torch.autograd.grad(loss, values)
    needed = derivative.any(1).nonzero().squeeze(1)
    for part in needed.split(chunk) if len(needed) else ():
        again = terms(model, estimator, tokens, views.take(part), start)
        (again * derivative[part]).sum().backward()
    return float(loss.detach())


def policy_loss(
    new: Float[Tensor, "row position"],
    old: Float[Tensor, "row position"],
    reference: Float[Tensor, "row position"] | None,
    decided: Bool[Tensor, "row position"],
    advantage: Float[Tensor, "row"],
    weight: Float[Tensor, "row"],
    ratio: str,
    clip: float,
    kl_beta: float,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Return the clipped surrogate plus kl_beta times the k3 estimate of the KL to the reference, and metrics for the log.

    Estimates are divided by the number of `decided` positions of a row (`Batch.decided`), so that both ratios have the same
    gradient where new and old agree: `token` clips each position separately, `sequence` the row, by the exponential of its
    mean.

    Args:
        weight: of each row; 0 leaves it out.
    """
    positions = decided.sum(1, keepdim=True).clamp(min=1)
    if ratio == "sequence":
        new, old = ((x / positions).sum(1, keepdim=True) for x in (new, old))
        reference = None if reference is None else (reference / positions).sum(1, keepdim=True)
        each = weight.unsqueeze(1)
    else:
        each = weight.unsqueeze(1) * decided / positions
    spread = advantage.unsqueeze(1).expand_as(each)
    kept = each.flatten() > 0

    def flat(values: Tensor) -> Tensor:
        return values.flatten()[kept]

    loss = clipped_policy_loss(flat(new), flat(old), flat(spread), flat(each), clip)
    change = (flat(new) - flat(old)).detach().exp()
    beyond = ((change - 1).abs() > clip).float()
    figures = {"clipped": float((beyond * flat(each)).sum())}
    if reference is not None:
        kl = (flat(each) * kl_to_reference(flat(new), flat(reference))).sum()
        figures["kl"] = float(kl.detach())
        loss = loss + kl_beta * kl
    return loss, figures
