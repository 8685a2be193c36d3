"""The check of a Sudoku grid, for any box shape."""

from functools import lru_cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor

Box = tuple[int, int]  # rows and columns of a box; the grid has rows * columns digits


@lru_cache
def cell_units(box: Box) -> list[tuple[int, int, int]]:
    """Return row, column and box of every cell, as indices into one list of 3n used-digit masks."""
    (height, width), n = box, box[0] * box[1]
    return [(r, n + c, 2 * n + r // height * height + c // width) for r in range(n) for c in range(n)]


def is_solved(grids: Int[Tensor, "grid cell"], box: Box) -> Bool[Tensor, " grid"]:
    """Return True for grids in which every row, column and box holds each digit 0..n-1 once. A grid with a masked cell is
    not solved.
    """
    n = box[0] * box[1]
    members = torch.tensor(cell_units(box), device=grids.device).T.argsort(dim=1).reshape(-1)  # cells, unit by unit
    units = grids[:, members].reshape(len(grids), 3 * n, n)
    return (units.sort(-1).values == torch.arange(n, device=grids.device)).all(-1).all(-1)
