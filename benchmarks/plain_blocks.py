"""Reference implementations of block decoding: LLaDA (2502.09992), and Fast-dLLM (2505.22618) with its two caches.

As published, every evaluation applies the head and a float64 softmax at every position that it computes, and selects among the
masked positions of the block afterwards. With a cache, a block that its first evaluation has filled needs one more evaluation.
Differences from the published code make the loops faster or change nothing. Keys and values are stored in place instead of
concatenated. The unused second argmax of the prefix loop is left out. The selection is one comparison instead of a loop. The
mask's own logit is -inf, so that no loop can commit it. A loop decodes one row: with a cache the published loops take no more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import process_time

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.masked_lm import LlamaLM


@dataclass
class Clock:
    """CPU seconds of the parts of a decoding."""

    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = process_time()
        yield
        self.parts[part] += process_time() - started


@dataclass
class Decoded:
    """Result of a decoding. evaluations: number of all; idle: number of those on a full block."""

    tokens: Int[Tensor, "1 position"]
    evaluations: int = 0
    idle: int = 0


def commit(
    logits: Float[Tensor, "1 run vocabulary"],
    tokens: Int[Tensor, "1 run"],
    open_: Bool[Tensor, "1 run"],
    threshold: float,
    clock: Clock,
) -> None:
    """Commit, in place, the best tokens at the positions `open_` that reach the threshold, and always the most confident one."""
    with clock("softmax"):
        best = logits.argmax(-1)
        probability = logits.double().softmax(-1).gather(-1, best.unsqueeze(-1)).squeeze(-1)
    confidence = probability.masked_fill(~open_, -torch.inf)
    selected = (confidence >= threshold).scatter(1, confidence.argmax(1, keepdim=True), True) & open_
    tokens[selected] = best[selected]


@torch.no_grad()
def decode(
    model: LlamaLM,
    canvas: Int[Tensor, "1 position"],
    prompt: int,
    block: int,
    threshold: float,
    cache: str | None = None,
    clock: Clock | None = None,
) -> Decoded:
    """Decode the canvas behind `prompt` block by block, greedily. cache: None, prefix or dual."""
    clock, out = clock or Clock(), Decoded(canvas.clone())
    tokens, network, length = out.tokens, model.backbone, canvas.shape[1]

    def full(part: Int[Tensor, "1 block"]) -> bool:
        return not bool((part == model.mask_id).any())

    def evaluate(start: int, end: int, memory) -> Float[Tensor, "1 run vocabulary"]:
        out.evaluations += 1
        with clock("body"):
            hidden = network.body(tokens[:, start:end], None, memory, start)
        with clock("head"):
            logits = network.head(hidden)
            logits[..., model.mask_id] = -torch.inf
        return logits

    for first in range(prompt, length, block):
        last = first + block
        here = torch.zeros_like(tokens, dtype=torch.bool)
        here[:, first:last] = True
        if cache is None:
            while not full(tokens[:, first:last]):
                commit(evaluate(0, length, None), tokens, here & (tokens == model.mask_id), threshold, clock)
            continue
        memory = model.new_memory(1, length, tokens.device)
        commit(evaluate(0, length, memory), tokens, here & (tokens == model.mask_id), threshold, clock)
        end = length if cache == "prefix" else last
        out.idle += full(tokens[:, first:last])
        while True:
            open_ = (here & (tokens == model.mask_id))[:, first:end]
            commit(evaluate(first, end, memory), tokens[:, first:end], open_, threshold, clock)
            if full(tokens[:, first:last]):
                break
    return out
