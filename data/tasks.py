"""What a policy is trained on: canvases to decode, with what their reward needs, and clean rows for the variational bound."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from omegaconf import DictConfig
from torch import Tensor

from data.rows import training_data
from data.sudoku import SudokuStream, SudokuTokenizer, blanked, make


@dataclass
class Prompts:
    """Canvases to be decoded, and the rows of the data set that go with them (solutions of puzzles, say)."""

    canvas: Int[Tensor, "row position"]
    rows: dict[str, Tensor]

    def repeat(self, times: int) -> Prompts:
        """Each prompt `times` times in a row."""
        repeated = {name: value.repeat_interleave(times, 0) for name, value in self.rows.items()}
        return Prompts(self.canvas.repeat_interleave(times, 0), repeated)

    def first(self, count: int) -> Prompts:
        """The first `count` prompts."""
        return Prompts(self.canvas[:count], {name: value[:count] for name, value in self.rows.items()})


class PuzzleTask:
    """Sudoku with unique solutions, `clues` of them or (null) minimal; held-out ones are of other grid classes."""

    def __init__(self, data: DictConfig):
        self.box = tuple(data.box)
        self.stream = SudokuStream(
            make(self.box, data.base_puzzles, data.clues, seed=data.seed, split="train"), self.box
        )
        held_out = make(self.box, data.valid_puzzles, data.clues, seed=data.seed + 1, split="test")
        self.valid = Prompts(blanked(held_out, self.box), held_out)
        self.tokenizer = SudokuTokenizer(self.box)

    def prompts(self, count: int, seed: int) -> Prompts:
        """Training puzzles, a function of the seed."""
        puzzles = self.stream.puzzles(count, torch.Generator().manual_seed(seed))
        return Prompts(blanked(puzzles, self.box), puzzles)

    def clean(self, count: int, seed: int) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
        """Solved rows, and which of their positions are given."""
        puzzles = self.stream.puzzles(count, torch.Generator().manual_seed(seed))
        return puzzles["solutions"], puzzles["clues"]

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to restore: batches are functions of the step's seed."""


class TextTask:
    """Unconditional text: blank canvases; clean rows come from the data set."""

    def __init__(self, data: DictConfig, length: int, mask_id: int, valid_rows: int, seed: int, rank: int, world: int):
        self.length, self.mask_id = length, mask_id
        self.rows, valid, self.tokenizer = training_data(data, length, seed, rank, world)
        self.valid_rows = valid
        self.valid = self.prompts(valid_rows, 0)

    def prompts(self, count: int, seed: int) -> Prompts:
        return Prompts(torch.full((count, self.length), self.mask_id), {})

    def clean(self, count: int, seed: int) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
        tokens = self.rows.next(count)
        return tokens, torch.zeros_like(tokens, dtype=torch.bool)

    def state_dict(self) -> dict:
        return self.rows.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.rows.load_state_dict(state)
