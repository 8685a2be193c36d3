"""Measures of token rows: the entropy of each row, and the repetition within a set of rows."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, Int
from torch import Tensor

NO_TOKEN = -1


def unigram_entropy(
    tokens: Int[Tensor, "row position"], counted: Bool[Tensor, "row position"] | None = None
) -> Float64[Tensor, " row"]:
    """Return the entropy, in nats, of the token frequencies in each row: 0 for one repeated token, log L for L different
    ones.

    Args:
        counted: tokens to count (None: all); 0 for a row without any.
    """
    counted = torch.ones_like(tokens, dtype=torch.bool) if counted is None else counted
    ordered = tokens.masked_fill(~counted, NO_TOKEN).sort(dim=1).values
    run = F.pad((ordered[:, 1:] != ordered[:, :-1]).long(), (1, 0)).cumsum(1)  # equal tokens are one run
    counts = torch.zeros(ordered.shape, dtype=torch.float64, device=tokens.device)
    counts.scatter_add_(1, run, (ordered != NO_TOKEN).double())
    return torch.special.entr(counts / counted.sum(1, keepdim=True).clamp(min=1)).sum(1)


def distinct_n(
    tokens: Int[Tensor, "row position"], n: int, counted: Bool[Tensor, "row position"] | None = None
) -> float:
    """Return the number of distinct n-grams of the set over the number of its n-grams, in (0, 1]. An n-gram does not span
    two rows.

    Args:
        counted: tokens to count (None: all); NaN if they contain no n-gram.
    """
    if not 1 <= n <= tokens.shape[1]:
        raise ValueError(f"n is {n}, expected between 1 and the row length {tokens.shape[1]}: choose a smaller n.")
    grams = tokens.unfold(1, n, 1)
    grams = grams.flatten(0, 1) if counted is None else grams[counted.unfold(1, n, 1).all(2)]
    return len(grams.unique(dim=0)) / len(grams) if len(grams) else float("nan")
