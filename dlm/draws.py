"""Random numbers as a pure function of (seed, row, step of that row, position, stream[, token]): SplitMix64 on int64
tensors.

A row's numbers do not depend on its batch: rows may leave, be merged, or be computed again in any order. The caller gives
the row id (prompt number, sample number); it is never the index in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

STREAMS = {
    "where": 1,
    "what": 2,
    "tie": 3,
    "noise": 4,
    "mask": 5,
    "resample": 6,
    "pick": 7,
    "order": 8,
    "revise": 9,
    "accept": 10,
    "leave_out": 11,
}
# Elements of [positions, vocabulary] hashed at a time: on a CPU, so that they stay in the cache of a core; on CUDA, so that the
# temporaries (about 25 bytes an element) stay below half a gigabyte.
TOKENS_PER_CHUNK = {"cpu": 400_000, "cuda": 16_000_000}

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def _mix(z: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Apply SplitMix64's finaliser in place. Shifts of int64 are arithmetic, so copies of the sign bit are cut off."""
    z ^= (z >> 30).bitwise_and_((1 << 34) - 1)
    z *= _FIRST
    z ^= (z >> 27).bitwise_and_((1 << 37) - 1)
    z *= _SECOND
    z ^= (z >> 31).bitwise_and_((1 << 33) - 1)
    return z


def _uniform(z: Int[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """Convert 52 bits to (0, 1), both ends excluded. With 53 bits the largest would round to 1, and its exponential to 0."""
    return (z >> 12).bitwise_and_((1 << 52) - 1).double().mul_(2.0**-52).add_(2.0**-53)


@dataclass(frozen=True)
class Draws:
    """All random draws of a run.

    seed: any integer; start: column where each row begins, from which positions are counted, so that padding changes no
    draw; first: added to every row id. The rows of a process are numbered within the whole batch, so the number of
    processes changes no draw.
    """

    seed: int
    start: Int[Tensor, "row"] | None = None
    first: int = 0

    def keys(self, stream: str, *counters: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Return one 64-bit key for each tuple of counters."""
        key = torch.zeros_like(counters[0]) + self.seed
        key = _mix(key * _GOLDEN + STREAMS[stream])
        for counter in counters:
            key = _mix((key ^ counter) + _GOLDEN)
        return key

    def uniform(
        self, stream: str, row_id: Int[Tensor, "row"], row_step: Int[Tensor, "row"], positions: int
    ) -> Float64[Tensor, "row position"]:
        """Draw one number in (0, 1) for each row and position."""
        keys = self.keys(stream, row_id + self.first, row_step).unsqueeze(1)
        position = torch.arange(1, positions + 1, device=row_id.device)
        if self.start is not None:
            position = position - self.start.unsqueeze(1)
        return _uniform(_mix(keys + position * _GOLDEN))

    def normal(
        self, stream: str, row_id: Int[Tensor, "row"], row_step: Int[Tensor, "row"], positions: int
    ) -> Float64[Tensor, "row position"]:
        """Draw standard normal numbers, by the inverse distribution function."""
        return torch.special.ndtri(self.uniform(stream, row_id, row_step, positions))

    def categorical(
        self,
        logits: Float[Tensor, "read vocabulary"],
        row_id: Int[Tensor, "read"],
        row_step: Int[Tensor, "read"],
        position: Int[Tensor, "read"],
        names: Int[Tensor, "read vocabulary"] | None = None,
        stream: str = "what",
    ) -> Int[Tensor, "read"]:
        """Draw one token from softmax(logits) at each requested position, by an exponential race in float64.

        The race of p / E, with E exponential, is the Gumbel trick with one logarithm less. Every token has its own random
        number, so a change of 1e-5 in one logit affects no other token (unlike with the inverse distribution function).

        Args:
            logits: one row per requested position.
            names: token of each column, if the columns are a selection of the vocabulary. None: column 0 is token 0.
        """
        keys = self.keys(stream, row_id + self.first, row_step, position)
        columns = torch.arange(logits.shape[1], device=logits.device).unsqueeze(0) if names is None else names
        tokens = (columns + 1) * _GOLDEN
        rows = max(1, TOKENS_PER_CHUNK[logits.device.type] // logits.shape[1])
        winners = []
        pieces = tokens.expand(len(logits), -1).split(rows)
        for part, key, token in zip(logits.split(rows), keys.split(rows), pieces, strict=True):
            weight = (part - part.amax(1, keepdim=True)).exp_()
            exponential = _uniform(_mix(key.unsqueeze(1) + token)).log_().neg_()
            winners.append(torch.div(weight, exponential, out=exponential).argmax(1))
        return torch.cat(winners) if winners else torch.empty(0, dtype=torch.long, device=logits.device)
