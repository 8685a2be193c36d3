"""Values of a twist along paths: finished sequences with the step that committed each position.

For a causal model the path is the text, and one teacher-forced pass gives all values. For a masked model every step has its
own canvas. The reference p commits one position per step, any masked one with equal probability, so position and token are
proposed together: q(i, v | z) = p(v | z, i) psi(z with v at i) / (number of masks * normalizer(z, i)).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dlm.draws import Draws
from samplers.smc import Trajectories
from twist.network import TwistModel, densities
from twist.objectives import Densities


def joined(*paths: Trajectories) -> Trajectories:
    """Concatenate the rows of several paths."""
    return Trajectories(torch.cat([path.tokens for path in paths]), torch.cat([path.unmasked_at for path in paths]))


def rows_of(path: Trajectories, rows: slice) -> Trajectories:
    """Return some rows of trajectories."""
    return Trajectories(path.tokens[rows], path.unmasked_at[rows])


def canvases(path: Trajectories, mask_id: int, first: int, last: int) -> Int[Tensor, "state position"]:
    """Return each row after `first`, ... `last` - 1 steps, one after the other."""
    steps = torch.arange(first, last, device=path.tokens.device)
    known = path.unmasked_at.unsqueeze(1) < steps.view(1, -1, 1)
    return path.tokens.unsqueeze(1).where(known, mask_id).flatten(0, 1)


def step_orders(path: Trajectories, steps: int) -> Int[Tensor, "state position"]:
    """Return 1 at the position that each of `steps` steps committed, 0 elsewhere."""
    step = torch.arange(steps, device=path.tokens.device)
    return (path.unmasked_at.unsqueeze(1) == step.view(1, -1, 1)).long().flatten(0, 1)


def reordered(path: Trajectories, seed: int, first_row: int = 0) -> Trajectories:
    """Return the same texts with new random orders of commits, all equally likely, as in the forward process of masked
    diffusion.

    This is the distribution of the paths of a text if the conditionals belong to one joint distribution and a step commits
    one position. first_row: number of the first row in the batch.
    """
    given, number = path.unmasked_at < 0, first_row + torch.arange(len(path.tokens), device=path.tokens.device)
    drawn = Draws(seed).uniform("order", number, torch.zeros_like(number), path.tokens.shape[1])
    rank = drawn.masked_fill(given, 2.0).argsort(1).argsort(1)
    return Trajectories(path.tokens, torch.where(given, path.unmasked_at, rank))


def each_step(condition: Float[Tensor, "row given"] | None, steps: int) -> Float[Tensor, "state given"] | None:
    """Return the condition of each row, repeated for each of its steps."""
    return None if condition is None else condition.repeat_interleave(steps, 0)


def path_log_psi(
    twist: TwistModel, path: Trajectories, steps: int, condition: Float[Tensor, "row given"] | None = None
) -> Float[Tensor, "row step"]:
    """Return log psi after each step, without computing the vocabulary."""
    if twist.model.causal:
        return twist.log_psi_all(path.tokens, path.tokens.shape[1] - steps, condition)
    before, tokens = canvases(path, twist.model.mask_id, 0, steps), path.tokens.repeat_interleave(steps, 0)
    return twist.of_writes(before, step_orders(path, steps), tokens, each_step(condition, steps)).view(-1, steps)


@torch.no_grad()
def path_states(twist: TwistModel, path: Trajectories, steps: int) -> Float[Tensor, "read width"]:
    """Return hidden states of the frozen model before each step: those that predict its commit (for a masked model, at
    every mask).

    They do not change while a twist is trained, so passes over the same paths can share them.
    """
    if twist.model.causal:
        return twist.model.hidden(path.tokens, twist.read_from(path.tokens, path.tokens.shape[1] - steps))
    before = canvases(path, twist.model.mask_id, 0, steps)
    return twist.model.hidden(before, before == twist.model.mask_id)


@torch.no_grad()
def path_features(
    twist: TwistModel, path: Trajectories, steps: int, states: Float[Tensor, "read width"] | None = None
) -> Float[Tensor, "state width"]:
    """Return the twist's inputs for the state before each step (for a masked model the mean over its masks), row by row.

    Args:
        states: `path_states`, if they are known; a trunk other than the model's always runs.
    """
    if twist.trunk is not None:
        states = None
    if twist.model.causal:
        return twist.features(path.tokens, path.tokens.shape[1] - steps).flatten(0, 1) if states is None else states
    before = canvases(path, twist.model.mask_id, 0, steps)
    masks = before == twist.model.mask_id
    read = twist.reader.hidden(before, masks) if states is None else states
    hidden = torch.zeros(*before.shape, twist.model.hidden_size, device=before.device)
    hidden = hidden.masked_scatter(masks.unsqueeze(2), read.float())
    return hidden.sum(1) / masks.sum(1, keepdim=True)


def path_densities(
    twist: TwistModel, path: Trajectories, steps: int, condition: Float[Tensor, "row given"] | None = None,
    states: Float[Tensor, "read width"] | None = None,
) -> Densities:  # fmt: skip
    """Return log p, log psi and log-normalizer of each step.

    Logits exist for a chunk of positions at a time and are recomputed in the backward pass.

    Args:
        states: `path_states`, if they are known.
    """
    hidden = path_states(twist, path, steps) if states is None else states
    if twist.model.causal:
        return Densities(*densities(twist, path.tokens, path.tokens.shape[1] - steps, condition, hidden))
    before, tokens = canvases(path, twist.model.mask_id, 0, steps), path.tokens.repeat_interleave(steps, 0)
    masks, selected = before == twist.model.mask_id, step_orders(path, steps) > 0
    own = hidden
    if twist.trunk is not None:
        own = twist.reader.hidden(before, masks)
    every = each_step(condition, steps)
    columns = [hidden, own.float(), tokens[masks]] + ([] if every is None else [every[masks.nonzero()[:, 0]]])

    def of_chunk(states: Tensor, features: Tensor, target: Tensor, given: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            log_p = twist.model.head(states).log_softmax(1)
        log_psi, index = twist.log_psi_next(features, given), target.unsqueeze(1)
        own_p, own_psi = (values.gather(1, index).squeeze(1) for values in (log_p, log_psi))
        return torch.stack((own_p, own_psi, (log_p + log_psi).logsumexp(1)))

    found: list[Any] = []
    for part in zip(*(column.split(twist.model.chunk(masks.device)) for column in columns), strict=True):
        learns = torch.is_grad_enabled()
        found.append(checkpoint(of_chunk, *part, use_reentrant=False) if learns else of_chunk(*part))
    log_p, log_psi, log_normalizer = torch.cat(found, 1).unbind(0)
    written, many = selected[masks], masks.sum(1).log()
    over_positions = torch.full(
        masks.shape, -torch.inf, device=log_normalizer.device, dtype=log_normalizer.dtype
    ).masked_scatter(masks, log_normalizer)
    shape = (-1, steps)
    return Densities(
        (log_p[written] - many).view(shape),
        log_psi[written].view(shape),
        (over_positions.logsumexp(1) - many).view(shape),
    )
