"""Sudoku of any box shape: puzzles with one solution, their symmetries, and a split by grid class.

A grid of `box = (rows, columns)` has n = rows * columns digits, bands of `rows` rows and stacks of `columns` columns. It is
stored flat, row by row, as n * n tokens 0..n-1; the mask token (open cell) is n. Sudoku as a test of the unmasking order
follows Kim et al., "Train for the Worst, Plan for the Best" (arXiv 2502.06768). What differs: a split holds out whole
classes of grids up to symmetry, because a relabelled or shuffled training grid is not an unseen grid.
"""

import hashlib
import itertools
import random
from dataclasses import dataclass
from functools import lru_cache
from math import factorial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewards.sudoku import Box, cell_units, is_solved

Puzzles = dict[str, Tensor]  # "solutions" Int[puzzle, cell] and "clues" Bool[puzzle, cell] (True: the digit is given)

LARGEST_GROUP = 10_000  # symmetries `canonical` goes through one by one: 128 for 4x4, 3,456 for 6x6 (9x9 has 3,359,232)
# Classes are few and unequal, so the salt is chosen such that "test" gets 10 of the 49 classes of 6x6 (22% of random
# grids) and the smaller of the two classes of 4x4 (22%).
TEST_SALT, TEST_SHARE = b"sudoku-53", 0.2
ATTEMPTS = 300  # consecutive grids without a new puzzle after which `make` raises


# --- solving


def _search(
    used: list[int], empty: list[int], values: list[int], box: Box, limit: int, rng: random.Random | None = None
) -> int:
    """Fill `values` (bits) at `empty`, most constrained cell first. Returns the number of solutions up to `limit`."""
    cells, everything = cell_units(box), (1 << box[0] * box[1]) - 1
    tried = []  # of every cell that holds a trial: itself, its units, the digits still to try, what is empty but for it
    found = 0
    while True:
        if not empty:
            found += 1
            if found >= limit:
                return found
        else:
            fewest, best, choices = 99, 0, 0
            for place, cell in enumerate(empty):
                r, c, b = cells[cell]
                free = everything & ~(used[r] | used[c] | used[b])
                count = free.bit_count()
                if count < fewest:
                    fewest, best, choices = count, place, free
                    if count < 2:
                        break
            bits = [1 << digit for digit in range(choices.bit_length()) if choices >> digit & 1]
            if rng is not None:
                rng.shuffle(bits)
            if bits:
                tried.append((empty[best], cells[empty[best]], iter(bits), empty[:best] + empty[best + 1 :]))
        while tried:  # the next trial: of this cell, or of the last one that has any left
            cell, units, bits, empty = tried[-1]
            if values[cell]:
                for unit in units:
                    used[unit] ^= values[cell]
            values[cell] = next(bits, 0)
            if values[cell]:
                for unit in units:
                    used[unit] |= values[cell]
                break
            tried.pop()
        else:
            return found


def _used(values: list[int], box: Box) -> list[int]:
    used = [0] * (3 * box[0] * box[1])
    for value, units in zip(values, cell_units(box), strict=True):
        for unit in units:
            used[unit] |= value
    return used


def count_solutions(grid: list[int], box: Box, limit: int = 2) -> int:
    """Return the number of completions of `grid` (n * n tokens, n = open), at most `limit`. Clues must not contradict each
    other directly.
    """
    n = box[0] * box[1]
    values = [0 if token == n else 1 << token for token in grid]
    return _search(_used(values, box), [cell for cell, value in enumerate(values) if not value], values, box, limit)


def random_grid(box: Box, rng: random.Random) -> list[int]:
    """Return a random full grid of n * n tokens. Every grid is possible, not all equally likely."""
    size = (box[0] * box[1]) ** 2
    values = [0] * size
    _search(_used(values, box), list(range(size)), values, box, 1, rng)
    return [value.bit_length() - 1 for value in values]


def dig(grid: list[int], box: Box, rng: random.Random, clues: int | None = None) -> list[bool]:
    """Remove clues in random order while the solution stays unique. True where a clue is left.

    Stops at `clues` clues, or, with None, when every remaining clue is necessary. One pass is enough: a necessary clue
    stays necessary when others go. More than `clues` are left if this order gets stuck earlier.
    """
    cells = cell_units(box)
    values = [1 << token for token in grid]
    used = _used(values, box)
    left = len(grid)
    for cell in rng.sample(range(len(grid)), len(grid)):
        if left == clues:
            break
        bit, (r, c, b) = values[cell], cells[cell]
        # The grid is the one solution so far, so a second one exists iff this cell can take another digit.
        values[cell] = 0
        free = ((1 << box[0] * box[1]) - 1) & ~((used[r] ^ bit) | (used[c] ^ bit) | (used[b] ^ bit)) & ~bit
        empty = [other for other, value in enumerate(values) if not value and other != cell]
        unique = True
        while free and unique:
            other = free & -free
            free ^= other
            trial = used.copy()
            for unit in (r, c, b):
                trial[unit] ^= bit | other
            unique = not _search(trial, empty, values.copy(), box, 1)
        if unique:
            left -= 1
            for unit in (r, c, b):
                used[unit] ^= bit
        else:
            values[cell] = bit
    return [bool(value) for value in values]


# --- symmetries


def augment(
    solutions: Int[Tensor, "puzzle cell"], clues: Bool[Tensor, "puzzle cell"], box: Box, generator: torch.Generator
) -> tuple[Int[Tensor, "puzzle cell"], Bool[Tensor, "puzzle cell"]]:
    """Apply a random symmetry to each puzzle: bands, rows in a band, stacks, columns in a stack, digits, transposition.

    Transposition is for square boxes only: it would turn the 2x3 boxes of a 6x6 grid into 3x2 boxes.
    """
    (height, width), n, batch = box, box[0] * box[1], len(solutions)

    def shuffled(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator).argsort(-1)

    rows = (shuffled(width)[..., None] * height + shuffled(width, height)).reshape(batch, n)
    columns = (shuffled(height)[..., None] * width + shuffled(height, width)).reshape(batch, n)
    source = rows[:, :, None] * n + columns[:, None, :]
    if height == width:
        flip = torch.rand(batch, 1, 1, generator=generator) < 0.5
        source = torch.where(flip, source.mT, source)
    source = source.reshape(batch, n * n)
    return shuffled(n).gather(1, solutions.gather(1, source)), clues.gather(1, source)


@lru_cache
def _group(box: Box) -> np.ndarray:
    """Return every symmetry except the relabelling, as source indices: Int[symmetry, cell]."""
    (height, width), n = box, box[0] * box[1]

    def lines(outer: int, inner: int) -> np.ndarray:
        inside = list(itertools.permutations(range(inner)))
        return np.array(
            [
                [group * inner + line for group, order in zip(groups, orders, strict=True) for line in order]
                for groups in itertools.permutations(range(outer))
                for orders in itertools.product(inside, repeat=outer)
            ]
        )

    cells = (lines(width, height)[:, None, :, None] * n + lines(height, width)[None, :, None, :]).reshape(-1, n, n)
    if height == width:
        cells = np.concatenate([cells, cells.transpose(0, 2, 1)])
    return cells.reshape(-1, n * n)


def _group_size(box: Box) -> int:
    height, width = box
    lines = factorial(width) * factorial(height) ** width * factorial(height) * factorial(width) ** height
    return lines * (2 if height == width else 1)


def canonical(grid: Int[np.ndarray, " cell"], box: Box) -> Int[np.ndarray, " cell"]:
    """Return the lexicographically first grid of the class of a full `grid`. Two grids are in one class up to symmetry iff
    these agree.

    Raises:
        ValueError: the group is too large to enumerate (9x9); `class_key` has an invariant for that.
    """
    if _group_size(box) > LARGEST_GROUP:
        raise ValueError(
            f"box {box} has {_group_size(box)} symmetries, canonical takes {LARGEST_GROUP} at most; use class_key."
        )
    n = box[0] * box[1]
    images = np.asarray(grid, dtype=np.int8)[_group(box)]
    names = np.empty((len(images), n), dtype=np.int8)
    # The digits are renamed so that the first row reads 0..n-1, the least it can.
    np.put_along_axis(names, images[:, :n].astype(np.int64), np.arange(n, dtype=np.int8)[None], axis=1)
    every = np.arange(len(images))
    for cell in range(n, n * n):
        column = names[every, images[every, cell]]
        every = every[column == column.min()]
    return names[every[0]][images[every[0]]].astype(np.int64)


def _line_signature(grid: np.ndarray, band: int) -> bytes:
    """Return an invariant of the rows: the cycle type of the digit permutation row a -> row b, for all pairs, sorted.

    Permuting columns leaves that permutation unchanged and relabelling conjugates it, so neither changes its cycle type.
    Sorting the partners of a row, the rows of a band and the bands removes the order of the rows.
    """
    n = len(grid)
    step = np.empty((n, n, n), dtype=np.int64)  # step[a, b, digit] = digit below it when row b is put under row a
    np.put_along_axis(step, np.broadcast_to(grid[:, None], step.shape), np.broadcast_to(grid[None], step.shape), axis=2)
    place, length = step, np.zeros_like(step)
    for count in range(1, n + 1):
        length[(place == np.arange(n)) & (length == 0)] = count
        place = np.take_along_axis(step, place, axis=2)
    cycles = np.sort(length, axis=2)
    rows = [
        (sorted(cycles[a, b].tobytes() for b in range(n) if b // band == a // band),
         sorted(cycles[a, b].tobytes() for b in range(n) if b // band != a // band))
        for a in range(n)
    ]  # fmt: skip
    bands = sorted(sorted(rows[start : start + band]) for start in range(0, n, band))
    return b"".join(cycle for rows in bands for row in rows for part in row for cycle in part)


def class_key(grid: Int[np.ndarray, " cell"], box: Box) -> bytes:
    """Return a name of the class of a full grid: its canonical form or, if the group is too large (9x9), an invariant.

    The invariant is the cycle types of all pairs of rows and of all pairs of columns. Different invariants prove different
    classes. Equal ones count as one class, so two grids of one class are never on two sides of a split.
    """
    if _group_size(box) <= LARGEST_GROUP:
        return canonical(grid, box).astype(np.uint8).tobytes()
    square = np.asarray(grid, dtype=np.int64).reshape(box[0] * box[1], -1)
    lines = [_line_signature(square, box[0]), _line_signature(square.T, box[1])]
    return b"".join(sorted(lines) if box[0] == box[1] else lines)


def split_of(grid: Int[np.ndarray, " cell"], box: Box) -> str:
    """Return the side, "train" or "test", of a full grid: a hash of its class, so that the whole class is on one side."""
    digest = hashlib.blake2b(class_key(grid, box), digest_size=8, salt=TEST_SALT).digest()
    return "test" if int.from_bytes(digest, "big") < TEST_SHARE * 2**64 else "train"


# --- data sets


def make(box: Box, count: int, clues: int | None = None, seed: int = 0, split: str = "train") -> Puzzles:
    """Return `count` distinct puzzles with one solution and exactly `clues` clues (None: minimal, every clue is
    necessary).

    A pure function of its arguments.

    Raises:
        ValueError: the split is unknown, or no new puzzle is found (too few clues or too many puzzles requested).
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}, expected 'train' or 'test'.")
    rng = random.Random(seed)
    found: dict[tuple, None] = {}
    failures = 0
    while len(found) < count:
        grid = random_grid(box, rng)
        given = dig(grid, box, rng, clues) if split_of(np.array(grid), box) == split else []
        puzzle = (tuple(grid), tuple(given))
        failures += 1
        if given and clues in (None, sum(given)) and puzzle not in found:
            found[puzzle] = None
            failures = 0
        if failures == ATTEMPTS:
            raise ValueError(
                f"{ATTEMPTS} grids in a row gave no new {split} puzzle with clues={clues} and box {box} after "
                f"{len(found)} of {count}; ask for more clues or fewer puzzles."
            )
    return {
        "solutions": torch.tensor([grid for grid, _ in found], dtype=torch.long),
        "clues": torch.tensor([given for _, given in found], dtype=torch.bool),
    }


def blanked(puzzles: Puzzles, box: Box) -> Int[Tensor, "puzzle cell"]:
    """Return the canvases of puzzles: the solution at the clues, the mask token n elsewhere."""
    return puzzles["solutions"].masked_fill(~puzzles["clues"], box[0] * box[1])


def save(puzzles: Puzzles, path: str | Path) -> None:
    """Write puzzles as safetensors, one byte per digit."""
    save_file({"solutions": puzzles["solutions"].to(torch.uint8), "clues": puzzles["clues"]}, path)


def load(path: str | Path, box: Box) -> Puzzles:
    """Read a file of `save`. ValueError if a solution is not a grid of this box shape."""
    stored = load_file(path)
    puzzles = {"solutions": stored["solutions"].long(), "clues": stored["clues"]}
    wrong = (~is_solved(puzzles["solutions"], box)).sum().item()
    if wrong:
        raise ValueError(f"{wrong} solutions of {path} are no grids of box {box}; load it with the box of make.")
    return puzzles


@dataclass
class SudokuStream:
    """Endless batches: each row is a random symmetry of a random puzzle of `base`, and so in a class of `base`."""

    base: Puzzles
    box: Box

    def puzzles(self, batch: int, generator: torch.Generator) -> Puzzles:
        """Return puzzles for the policy."""
        chosen = torch.randint(len(self.base["solutions"]), (batch,), generator=generator)
        solutions, clues = augment(self.base["solutions"][chosen], self.base["clues"][chosen], self.box, generator)
        return {"solutions": solutions, "clues": clues}

    def grids(self, batch: int, generator: torch.Generator) -> Int[Tensor, "batch cell"]:
        """Return full grids for training a model, which masks them itself."""
        return self.puzzles(batch, generator)["solutions"]
