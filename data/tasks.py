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
    """Canvases to be decoded, the rows of the data set that go with them (solutions of puzzles, say), and the right text where
    it is known."""

    canvas: Int[Tensor, "row position"]
    rows: dict[str, Tensor]
    text: Int[Tensor, "row position"] | None = None

    def repeat(self, times: int) -> Prompts:
        """Each prompt `times` times in a row."""
        repeated = {name: value.repeat_interleave(times, 0) for name, value in self.rows.items()}
        text = None if self.text is None else self.text.repeat_interleave(times, 0)
        return Prompts(self.canvas.repeat_interleave(times, 0), repeated, text)

    def to(self, device: torch.device) -> Prompts:
        """Canvas and text on the device; `rows` stay where they are."""
        return Prompts(self.canvas.to(device), self.rows, None if self.text is None else self.text.to(device))

    def first(self, count: int) -> Prompts:
        """The first `count` prompts."""
        rows = {name: value[:count] for name, value in self.rows.items()}
        return Prompts(self.canvas[:count], rows, None if self.text is None else self.text[:count])


class PuzzleTask:
    """Sudoku with unique solutions, `clues` of them or (null) minimal; held-out ones are of other grid classes."""

    def __init__(self, data: DictConfig):
        self.box = tuple(data.box)
        self.stream = SudokuStream(
            make(self.box, data.base_puzzles, data.clues, seed=data.seed, split="train"), self.box
        )
        held_out = make(self.box, data.valid_puzzles, data.clues, seed=data.seed + 1, split="test")
        self.valid = self.held_out = Prompts(blanked(held_out, self.box), held_out, held_out["solutions"])
        self.tokenizer = SudokuTokenizer(self.box)

    def prompts(self, count: int, seed: int) -> Prompts:
        """Training puzzles, a function of the seed."""
        puzzles = self.stream.puzzles(count, torch.Generator().manual_seed(seed))
        return Prompts(blanked(puzzles, self.box), puzzles, puzzles["solutions"])

    def texts(self, count: int, seed: int) -> Prompts:
        """Training prompts whose right text is known: all are."""
        return self.prompts(count, seed)

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
        self.held_out = Prompts(self.prompts(len(valid), 0).canvas, {}, valid)

    def prompts(self, count: int, seed: int) -> Prompts:
        return Prompts(torch.full((count, self.length), self.mask_id), {})

    def texts(self, count: int, seed: int) -> Prompts:
        """Blank canvases and training rows to be revealed on them."""
        return Prompts(self.prompts(count, seed).canvas, {}, self.rows.next(count))

    def clean(self, count: int, seed: int) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
        tokens = self.rows.next(count)
        return tokens, torch.zeros_like(tokens, dtype=torch.bool)

    def state_dict(self) -> dict:
        return self.rows.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.rows.load_state_dict(state)
