"""A shadow block: masks behind a canvas that stand for the positions of one block (WINO, 2507.18578)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def shadow_places(length: int, first: int, size: int, device: torch.device) -> Int[Tensor, "longer"]:
    """Return the position of each column of a canvas with a shadow block behind it."""
    return torch.cat((torch.arange(length, device=device), torch.arange(first, first + size, device=device)))


def shadow_attention(length: int, first: int, size: int, device: torch.device) -> Bool[Tensor, "longer longer"]:
    """Return the attention mask of a canvas with a shadow block behind it, query by key.

    No position of the canvas sees a shadow. A shadow sees the canvas without the position that it stands for, and all shadows.
    Only direct attention is masked: in a network of several layers a shadow learns of its own token from other positions.
    """
    seen = torch.ones(length + size, length + size, dtype=torch.bool, device=device)
    seen[:length, length:] = False
    seen[length:, first : first + size] = ~torch.eye(size, dtype=torch.bool, device=device)
    return seen
