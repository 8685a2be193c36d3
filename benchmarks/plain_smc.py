"""Reference implementation of twisted SMC and its CTL update as published (2404.17546, in JAX), for tests and speed.

Every step runs the model and the twist's trunk on every particle, over all of prompt and output, and applies both heads at every
position. There is no cache. CTL's gradient goes through the whole sampling scan. With `growing` a step runs the current prefix
only; the published code, compiled for one shape, does not, so `growing` is a faster reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Network = Callable[[Int[Tensor, "row position"]], Float[Tensor, "row position vocabulary"]]


@dataclass
class Sweep:
    """Result of a sweep. log_psi: of each generated token, with its gradient if requested; log_prefix: log p psi_t / q of each
    prefix since the last resampling; log_weight: log p phi / q."""

    tokens: Int[Tensor, "row position"]
    log_psi: Float[Tensor, "row output"]
    log_prefix: Float[Tensor, "row output"]
    log_weight: Float[Tensor, "row"]
    log_z: Float[Tensor, ""]


def sweep(
    logits_of: Network,
    log_psi_of: Network,
    log_phi: Callable[[Int[Tensor, "row position"]], Float[Tensor, "row"]],
    prompt: Int[Tensor, "row position"],
    length: int,
    resample: bool,
    growing: bool = False,
) -> Sweep:
    """Generate `length` tokens behind `prompt`. resample: multinomially after every step but the last. The networks read one
    position more than there are tokens (the start token), and predict the next token at each."""
    tokens, rows = prompt, len(prompt)
    log_weight = torch.zeros(rows)
    before, log_z = torch.zeros(rows), torch.zeros(())
    chosen, prefixes = [], []
    for step in range(length):
        last, missing = tokens.shape[1], 0 if growing else length - step - 1
        read = torch.nn.functional.pad(tokens, (0, missing))
        with torch.no_grad():
            log_p = logits_of(read)[:, last].log_softmax(-1)
        log_psi = log_psi_of(read)[:, last]
        log_q = (log_p + log_psi.detach()).log_softmax(-1)
        drawn = torch.multinomial(log_q.exp(), 1)
        psi = log_psi.gather(1, drawn).squeeze(1)
        ratio = (log_p - log_q).gather(1, drawn).squeeze(1)
        tokens = torch.cat((tokens, drawn), 1)
        chosen.append(psi)
        prefixes.append(log_weight + ratio + psi.detach() - before)
        now = psi.detach() if step < length - 1 else log_phi(tokens)
        log_weight = log_weight + ratio + now - before
        before = now
        if resample and step < length - 1:
            ancestors = torch.multinomial(log_weight.softmax(0), rows, replacement=True)
            log_z = log_z + log_weight.logsumexp(0) - math.log(rows)
            tokens, before, log_weight = tokens[ancestors], before[ancestors], torch.zeros(rows)
            chosen = [part[ancestors] for part in chosen]
    log_z = log_z + log_weight.logsumexp(0) - math.log(rows)
    return Sweep(tokens, torch.stack(chosen, 1), torch.stack(prefixes, 1), log_weight, log_z)


def contrastive(found: Sweep) -> Float[Tensor, ""]:
    """Return CTL's loss of one set of samples: it raises log psi by their final weights and lowers it by the weights of their
    prefixes."""
    return contrast(found.log_psi, found.log_weight, found.log_prefix)


def contrast(
    log_psi: Float[Tensor, "row output"], log_weight: Float[Tensor, "row"], log_prefix: Float[Tensor, "row output"]
) -> Float[Tensor, ""]:
    up = log_weight.softmax(0).unsqueeze(1)
    down = log_prefix.softmax(0)
    return ((down - up) * log_psi).sum(0).mean()
