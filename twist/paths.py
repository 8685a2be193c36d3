"""What a twist says along paths: finished sequences and the step that wrote each position.

Of a causal model the path is the text, and one teacher-forced pass says everything; of a masked one every step has a canvas of
its own, and the reference p writes one position a step, any of the masks with equal chance, so that position and token are
proposed together: q(i, v | z) = p(v | z, i) psi(z with v at i) / (number of masks * mass).
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
    """The rows of all of them."""
    return Trajectories(torch.cat([path.tokens for path in paths]), torch.cat([path.written_at for path in paths]))


def rows_of(path: Trajectories, rows: slice) -> Trajectories:
    return Trajectories(path.tokens[rows], path.written_at[rows])


def canvases(path: Trajectories, mask_id: int, first: int, last: int) -> Int[Tensor, "state position"]:
    """Each row as it stood after `first`, ... `last` - 1 steps, one after the other."""
    steps = torch.arange(first, last, device=path.tokens.device)
    known = path.written_at.unsqueeze(1) < steps.view(1, -1, 1)
    return path.tokens.unsqueeze(1).where(known, mask_id).flatten(0, 1)


def picks(path: Trajectories, steps: int) -> Int[Tensor, "state position"]:
    """1 at the position that each of `steps` steps wrote, 0 elsewhere."""
    step = torch.arange(steps, device=path.tokens.device)
    return (path.written_at.unsqueeze(1) == step.view(1, -1, 1)).long().flatten(0, 1)


def reordered(path: Trajectories, seed: int, first_row: int = 0) -> Trajectories:
    """The same texts, written in orders drawn anew, each as likely: what masking finished text (forward noising) says of its
    past. That is the law of the paths of a text where the conditionals are those of one joint and a step writes one position.
    first_row: the number of the first of them in the batch."""
    given, number = path.written_at < 0, first_row + torch.arange(len(path.tokens), device=path.tokens.device)
    drawn = Draws(seed).uniform("order", number, torch.zeros_like(number), path.tokens.shape[1])
    rank = drawn.masked_fill(given, 2.0).argsort(1).argsort(1)
    return Trajectories(path.tokens, torch.where(given, path.written_at, rank))


def each_step(condition: Float[Tensor, "row given"] | None, steps: int) -> Float[Tensor, "state given"] | None:
    return None if condition is None else condition.repeat_interleave(steps, 0)


def path_log_psi(
    twist: TwistModel, path: Trajectories, steps: int, condition: Float[Tensor, "row given"] | None = None
) -> Float[Tensor, "row step"]:
    """log psi of what each step made. Nothing as long as the vocabulary."""
    if twist.model.causal:
        return twist.log_psi_all(path.tokens, path.tokens.shape[1] - steps, condition)
    before, tokens = canvases(path, twist.model.mask_id, 0, steps), path.tokens.repeat_interleave(steps, 0)
    return twist.of_writes(before, picks(path, steps), tokens, each_step(condition, steps)).view(-1, steps)


@torch.no_grad()
def path_states(twist: TwistModel, path: Trajectories, steps: int) -> Float[Tensor, "read width"]:
    """Hidden states of the frozen model before each step: those that predict what it wrote (of a masked model, at every mask).
    They stand still while a twist learns, so that passes over the same paths can share them."""
    if twist.model.causal:
        return twist.model.hidden(path.tokens, twist.read_from(path.tokens, path.tokens.shape[1] - steps))
    before = canvases(path, twist.model.mask_id, 0, steps)
    return twist.model.hidden(before, before == twist.model.mask_id)


@torch.no_grad()
def path_features(
    twist: TwistModel, path: Trajectories, steps: int, states: Float[Tensor, "read width"] | None = None
) -> Float[Tensor, "state width"]:
    """What the twist reads of the state before each step (of a masked model the mean over its masks), row by row. states:
    `path_states`, where they are there already; a trunk of its own is always run."""
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
    """log p, log psi and log mass of each step. Logits exist for a chunk of positions at a time, in the backward pass too.
    states: `path_states`, where they are there already."""
    hidden = path_states(twist, path, steps) if states is None else states
    if twist.model.causal:
        return Densities(*densities(twist, path.tokens, path.tokens.shape[1] - steps, condition, hidden))
    before, tokens = canvases(path, twist.model.mask_id, 0, steps), path.tokens.repeat_interleave(steps, 0)
    masks, picked = before == twist.model.mask_id, picks(path, steps) > 0
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
    log_p, log_psi, mass = torch.cat(found, 1).unbind(0)
    written, many = picked[masks], masks.sum(1).log()
    over_positions = torch.full(masks.shape, -torch.inf, device=mass.device, dtype=mass.dtype).masked_scatter(
        masks, mass
    )
    shape = (-1, steps)
    return Densities(
        (log_p[written] - many).view(shape),
        log_psi[written].view(shape),
        (over_positions.logsumexp(1) - many).view(shape),
    )
